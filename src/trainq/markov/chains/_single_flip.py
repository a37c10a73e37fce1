"""Kernels that flip one unit at a time, on the hypercube."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..._spins import spread, unit_mask, xor
from ...solvers._forms import (
    Form,
    Pairing,
    bilinear_form,
    column_size,
    solver_of,
    total,
)
from ...solvers._generators import FlipGenerator, inverse_root
from ...solvers._polynomials import Contraction, WindowPolynomial, polynomial_form
from ...solvers._solvers import AbstractStrategy, ConjugateGradient, SolverStats, worst
from ._base import (
    AbstractChain,
    EigenProblem,
    Sector,
    check_dense,
    fold_bulk,
    fold_sector,
    largest,
    scale,
    unfold_sector,
)
from ._cuts import log_sums_across
from ._functions import AbstractFunctions, in_blocks


class AbstractFlipRule(eqx.Module):
    """How a single-flip kernel accepts, given `delta = log π(xⁱ) - log π(x)`."""

    @abc.abstractmethod
    def acceptance(self, delta: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The probability to flip. Detailed balance needs
        `acceptance(δ) = exp(δ) acceptance(-δ)`."""

    @property
    def is_positive(self) -> bool:
        """Whether the chain has no negative eigenvalues: sums over its powers then need
        fewer terms."""
        return False

    @abc.abstractmethod
    def symmetrised(self, delta: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`exp(-δ/2) acceptance(δ)`, without overflow: an even function of `δ`."""


class HeatBath(AbstractFlipRule):
    """Redraw the unit from its law given the others: flip with probability `σ(δ)`."""

    @property
    def is_positive(self) -> bool:
        return True

    def acceptance(self, delta: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(delta)

    def symmetrised(self, delta: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        # ½ sech(δ/2)
        decay = jnp.exp(-jnp.abs(delta) / 2)
        return decay / (1 + decay**2)


class Metropolis(AbstractFlipRule):
    """Accept the flip with probability `min(1, exp(δ))`."""

    def acceptance(self, delta: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.exp(jnp.minimum(delta, 0))

    def symmetrised(self, delta: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.exp(-jnp.abs(delta) / 2)


class SingleFlipChain(AbstractChain):
    """A uniformly chosen unit flips with a probability set by the change of `log π`.

    Everything follows from `Δ_i(x) = log π(xⁱ) - log π(x)`, and the solves never divide
    by `π`.
    """

    log_stationary: Float[Array, " states"]
    rule: AbstractFlipRule
    is_symmetric: bool = eqx.field(static=True)
    is_reversible: bool = eqx.field(static=True, default=True, init=False)

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.n_states.bit_length() - 1

    @property
    def _masks(self) -> list[int]:
        return [unit_mask(i, self.n_units) for i in range(self.n_units)]

    def flip_probabilities(self) -> Float[Array, "n_units states"]:
        """`P(x, xⁱ)` for every unit and state."""
        log_law = self.log_stationary
        deltas = [xor(log_law, mask) - log_law for mask in self._masks]
        return self.rule.acceptance(jnp.stack(deltas)) / self.n_units

    def jumps(self) -> tuple[Float[Array, " states"], Callable[[Array], Array]]:
        flips, masks = self.flip_probabilities(), self._masks

        def step(f):
            parts = [
                scale(flip, xor(f, mask))
                for flip, mask in zip(flips, masks, strict=True)
            ]
            return sum(parts[1:], parts[0])

        return jnp.sum(flips, axis=0), step

    def stepper(self) -> Callable[[Array], Array]:
        leaving, step = self.jumps()
        return lambda f: scale(1 - leaving, f) + step(f)

    def generator(self, sector: Sector | None = None) -> FlipGenerator:
        """The symmetrised `I - P`, in one sector of the global flip or in all."""
        n, half = self.n_units, self.n_states // 2
        log_law, masks = self.log_stationary, self._masks
        if sector is not None:
            # The classes {x, -x} are indexed by their member with unit 0 down. Flipping
            # unit 0 leaves these; the other member of the class that it reaches has all
            # the remaining units flipped, and an odd function changes sign there.
            log_law = log_law[:half]
            masks[0] = half - 1
        log_law = spread(log_law)
        delta = jnp.stack([xor(log_law, mask) - log_law for mask in masks])
        hops = spread(self.rule.symmetrised(delta) / n, axis=1)
        if sector == "odd":
            hops = hops.at[0].multiply(-1)
        diagonal = jnp.sum(self.rule.acceptance(delta), axis=0) / n
        return FlipGenerator(
            diagonal=diagonal,
            hops=hops,
            # A class has the law of both its members.
            log_law=log_law if sector is None else log_law + math.log(2),
            leak=None,
            masks=tuple(masks),
            is_odd=sector == "odd",
        )

    def resolvent_form(
        self,
        f: AbstractFunctions,
        *,
        pairing: Pairing,
        solver: AbstractStrategy,
        sector: Sector | None,
        guess: Any = None,
    ) -> Form:
        sectors = self.sectors(sector)
        generators = [self.generator(s) for s in sectors]

        def form(f, guesses):
            centred = self.centre(f.table())
            u = spread(scale(self.root, centred))
            guesses = guesses or [None] * len(sectors)
            return total(
                [
                    bilinear_form(
                        generator,
                        spread(fold_sector(u, s)),
                        pairing=pairing,
                        solver=solver,
                        size=column_size(u),
                        bulk=fold_bulk(self.bulk(centred), s),
                        guess=start,
                    )
                    for s, generator, start in zip(
                        sectors, generators, guesses, strict=True
                    )
                ]
            )

        if pairing == "gram":
            return form(f, guess)
        chosen = solver.select(generators[0].system(), f.n_functions)
        dtype = self.log_stationary.dtype
        block = chosen.block_size(self.n_states, f.n_functions, dtype)
        return in_blocks(form, f, block, guess)

    def window_variance(
        self, f: AbstractFunctions, window: int, sector: Sector | None = None
    ) -> Float[Array, " n_obs"]:
        sectors = self.sectors(sector)
        lowest = 0 if self.rule.is_positive else -1
        generators = [self.generator(s) for s in sectors]
        contractions = [Contraction(generator=g, lowest=lowest) for g in generators]

        def form(f, _):
            u = spread(scale(self.root, self.centre(f.table())))
            forms = [
                polynomial_form(
                    contraction, WindowPolynomial(window), spread(fold_sector(u, s))
                )
                for s, contraction in zip(sectors, contractions, strict=True)
            ]
            return Form(sum(forms[1:], forms[0]), None, None)

        dtype = self.log_stationary.dtype
        block = ConjugateGradient().block_size(self.n_states, f.n_functions, dtype)
        return in_blocks(form, f, block).value

    def resolvent(
        self, f: Float[Array, "states n_obs"], *, solver: AbstractStrategy
    ) -> tuple[Float[Array, "states n_obs"], SolverStats]:
        u, bulk = scale(self.root, f), self.bulk(f)
        parts, stats = [], []
        for s in self.sectors():
            solve = solver_of(self.generator(s), solver, f.shape[1], column_size(u))
            y, found, _ = solve(fold_sector(u, s), bulk=fold_bulk(bulk, s))
            parts.append(unfold_sector(y, s))
            stats.append(found)
        x = scale(inverse_root(self.log_stationary), sum(parts[1:], parts[0]))
        return self.centre(self.relax(x, f)), worst(stats)

    def _flows(self) -> Float[Array, "n_units states"]:
        return self.stationary[None, :] * self.flip_probabilities()

    def imbalance(self) -> Float[Array, ""]:
        back = [
            xor(c, mask) for c, mask in zip(self._flows(), self._masks, strict=True)
        ]
        return largest(self._flows() - jnp.stack(back))

    def asymmetry(self) -> Float[Array, ""]:
        flips = self.flip_probabilities()
        return largest(flips - flips[:, ::-1])

    def log_cut_flows(self, order: Int[Array, " states"]) -> Float[Array, " cuts"]:
        law, rank = self.log_stationary, jnp.argsort(order)
        parts = []
        for mask in self._masks:
            # Out of the rarer of the two states: that rate does not underflow.
            change = xor(law, mask) - law
            flow = law + jnp.log(self.rule.acceptance(change) / self.n_units)
            there = xor(rank, mask)
            once = (change > 0) | ((change == 0) & (rank < there))
            flow = jnp.where(once, flow, -jnp.inf)
            parts.append((jnp.minimum(rank, there), jnp.maximum(rank, there), flow))
        first, last, flow = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        return log_sums_across(first, last, flow, self.n_states)[:-1]

    def killed_generator(self, target: Bool[Array, " states"]) -> FlipGenerator:
        whole = self.generator()
        inside = jnp.stack([xor(target, mask) for mask in self._masks])
        into = jnp.where(inside, self.flip_probabilities(), 0)
        return FlipGenerator(
            diagonal=jnp.where(target, 1, whole.diagonal),
            hops=jnp.where(target[None] | inside, 0, whole.hops),
            log_law=whole.log_law,
            leak=jnp.where(target, 1, jnp.sum(into, axis=0)),
            masks=whole.masks,
        )

    def eigen_problem(self, sector: Sector | None) -> EigenProblem:
        check_dense(self.n_states)
        return EigenProblem(
            self.generator(sector),
            lambda value, y: value,
            lambda y: unfold_sector(y, sector),
        )
