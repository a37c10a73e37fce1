"""What is left of a generator for a solver: systems with a unit diagonal, halved by
even-odd elimination where the structure allows."""

import abc
import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._spins import at_neighbours, neighbours, parity, shard, xor
from ._overlaps import AbstractOverlap, DenseOverlap


Pairing = Literal["diagonal", "gram"]
"""Which inner products: of each function with itself, or of all pairs."""


def pair(a: Float[Array, "n k"], b: Float[Array, "n k"], pairing: Pairing) -> Array:
    """`⟨a_i, b_j⟩` for `i = j`, or for all pairs."""
    return jnp.sum(a * b, axis=0) if pairing == "diagonal" else a.T @ b


def column_norms(x: Float[Array, "n k"]) -> Float[Array, " k"]:
    """The norm of each column.

    By a loop of two, so that XLA does not fuse the sum with an operator before it: that
    would be held in parts, such as the permuted copies of all units.
    """
    n = x.shape[0]
    if n % 2:
        return jnp.linalg.norm(x, axis=0)
    pairs = x.reshape(n // 2, 2, -1)

    def add(i, total):
        part = jax.lax.dynamic_index_in_dim(pairs, i, axis=1, keepdims=False)
        return total + jnp.sum(part * part, axis=0)

    zero = jnp.zeros(x.shape[1], x.dtype)
    return jnp.sqrt(jax.lax.fori_loop(0, 2, add, zero))


class AbstractSystem(eqx.Module):
    """A regular linear system, and the way to it and back."""

    is_self_adjoint: eqx.AbstractVar[bool]

    @property
    @abc.abstractmethod
    def n_states(self) -> int:
        """The size of the system."""

    @property
    @abc.abstractmethod
    def products(self) -> int:
        """Multiplications in one application to one column."""

    @property
    def is_sparse(self) -> bool:
        """Whether applying it takes less than a product with its matrix."""
        return self.products < self.n_states**2

    @property
    def assembly(self) -> int:
        """Multiplications that `matrix` takes."""
        return 0

    @abc.abstractmethod
    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """The operator on `k` columns at once. It may annihilate a null vector that no
        right-hand side from `restrict` has a part in."""

    @abc.abstractmethod
    def matrix(self) -> Float[Array, "n n"]:
        """The matrix, shifted away from zero on the null vector."""

    def held(self, memory: float) -> "AbstractSystem":
        """The same system, for many applications: what each of them would compute anew
        is held if it fits into so many GiB."""
        del memory
        return self

    def restrict(self, b: Float[Array, "states k"]) -> Float[Array, "n k"]:
        """The right-hand side that is left of `b`."""
        return b

    def prolong(
        self, y: Float[Array, "n k"], b: Float[Array, "states k"]
    ) -> Float[Array, "states k"]:
        """The whole solution, from that of the system."""
        del b
        return y

    def transposed(self) -> "AbstractSystem":
        """The transposed system.

        **Raises:** `ValueError` if it is not self-adjoint, and does not know it.
        """
        if self.is_self_adjoint:
            return self
        raise ValueError(
            f"{type(self).__name__} does not know its transpose. Use `Direct()`."
        )


class AbstractScaledSystem(AbstractSystem):
    """`L + φφᵀ`, scaled to a unit diagonal.

    With `D` the diagonal of `L`, the rates at which states are left, and `ŷ = D^½ y`,
    the system `L y = b` becomes `(I - Ĥ) ŷ = D^-½ b`. States that are left rarely then
    weigh as much as others, and it is as far from singular as the chain of its jumps.
    Constants are solved apart: on them the operator is `φφᵀ`.
    """

    root: eqx.AbstractVar[Float[Array, " states"]]  # D^½
    null: eqx.AbstractVar[Float[Array, " states"] | None]  # φ

    @property
    def n_states(self) -> int:
        return self.root.shape[0]

    def _scaled(self, b: Array) -> Array:
        if self.null is not None:
            b = b - jnp.outer(self.null, self.null @ b)
        return b / self.root[:, None]

    def _unscaled(self, y: Array, b: Array) -> Array:
        y = y / self.root[:, None]
        if self.null is None:
            return y
        # Twice, because what the first one takes off may be large: `ŷ` has a mean of
        # zero in the law of the jumps, in which states that are hardly left are rare.
        y = y - jnp.outer(self.null, self.null @ y)
        return y + jnp.outer(self.null, self.null @ (b - y))

    @property
    def _scaled_null(self) -> Float[Array, " states"] | None:
        return None if self.null is None else self.root * self.null

    def restrict(self, b: Float[Array, "states k"]) -> Float[Array, "n k"]:
        return self._scaled(b)

    def prolong(
        self, y: Float[Array, "n k"], b: Float[Array, "states k"]
    ) -> Float[Array, "states k"]:
        return self._unscaled(y, b)


class GramSystem(AbstractScaledSystem):
    """One layer of a two-block kernel, `D^-½ (I - BᵀB) D^-½`."""

    overlap: AbstractOverlap
    root: Float[Array, " n"]
    null: Float[Array, " n"] | None
    is_self_adjoint: bool = eqx.field(static=True, default=True, init=False)

    @property
    def products(self) -> int:
        return 2 * math.prod(self.overlap.shape)

    @property
    def assembly(self) -> int:
        return math.prod(self.overlap.shape) * self.n_states

    def held(self, memory: float) -> "GramSystem":
        if math.prod(self.overlap.shape) * self.root.itemsize > memory * 2**30:
            return self
        overlap = DenseOverlap(self.overlap.matrix())
        return GramSystem(overlap=overlap, root=self.root, null=self.null)

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        y = y / self.root[:, None]
        return (y - self.overlap.gram(y)) / self.root[:, None]

    def matrix(self) -> Float[Array, "n n"]:
        products = self.overlap.gram_matrix(self.root)
        on = jnp.arange(self.n_states)
        diagonal = on[:, None] == on[None, :]
        if self.null is None:
            return diagonal.astype(products.dtype) - products
        # The diagonal is one by construction, and not what subtraction leaves of it.
        matrix = jnp.where(diagonal, 1, -products)
        return shifted(matrix, self._scaled_null)


class DenseSystem(AbstractScaledSystem):
    """Any chain, as a scaled matrix, `I - Ĥ`."""

    hops: Float[Array, "n n"]
    root: Float[Array, " n"]
    null: Float[Array, " n"] | None
    is_self_adjoint: bool = eqx.field(static=True)

    @property
    def products(self) -> int:
        return self.hops.size

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return y - self.hops @ y

    def matrix(self) -> Float[Array, "n n"]:
        identity = jnp.eye(self.n_states, dtype=self.hops.dtype)
        return shifted(identity - self.hops, self._scaled_null)

    def transposed(self) -> "DenseSystem":
        return DenseSystem(
            hops=self.hops.T,
            root=self.root,
            null=self.null,
            is_self_adjoint=self.is_self_adjoint,
        )


class JacobiFlips(AbstractScaledSystem):
    """The scaled system itself, `I - Ĥ`."""

    root: Float[Array, " states"]
    null: Float[Array, " states"] | None
    hops: Float[Array, "masks states"]
    masks: tuple[int, ...] = eqx.field(static=True)
    is_self_adjoint: bool = eqx.field(static=True, default=True, init=False)

    @property
    def products(self) -> int:
        return self.hops.size

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return y - hop(self.hops, self.masks, y)

    def matrix(self) -> Float[Array, "n n"]:
        columns = neighbours(self.masks, self.n_states)
        rows = jnp.broadcast_to(jnp.arange(self.n_states), columns.shape)
        matrix = jnp.eye(self.n_states, dtype=self.hops.dtype)
        return shifted(matrix.at[rows, columns].add(-self.hops), self._scaled_null)


class EvenOddFlips(AbstractScaledSystem):
    """The scaled system with half of its states eliminated.

    If every mask has an odd number of bits, each hop changes the parity of the state
    index, and with states of even (e) and odd (o) parity

        I - Ĥ = [[I, -C], [-Cᵀ, I]].

    Then `y_e = b_e + C y_o`, and `(I - CᵀC) y_o = b_o + Cᵀ b_e`: a system of half the
    size. Its condition number is about a quarter of the whole one's, as an eigenvalue
    `λ` of `I - Ĥ` near zero becomes `1 - (1 - λ)² ≈ 2λ`, and the one near two, if there
    is one, goes with it.
    """

    # The bits of a state but the last, with the parity, determine it. So both halves
    # are indexed by s >> 1, and a hop by `mask` is an exclusive or of that index by
    # mask >> 1.

    root: Float[Array, " states"]
    null: Float[Array, " states"] | None
    hops: Float[Array, "2 masks half"]  # C, and then Cᵀ
    masks: tuple[int, ...] = eqx.field(static=True)
    is_self_adjoint: bool = eqx.field(static=True, default=True, init=False)

    @property
    def n_states(self) -> int:
        return self.hops.shape[-1]

    @property
    def products(self) -> int:
        return self.hops.size

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        # A loop of two, so that the compiler does not fuse the two products: it would
        # compute the inner one anew for each neighbour.
        def across(y, hops):
            return hop(hops, self.masks, y), None

        return y - jax.lax.scan(across, y, self.hops)[0]

    def matrix(self) -> Float[Array, "n n"]:
        # C has as many entries in a row as there are masks, and CᵀC the square of that:
        # it is filled in, not multiplied out.
        row = self.hops[0]
        to = neighbours(self.masks, self.n_states)
        paths = row[:, None] * row[None]
        matrix = jnp.eye(self.n_states, dtype=row.dtype)
        matrix = matrix.at[to[:, None], to[None, :]].add(-paths)
        null = self._scaled_null
        return shifted(matrix, None if null is None else split(null)[1])

    def restrict(self, b: Float[Array, "states k"]) -> Float[Array, "n k"]:
        even, odd = split(self._scaled(b))
        return shard(odd + hop(self.hops[1], self.masks, even))

    def prolong(
        self, y: Float[Array, "n k"], b: Float[Array, "states k"]
    ) -> Float[Array, "states k"]:
        even = split(self._scaled(b))[0] + hop(self.hops[0], self.masks, y)
        return self._unscaled(_join(even, y), b)


def flip_system(
    diagonal: Float[Array, " states"],
    hops: Float[Array, "masks states"],
    null: Float[Array, " states"] | None,
    masks: tuple[int, ...],
) -> AbstractSystem:
    """The system of `L = diag(diagonal) - Σ_i hops_i X_i`, with `X_i` the exclusive or
    by `masks[i]`."""
    root = jnp.sqrt(diagonal)
    towards = at_neighbours(root, masks)
    hops = shard(hops / (root[None, :] * towards), axis=1)
    n_bits = diagonal.shape[0].bit_length() - 1
    if not n_bits or not all(mask.bit_count() % 2 for mask in masks):
        return JacobiFlips(root, null, hops, masks)
    halves = jnp.stack(split(hops, axis=1))
    halves = shard(halves, axis=2)
    return EvenOddFlips(root, null, halves, tuple(mask >> 1 for mask in masks))


def hop(
    hops: Float[Array, "masks n"], masks: tuple[int, ...], y: Float[Array, "n k"]
) -> Float[Array, "n k"]:
    """`Σ_i hops[i, s] y[s ^ masks[i]]`."""
    total = jnp.zeros_like(y)
    for weights, mask in zip(hops, masks, strict=True):
        total = total + weights[:, None] * xor(y, mask)
    return total


def split(y: Float[Array, "..."], axis: int = 0) -> tuple[Array, Array]:
    """The values at the states of even and of odd parity, each indexed by `s >> 1`."""
    pairs = y.reshape(*y.shape[:axis], -1, 2, *y.shape[axis + 1 :])
    odd = parity(pairs.shape[axis].bit_length() - 1)
    odd = odd.reshape((1,) * axis + (-1,) + (1,) * (y.ndim - axis - 1))
    first = jax.lax.index_in_dim(pairs, 0, axis + 1, keepdims=False)
    second = jax.lax.index_in_dim(pairs, 1, axis + 1, keepdims=False)
    return jnp.where(odd, second, first), jnp.where(odd, first, second)


def _join(even: Float[Array, "half k"], odd: Float[Array, "half k"]) -> Array:
    is_odd = parity(even.shape[0].bit_length() - 1)[:, None]
    pairs = [jnp.where(is_odd, odd, even), jnp.where(is_odd, even, odd)]
    return jnp.stack(pairs, axis=1).reshape(-1, even.shape[-1])


def shifted(matrix: Array, null: Array | None) -> Array:
    """A matrix that is one on its null vector, if it has one."""
    if null is None:
        return matrix
    unit = null / jnp.linalg.norm(null)
    return matrix + jnp.outer(unit, unit)
