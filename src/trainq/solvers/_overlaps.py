"""The matrix between two layers of a chain, which need not exist as a whole."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


# From so many columns on, inner products are those of so many panels.
_WIDE = 2**10
_PANELS = 4


class AbstractOverlap(eqx.Module):
    """`B(v, h) = π(v, h) / √(π(v) π(h))`, or a part of it, of one parity and times a
    constant: it maps functions of our own layer, its columns, to the other one.

    Products go through it by blocks of rows. A block is made where it is needed, in the
    forward pass and in the backward one, and so the matrix takes the memory of one
    block if it is not given as an array.
    """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and of columns."""

    @property
    def n_blocks(self) -> int:
        """The number of blocks, which divides that of the rows."""
        return 1

    @abc.abstractmethod
    def block(self, index: Int[Array, ""] | int) -> Float[Array, "some n"]:
        """A block of rows."""

    def sum(self, fn: Callable[..., Any], *rows: Float[Array, "rows ..."]) -> Any:
        """The sum over blocks of `fn(block, *rows)`, with the `rows` that are those of
        the block. It returns a tree of arrays."""
        parts = self._split(rows)
        if self.n_blocks == 1:
            return fn(self.block(0), *parts)

        @jax.checkpoint
        def one(index, *parts):
            return fn(self.block(index), *parts)

        def add(total, now):
            return jax.tree.map(jnp.add, total, one(*now)), None

        now = (jnp.arange(self.n_blocks), *parts)
        shapes = jax.eval_shape(one, *(x[0] for x in now))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return lax.scan(add, zeros, now)[0]

    def map(self, fn: Callable[[Array], Array]) -> Float[Array, "rows ..."]:
        """`fn(block)`, for whose rows there are as many, of all blocks."""
        if self.n_blocks == 1:
            return fn(self.block(0))
        one = jax.checkpoint(lambda index: fn(self.block(index)))
        found = lax.map(one, jnp.arange(self.n_blocks))
        return found.reshape(self.shape[0], *found.shape[2:])

    def _split(self, rows: tuple[Array, ...]) -> tuple[Array, ...]:
        if self.n_blocks == 1:
            return rows
        return tuple(x.reshape(self.n_blocks, -1, *x.shape[1:]) for x in rows)

    def __matmul__(self, y: Float[Array, "n k"]) -> Float[Array, "rows k"]:
        """`B y`."""
        return self.map(lambda block: block @ y)

    def pull(self, z: Float[Array, "rows k"]) -> Float[Array, "n k"]:
        """`Bᵀ z`."""
        return self.sum(lambda block, z: block.T @ z, z)

    def gram(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """`BᵀB y`."""
        return self.sum(lambda block: block.T @ (block @ y))

    def gram_matrix(self, root: Float[Array, " n"] | None = None) -> Array:
        """`D^-½ BᵀB D^-½`, with `D^½` the `root`, if there is one."""

        def scaled(block):
            return inner_products(block if root is None else block / root[None, :])

        rows, n = self.shape
        # Adding up matrices of few rows each takes longer than making these.
        if rows <= 4 * n:
            return scaled(self.matrix())
        return self.sum(scaled)

    def matrix(self) -> Float[Array, "rows n"]:
        """The matrix as an array."""
        return self.map(lambda block: block)


class DenseOverlap(AbstractOverlap):
    """One that is an array."""

    values: Float[Array, "rows n"]

    @property
    def shape(self) -> tuple[int, int]:
        rows, n = self.values.shape
        return rows, n

    def block(self, index: Int[Array, ""] | int) -> Float[Array, "some n"]:
        return self.values


def inner_products(a: Float[Array, "rows n"]) -> Float[Array, "n n"]:
    """`AᵀA`: of a wide one, the products of pairs of panels, each of them once."""
    if a.shape[1] < _WIDE or a.shape[1] % _PANELS:
        return a.T @ a
    panels = jnp.split(a, _PANELS, axis=1)
    products = [[p.T @ q for q in panels[i:]] for i, p in enumerate(panels)]
    whole = [
        [products[j][i - j].T if j < i else products[i][j - i] for j in range(_PANELS)]
        for i in range(_PANELS)
    ]
    return jnp.block(whole)
