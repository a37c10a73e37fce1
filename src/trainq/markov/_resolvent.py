"""The primitive: bilinear forms of the resolvent, with a backward pass free of solves.

A chain with kernel `P` and stationary law `π` has the symmetrised generator
`L = D^½ (I - P) D^-½`, `D = diag π`, whose null vector is `φ = √π`. All that this library
asks of a chain is sums like `⟨u, L⁺ w⟩` for `u` and `w` orthogonal to `φ`; there `L⁺` is
the inverse of the regular operator `L + φφᵀ`, which is what a `Generator` holds.

The derivative. Let `y = (L + φφᵀ)⁻¹ w` and `z = (L + φφᵀ)⁻ᵀ u`. The form is the stationary
value, at these `y` and `z`, of

    J(y, z) = ⟨u, y⟩ + ⟨z, w⟩ - ⟨z, (L + φφᵀ) y⟩,

so its first derivative is that of `J` with `y` and `z` held fixed (the envelope theorem):
`d⟨u, L⁺w⟩ = ⟨du, y⟩ + ⟨z, dw⟩ - ⟨z, d(L + φφᵀ) y⟩`. The forward pass has solved for `y`,
and `z` comes from the same factorisation, or is `y` itself where `u = w` and `L` is
symmetric. The backward pass solves nothing. It is also how the rule is written below: the
derivative of `J`, taken by autodiff through the structure of `L` alone.

Higher derivatives need how `y` and `z` move, `dy = (L + φφᵀ)⁻¹ (dw - d(L + φφᵀ) y)`: the
custom JVP of `solve`, again with the same factors.
"""

import abc
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._spins import parity, xor


Pairing = Literal["diagonal", "gram"]


class AbstractGenerator(eqx.Module):
    """The operator `L + φφᵀ` of a chain, or of one symmetry sector of it.

    A sector without the constant function has no null vector, and `null` is None there.
    """

    is_symmetric: eqx.AbstractVar[bool]
    null: eqx.AbstractVar[Float[Array, " n"] | None]

    @abc.abstractmethod
    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """`(L + φφᵀ) y`, for `k` columns at once."""

    @abc.abstractmethod
    def dense(self, shift: float = 1.0) -> Float[Array, "n n"]:
        """The matrix `L + shift φφᵀ`."""

    def transposed(self) -> "AbstractGenerator":
        """The generator of the reversed chain, which has the same factors."""
        return self

    @property
    @abc.abstractmethod
    def n_states(self) -> int:
        """The size of the system."""

    def factor(self) -> Any:
        """What `backsolve` needs, as a tree of arrays."""
        if self.is_symmetric:
            return jnp.linalg.cholesky(self.dense())
        return jax.scipy.linalg.lu_factor(self.dense())

    def backsolve(
        self, factor: Any, b: Float[Array, "n k"], transpose: bool = False
    ) -> Float[Array, "n k"]:
        """`(L + φφᵀ)⁻¹ b` from the factors; the transposed system if asked."""
        if self.is_symmetric:
            return jax.scipy.linalg.cho_solve((factor, True), b)
        return jax.scipy.linalg.lu_solve(factor, b, trans=int(transpose))


class FlipGenerator(AbstractGenerator):
    """A diagonal minus weighted exclusive ors of the state index.

    `(L y)[s] = diagonal[s] y[s] - Σ_i hops[i, s] y[s ^ masks[i]]`. With single-bit masks
    this is a single-flip kernel on the hypercube; in a sector of the global flip one mask
    has all bits set.
    """

    diagonal: Float[Array, " n"]
    hops: Float[Array, "masks n"]
    null: Float[Array, " n"] | None
    masks: tuple[int, ...] = eqx.field(static=True)
    is_symmetric = True

    @property
    def n_states(self) -> int:
        return self.diagonal.shape[0]

    @property
    def _n_bits(self) -> int:
        return self.n_states.bit_length() - 1

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        out = self.diagonal[:, None] * y
        for mask, hop in zip(self.masks, self.hops, strict=True):
            out = out - hop[:, None] * xor(y, mask)
        return out if self.null is None else out + jnp.outer(self.null, self.null @ y)

    def dense(self, shift: float = 1.0) -> Float[Array, "n n"]:
        matrix = jnp.diag(self.diagonal) - _xor_matrix(self.hops, self.masks)
        if self.null is None:
            return matrix
        return matrix + shift * jnp.outer(self.null, self.null)

    # Even-odd elimination. If every mask has an odd number of bits, each hop changes the
    # parity of the state index, and with states of even (e) and odd (o) parity
    #
    #     L = [[D_e, -C], [-Cᵀ, D_o]],   D_e and D_o diagonal.
    #
    # Then y_e = D_e⁻¹ (b_e + C y_o), and (D_o - Cᵀ D_e⁻¹ C) y_o = b_o + Cᵀ D_e⁻¹ b_e: a
    # system of half the size. Its null vector is φ_o, which is shifted away as before.
    #
    # The bits of a state but the last, with the parity, determine it. So both halves are
    # indexed by s >> 1, and a hop by `mask` is an exclusive or of that index by mask >> 1.

    @property
    def _is_bipartite(self) -> bool:
        return all(mask.bit_count() % 2 for mask in self.masks)

    def _split(self, y: Float[Array, "n *k"]) -> tuple[Array, Array]:
        pairs = y.reshape(-1, 2, *y.shape[1:])
        odd = parity(self._n_bits - 1).reshape((-1,) + (1,) * (y.ndim - 1))
        first, second = pairs[:, 0], pairs[:, 1]
        return jnp.where(odd, second, first), jnp.where(odd, first, second)

    def _join(self, even: Array, odd: Array) -> Array:
        is_odd = parity(self._n_bits - 1)[:, None]
        pairs = [jnp.where(is_odd, odd, even), jnp.where(is_odd, even, odd)]
        return jnp.stack(pairs, axis=1).reshape(-1, even.shape[-1])

    def factor(self) -> Any:
        if not self._is_bipartite:
            return super().factor()
        diagonal, other = self._split(self.diagonal)
        hops = self._split(self.hops.T)[0].T
        coupling = _xor_matrix(hops, tuple(mask >> 1 for mask in self.masks))
        scaled = coupling / diagonal[:, None]
        schur = jnp.diag(other) - coupling.T @ scaled
        if self.null is not None:
            null = self._split(self.null)[1]
            null = null / jnp.linalg.norm(null)
            schur = schur + jnp.outer(null, null)
        return diagonal, scaled, jnp.linalg.cholesky(schur)

    def backsolve(
        self, factor: Any, b: Float[Array, "n k"], transpose: bool = False
    ) -> Float[Array, "n k"]:
        if not self._is_bipartite:
            return super().backsolve(factor, b)
        diagonal, scaled, chol = factor
        constant = None if self.null is None else jnp.outer(self.null, self.null @ b)
        if constant is not None:
            b = b - constant
        even, odd = self._split(b)
        odd = jax.scipy.linalg.cho_solve((chol, True), odd + scaled.T @ even)
        y = self._join(even / diagonal[:, None] + scaled @ odd, odd)
        if self.null is None:
            return y
        return y - jnp.outer(self.null, self.null @ y) + constant


def _xor_matrix(hops: Float[Array, "masks n"], masks: tuple[int, ...]) -> Array:
    """The matrix with `hops[i, s]` added at row `s` and column `s ^ masks[i]`."""
    n = hops.shape[1]
    rows = jnp.arange(n)
    columns = jnp.stack([rows ^ mask for mask in masks])
    zeros = jnp.zeros((n, n), hops.dtype)
    return zeros.at[jnp.broadcast_to(rows, columns.shape), columns].add(hops)


class GramGenerator(AbstractGenerator):
    """`I - BᵀB + φφᵀ`: one layer of a two-block kernel."""

    overlap: Float[Array, "rows n"]
    null: Float[Array, " n"] | None
    is_symmetric = True

    @property
    def n_states(self) -> int:
        return self.overlap.shape[1]

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        out = y - self.overlap.T @ (self.overlap @ y)
        return out if self.null is None else out + jnp.outer(self.null, self.null @ y)

    def dense(self, shift: float = 1.0) -> Float[Array, "n n"]:
        matrix = jnp.eye(self.overlap.shape[1], dtype=self.overlap.dtype)
        matrix = matrix - self.overlap.T @ self.overlap
        if self.null is None:
            return matrix
        return matrix + shift * jnp.outer(self.null, self.null)


class DenseGenerator(AbstractGenerator):
    """Any chain, as a matrix."""

    matrix: Float[Array, "n n"]
    null: Float[Array, " n"]
    is_symmetric: bool = eqx.field(static=True)

    @property
    def n_states(self) -> int:
        return self.matrix.shape[0]

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return self.matrix @ y + jnp.outer(self.null, self.null @ y)

    def dense(self, shift: float = 1.0) -> Float[Array, "n n"]:
        return self.matrix + shift * jnp.outer(self.null, self.null)

    def transposed(self) -> "DenseGenerator":
        return DenseGenerator(self.matrix.T, self.null, self.is_symmetric)


class Direct(eqx.Module):
    """Solve by one factorisation, for all right-hand sides at once.

    The cost is that of a Cholesky factorisation of `n` states (LU for a chain that is not
    reversible), `n` being what the chain's own reductions leave: with `N` units,
    `2**(N - 2)` for single flips without biases and even `N`, `2**(N - 1)` for other
    single flips, and `2**(min(n_visible, n_hidden) - 1)` for two blocks without biases.
    """

    plain_autodiff: bool = eqx.field(static=True, default=False)
    max_states: int = eqx.field(static=True, default=2**13)


Direct.__init__.__doc__ = """**Arguments:**

- `plain_autodiff`: differentiate straight through a dense solve of the unreduced system
    instead of using the custom rule. Slower, and it allows forward mode; it is the test of
    the rule.
- `max_states`: refuse larger matrices than this, of `8 max_states²` bytes each.
"""


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solve(transpose: bool, generator: AbstractGenerator, factor: Any, b: Array) -> Array:
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


def solver_of(generator: AbstractGenerator, solver: Direct) -> Callable[..., Array]:
    """Factorise once, and return `solve(b, transpose=False)` for `(L + φφᵀ)⁻¹ b`.

    It takes any number of columns and is differentiable to any order, in either mode. It
    raises, when run, if a residual is large: the chain is then reducible in floating point.
    """
    n = generator.n_states
    if n > solver.max_states:
        raise ValueError(
            f"A direct solve of {n} states is too large: at most {solver.max_states} are "
            "allowed. Use a model with fewer units, a block kernel (whose chain lives on "
            "one layer), or raise `Direct(max_states=...)` if there is memory for "
            f"matrices of {8 * n * n / 2**30:.1f} GiB."
        )
    if solver.plain_autodiff:
        matrix = generator.dense()
        return lambda b, transpose=False: jnp.linalg.solve(
            matrix.T if transpose else matrix, b
        )
    factor = _freeze(_freeze(generator).factor())

    def solve(b, transpose=False):
        system = generator.transposed() if transpose else generator
        return _verified(system, _solve(transpose, system, factor, b), b)

    return solve


def _verified(generator: AbstractGenerator, y: Array, b: Array) -> Array:
    fixed, y_fixed, b_fixed = _freeze((generator, y, b))
    residual = jnp.linalg.norm(fixed.mv(y_fixed) - b_fixed, axis=0)
    eps = float(jnp.finfo(b.dtype).eps)
    scale = jnp.linalg.norm(b_fixed, axis=0)
    # A column that is zero but for rounding may keep a residual of that size.
    small = residual <= math.sqrt(eps) * scale + 16 * eps * jnp.max(scale, initial=0)
    return eqx.error_if(
        y,
        ~jnp.all(small),
        "The resolvent could not be solved: a relative residual is above the square root "
        f"of the machine epsilon, {math.sqrt(eps):.0e}. The likely causes, in "
        "order: the model is so cold that its chain is reducible in floating point "
        "(lower beta or the weights, or use float64); an observable or a parameter is not "
        "finite.",
    )


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _form(
    generator: AbstractGenerator, u: Array, w: Array | None, pairing: Pairing, solver
) -> Array:
    return _form_fwd(generator, u, w, pairing, solver)[0]


def _form_fwd(generator, u, w, pairing, solver):
    solve = solver_of(generator, solver)
    if not generator.is_symmetric:
        y, z = solve(u if w is None else w), solve(u, transpose=True)
    elif w is None:
        y = z = solve(u)
    else:
        y, z = jnp.split(solve(jnp.concatenate([w, u], axis=1)), 2, axis=1)
    return pair(u, y, pairing), (generator, u, w, y, z)


def _form_bwd(pairing, solver, residuals, cotangent):
    del solver
    generator, u, w, y, z = residuals

    def stationary(generator, u, w):
        w = u if w is None else w
        form = pair(u, y, pairing) + pair(z, w, pairing)
        return form - pair(z, generator.mv(y), pairing)

    return jax.vjp(stationary, generator, u, w)[1](cotangent)


_form.defvjp(_form_fwd, _form_bwd)


def pair(a: Float[Array, "n k"], b: Float[Array, "n k"], pairing: Pairing) -> Array:
    return jnp.sum(a * b, axis=0) if pairing == "diagonal" else a.T @ b


def bilinear_form(
    generator: AbstractGenerator,
    u: Float[Array, "n k"],
    w: Float[Array, "n k"] | None = None,
    *,
    pairing: Pairing = "diagonal",
    solver: Direct,
) -> Float[Array, " k"] | Float[Array, "k k"]:
    """`⟨u_a, L⁺ w_b⟩` by one factorisation, with a backward pass free of solves.

    It is a `jax.custom_vjp`: use reverse mode, to any order, and forward over reverse
    (`jax.hessian`). Forward mode alone raises; `Direct(plain_autodiff=True)` allows it.

    **Arguments:**

    - `generator`: the operator `L + φφᵀ`.
    - `u`, `w`: columns orthogonal to the null vector of `L`. `w` is `u` by default.
    - `pairing`: `"diagonal"` for `a = b` only, `"gram"` for all pairs.
    - `solver`: a `Direct`.
    """
    if solver.plain_autodiff:
        solve = solver_of(generator, solver)
        return pair(u, solve(u if w is None else w), pairing)
    return _form(generator, u, w, pairing, solver)
