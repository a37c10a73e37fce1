"""Kernels that flip one unit at a time, on the hypercube."""

import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..._spins import at_neighbours, shard, unit_mask, xor
from ...solvers import FlipGenerator, Flips
from ._base import AbstractChain, largest
from ._cuts import log_sums_across, log_total, log_where
from ._reductions import Sector, SectorReduction, scale
from ._rules import AbstractFlipRule


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
        delta = at_neighbours(log_law, self._masks) - log_law[None]
        return self.rule.acceptance(delta) / self.n_units

    def jumps(self) -> tuple[Float[Array, " states"], Callable[[Array], Array]]:
        flips, masks = self.flip_probabilities(), self._masks

        def step(f):
            parts = [
                scale(flip, xor(f, mask))
                for flip, mask in zip(flips, masks, strict=True)
            ]
            return sum(parts[1:], parts[0])

        return jnp.sum(flips, axis=0), step

    def decrease(
        self, f: Float[Array, " states"]
    ) -> tuple[Float[Array, " states"], Float[Array, " states"]]:
        total, size = jnp.zeros_like(f), jnp.zeros_like(f)
        for flip, mask in zip(self.flip_probabilities(), self._masks, strict=True):
            part = flip * (f - xor(f, mask))
            total, size = total + part, size + jnp.abs(part)
        return total, (self.n_units + 3) * jnp.finfo(f.dtype).eps * size

    def apply(self, f: Float[Array, "states *obs"]) -> Float[Array, "states *obs"]:
        return self.operator()(f)

    def operator(self) -> Callable[[Array], Array]:
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
        log_law = shard(log_law)
        delta = at_neighbours(log_law, masks) - log_law[None]
        hops = shard(self.rule.symmetrised(delta) / n, axis=1)
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

    @property
    def is_positive(self) -> bool:
        return self.rule.is_positive

    def step_in(self, sector: Sector | None = None) -> Flips:
        return Flips(self.generator(sector))

    def reductions(self, sector: Sector | None = None) -> tuple[SectorReduction, ...]:
        self.check_sector(sector)
        sectors: tuple[Sector | None, ...] = (sector,)
        if self.is_symmetric and sector is None:
            sectors = ("even", "odd")
        lowest = 0 if self.is_positive else -1
        return tuple(SectorReduction(self.generator(s), s, lowest) for s in sectors)

    def window_reductions(
        self, sector: Sector | None = None
    ) -> tuple[SectorReduction, ...]:
        return self.reductions(sector)

    def _flows(self) -> Float[Array, "n_units states"]:
        return self.stationary[None, :] * self.flip_probabilities()

    def least_probability(self) -> Float[Array, ""]:
        flips = self.flip_probabilities()
        stays = 1 - jnp.sum(flips, axis=0)
        least = jnp.minimum(jnp.min(flips), jnp.min(stays))
        return jnp.where(jnp.all(jnp.isfinite(flips)), least, jnp.nan)

    def imbalance(self) -> Float[Array, ""]:
        law, masks = self.log_stationary, self._masks
        delta = law[None] - at_neighbours(law, masks)
        back = at_neighbours(self.stationary, masks) * self.rule.acceptance(delta)
        return largest(self._flows() - back / self.n_units)

    def asymmetry(self) -> Float[Array, ""]:
        flips = self.flip_probabilities()
        return largest(flips - flips[:, ::-1])

    def _log_flows(self) -> Float[Array, "n_units states"]:
        """`log π(x) P(x, xⁱ)`, which is the same at both ends."""
        # Out of the rarer of the two states: that rate does not underflow.
        law = self.log_stationary
        there = at_neighbours(law, self._masks)
        rate = self.rule.acceptance(jnp.abs(there - law[None])) / self.n_units
        return jnp.minimum(there, law[None]) + log_where(rate > 0, rate)

    def log_cut_flow(self, members: Bool[Array, " states"]) -> Float[Array, ""]:
        leaves = members[None] & ~at_neighbours(members, self._masks)
        return log_total(jnp.where(leaves, self._log_flows(), -jnp.inf))

    def log_cut_flows(self, order: Int[Array, " states"]) -> Float[Array, " cuts"]:
        rank = jnp.zeros_like(order).at[order].set(jnp.arange(self.n_states))
        partners = at_neighbours(rank, self._masks)[:, order]
        return log_sums_across(partners, self._log_flows()[:, order])[:-1]

    def killed_generator(self, target: Bool[Array, " states"]) -> FlipGenerator:
        whole = self.generator()
        inside = at_neighbours(target, self._masks)
        into = jnp.where(inside, self.flip_probabilities(), 0)
        return FlipGenerator(
            diagonal=jnp.where(target, 1, whole.diagonal),
            hops=jnp.where(target[None] | inside, 0, whole.hops),
            log_law=whole.log_law,
            leak=jnp.where(target, 1, jnp.sum(into, axis=0)),
            masks=whole.masks,
        )
