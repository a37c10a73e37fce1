"""Units in blocks, and what redrawing a block does to functions."""

import abc
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..._spins import inverse_order, permuted, state_spins, unit_mask, xor
from ...models import AbstractEnergyModel, log_laws
from ...solvers import (
    AbstractOverlap,
    AbstractStep,
    DenseOverlap,
    LayerRedraw,
    Redraw,
    Words,
)
from ._reductions import Sector, fold_sector, scale


# Numbers in a block of rows.
_BLOCK = 2**22


class AbstractLayers(eqx.Module):
    """`log π(v, h)`, `log π(v)` and `log π(h)` of two blocks of units: the visible
    layer and the hidden one, or any two blocks in their place."""

    log_visible: eqx.AbstractVar[Float[Array, " visible_states"]]
    log_hidden: eqx.AbstractVar[Float[Array, " hidden_states"]]
    log_joint: eqx.AbstractVar[Float[Array, "visible_states hidden_states"]]
    order: eqx.AbstractVar[tuple[int, ...] | None]
    """The units of the first block, and then those of the second; None if that is the
    order in which they are."""

    @abc.abstractmethod
    def overlap(
        self, sector: Sector | None, on_hidden: bool, share: float = 1.0
    ) -> AbstractOverlap:
        """`√share B` or `√share Bᵀ`, from functions of the hidden layer or of the
        visible one to those of the other, in one sector of the global flip or in
        both."""

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of states of the two layers."""
        return self.log_visible.size, self.log_hidden.size

    @property
    def blocks(self) -> tuple[int, int]:
        """The numbers of units of the two layers."""
        n_visible, n_hidden = self.shape
        return n_visible.bit_length() - 1, n_hidden.bit_length() - 1

    @property
    def n_states(self) -> int:
        """The number of joint states."""
        return self.log_visible.size * self.log_hidden.size

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the laws."""
        return self.log_visible.dtype

    @property
    def log_law(self) -> Float[Array, " states"]:
        """`log π` of all states, in the order of the model."""
        return self.flat(self.log_joint)

    def table(self, f: Float[Array, "states *obs"]) -> Float[Array, "v h *obs"]:
        """A function of the states as one of both layers."""
        f = f if self.order is None else permuted(f, self.order)
        return f.reshape(*self.shape, *f.shape[1:])

    def flat(self, table: Float[Array, "v h *obs"]) -> Float[Array, "states *obs"]:
        """The inverse of `table`."""
        f = table.reshape(self.n_states, *table.shape[2:])
        if self.order is None:
            return f
        return permuted(f, inverse_order(self.order))

    def conditionals(self) -> tuple[Array, Array]:
        """`p(h | v)` and `p(v | h)`, both of shape `(visible, hidden)`."""
        given_visible = jnp.exp(self.log_joint - self.log_visible[:, None])
        return given_visible, jnp.exp(self.log_joint - self.log_hidden[None, :])

    def means(self, f: Float[Array, "states k"]) -> tuple[Array, Array]:
        """`E[f | v]` and `E[f | h]`."""
        given_visible, given_hidden = self.conditionals()
        table = self.table(f)
        return (
            jnp.einsum("vh,vhk->vk", given_visible, table),
            jnp.einsum("vh,vhk->hk", given_hidden, table),
        )

    def redraws(self) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        """`f ↦ E[f | h]`, which redraws the first layer, and `f ↦ E[f | v]`, which
        redraws the second, on functions of all states."""
        given_visible, given_hidden = self.conditionals()

        def redraw_visible(f):
            table = self.table(f)
            mean = jnp.einsum("vh,vh...->h...", given_hidden, table)
            return self.flat(jnp.broadcast_to(mean[None], table.shape))

        def redraw_hidden(f):
            table = self.table(f)
            mean = jnp.einsum("vh,vh...->v...", given_visible, table)
            return self.flat(jnp.broadcast_to(mean[:, None], table.shape))

        return redraw_visible, redraw_hidden

    def steps(self, sector: Sector | None = None) -> tuple[AbstractStep, AbstractStep]:
        """`redraws` on half densities, in one sector of the global flip or in all."""
        sign = 0 if sector is None else 1 if sector == "even" else -1
        given_hidden = jnp.exp((self.log_joint - self.log_hidden[None, :]) / 2)
        given_visible = jnp.exp((self.log_joint - self.log_visible[:, None]) / 2)
        return (
            LayerRedraw(root=given_hidden, axis=0, order=self.order, sector=sign),
            LayerRedraw(root=given_visible, axis=1, order=self.order, sector=sign),
        )


class Layers(AbstractLayers):
    """The layers of a law that is a table of all states."""

    log_joint: Float[Array, "visible_states hidden_states"]
    log_visible: Float[Array, " visible_states"]
    log_hidden: Float[Array, " hidden_states"]
    order: tuple[int, ...] | None = eqx.field(static=True, default=None)

    @classmethod
    def of_blocks(
        cls,
        log_law: Float[Array, " states"],
        visible: tuple[int, ...],
        hidden: tuple[int, ...],
    ) -> "Layers":
        """From a law of all states, with marginals by summation."""
        order = visible + hidden
        natural = order == tuple(range(len(order)))
        joint = log_law if natural else permuted(log_law, order)
        joint = joint.reshape(2 ** len(visible), 2 ** len(hidden))
        return cls(
            joint,
            jax.nn.logsumexp(joint, axis=1),
            jax.nn.logsumexp(joint, axis=0),
            None if natural else order,
        )

    def overlap(
        self, sector: Sector | None, on_hidden: bool, share: float = 1.0
    ) -> DenseOverlap:
        half = (self.log_visible[:, None] + self.log_hidden[None, :]) / 2
        whole = math.sqrt(share) * jnp.exp(self.log_joint - half)
        whole = whole if on_hidden else whole.T
        return DenseOverlap(fold_sector(fold_sector(whole, sector).T, sector).T)


class EnergyLayers(AbstractLayers):
    """The layers of a model, whose joint law is computed from its energies where it is
    needed: by blocks, for what goes through all pairs of states."""

    model: AbstractEnergyModel
    log_partition: Float[Array, ""]
    log_visible: Float[Array, " visible_states"]
    log_hidden: Float[Array, " hidden_states"]
    block: int = eqx.field(static=True)
    order: None = eqx.field(static=True)

    def __init__(self, model: AbstractEnergyModel, block: int = _BLOCK):
        """**Arguments:**

        - `model`: the model.
        - `block`: how many pairs of states are held at once.
        """
        self.model, self.block, self.order = model, block, None
        self.log_partition, self.log_visible, self.log_hidden = log_laws(model)

    @property
    def log_joint(self) -> Float[Array, "visible_states hidden_states"]:
        return (-self.model.energies() - self.log_partition).reshape(self.shape)

    def overlap(
        self, sector: Sector | None, on_hidden: bool, share: float = 1.0
    ) -> "EnergyOverlap":
        return EnergyOverlap(
            layers=self, sector=sector, on_hidden=on_hidden, share=share
        )


class EnergyOverlap(AbstractOverlap):
    """One whose rows are computed from the energies of a model."""

    layers: EnergyLayers
    sector: Sector | None = eqx.field(static=True)
    on_hidden: bool = eqx.field(static=True)
    share: float = eqx.field(static=True)

    @property
    def _laws(self) -> tuple[Array, Array]:
        visible, hidden = self.layers.log_visible, self.layers.log_hidden
        return (visible, hidden) if self.on_hidden else (hidden, visible)

    @property
    def shape(self) -> tuple[int, int]:
        other, own = self._laws
        folded = 1 if self.sector is None else 2
        return other.size // folded, own.size // folded

    @property
    def n_blocks(self) -> int:
        rows, own = self.shape[0], self._laws[1].size
        some = max(1, self.layers.block // own)
        return max(1, rows // 2 ** (some.bit_length() - 1))

    def block(self, index: Int[Array, ""] | int) -> Float[Array, "some n"]:
        model, (log_other, log_own) = self.layers.model, self._laws
        size, n = self.shape[0] // self.n_blocks, self.shape[1]
        rows = index * size + jnp.arange(size)
        n_other, n_own = self.layers.blocks[:: 1 if self.on_hidden else -1]
        some = state_spins(rows, n_other, model.dtype)
        half = (log_other[rows][:, None] + log_own[None, :n]) / 2

        def at(own: Array) -> Array:
            if self.on_hidden:
                energies = model.energy_table(some, own)
            else:
                energies = model.energy_table(own, some).T
            return jnp.exp(-energies - self.layers.log_partition - half)

        own = state_spins(jnp.arange(n), n_own, model.dtype)
        values = at(own)
        if self.sector is not None:
            # On the basis (δ_x ± δ_-x) / √2 of either layer, π(v, h) being π(-v, -h).
            sign = 1 if self.sector == "even" else -1
            values = values + sign * at(-own)
        return math.sqrt(self.share) * values


class Colours(eqx.Module):
    """Blocks of units that do not interact, such as the colours of a graph."""

    log_law: Float[Array, " states"]
    blocks: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    @property
    def n_states(self) -> int:
        """The number of states."""
        return self.log_law.size

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the law."""
        return self.log_law.dtype

    def redraws(self) -> tuple[Callable[[Array], Array], ...]:
        """`f ↦ E[f | all units outside a block]` for each block, on functions of all
        states."""
        log_law, n_units = self.log_law, sum(map(len, self.blocks))

        def redraw(units):
            # Units that do not interact are redrawn one after the other.
            masks = [unit_mask(unit, n_units) for unit in units]
            flips = [jax.nn.sigmoid(xor(log_law, mask) - log_law) for mask in masks]

            def mean(f):
                for mask, flip in zip(masks, flips, strict=True):
                    f = f + scale(flip, xor(f, mask) - f)
                return f

            return mean

        return tuple(redraw(units) for units in self.blocks)

    def steps(self, sector: Sector | None = None) -> tuple[AbstractStep, ...]:
        """`redraws` on half densities, in one sector of the global flip or in all."""
        n_units = sum(map(len, self.blocks))
        law = self.log_law if sector is None else self.log_law[: len(self.log_law) // 2]

        def redraw(unit):
            mask, is_odd = unit_mask(unit, n_units), False
            if sector is not None and unit == 0:
                # The classes {x, -x} are indexed by their member with unit 0 down, and
                # that of the state with unit 0 flipped has all others flipped.
                mask, is_odd = mask - 1, sector == "odd"
            root = jnp.exp(jax.nn.log_sigmoid(law - xor(law, mask)) / 2)
            return Redraw(root=root, mask=mask, is_odd=is_odd)

        def block(units):
            # Units that do not interact are redrawn one after the other.
            parts = tuple(redraw(unit) for unit in units)
            return Words(parts, ((1.0, tuple(range(len(parts)))),))

        return tuple(block(units) for units in self.blocks)
