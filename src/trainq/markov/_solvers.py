"""The primitive: bilinear forms of the resolvent, with a backward pass free of solves.

A chain with kernel `P` and stationary law `π` has the symmetrised generator
`L = D^½ (I - P) D^-½`, `D = diag π`, whose null vector is `φ = √π`. All that this
library asks of a chain is sums like `⟨u, L⁺ w⟩` for `u` and `w` orthogonal to `φ`;
there `L⁺` is the inverse of the regular operator `L + φφᵀ`, which is what an
`AbstractGenerator` holds.

The derivative. Let `y = (L + φφᵀ)⁻¹ w` and `z = (L + φφᵀ)⁻ᵀ u`. The form is the
stationary value, at these `y` and `z`, of

    J(y, z) = ⟨u, y⟩ + ⟨z, w⟩ - ⟨z, (L + φφᵀ) y⟩,

so its first derivative is that of `J` with `y` and `z` held fixed (the envelope
theorem): `d⟨u, L⁺w⟩ = ⟨du, y⟩ + ⟨z, dw⟩ - ⟨z, d(L + φφᵀ) y⟩`. The forward pass has
solved for `y`, and `z` comes from the same factorisation, or is `y` itself where
`u = w` and `L` is symmetric. The backward pass solves nothing. It is also how the rule
is written below: the derivative of `J`, taken by autodiff through the structure of `L`
alone.

Higher derivatives need how `y` and `z` move, `dy = (L + φφᵀ)⁻¹ (dw - d(L + φφᵀ) y)`:
the custom JVP of `solve`, again with the same factors.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ._generators import AbstractGenerator


Pairing = Literal["diagonal", "gram"]


class Direct(eqx.Module):
    """Solve by one factorisation, for all right-hand sides at once.

    The cost is that of a Cholesky factorisation of `n` states (LU for a chain that is
    not reversible), `n` being what the chain's own reductions leave: with `N` units,
    `2**(N - 2)` for single flips without biases and even `N`, `2**(N - 1)` for other
    single flips, and `2**(min(n_visible, n_hidden) - 1)` for two blocks without biases.
    """

    plain_autodiff: bool = eqx.field(static=True, default=False)
    max_states: int = eqx.field(static=True, default=2**13)


Direct.__init__.__doc__ = """**Arguments:**

- `plain_autodiff`: differentiate straight through a dense solve of the unreduced system
    instead of using the custom rule. Slower, and it allows forward mode; it is the test
    of the rule.
- `max_states`: refuse larger matrices than this, of `8 max_states²` bytes each.
"""


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solve(
    transpose: bool, generator: AbstractGenerator, factor: Any, b: Array
) -> Array:
    return generator.backsolve(factor, b, transpose)


@_solve.defjvp
def _solve_jvp(transpose, primals, tangents):
    generator, factor, b = primals
    generator_dot, _, b_dot = tangents
    y = _solve(transpose, generator, factor, b)
    _, mv_dot = jax.jvp(lambda g: g.mv(y), (generator,), (generator_dot,))
    return y, _solve(transpose, generator, factor, b_dot - mv_dot)


def _freeze(tree: Any) -> Any:
    return jax.tree.map(lax.stop_gradient, tree)


def solver_of(
    generator: AbstractGenerator, solver: Direct, size: Float[Array, ""] | None = None
) -> Callable[..., Array]:
    """Factorise once, and return `solve(b, transpose=False)` for `(L + φφᵀ)⁻¹ b`.

    `size` is the norm of what the columns are parts of: a part that is zero but for
    rounding is not held to an accuracy of its own.

    It takes any number of columns and is differentiable to any order, in either mode.
    It raises, when run, if a residual is large: the chain is then reducible in floating
    point.
    """
    n = generator.n_states
    if n > solver.max_states:
        raise ValueError(
            f"A direct solve of {n} states is too large: at most {solver.max_states} "
            "are allowed. Use a model with fewer units, a block kernel (whose chain "
            "lives on one layer), or raise `Direct(max_states=...)` if there is "
            f"memory for matrices of {8 * n * n / 2**30:.1f} GiB."
        )
    if solver.plain_autodiff:
        matrix = generator.dense()
        return lambda b, transpose=False: jnp.linalg.solve(
            matrix.T if transpose else matrix, b
        )
    factor = _freeze(_freeze(generator).factor())

    def solve(b, transpose=False):
        system = generator.transposed() if transpose else generator
        return _verified(system, _solve(transpose, system, factor, b), b, size)

    return solve


def _verified(
    generator: AbstractGenerator, y: Array, b: Array, size: Array | None
) -> Array:
    # Two things can go wrong in a solve of finite precision. The residual is not small;
    # or it is, but the operator is so close to singular that this says nothing about y,
    # whose relative error is about ε ‖L⁻¹‖ ≥ ε ‖y‖ / ‖b‖.
    fixed, y_fixed, b_fixed = _freeze((generator, y, b))
    eps = float(jnp.finfo(b.dtype).eps)
    scale = jnp.linalg.norm(b_fixed, axis=0)
    size = jnp.max(scale, initial=0) if size is None else lax.stop_gradient(size)
    scale = jnp.maximum(scale, 16 * math.sqrt(eps) * size)
    residual = jnp.linalg.norm(fixed.mv(y_fixed) - b_fixed, axis=0)
    exact = residual <= math.sqrt(eps) * scale
    regular = eps * jnp.linalg.norm(y_fixed, axis=0) <= eps ** (1 / 3) * scale
    return eqx.error_if(
        y,
        ~jnp.all(exact & regular),
        "The resolvent could not be solved: a relative residual is above "
        f"{math.sqrt(eps):.0e}, or the solution has an error above "
        f"{eps ** (1 / 3):.0e}. The likely causes, in order: the model is so cold "
        "that its chain is reducible in floating point (lower beta or the weights, "
        "use float64, or a block kernel); an observable or a parameter is not finite.",
    )


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _form(
    generator: AbstractGenerator,
    u: Array,
    w: Array | None,
    size: Array,
    pairing: Pairing,
    solver: Direct,
) -> Array:
    return _form_fwd(generator, u, w, size, pairing, solver)[0]


def _form_fwd(generator, u, w, size, pairing, solver):
    solve = solver_of(generator, solver, size)
    if not generator.is_symmetric:
        y, z = solve(u if w is None else w), solve(u, transpose=True)
    elif w is None:
        y = z = solve(u)
    else:
        y, z = jnp.split(solve(jnp.concatenate([w, u], axis=1)), 2, axis=1)
    return pair(u, y, pairing), (generator, u, w, size, y, z)


def _form_bwd(pairing, solver, residuals, cotangent):
    del solver
    generator, u, w, size, y, z = residuals

    def stationary(generator, u, w):
        w = u if w is None else w
        form = pair(u, y, pairing) + pair(z, w, pairing)
        return form - pair(z, generator.mv(y), pairing)

    (*cotangents,) = jax.vjp(stationary, generator, u, w)[1](cotangent)
    return (*cotangents, jnp.zeros_like(size))


_form.defvjp(_form_fwd, _form_bwd)


def column_size(u: Float[Array, "n k"]) -> Float[Array, ""]:
    """The largest norm of a column."""
    return jnp.max(jnp.linalg.norm(lax.stop_gradient(u), axis=0), initial=0)


def pair(a: Float[Array, "n k"], b: Float[Array, "n k"], pairing: Pairing) -> Array:
    return jnp.sum(a * b, axis=0) if pairing == "diagonal" else a.T @ b


def bilinear_form(
    generator: AbstractGenerator,
    u: Float[Array, "n k"],
    w: Float[Array, "n k"] | None = None,
    *,
    pairing: Pairing = "diagonal",
    solver: Direct,
    size: Float[Array, ""] | None = None,
) -> Float[Array, " k"] | Float[Array, "k k"]:
    """`⟨u_a, L⁺ w_b⟩` by one factorisation, with a backward pass free of solves.

    It is a `jax.custom_vjp`: use reverse mode, to any order, and forward over reverse
    (`jax.hessian`). Forward mode alone raises; `Direct(plain_autodiff=True)` allows it.

    **Arguments:**

    - `generator`: the operator `L + φφᵀ`.
    - `u`, `w`: columns orthogonal to the null vector of `L`. `w` is `u` by default.
    - `pairing`: `"diagonal"` for `a = b` only, `"gram"` for all pairs.
    - `solver`: a `Direct`.
    - `size`: the norm of what the columns are parts of, which sets their accuracy.
    """
    if solver.plain_autodiff:
        solve = solver_of(generator, solver)
        return pair(u, solve(u if w is None else w), pairing)
    if size is None:
        size = column_size(u)
    return _form(generator, u, w, lax.stop_gradient(size), pairing, solver)
