"""Symmetrised generators: the operators `L + φφᵀ` that a chain reduces to."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._systems import AbstractSystem, flip_system, hop, neighbours


class AbstractGenerator(AbstractSystem):
    """The operator `L + φφᵀ` of a chain, or of one symmetry sector of it.

    A sector without the constant function has no null vector, and `null` is None there.
    """

    null: eqx.AbstractVar[Float[Array, " n"] | None]

    @abc.abstractmethod
    def apply(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """`L y`, for `k` columns at once."""

    @abc.abstractmethod
    def matrix(self) -> Float[Array, "n n"]:
        """The matrix `L`."""

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

    def system(self) -> AbstractSystem:
        """The system that is left to solve after what the structure eliminates."""
        return self


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
    def products(self) -> int:
        return self.hops.size

    def apply(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return self.diagonal[:, None] * y - hop(self.hops, self.masks, y)

    def matrix(self) -> Float[Array, "n n"]:
        rows = jnp.broadcast_to(jnp.arange(self.n_states), self.hops.shape)
        columns = neighbours(self.masks, self.n_states)
        return jnp.diag(self.diagonal).at[rows, columns].add(-self.hops)

    def system(self) -> AbstractSystem:
        return flip_system(self.diagonal, self.hops, self.null, self.masks)


class GramGenerator(AbstractGenerator):
    """`I - BᵀB + φφᵀ`: one layer of a two-block kernel."""

    overlap: Float[Array, "rows n"]
    null: Float[Array, " n"] | None
    is_symmetric: bool = eqx.field(static=True, default=True, init=False)

    @property
    def n_states(self) -> int:
        return self.overlap.shape[1]

    @property
    def products(self) -> int:
        return 2 * self.overlap.size

    @property
    def assembly(self) -> int:
        return self.overlap.size * self.n_states

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

    @property
    def products(self) -> int:
        return self.entries.size

    def apply(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return self.entries @ y

    def matrix(self) -> Float[Array, "n n"]:
        return self.entries

    def transposed(self) -> "DenseGenerator":
        return DenseGenerator(
            entries=self.entries.T, null=self.null, is_symmetric=self.is_symmetric
        )
