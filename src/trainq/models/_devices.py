"""Devices: models that run where another one was meant."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from .._checks import check_key, no_derivative, require_precision, whole_number
from ._base import AbstractEnergyModel, parameters, require_model
from ._laws import log_stationary, model_phase


_NO_DERIVATIVE = (
    "Rounding has no derivative: `quantise` differentiates with "
    "`straight_through=True`, which takes it for the identity, or not at all. For "
    "a device that is held fixed use `jax.lax.stop_gradient` on its parameters."
)
_Model = TypeVar("_Model", bound=AbstractEnergyModel)
Number = int | float | Float[Array | np.ndarray, ""]


def quantise(
    model: _Model, bits: int, range: Number, *, straight_through: bool = False
) -> _Model:
    """The model as a device holds it that has `bits` bits for every parameter: the
    nearest of `2**bits - 1` evenly spaced values from `-range` to `range`, zero among
    them.

    The step is `range / (2**(bits - 1) - 1)`: with 4 bits and a range of 1.75 it is a
    quarter. What is halfway goes to the even one, and what is out of range to its end.

    **Arguments:**

    - `model`: the model, of any class: its parameters are what is rounded.
    - `bits`: bits for each parameter, at least 2.
    - `range`: the largest magnitude that the device holds, which may be traced.
    - `straight_through`: rounding has no derivative that anybody could use: it is zero,
        and to differentiate raises. True takes the rounding for the identity in the
        backward pass alone: what a training run does that knows its device, and a
        choice, not a derivative.

    **Returns:** a model of the same class.

    **Raises:** `ValueError` for bits that are not whole or fewer than 2, a range that
    is not a positive number, or when differentiated without `straight_through`; a
    run-time error for a traced range that is not.

    ??? cite "Source"

        The grid is that of Nagel et al., *A white paper on neural network
        quantization*, arXiv:2106.08295, 2021, without its last negative value; the
        estimate, Bengio, Léonard and Courville, arXiv:1308.3432, 2013.

    !!! example

        ```python
        device = tq.quantise(model, bits=4, range=1.75)
        predictor = tq.QStruct(tq.RandomScanGibbs(), window=1000)
        print(predictor(model, data, device=device))
        ```
    """
    bits = whole_number("bits", bits, 2)
    ends = 2 ** (bits - 1) - 1
    limited = clip(model, range)
    width = _magnitude("range", range, least_is_zero=False)

    def rounded(p: Array) -> Array:
        step = (width / ends).astype(p.dtype)
        if straight_through:
            return _round_straight_through(p / step) * step
        return jnp.round(no_derivative(_NO_DERIVATIVE, p / step)) * step

    return _of_parameters(rounded, limited)


def clip(model: _Model, range: Number) -> _Model:
    """The model with every parameter between `-range` and `range`, and at the nearer
    end if it was not.

    Differentiable: what is clipped has a derivative of zero, for it does not move.

    **Arguments:**

    - `model`: the model, of any class.
    - `range`: the largest magnitude, which may be traced.

    **Returns:** a model of the same class.

    **Raises:** `ValueError` for a range that is not a positive number; a run-time error
    for one that is traced and not.

    !!! example

        ```python
        print(tq.clip(model, 0.5).weights)
        ```
    """
    require_model(model)
    width = _magnitude("range", range, least_is_zero=False)

    def limited(p: Array) -> Array:
        most = width.astype(p.dtype)
        return jnp.clip(p, -most, most)

    return _of_parameters(limited, model)


def scatter(
    key: Key[Array, ""], model: _Model, gain: Number = 0.0, offset: Number = 0.0
) -> _Model:
    """The model on a device whose parts differ: every parameter `θ` becomes
    `θ (1 + gain ξ) + offset η`, with independent standard normal `ξ` and `η`.

    One key is one device. Parameters that the model does not have stay away: offsets of
    the fields need biases, which may be zero.

    **Arguments:**

    - `key`: random key.
    - `model`: the model, of any class.
    - `gain`: the standard deviation of the relative error, which may be traced.
    - `offset`: the standard deviation of the error that is added, in the units of the
        parameters, which may be traced.

    **Returns:** a model of the same class, differentiable in all of these.

    **Raises:** `ValueError` for a negative number, or one that is not finite; a
    run-time error for one that is traced; `TypeError` for another thing than a key.

    !!! example

        ```python
        devices = eqx.filter_vmap(
            lambda key: tq.scatter(key, model, gain=0.05)
        )(jax.random.split(key, 10))
        ```
    """
    check_key(key)
    require_model(model)
    gain = _magnitude("gain", gain, least_is_zero=True)
    offset = _magnitude("offset", offset, least_is_zero=True)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(params)
    relative, added = jr.normal(key, (2, flat.size), flat.dtype)
    gain, offset = gain.astype(flat.dtype), offset.astype(flat.dtype)
    return eqx.combine(unravel(flat * (1 + gain * relative) + offset * added), static)


def running(
    model: AbstractEnergyModel, device: AbstractEnergyModel | None
) -> AbstractEnergyModel:
    """The model that runs: the device, or the model itself if there is none.

    **Raises:** `TypeError` for another thing than a model; `ValueError` for a device
    with other units, or another precision.
    """
    if device is None:
        return model
    require_model(model)
    require_model(device)
    sizes = [(m.n_visible, m.n_hidden) for m in (model, device)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"A device has the units of the model, {sizes[0][0]} visible and "
            f"{sizes[0][1]} hidden, but one with {sizes[1][0]} and {sizes[1][1]} was "
            "given."
        )
    if model.dtype != device.dtype:
        raise ValueError(
            f"The model is in {model.dtype}, but its device in {device.dtype}. Convert "
            "the parameters of one: numbers of fewer digits are `quantise`'s business."
        )
    return device


def device_bias(
    model: AbstractEnergyModel, device: AbstractEnergyModel
) -> Float[Array, " n_parameters"]:
    """`E_π[f_a] - E_device[f_a]`, the error of a gradient from endless chains of the
    device: its observables `f_a` are those of the model. Both have been checked.

    **Arguments:**

    - `model`, `device`: the model that is meant, and the one that runs.

    **Returns:** one number for each parameter.
    """
    if _share_observables(model, device):
        return model_phase(model) - model_phase(device)
    # Σ_x (π(x) - π'(x)) ∂E(x)/∂θ_a, the laws held fixed in the inner derivative alone.
    difference = jnp.exp(log_stationary(model)) - jnp.exp(log_stationary(device))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def mean(p):
        return difference @ eqx.combine(p, static).energies()

    return ravel_pytree(jax.grad(mean)(params))[0]


def _share_observables(model: AbstractEnergyModel, device: AbstractEnergyModel) -> bool:
    """Whether the two have the same observables, as far as types tell: those of a
    linear energy do not depend on its parameters, and nothing else may differ."""
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_array))
    return (
        model.is_linear
        and jax.tree.structure(model) == jax.tree.structure(device)
        and len(arrays) == len(jax.tree.leaves(parameters(model)))
    )


def _of_parameters(fn: Any, model: _Model) -> _Model:
    return jax.tree.map(lambda p: fn(p) if eqx.is_inexact_array(p) else p, model)


@jax.custom_jvp
def _round_straight_through(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The nearest integers, with the derivative of the identity."""
    return jnp.round(x)


@_round_straight_through.defjvp
def _(primals, tangents):
    return _round_straight_through(*primals), tangents[0]


def _magnitude(name: str, value: Any, *, least_is_zero: bool) -> Float[Array, ""]:
    """`value` as an array, having checked that it is one finite number that is positive
    or, if it may be, zero."""
    allowed = "at least zero" if least_is_zero else "above zero"
    message = f"{name} is one finite number, {allowed}"

    def wrong(x):
        low = x < 0 if least_is_zero else x <= 0
        return ~(np.isfinite(x) if isinstance(x, np.ndarray) else jnp.isfinite(x)) | low

    number = value if isinstance(value, Tracer) else np.asarray(value)
    real = any(jnp.issubdtype(number.dtype, k) for k in (jnp.integer, jnp.floating))
    if not (real and number.shape == ()) or (
        isinstance(number, np.ndarray) and wrong(number)
    ):
        raise ValueError(f"{message}, but {value!r} was given.")
    if jnp.issubdtype(number.dtype, jnp.floating):
        require_precision(number.dtype, name)
    array = jnp.asarray(value).astype(float)
    if isinstance(number, Tracer):
        array = eqx.error_if(array, wrong(array), f"{message}, but another was given.")
    return array
