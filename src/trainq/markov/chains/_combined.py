"""Chains made of chains that have the same law."""

import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._loops import repeat
from ...solvers import AbstractGenerator, AbstractStep, Repeated, Words
from ._base import AbstractChain
from ._functions import AbstractFunctions
from ._reductions import (
    AbstractCoordinates,
    AbstractReduction,
    Powers,
    Sector,
    Sides,
)


class AbstractCombinedChain(AbstractChain):
    """A chain made of others, which have one law."""

    parts: eqx.AbstractVar[tuple[AbstractChain, ...]]

    @property
    def log_stationary(self) -> Float[Array, " states"]:
        return self.parts[0].log_stationary

    @property
    def is_symmetric(self) -> bool:
        return all(part.is_symmetric for part in self.parts)

    def lift(self, f: Float[Array, "some *obs"]) -> Float[Array, "states *obs"]:
        return self.parts[0].lift(f)

    def apply(self, f: Float[Array, "states *obs"]) -> Float[Array, "states *obs"]:
        return self.operator()(f)

    def _steps(self, sector: Sector | None) -> tuple[AbstractStep, ...] | None:
        """Those of the parts, if each of them knows one."""
        steps = [part.step_in(sector) for part in self.parts]
        known = tuple(step for step in steps if step is not None)
        return known if len(known) == len(steps) else None


class MixtureChain(AbstractCombinedChain):
    """One of several chains moves, each with its probability; with what is left of
    that, the state stays."""

    parts: tuple[AbstractChain, ...]
    weights: tuple[float, ...] = eqx.field(static=True)
    is_reversible: bool = eqx.field(static=True)

    def __init__(
        self,
        parts: tuple[AbstractChain, ...],
        weights: tuple[float, ...],
        is_reversible: bool | None = None,
    ):
        self.parts = parts
        self.weights = weights
        if is_reversible is None:
            is_reversible = all(part.is_reversible for part in parts)
        self.is_reversible = is_reversible

    @property
    def _stays(self) -> float:
        return max(1 - sum(self.weights), 0.0)

    @property
    def is_positive(self) -> bool:
        # No eigenvalue of a part is below -1.
        least = self._stays
        for weight, part in zip(self.weights, self.parts, strict=True):
            least -= 0 if part.is_positive else weight
        return self.is_reversible and least >= 0

    def operator(self) -> Callable[[Array], Array]:
        steps, weights, stays = self._operators(), self.weights, self._stays

        def step(f):
            some = [w * move(f) for w, move in zip(weights, steps, strict=True)]
            return sum(some, stays * f) if stays else sum(some[1:], some[0])

        return step

    def _operators(self) -> list[Callable[[Array], Array]]:
        return [part.operator() for part in self.parts]

    def jumps(self) -> tuple[Float[Array, " states"], Callable[[Array], Array]]:
        both = [part.jumps() for part in self.parts]
        leaving = sum(
            (w * each for w, (each, _) in zip(self.weights, both, strict=True)),
            jnp.zeros_like(self.log_stationary),
        )

        def step(f):
            return sum(
                (w * move(f) for w, (_, move) in zip(self.weights, both, strict=True)),
                jnp.zeros_like(f),
            )

        return leaving, step

    def step_in(self, sector: Sector | None = None) -> Words | None:
        steps = self._steps(sector)
        if steps is None:
            return None
        words = [(weight, (i,)) for i, weight in enumerate(self.weights)]
        return Words(steps, (*words, *([(self._stays, ())] if self._stays else [])))

    def spectral_reductions(
        self, sector: Sector | None = None
    ) -> tuple[AbstractReduction, ...]:
        part, *others = self.parts
        if others:
            return super().spectral_reductions(sector)
        found, (weight,) = part.spectral_reductions(sector), self.weights
        return tuple(OfAnother(one, 1, weight) for one in found)

    def spectral_coordinates(self, f: AbstractFunctions) -> AbstractCoordinates:
        part, *others = self.parts
        if others:
            return super().spectral_coordinates(f)
        return part.spectral_coordinates(f)


class ThereAndBackChain(AbstractCombinedChain):
    """A step of a chain, and one of its adjoint: `P P*`, reversible and positive."""

    parts: tuple[AbstractChain, AbstractChain]
    is_reversible = True

    def __init__(self, there: AbstractChain, back: AbstractChain):
        self.parts = there, back

    @property
    def is_positive(self) -> bool:
        return True

    def operator(self) -> Callable[[Array], Array]:
        there, back = (part.operator() for part in self.parts)
        return lambda f: there(back(f))

    def step_in(self, sector: Sector | None = None) -> Words | None:
        steps = self._steps(sector)
        return None if steps is None else Words(steps, ((1.0, (0, 1)),))


class PowerChain(AbstractCombinedChain):
    """Several steps of a chain as one, `Pⁿ`: as many products, and never a power of the
    matrix."""

    parts: tuple[AbstractChain]
    times: int = eqx.field(static=True)

    def __init__(self, chain: AbstractChain, times: int):
        self.parts = (chain,)
        self.times = times

    @property
    def is_reversible(self) -> bool:
        return self.parts[0].is_reversible

    @property
    def is_positive(self) -> bool:
        even = self.times % 2 == 0 and self.is_reversible
        return even or self.parts[0].is_positive

    def operator(self) -> Callable[[Array], Array]:
        step = self.parts[0].operator()
        return lambda f: repeat(step, f, self.times)

    def step_in(self, sector: Sector | None = None) -> Repeated | None:
        steps = self._steps(sector)
        return None if steps is None else Repeated(steps[0], self.times)

    def spectral_reductions(
        self, sector: Sector | None = None
    ) -> tuple[AbstractReduction, ...]:
        # The slowest mode is that of the chain itself, unless an even power makes a
        # slow one of a negative eigenvalue.
        (part,) = self.parts
        if not self._keeps_order:
            return super().spectral_reductions(sector)
        found = part.spectral_reductions(sector)
        return tuple(OfAnother(one, self.times, 1.0) for one in found)

    def spectral_coordinates(self, f: AbstractFunctions) -> AbstractCoordinates:
        if not self._keeps_order:
            return super().spectral_coordinates(f)
        return self.parts[0].spectral_coordinates(f)

    @property
    def _keeps_order(self) -> bool:
        return self.parts[0].is_positive or self.times % 2 == 1


class OfAnother(AbstractReduction):
    """The reduction of a chain `P` from which another one has its spectrum, which is
    `(1 - w + w P)ⁿ`. Only the gap is that of the latter."""

    part: AbstractReduction
    times: int = eqx.field(static=True)
    weight: float = eqx.field(static=True)

    def __init__(self, part: AbstractReduction, times: int, weight: float):
        self.part = part
        self.times = times
        self.weight = weight

    @property
    def generator(self) -> AbstractGenerator:
        return self.part.generator

    @property
    def sector(self) -> Sector | None:
        return self.part.sector

    def sides(self, at, pairing) -> Sides:
        return self.part.sides(at, pairing)

    def powers(self, at) -> Powers:
        return self.part.powers(at)

    def unfold(self, y: Float[Array, "n k"]) -> Float[Array, "whole k"]:
        return self.part.unfold(y)

    # The modes are those of the chain itself, in its own coordinates.

    def columns(self, at) -> Float[Array, "width k"]:
        return self.part.columns(at)

    def densities(self, columns: Float[Array, "width r"]) -> Float[Array, "states r"]:
        return self.part.densities(columns)

    def modes(
        self, values: Float[Array, " r"], vectors: Float[Array, "n r"]
    ) -> tuple[Array, Array]:
        gap, columns = self.part.modes(values, vectors)
        return self._gap(gap), columns

    @property
    def rest_gap(self) -> float | None:
        gap = self.part.rest_gap
        return None if gap is None else self._number(gap)

    @property
    def least_rest_gap(self) -> float:
        return self._number(self.part.least_rest_gap)

    def _number(self, gap: float) -> float:
        if math.isinf(gap):
            return gap
        return 1 - (1 - self.weight * gap) ** self.times

    def _gap(self, gap: Float[Array, " r"]) -> Float[Array, " r"]:
        # 1 - (1 - γ)ⁿ without a difference, where γ is small.
        gap = self.weight * gap
        small = gap < 0.5
        slow = -jnp.expm1(self.times * jnp.log1p(-jnp.where(small, gap, 0)))
        return jnp.where(small, slow, 1 - (1 - gap) ** self.times)
