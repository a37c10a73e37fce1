"""A model with some of its units clamped: the law of the others."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Num

from .._checks import no_derivative
from .._spins import as_spins, check_spins
from ._base import AbstractEnergyModel, made


_VALUES_ARE_FIXED = (
    "A clamped model has no derivative by the values of its clamped units, which are "
    "spins. Use `jax.lax.stop_gradient(values)`."
)


class Clamped(AbstractEnergyModel):
    """The law of some units of a model given the values of the others.

    What `AbstractEnergyModel.clamp` returns. Its parameters are those of the whole
    model, and its observables are those of the whole state, with the clamped units
    filled in; its states are those of the free units, in their order. The values are
    traced, but are no parameters: no optimiser moves them, and no derivative reaches
    them.
    """

    model: AbstractEnergyModel
    """The whole model."""
    # As booleans they are no parameters to any filter, optimiser or weight decay, and
    # say the same after the tree was scaled.
    up: Bool[Array, "*batch n_clamped"]
    """Whether each clamped unit is up."""
    units: tuple[int, ...] = eqx.field(static=True)
    """The clamped units, sorted."""
    n_visible: int = eqx.field(static=True)
    """The number of free visible units."""
    n_hidden: int = eqx.field(static=True)
    """The number of free hidden units."""

    def __repr__(self) -> str:
        given = f"{len(self.units)} of {self.model.n_units} units"
        return f"{type(self).__name__}({self.model!r}, {given})"

    @property
    def values(self) -> Float[Array, "*batch n_clamped"]:
        """The spins of the clamped units."""
        return jnp.where(self.up.astype(bool), 1, -1).astype(self.model.dtype)

    @property
    def free(self) -> Int[np.ndarray, " n_units"]:
        """The units of the whole model that are not clamped."""
        return np.delete(np.arange(self.model.n_units), self.units)

    def fill(
        self, x: Num[Array, "*batch n_units"]
    ) -> Num[Array, "*batch n_units_of_the_model"]:
        """States of the whole model, from those of the free units."""
        x = as_spins(x, self.n_units)
        values = jnp.broadcast_to(self.values, (*x.shape[:-1], len(self.units)))
        both = jnp.concatenate([x, values.astype(x.dtype)], axis=-1)
        order = np.argsort(np.concatenate([self.free, np.asarray(self.units)]))
        return both[..., order]

    @property
    def _closed(self) -> tuple[AbstractEnergyModel, Array] | None:
        if self.is_batch:
            return None
        closed = self.model.equivalent or self.model
        return closed.given(np.asarray(self.units), self.values)

    @property
    def equivalent(self) -> AbstractEnergyModel | None:
        return None if self._closed is None else self._closed[0]

    @property
    def offset(self) -> Float[Array, ""] | None:
        if self._closed is None:
            return None
        inner = None if self.model.equivalent is None else self.model.offset
        return self._closed[1] if inner is None else self._closed[1] + inner

    @property
    def is_linear(self) -> bool:
        return self.model.is_linear

    @property
    def is_batch(self) -> bool:
        return self.up.ndim > 1 or self.model.is_batch

    def energy(self, x: Num[Array, "*batch n_units"]) -> Float[Array, "*batch"]:
        return self.model.energy(self.fill(x))

    def observables(
        self, x: Num[Array, "*batch n_units"]
    ) -> Float[Array, "*batch n_parameters"]:
        return self.model.observables(self.fill(x))

    def local_fields(
        self, x: Num[Array, "*batch n_units"], units: Int[Array, " some"]
    ) -> Float[Array, "*batch some"]:
        if self.equivalent is not None:
            return self.equivalent.local_fields(x, units)
        return self.model.local_fields(self.fill(x), jnp.asarray(self.free)[units])

    def colouring(self) -> tuple[np.ndarray, ...]:
        if self.equivalent is not None:
            return self.equivalent.colouring()
        # Units that do not interact do not either, given some others.
        place = np.full(self.model.n_units, -1)
        place[self.free] = np.arange(self.n_units)
        blocks = (place[np.asarray(block)] for block in self.model.colouring())
        blocks = (block[block >= 0] for block in blocks)
        return tuple(block for block in blocks if block.size)

    def conflict(self, colours: Int[np.ndarray, " n_units"]) -> tuple[int, int] | None:
        if self.equivalent is not None:
            return self.equivalent.conflict(colours)
        whole = np.empty(self.model.n_units, int)
        whole[self.free] = np.unique(colours, return_inverse=True)[1]
        whole[list(self.units)] = self.n_units + np.arange(len(self.units))
        found = self.model.conflict(whole)
        if found is None:
            return None
        first, second = np.searchsorted(self.free, found).tolist()
        return first, second

    def tempered(self, beta: int | float | Float[Array, ""]) -> AbstractEnergyModel:
        return self.model.tempered(beta).clamp(self.units, self.values)

    def clamp(
        self,
        units: Sequence[int] | Int[np.ndarray, " some"],
        values: Sequence[int] | Num[Array | np.ndarray, " some"],
    ) -> AbstractEnergyModel:
        places = checked_units(units, self.n_units)
        spins = _checked_values(values, places, self.dtype)
        # With more units of the same model.
        every = np.concatenate([np.asarray(self.units), self.free[places]])
        return clamped(self.model, every, jnp.concatenate([self.values, spins]))


def clamped(model: AbstractEnergyModel, units: Any, values: Any) -> AbstractEnergyModel:
    """`AbstractEnergyModel.clamp`."""
    units = checked_units(units, model.n_units)
    spins = _checked_values(values, units, model.dtype)
    if units.size == 0:
        return model
    if units.size == model.n_units:
        raise ValueError(
            f"At least one unit stays free, but all {model.n_units} were clamped. The "
            "energy of that state is `model.energy(x)`."
        )
    order = np.argsort(units)
    n_visible = model.n_visible - int(np.sum(units < model.n_visible))
    return made(
        Clamped,
        model=model,
        up=no_derivative(_VALUES_ARE_FIXED, spins[order]) > 0,
        units=tuple(units[order].tolist()),
        n_visible=n_visible,
        n_hidden=model.n_units - units.size - n_visible,
    )


def checked_units(units: Any, n_units: int) -> Int[np.ndarray, " some"]:
    """Units by number, having checked that each is there and given once.

    **Raises:** `ValueError` otherwise, or if they are traced.
    """
    if isinstance(units, Tracer) or (
        isinstance(units, list | tuple) and any(isinstance(u, Tracer) for u in units)
    ):
        raise ValueError(
            "units says which units are clamped. It is fixed when a program is "
            "compiled, and cannot be traced: give numbers, and trace the values."
        )
    array = np.asarray(units)
    if array.size == 0 and array.ndim == 1:
        return array.astype(int)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            "units is a sequence of units by number, such as `[0, 2]`, but an array "
            f"of shape {array.shape} and dtype {array.dtype} was given. Of a mask "
            "these are `np.flatnonzero(mask)`."
        )
    array = array.astype(int)
    number, counts = np.unique(array, return_counts=True)
    if number[0] < 0 or number[-1] >= n_units or counts.max() > 1:
        raise ValueError(
            f"units names each unit to clamp once, by a number from 0 to {n_units - 1}"
            f", but {array.tolist()} was given."
        )
    return array


def _checked_values(
    values: Any, units: np.ndarray, dtype: Any
) -> Float[Array, " some"]:
    values = jnp.asarray(values)
    if values.shape != units.shape:
        raise ValueError(
            f"values has shape {units.shape}, one spin for each unit that is clamped, "
            f"but {values.shape} was given. For several conditions map over them: "
            "`eqx.filter_vmap(lambda v: f(model.clamp(units, v)))(values)`."
        )
    if values.size == 0:
        return jnp.zeros(0, dtype)
    return check_spins(values, None).astype(dtype)
