"""Exact laws of a model, and what is measured on them, in log space."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Num

from .._spins import (
    check_enumerable,
    check_spins,
    map_states,
    spins,
    spread,
    state_index,
)
from ._base import (
    AbstractEnergyModel,
    checked,
    require_model,
    require_precision,
)


@eqx.filter_jit
def log_partition(model: AbstractEnergyModel) -> Float[Array, ""]:
    """`log Z = log Σ_x exp(-E(x))`, nats."""
    return checked(model).log_partition()


@eqx.filter_jit
def free_energies(model: AbstractEnergyModel) -> Float[Array, " visible_states"]:
    """`F(v) = -log Σ_h exp(-E(v, h))` for every visible state, in order, nats."""
    return checked(model).free_energies()


@eqx.filter_jit
def visible_distribution(model: AbstractEnergyModel) -> Float[Array, " visible_states"]:
    """The law of the visible units: `(2**n_visible,)` probabilities, in order."""
    return jnp.exp(jax.nn.log_softmax(-free_energies(model)))


@eqx.filter_jit
def log_stationary(model: AbstractEnergyModel) -> Float[Array, " states"]:
    """`log π(x)` for every state, in order, nats."""
    return jax.nn.log_softmax(-spread(checked(model).energies()))


@eqx.filter_jit
def log_laws(
    model: AbstractEnergyModel,
) -> tuple[
    Float[Array, " states"],
    Float[Array, " visible_states"],
    Float[Array, " hidden_states"],
]:
    """`log π(v, h)`, `log π(v)` and `log π(h)`, nats, from the closed forms of the
    model."""
    model = checked(model)
    visible, hidden = model.free_energies(), model.hidden_free_energies()
    log_z = jax.nn.logsumexp(-visible)
    return -model.energies() - log_z, -visible - log_z, -hidden - log_z


@eqx.filter_jit
def kl_divergence(
    model: AbstractEnergyModel, data: Float[Array, " visible_states"]
) -> Float[Array, ""]:
    """`KL(data ‖ model) = Σ_v p(v) log(p(v) / π(v))` of the visible laws, nats.

    **Arguments:**

    - `model`: the model.
    - `data`: `(2**n_visible,)` probabilities, in order.

    **Raises:** `ValueError` for a wrong shape; a run-time error if `data` is not a law,
    or a parameter is not finite.
    """
    return _kl(checked(model), check_law(data, model))


def _kl(model: AbstractEnergyModel, data: Array) -> Float[Array, ""]:
    log_model = jax.nn.log_softmax(-model.free_energies())
    # Where p = 0 the summand is 0, and so is its derivative in the model.
    positive = data > 0
    log_data = jnp.log(jnp.where(positive, data, 1))
    return jnp.sum(jnp.where(positive, data * (log_data - log_model), 0))


@eqx.filter_jit
def kl_gradient(
    model: AbstractEnergyModel, data: Float[Array, " visible_states"]
) -> Float[Array, " n_parameters"]:
    """The training signal `g_a = E_data[f_a] - E_π[f_a] = ∂KL(data ‖ model)/∂θ_a`.

    Parameters are in the order of `observables`. Arguments and errors are those of
    `kl_divergence`.
    """
    return gradient_of_kl(checked(model), check_law(data, model))


def gradient_of_kl(model: AbstractEnergyModel, data: Array) -> Array:
    """`kl_gradient` of what has been checked."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    gradient = jax.grad(lambda p: _kl(eqx.combine(p, static), data))(params)
    return ravel_pytree(gradient)[0]


@eqx.filter_jit
def entropy(model: AbstractEnergyModel) -> Float[Array, ""]:
    """The entropy `-Σ_x π(x) log π(x)` of the law of all units, nats."""
    log_law = log_stationary(model)
    return -jnp.sum(jnp.exp(log_law) * log_law)


@eqx.filter_jit
def observables(model: AbstractEnergyModel) -> Float[Array, "states n_parameters"]:
    """The gradient observables `f_a(x) = ∂E(x)/∂θ_a` at every state, in order.

    Columns are the parameters, in the order of the model's leaves, each raveled in C
    order: for an RBM the weights row by row, then visible and hidden biases.
    """
    model = checked(model)
    check_enumerable(model.n_units)
    return model.observables(spins(model.n_units, model.dtype))


@eqx.filter_jit
def mean_observables(model: AbstractEnergyModel) -> Float[Array, " n_parameters"]:
    """`E_π[f_a]` for every parameter, without a table of observables: it is minus the
    gradient of `log Z`."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    gradient = jax.grad(lambda p: log_partition(eqx.combine(p, static)))(params)
    flat, _ = ravel_pytree(gradient)
    return -flat


@eqx.filter_jit
def expectation(
    model: AbstractEnergyModel,
    fn: Callable[[Num[Array, " n_units"]], Any],
) -> Any:
    """`E_π[fn(x)]`, exact, by a sum over all states in chunks.

    **Arguments:**

    - `model`: the model.
    - `fn`: takes one state of shape `(n_units,)`, returns an array or a tree of arrays,
        of floats, complex numbers, integers or booleans. Every new function is
        compiled: define it once.

    **Returns:** what `fn` returns, averaged: real numbers in the dtype of the model,
    complex ones in its precision. The mean of a boolean is a probability.

    **Raises:** `TypeError` if `fn` is no function; a run-time error if it is not finite
    at a state, or a parameter is not finite.
    """
    law = jnp.exp(log_stationary(model))
    if not callable(fn):
        raise TypeError(
            "fn is a function of one state, but an object of type "
            f"{type(fn).__name__} was given."
        )
    values = map_states(fn, model.n_units, model.dtype)

    def mean(f):
        is_complex = jnp.issubdtype(f.dtype, jnp.complexfloating)
        dtype = np.result_type(law.dtype, np.complex64) if is_complex else law.dtype
        f = f.astype(dtype)
        f = eqx.error_if(
            f,
            ~jnp.all(jnp.isfinite(f)),
            "fn is not finite at a state, and so its expectation is not: give it "
            "another value there, as by `jnp.where`.",
        )
        return jnp.tensordot(law.astype(dtype), f, 1)

    return jax.tree.map(mean, values)


@eqx.filter_jit
def empirical_distribution(
    samples: Num[Array, "*batch n_visible"],
) -> Float[Array, " visible_states"]:
    """The law of a data set: the share of each visible state among the samples.

    **Arguments:**

    - `samples`: ±1 spins of any leading shape.

    **Raises:** `ValueError` if there are none; a run-time error for another value than
    ±1.
    """
    samples = check_spins(jnp.asarray(samples), None)
    n_visible = samples.shape[-1]
    check_enumerable(n_visible)
    flat = samples.reshape(-1, n_visible)
    if flat.shape[0] == 0 or n_visible == 0:
        raise ValueError(
            "At least one sample of one unit is needed, but the shape is "
            f"{samples.shape}."
        )
    counts = jnp.bincount(state_index(flat), length=2**n_visible)
    return counts.astype(jnp.result_type(float)) / flat.shape[0]


def check_law(
    data: Float[Array, " visible_states"], model: AbstractEnergyModel
) -> Float[Array, " visible_states"]:
    """Return `data` in the model's dtype, having checked that it is a visible law."""
    if isinstance(data, AbstractEnergyModel):
        raise TypeError(
            f"data is a law, as an array, but an object of type {type(data).__name__} "
            "was given. Look at the order of the arguments."
        )
    require_model(model)
    data, n = jnp.asarray(data), model.n_visible
    if data.shape != (2**n,):
        size = f"(2**{n},)" + (f" = ({2**n},)" if n < 64 else "")
        raise ValueError(
            f"data is a law of the {n} visible units, of shape {size}, but "
            f"{data.shape} was given. `trainq.empirical_distribution` makes one from "
            "samples."
        )
    return require_law(data, model.dtype, "data")


def require_law(law: Array, dtype: Any, what: str) -> Array:
    """Return `law` in another dtype, having checked that it is one."""
    if not jnp.issubdtype(law.dtype, jnp.inexact):
        law = law.astype(dtype)
    require_precision(law.dtype, what)
    # A law that was computed in float32 sums to one in float32.
    tolerance = math.sqrt(max(jnp.finfo(t).eps for t in (law.dtype, dtype)))
    law = law.astype(dtype)
    is_law = (jnp.abs(jnp.sum(law) - 1) <= tolerance) & jnp.all(law >= 0)
    return eqx.error_if(
        law,
        ~is_law,
        f"{what} is not a law: its entries must be at least 0 and sum to 1. "
        "Divide counts by their sum.",
    )
