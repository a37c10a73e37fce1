"""Symmetrised generators: the operators `L + φφᵀ` that a chain reduces to."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._spins import parity, xor
from ._cholesky import cholesky, cholesky_solve


class AbstractGenerator(eqx.Module):
    """The operator `L + φφᵀ` of a chain, or of one symmetry sector of it.

    A sector without the constant function has no null vector, and `null` is None there.
    """

    is_symmetric: eqx.AbstractVar[bool]
    null: eqx.AbstractVar[Float[Array, " n"] | None]

    @abc.abstractmethod
    def apply(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """`L y`, for `k` columns at once."""

    @abc.abstractmethod
    def matrix(self) -> Float[Array, "n n"]:
        """The matrix `L`."""

    @property
    @abc.abstractmethod
    def n_states(self) -> int:
        """The size of the system."""

    def transposed(self) -> "AbstractGenerator":
        """The generator of the reversed chain, which has the same factors."""
        return self

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """`(L + φφᵀ) y`, for `k` columns at once."""
        out = self.apply(y)
        return out if self.null is None else out + jnp.outer(self.null, self.null @ y)

    def dense(self, shift: float = 1.0) -> Float[Array, "n n"]:
        """The matrix `L + shift φφᵀ`."""
        matrix = self.matrix()
        if self.null is None:
            return matrix
        return matrix + shift * jnp.outer(self.null, self.null)

    def factor(self) -> Any:
        """What `backsolve` needs, as a tree of arrays."""
        if self.is_symmetric:
            return cholesky(self.dense())
        return jax.scipy.linalg.lu_factor(self.dense())

    def backsolve(
        self, factor: Any, b: Float[Array, "n k"], transpose: bool = False
    ) -> Float[Array, "n k"]:
        """`(L + φφᵀ)⁻¹ b` from the factors; the transposed system if asked."""
        if self.is_symmetric:
            return cholesky_solve(factor, b)
        return jax.scipy.linalg.lu_solve(factor, b, trans=int(transpose))


class FlipGenerator(AbstractGenerator):
    """A diagonal minus weighted exclusive ors of the state index.

    `(L y)[s] = diagonal[s] y[s] - Σ_i hops[i, s] y[s ^ masks[i]]`. With single-bit
    masks this is a single-flip kernel on the hypercube; in a sector of the global flip
    one mask has all bits set.
    """

    diagonal: Float[Array, " n"]
    hops: Float[Array, "masks n"]
    null: Float[Array, " n"] | None
    masks: tuple[int, ...] = eqx.field(static=True)
    is_symmetric: bool = eqx.field(static=True, default=True, init=False)

    @property
    def n_states(self) -> int:
        return self.diagonal.shape[0]

    @property
    def _n_bits(self) -> int:
        return self.n_states.bit_length() - 1

    def apply(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return self.diagonal[:, None] * y - _hop(self.hops, self.masks, y)

    def matrix(self) -> Float[Array, "n n"]:
        rows = jnp.broadcast_to(jnp.arange(self.n_states), self.hops.shape)
        columns = _neighbours(self.masks, self.n_states)
        return jnp.diag(self.diagonal).at[rows, columns].add(-self.hops)

    # Even-odd elimination. If every mask has an odd number of bits, each hop changes
    # the parity of the state index, and with states of even (e) and odd (o) parity
    #
    #     L = [[D_e, -C], [-Cᵀ, D_o]],   D_e and D_o diagonal.
    #
    # Then y_e = D_e⁻¹ (b_e + C y_o), and (D_o - Cᵀ D_e⁻¹ C) y_o = b_o + Cᵀ D_e⁻¹ b_e: a
    # system of half the size. Its null vector is φ_o, which is shifted away as before.
    #
    # The bits of a state but the last, with the parity, determine it. So both halves
    # are indexed by s >> 1, and a hop by `mask` is an exclusive or of that index by
    # mask >> 1. C has as many entries in a row as there are masks, and CᵀD_e⁻¹C the
    # square of that: it is filled in, not multiplied out.

    @property
    def _is_bipartite(self) -> bool:
        return self._n_bits > 0 and all(mask.bit_count() % 2 for mask in self.masks)

    def _split(self, y: Float[Array, "n *k"]) -> tuple[Array, Array]:
        pairs = y.reshape(-1, 2, *y.shape[1:])
        odd = parity(self._n_bits - 1).reshape((-1,) + (1,) * (y.ndim - 1))
        first, second = pairs[:, 0], pairs[:, 1]
        return jnp.where(odd, second, first), jnp.where(odd, first, second)

    def _join(self, even: Array, odd: Array) -> Array:
        is_odd = parity(self._n_bits - 1)[:, None]
        pairs = [jnp.where(is_odd, odd, even), jnp.where(is_odd, even, odd)]
        return jnp.stack(pairs, axis=1).reshape(-1, even.shape[-1])

    @property
    def _half_masks(self) -> tuple[int, ...]:
        return tuple(mask >> 1 for mask in self.masks)

    def factor(self) -> Any:
        if not self._is_bipartite:
            return super().factor()
        diagonal, schur = self._split(self.diagonal)
        hops = tuple(half.T for half in self._split(self.hops.T))
        to = _neighbours(self._half_masks, diagonal.size)
        paths = hops[0][:, None] * (hops[0] / diagonal[None])[None]
        schur = jnp.diag(schur).at[to[:, None], to[None, :]].add(-paths)
        if self.null is not None:
            null = self._split(self.null)[1]
            null = null / jnp.linalg.norm(null)
            schur = schur + jnp.outer(null, null)
        return diagonal[:, None], hops, cholesky(schur)

    def backsolve(
        self, factor: Any, b: Float[Array, "n k"], transpose: bool = False
    ) -> Float[Array, "n k"]:
        if not self._is_bipartite:
            return super().backsolve(factor, b)
        diagonal, (from_even, from_odd), schur = factor
        masks = self._half_masks
        constant = 0 if self.null is None else jnp.outer(self.null, self.null @ b)
        even, odd = self._split(b - constant)
        odd = odd + _hop(from_odd, masks, even / diagonal)
        odd = cholesky_solve(schur, odd)
        y = self._join((even + _hop(from_even, masks, odd)) / diagonal, odd)
        if self.null is None:
            return y
        return y - jnp.outer(self.null, self.null @ y) + constant


def _neighbours(masks: tuple[int, ...], n: int) -> Int[Array, "masks n"]:
    return jnp.arange(n)[None, :] ^ jnp.array(masks, int)[:, None]


def _hop(
    hops: Float[Array, "masks n"], masks: tuple[int, ...], y: Float[Array, "n k"]
) -> Float[Array, "n k"]:
    """`Σ_i hops[i, s] y[s ^ masks[i]]`."""
    total = jnp.zeros_like(y)
    for hop, mask in zip(hops, masks, strict=True):
        total = total + hop[:, None] * xor(y, mask)
    return total


class GramGenerator(AbstractGenerator):
    """`I - BᵀB + φφᵀ`: one layer of a two-block kernel."""

    overlap: Float[Array, "rows n"]
    null: Float[Array, " n"] | None
    is_symmetric: bool = eqx.field(static=True, default=True, init=False)

    @property
    def n_states(self) -> int:
        return self.overlap.shape[1]

    def apply(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return y - self.overlap.T @ (self.overlap @ y)

    def matrix(self) -> Float[Array, "n n"]:
        identity = jnp.eye(self.n_states, dtype=self.overlap.dtype)
        return identity - self.overlap.T @ self.overlap


class DenseGenerator(AbstractGenerator):
    """Any chain, as a matrix."""

    entries: Float[Array, "n n"]
    null: Float[Array, " n"] | None
    is_symmetric: bool = eqx.field(static=True)

    @property
    def n_states(self) -> int:
        return self.entries.shape[0]

    def apply(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return self.entries @ y

    def matrix(self) -> Float[Array, "n n"]:
        return self.entries

    def transposed(self) -> "DenseGenerator":
        return DenseGenerator(
            entries=self.entries.T, null=self.null, is_symmetric=self.is_symmetric
        )
