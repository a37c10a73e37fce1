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
that is the rule of `lax.custom_linear_solve`, again with the same factors.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from ._generators import AbstractGenerator
from ._solvers import AbstractStrategy, Direct, SolverStats, worst


Pairing = Literal["diagonal", "gram"]
# The name of what `jax.checkpoint` should keep: the solutions.
SOLUTION = "trainq_solution"


class Form(eqx.Module):
    """A bilinear form of the resolvent, with what the solver says.

    `guess` is where the next solve of a system nearby may start.
    """

    value: Array
    stats: SolverStats | None
    guess: Any


def total(forms: Sequence[Form]) -> Form:
    """The sum of forms over the sectors of a chain."""
    value = sum((form.value for form in forms[1:]), forms[0].value)
    stats = worst([form.stats for form in forms if form.stats is not None])
    return Form(value, stats, [form.guess for form in forms])


def _freeze(tree: Any) -> Any:
    return jax.tree.map(lax.stop_gradient, tree)


def solver_of(
    generator: AbstractGenerator,
    strategy: AbstractStrategy,
    n_columns: int,
    size: Float[Array, ""] | None = None,
) -> Callable[..., tuple[Array, SolverStats, Any]]:
    """Prepare once, and return `solve(b, guess=None, transpose=False)` for
    `(L + φφᵀ)⁻¹ b`.

    `size` is the norm of what the columns are parts of: a part that is zero but for
    rounding is not held to an accuracy of its own.

    It is differentiable to any order, in either mode. It raises, when run, if a
    right-hand side is not solved: the chain is then reducible in floating point.
    """
    if isinstance(strategy, Direct) and strategy.plain_autodiff:
        return _plain_solver(generator, strategy)
    frozen = _freeze(generator)
    system = frozen.system()
    solver = strategy.select(system, n_columns)
    prepared = _freeze(solver.prepare(system))

    def solve(b, guess=None, transpose=False):
        norm = jnp.linalg.norm(lax.stop_gradient(b), axis=0)
        eps = float(jnp.finfo(b.dtype).eps)
        most = jnp.max(norm, initial=0) if size is None else lax.stop_gradient(size)
        floor = 16 * eps**0.5 * most

        def run(b, transpose):
            reduced = system.restrict(b)
            if guess is not None and guess.shape != reduced.shape:
                raise ValueError(
                    f"The guess has shape {guess.shape} where {reduced.shape} is "
                    "needed: it is of another model, kernel or solver. Start anew, "
                    "with None or `cold`."
                )
            y, count = solver.solve(system, prepared, reduced, guess, floor, transpose)
            return system.prolong(y, b), (y, count)

        operator = generator.transposed() if transpose else generator
        y, (guess_, count) = lax.custom_linear_solve(
            operator.mv,
            b,
            lambda _, b: run(b, transpose),
            transpose_solve=lambda _, b: run(b, not transpose),
            symmetric=generator.is_symmetric,
            has_aux=True,
        )
        fixed = frozen.transposed() if transpose else frozen
        y, stats = _judged(fixed, solver, y, b, norm, floor, count)
        return y, stats, _freeze(guess_)

    return solve


def _plain_solver(generator: AbstractGenerator, solver: Direct) -> Callable[..., Any]:
    solver.select(generator, 1)  # raises if it is too large
    matrix = generator.dense()

    def solve(b, guess=None, transpose=False):
        del guess
        y = jnp.linalg.solve(matrix.T if transpose else matrix, b)
        fixed = _freeze(generator)
        fixed = fixed.transposed() if transpose else fixed
        norm = jnp.linalg.norm(lax.stop_gradient(b), axis=0)
        floor = 16 * float(jnp.finfo(b.dtype).eps) ** 0.5 * jnp.max(norm, initial=0)
        none = jnp.zeros(b.shape[1], int)
        y, stats = _judged(fixed, solver, y, b, norm, floor, none)
        return y, stats, None

    return solve


def _judged(fixed, solver, y, b, norm, floor, count) -> tuple[Array, SolverStats]:
    # Two things can go wrong in a solve of finite precision. The residual is not small;
    # or it is, but the operator is so close to singular that this says nothing about y,
    # whose relative error is about ε ‖L⁻¹‖ ≥ ε ‖y‖ / ‖b‖.
    y_fixed, b_fixed = _freeze((y, b))
    eps, accuracy = float(jnp.finfo(b.dtype).eps), solver.accuracy(b.dtype)
    scale = jnp.maximum(norm, floor)
    residual = jnp.linalg.norm(fixed.mv(y_fixed) - b_fixed, axis=0)
    exact = residual <= accuracy * scale
    regular = eps * jnp.linalg.norm(y_fixed, axis=0) <= eps ** (1 / 3) * scale
    good = exact & regular
    limit = getattr(solver, "max_steps", None)
    exhausted = jnp.zeros_like(good) if limit is None else count >= limit
    result = jnp.where(exhausted, 1, jnp.where(good, 0, 2))
    relative = jnp.where(scale > 0, residual / jnp.where(scale > 0, scale, 1), residual)
    stats = SolverStats(relative, count, result)
    if solver.throw:
        # A factor of one carries the check: passing `y` itself through the conditional
        # would gather it on one device.
        y = y * eqx.error_if(
            jnp.ones((), y.dtype),
            jnp.any(result > 0),
            "The resolvent could not be solved: a relative residual is above "
            f"{accuracy:.0e}, or the solution has an error above "
            f"{eps ** (1 / 3):.0e}, or an iteration reached its `max_steps`. The "
            "likely causes, in order: the model is so cold that its chain is reducible "
            "in floating point (lower beta or the weights, use float64, `Direct()`, or "
            "a block kernel); an observable or a parameter is not finite. With "
            "`throw=False` the solver returns its statistics instead.",
        )
    return y, stats


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _form(
    generator: AbstractGenerator,
    u: Array,
    w: Array | None,
    size: Array,
    guess: Any,
    pairing: Pairing,
    strategy: AbstractStrategy,
) -> Form:
    return _form_fwd(generator, u, w, size, guess, pairing, strategy)[0]


def _form_fwd(generator, u, w, size, guess, pairing, strategy):
    solve = solver_of(generator, strategy, u.shape[1], size)
    if not generator.is_symmetric:
        y, stats, guess_ = solve(u if w is None else w, guess)
        z, _, _ = solve(u, transpose=True)
    elif w is None:
        y, stats, guess_ = solve(u, guess)
        z = None
    else:
        both, stats, guess_ = solve(jnp.concatenate([w, u], axis=1), guess)
        y, z = jnp.split(both, 2, axis=1)
    y = checkpoint_name(y, SOLUTION)
    form = Form(pair(u, y, pairing), stats, guess_)
    return form, (generator, u, w, size, guess, y, z)


def _form_bwd(pairing, strategy, residuals, cotangents):
    del strategy
    generator, u, w, size, guess, y, z = residuals

    def stationary(generator, u, w):
        w, left = u if w is None else w, y if z is None else z
        form = pair(u, y, pairing) + pair(left, w, pairing)
        return form - pair(left, generator.mv(y), pairing)

    moved = jax.vjp(stationary, generator, u, w)[1](cotangents.value)
    return (*moved, jnp.zeros_like(size), jax.tree.map(jnp.zeros_like, guess))


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
    solver: AbstractStrategy,
    size: Float[Array, ""] | None = None,
    guess: Any = None,
) -> Form:
    """`⟨u_a, L⁺ w_b⟩` of shape `(k,)` or `(k, k)`, with a backward pass free of solves.

    It is a `jax.custom_vjp`: use reverse mode, to any order, and forward over reverse
    (`jax.hessian`). Forward mode alone raises; `Direct(plain_autodiff=True)` allows it.

    **Arguments:**

    - `generator`: the operator `L + φφᵀ`.
    - `u`, `w`: columns orthogonal to the null vector of `L`. `w` is `u` by default.
    - `pairing`: `"diagonal"` for `a = b` only, `"gram"` for all pairs.
    - `solver`: the strategy.
    - `size`: the norm of what the columns are parts of, which sets their accuracy.
    - `guess`: where an iteration starts, from the `Form` of a system nearby.
    """
    if isinstance(solver, Direct) and solver.plain_autodiff:
        y, stats, _ = solver_of(generator, solver, 1)(u if w is None else w)
        return Form(pair(u, y, pairing), stats, None)
    if size is None:
        size = column_size(u)
    size, guess = _freeze((size, guess))
    return _form(generator, u, w, size, guess, pairing, solver)
