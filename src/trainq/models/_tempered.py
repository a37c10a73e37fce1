"""A model at another temperature."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Num, Shaped

from .._checks import no_derivative, require_precision
from ._base import AbstractEnergyModel


_BETA_IS_FIXED = (
    "A `Tempered` model has no derivative by its temperature, which is no "
    "parameter. Multiply the energy of a model of your own by it, or use "
    "`jax.lax.stop_gradient(beta)`."
)


class Tempered(AbstractEnergyModel):
    """A model with its energy multiplied by an inverse temperature.

    What `AbstractEnergyModel.tempered` returns for a model that cannot scale its
    parameters: `beta` is traced, but is none of them.
    """

    model: AbstractEnergyModel
    # What is traced is an array, and an array of floats is a parameter to every filter,
    # optimiser and weight decay. So the temperature is kept as its bits, which are
    # booleans: no derivative reaches them, and they still say the same after the tree
    # was scaled or averaged, when what was true is not zero. As integers they would be
    # another number.
    bits: Shaped[Array, "*batch n_bits"] = eqx.field(repr=False)
    n_visible: int = eqx.field(static=True)
    n_hidden: int = eqx.field(static=True)

    def __init__(
        self, model: AbstractEnergyModel, beta: int | float | Float[Array, ""]
    ):
        """**Arguments:**

        - `model`: the model.
        - `beta`: the inverse temperature, which may be traced.

        **Raises:** as `AbstractEnergyModel.tempered`.
        """
        self.model = model
        beta = no_derivative(_BETA_IS_FIXED, inverse_temperature(beta))
        octets = jax.lax.bitcast_convert_type(beta, jnp.uint8)
        self.bits = jnp.unpackbits(octets).astype(bool)
        self.n_visible = model.n_visible
        self.n_hidden = model.n_hidden

    def __repr__(self) -> str:
        known = not isinstance(self.beta, Tracer) and self.beta.ndim == 0
        beta = f"{float(self.beta):g}" if known else eqx.tree_pformat(self.beta)
        return f"{type(self).__name__}(model={self.model!r}, beta={beta})"

    def tempered(self, beta: int | float | Float[Array, ""]) -> "Tempered":
        return Tempered(self.model, self.beta * inverse_temperature(beta))

    @property
    def beta(self) -> Float[Array, "*batch"]:
        """The inverse temperature."""
        octets = jnp.packbits(self.bits.astype(bool), axis=-1)
        dtype = jnp.float64 if self.bits.shape[-1] == 64 else jnp.float32
        return jax.lax.bitcast_convert_type(octets, dtype)

    @property
    def equivalent(self) -> AbstractEnergyModel | None:
        # What scales its parameters, and is no `Tempered` itself.
        other = (self.model.equivalent or self.model).tempered(self.beta)
        return None if isinstance(other, Tempered) else other

    @property
    def offset(self) -> Float[Array, ""] | None:
        other = self.model.offset
        return None if other is None else self._scale(other)

    def clamp(
        self,
        units: Sequence[int] | Int[np.ndarray, " some"],
        values: Sequence[int] | Num[Array | np.ndarray, " some"],
    ) -> AbstractEnergyModel:
        return Tempered(self.model.clamp(units, values), self.beta)

    def _scale(self, values: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        # An integer would make one of the temperature.
        require_precision(values.dtype, f"The energy of a {type(self.model).__name__}")
        return self.beta.astype(values.dtype) * values

    @property
    def is_symmetric(self) -> bool:
        return self.model.is_symmetric

    @property
    def is_linear(self) -> bool:
        return self.model.is_linear

    def energy(self, x: Num[Array, "*batch n_units"]) -> Float[Array, "*batch"]:
        return self._scale(self.model.energy(x))

    def energies(self) -> Float[Array, " states"]:
        return self._scale(self.model.energies())

    def energy_table(
        self, v: Num[Array, "some n_visible"], h: Num[Array, "others n_hidden"]
    ) -> Float[Array, "some others"]:
        return self._scale(self.model.energy_table(v, h))

    def observables(
        self, x: Num[Array, "*batch n_units"]
    ) -> Float[Array, "*batch n_parameters"]:
        return self._scale(self.model.observables(x))

    def local_fields(
        self, x: Num[Array, "*batch n_units"], units: Int[Array, " some"]
    ) -> Float[Array, "*batch some"]:
        return self._scale(self.model.local_fields(x, units))

    def colouring(self) -> tuple[np.ndarray, ...]:
        return self.model.colouring()

    def conflict(self, colours: Int[np.ndarray, " n_units"]) -> tuple[int, int] | None:
        return self.model.conflict(colours)

    @property
    def is_batch(self) -> bool:
        return self.bits.ndim > 1 or self.model.is_batch


def inverse_temperature(beta: Any) -> Float[Array, ""]:
    """`beta` as an array, having checked that it is one finite real number."""
    value = beta if isinstance(beta, Tracer) else np.asarray(beta)
    kinds = (jnp.integer, jnp.floating)
    real = any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    if not (real and value.shape == ()) or (
        isinstance(value, np.ndarray) and not np.isfinite(value)
    ):
        raise ValueError(
            "beta is an inverse temperature, one finite real number, but "
            f"{beta!r} was given. For several temperatures use `eqx.filter_vmap`."
        )
    if jnp.issubdtype(value.dtype, jnp.floating):
        require_precision(value.dtype, "beta")
    array = jnp.asarray(value).astype(float)
    if isinstance(value, Tracer):
        array = eqx.error_if(
            array, ~jnp.isfinite(array), "beta, an inverse temperature, is not finite."
        )
    return array
