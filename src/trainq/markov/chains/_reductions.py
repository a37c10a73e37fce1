"""What a chain reduces to: the regular system of one symmetry sector, with the way
there and back.

All sums over time of a chain, `Σ_t c_t ⟨f̃, P^t f̃⟩_π`, are found from these. A chain
says once what its functions look like (`coordinates`), and each of its reductions what
is left to solve.
"""

import abc
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._spins import fold, shard, unfold
from ...solvers import (
    AbstractContraction,
    AbstractGenerator,
    Contraction,
    Pairing,
    column_size,
)


Sector = Literal["even", "odd"]
"""Functions with this parity under the global flip."""
_SIGNS: dict[Sector, int] = {"even": 1, "odd": -1}


class AbstractCoordinates(eqx.Module):
    """Functions `f̃ = f - π(f)` in the form that the reductions of a chain take."""

    @property
    @abc.abstractmethod
    def at_once(self) -> Array:
        """The part of `⟨f̃_a, f̃_b⟩_π` that the reductions leave to be added."""

    @property
    @abc.abstractmethod
    def variance(self) -> Float[Array, " k"]:
        """`Var f_a`."""

    @property
    def beside(self) -> Float[Array, " k"] | None:
        """The size of what the forms of the reductions are added to."""
        return None

    @property
    @abc.abstractmethod
    def size(self) -> Float[Array, ""]:
        """The largest norm of a function: it sets the accuracy of the parts."""


class Sides(NamedTuple):
    """`⟨f̃_a, R f̃_b⟩` in one reduction: `rest + weight ⟨left_a, L⁺ right_b⟩`, with
    `right` being `left` where it is None, and `bulk` what the rounding errors in both
    are proportional to."""

    left: Float[Array, "n k"]
    right: Float[Array, "n k"] | None
    bulk: Float[Array, "n k"] | None
    rest: Array | float
    weight: float = 1.0


class Powers(NamedTuple):
    """`⟨f̃_a, P^t f̃_a⟩` in one reduction: `⟨left_a, S^t right_a⟩`, or with `t - 1` in
    place of `t` if it is `shifted`, for `t ≥ 1`; and `rest + ⟨left, right⟩`, or `rest`
    if it is shifted, for `t = 0`. The contraction stands for `S`."""

    contraction: AbstractContraction
    left: Float[Array, "n k"]
    right: Float[Array, "n k"] | None = None
    shifted: bool = False
    rest: Array | float = 0.0


def parity_of(reductions: Sequence["AbstractReduction"]) -> Sector | None:
    """The parity of all functions that some reductions take; None if they take both."""
    sectors: set[Sector | None] = {reduction.sector for reduction in reductions}
    return sectors.pop() if len(sectors) == 1 else None


class AbstractReduction(eqx.Module):
    """One symmetry sector of a chain: the generator that is left, and the way there and
    back."""

    generator: eqx.AbstractVar[AbstractGenerator]
    sector: eqx.AbstractVar[Sector | None]

    @abc.abstractmethod
    def sides(self, at: Any, pairing: Pairing) -> Sides:
        """What is left to solve for the resolvent of functions, given in the
        coordinates of the chain."""

    @abc.abstractmethod
    def powers(self, at: Any) -> Powers:
        """What is left to sum over a finite time."""

    @abc.abstractmethod
    def unfold(self, y: Float[Array, "n k"]) -> Float[Array, "whole k"]:
        """A solution of the generator, on all states of what was folded."""

    # The modes of the chain. They and the functions are columns in the coordinates of
    # the reduction, such that `⟨f, φ⟩_π` is the product of two columns.

    def modes(
        self, values: Float[Array, " r"], vectors: Float[Array, "n r"]
    ) -> tuple[Float[Array, " modes"], Float[Array, "width modes"]]:
        """The gaps and the columns of the modes that eigenvalues of the generator, from
        the smallest, and their eigenvectors make; the slowest mode is the first."""
        return values, vectors

    @abc.abstractmethod
    def columns(self, at: Any) -> Float[Array, "width k"]:
        """Functions, given in the coordinates of the chain, as columns."""

    def densities(
        self, columns: Float[Array, "width modes"]
    ) -> Float[Array, "states modes"]:
        """`√π φ` at every state, for the columns of modes `φ`."""
        return self.unfold(columns)

    @property
    def rest_gap(self) -> float | None:
        """The gap of all functions that `modes` of all eigenvectors leaves out:
        infinite if there is none, None if they have several."""
        return math.inf

    @property
    def least_rest_gap(self) -> float:
        """The smallest gap of what `modes` leaves out: the gap of the sector, if there
        is nothing else in it."""
        return math.inf if self.rest_gap is None else self.rest_gap


class JointCoordinates(AbstractCoordinates):
    """`√π f̃` at all states, and what its rounding errors are proportional to; if all
    functions are in one sector, on the half of the states that it folds to."""

    columns: Float[Array, "some k"]
    bulk: Float[Array, "some k"]
    sector: Sector | None = eqx.field(static=True, default=None)

    def folded(self, sector: Sector | None) -> "JointCoordinates":
        """The parts of the functions in one sector."""
        if sector == self.sector:
            return self
        columns = fold_sector(self.columns, sector)
        return JointCoordinates(columns, fold_bulk(self.bulk, sector), sector)

    @property
    def at_once(self) -> Array:
        return jnp.zeros((), self.columns.dtype)

    @property
    def variance(self) -> Float[Array, " k"]:
        return jnp.sum(self.columns**2, axis=0)

    @property
    def size(self) -> Float[Array, ""]:
        return column_size(self.columns)


class SectorReduction(AbstractReduction):
    """Functions of one parity on half of the states; or all functions on all states."""

    generator: AbstractGenerator
    sector: Sector | None = eqx.field(static=True, default=None)
    lowest: int = eqx.field(static=True, default=-1)
    """No eigenvalue of the chain is below: 0 or -1."""

    def sides(self, at: JointCoordinates, pairing: Pairing) -> Sides:
        del pairing
        at = at.folded(self.sector)
        return Sides(shard(at.columns), None, at.bulk, 0.0)

    def powers(self, at: JointCoordinates) -> Powers:
        contraction = Contraction(generator=self.generator, lowest=self.lowest)
        return Powers(contraction, shard(at.folded(self.sector).columns))

    def columns(self, at: JointCoordinates) -> Float[Array, "n k"]:
        return at.folded(self.sector).columns

    def unfold(self, y: Float[Array, "n k"]) -> Float[Array, "states k"]:
        return unfold_sector(y, self.sector)


def fold_sector(f: Array, sector: Sector | None) -> Array:
    """The part of one parity of a function, on half of the states."""
    return f if sector is None else fold(f, _SIGNS[sector])


def fold_bulk(f: Array, sector: Sector | None) -> Array:
    """What the rounding errors in `fold_sector` are proportional to."""
    return f if sector is None else fold(f, 1)


def unfold_sector(f: Array, sector: Sector | None) -> Array:
    """The function of one parity on all states."""
    return f if sector is None else unfold(f, _SIGNS[sector])


def scale(weight: Float[Array, " n"], f: Float[Array, "n *k"]) -> Array:
    """Multiply every column of `f` by `weight`."""
    return weight.reshape(weight.shape + (1,) * (f.ndim - 1)) * f
