"""Kernels that flip one unit at a time, on the hypercube."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._spins import unit_mask, xor
from ._chains import (
    AbstractChain,
    EigenProblem,
    Sector,
    fold_sector,
    scale,
    unfold_sector,
)
from ._resolvent import Direct, FlipGenerator, Pairing, bilinear_form, solver_of


class AbstractFlipRule(eqx.Module):
    """How a single-flip kernel accepts, given `delta = log π(xⁱ) - log π(x)`."""

    @abc.abstractmethod
    def acceptance(self, delta: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The probability to flip. Detailed balance needs
        `acceptance(δ) = exp(δ) acceptance(-δ)`."""

    @abc.abstractmethod
    def symmetrised(self, delta: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`exp(-δ/2) acceptance(δ)`, without overflow: an even function of `δ`."""


class SingleFlipChain(AbstractChain):
    """A uniformly chosen unit flips with a probability set by the change of `log π`.

    Everything follows from `Δ_i(x) = log π(xⁱ) - log π(x)`, and nothing is ever divided
    by `π`.
    """

    log_stationary: Float[Array, " states"]
    rule: AbstractFlipRule
    is_symmetric: bool = eqx.field(static=True)
    is_reversible = True

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.n_states.bit_length() - 1

    def flip_probabilities(self) -> Float[Array, "n_units states"]:
        """`P(x, xⁱ)` for every unit and state."""
        deltas = [
            xor(self.log_stationary, unit_mask(i, self.n_units)) - self.log_stationary
            for i in range(self.n_units)
        ]
        return self.rule.acceptance(jnp.stack(deltas)) / self.n_units

    def apply(self, f: Float[Array, "states *obs"]) -> Float[Array, "states *obs"]:
        flips = self.flip_probabilities()
        out = scale(1 - jnp.sum(flips, axis=0), f)
        for i in range(self.n_units):
            out = out + scale(flips[i], xor(f, unit_mask(i, self.n_units)))
        return out

    def generator(self, sector: Sector | None) -> FlipGenerator:
        """The symmetrised `I - P`, in one sector of the global flip or on all states."""
        n = self.n_units
        log_law, masks = self.log_stationary, [unit_mask(i, n) for i in range(n)]
        if sector is not None:
            # The classes {x, -x} are indexed by their member with unit 0 down. Flipping
            # unit 0 leaves these; the other member of the class that it reaches has all
            # the remaining units flipped, and an odd function changes sign there.
            log_law = log_law[: self.n_states // 2]
            masks[0] = self.n_states // 2 - 1
        delta = jnp.stack([xor(log_law, mask) - log_law for mask in masks])
        hops = self.rule.symmetrised(delta) / n
        if sector == "odd":
            hops = hops.at[0].multiply(-1)
        diagonal = jnp.sum(self.rule.acceptance(delta), axis=0) / n
        return FlipGenerator(diagonal, hops, self._null(sector), tuple(masks))

    def _null(self, sector: Sector | None) -> Array | None:
        if sector == "odd":
            return None
        return fold_sector(jnp.exp(self.log_stationary / 2), sector)

    def resolvent_form(
        self,
        f: Float[Array, "states n_obs"],
        *,
        pairing: Pairing,
        solver: Direct,
        sector: Sector | None,
    ) -> Float[Array, " n_obs"] | Float[Array, "n_obs n_obs"]:
        f = scale(jnp.exp(self.log_stationary / 2), self.centre(f))
        terms = [
            bilinear_form(self.generator(s), fold_sector(f, s), pairing=pairing, solver=solver)
            for s in self.sectors(sector)
        ]
        return sum(terms[1:], terms[0])

    def resolvent(
        self, f: Float[Array, "states n_obs"], *, solver: Direct
    ) -> Float[Array, "states n_obs"]:
        f = scale(jnp.exp(self.log_stationary / 2), self.centre(f))
        parts = [
            unfold_sector(solver_of(self.generator(s), solver)(fold_sector(f, s)), s)
            for s in self.sectors()
        ]
        x = scale(jnp.exp(-self.log_stationary / 2), sum(parts[1:], parts[0]))
        return self.centre(x)

    def eigen_problem(self, sector: Sector | None) -> EigenProblem:
        matrix = self.generator(sector).dense(shift=3.0)
        return EigenProblem(matrix, lambda value: value, lambda y: unfold_sector(y, sector))
