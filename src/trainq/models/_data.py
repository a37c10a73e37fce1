"""Data, as a law or as samples, and the phase of the gradient that they are."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, Num

from .._checks import require_law
from .._spins import (
    check_enumerable,
    check_spins,
    compiled_with_spins,
    state_index,
    state_spins,
)
from ._base import AbstractEnergyModel, exactly, require_model
from ._laws import model_phase


VisibleLaw = Float[Array | np.ndarray, " visible_states"]
"""Probabilities of the `2**n_visible` visible states, in order."""
Data = VisibleLaw | Num[Array | np.ndarray, "samples n_visible"]
"""The law of the visible states, or samples of them. What has been checked is an
array of the model's type."""
SampleWeights = Num[Array | np.ndarray, " samples"] | Sequence[float]
"""How much each sample counts, such as how often it occurs: only ratios matter."""


@eqx.filter_jit
def kl_divergence(model: AbstractEnergyModel, data: VisibleLaw) -> Float[Array, ""]:
    """`KL(data ‖ model) = Σ_v p(v) log(p(v) / π(v))` of the visible laws, nats.

    **Arguments:**

    - `model`: the model.
    - `data`: `(2**n_visible,)` probabilities, in order.

    **Returns:** a number, zero where the two laws are the same.

    **Raises:** `ValueError` for a wrong shape; a run-time error if `data` is not a law,
    or a parameter is not finite.
    """
    return _kl(exactly(model), check_law(data, model))


def _kl(model: AbstractEnergyModel, data: Array) -> Float[Array, ""]:
    log_model = jax.nn.log_softmax(-model.free_energies())
    # Where p = 0 the summand is 0, and so is its derivative in the model.
    positive = data > 0
    log_data = jnp.log(jnp.where(positive, data, 1))
    return jnp.sum(jnp.where(positive, data * (log_data - log_model), 0))


@compiled_with_spins("data", least_axes=2)
def log_likelihood(
    model: AbstractEnergyModel, data: Data, weights: SampleWeights | None = None
) -> Float[Array, ""]:
    """The mean of `log π(v) = -F(v) - log Z` over the data, nats: by how much it is
    below zero is what a sample costs to tell, in a code made for the model.

    It takes `log Z`, and so enumerates the smaller layer of an RBM: of samples the
    other one has any size. Of each sample it is
    `-model.free_energy(v) - tq.log_partition(model)`.

    **Arguments:**

    - `model`: the model.
    - `data`: `(2**n_visible,)`, a law of the visible states, or `(samples, n_visible)`
        spins.
    - `weights`: `(samples,)`, how much each sample counts, such as how often it
        occurs; only their ratios matter. All alike, by default.

    **Returns:** a number.

    **Raises:** `ValueError` for a wrong shape, another value than ±1, or too many
    states; a run-time error for a law or weights that are not what they should be, or a
    parameter that is not finite.

    !!! example

        ```python
        samples = jax.random.rademacher(key, (100, 3))
        print(tq.log_likelihood(model, samples))
        ```
    """
    model = exactly(model)
    data = check_data(data, model)
    weights = check_weights(weights, data)
    if data.ndim == 1:
        return jnp.sum(data * jax.nn.log_softmax(-model.free_energies()))
    return -_mean_free_energy(model, data, weights) - model.log_partition()


@compiled_with_spins("data", least_axes=2)
def kl_gradient(
    model: AbstractEnergyModel, data: Data, weights: SampleWeights | None = None
) -> Float[Array, " n_parameters"]:
    """The training signal `g_a = E_data[f_a] - E_π[f_a] = ∂KL(data ‖ model)/∂θ_a`,
    which is also minus the gradient of [`trainq.log_likelihood`][].

    From samples it enumerates no more than that does.

    **Arguments:**

    - `model`, `data`, `weights`: as for [`trainq.log_likelihood`][].

    **Returns:** one number for each parameter, in the order of
    [`trainq.observables`][].

    **Raises:** as [`trainq.log_likelihood`][].

    !!! example

        ```python
        g = tq.kl_gradient(model, data)
        assert g.shape == (6,)  # 3 × 2 weights
        ```
    """
    model = exactly(model)
    data = check_data(data, model)
    return gradient_of_kl(model, data, check_weights(weights, data))


def gradient_of_kl(
    model: AbstractEnergyModel,
    data: Float[Array, "..."],
    weights: Float[Array, " samples"] | None = None,
) -> Float[Array, " n_parameters"]:
    """`g_a = E_data[f_a] - E_π[f_a]` for a law or samples that have been checked.

    Of samples it is the difference of two averages. Of a law it is taken by summing the
    difference of two laws, which keeps more digits of a gradient that is small.

    **Arguments:**

    - `model`: the model.
    - `data`: what [`trainq.models.check_data`][] returns.
    - `weights`: what [`trainq.models.check_weights`][] returns.

    **Returns:** one number for each parameter.
    """
    if data.ndim == 2:
        return data_phase(model, data, weights) - model_phase(model)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    gradient = jax.grad(lambda p: _kl(eqx.combine(p, static), data))(params)
    return ravel_pytree(gradient)[0]


@compiled_with_spins("samples")
def empirical_distribution(
    samples: Num[Array, "*batch n_visible"],
) -> Float[Array, " visible_states"]:
    """The law of a data set: the share of each visible state among the samples.

    **Arguments:**

    - `samples`: ±1 spins of any leading shape.

    **Returns:** `(2**n_visible,)` probabilities, in order.

    **Raises:** `ValueError` if there are none, or for another value than ±1.

    !!! example

        ```python
        samples = jax.random.rademacher(key, (100, 3))
        data = tq.empirical_distribution(samples)
        print(tq.kl_divergence(model, data))
        ```
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
    data: VisibleLaw, model: AbstractEnergyModel
) -> Float[Array, " visible_states"]:
    """Return `data` in the model's dtype, having checked that it is a visible law.

    **Raises:** `ValueError` for a wrong shape; `TypeError` for a model; a run-time
    error if it is not a law.
    """
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


def check_data(data: Any, model: AbstractEnergyModel) -> Float[Array, "..."]:
    """Data that have been checked, and are in the model's dtype.

    **Arguments:**

    - `data`: `(2**n_visible,)`, a law of the visible states, or `(samples, n_visible)`
        spins.
    - `model`: the model that they are for.

    **Returns:** the same, as an array of JAX.

    **Raises:** `ValueError` for a wrong shape, or a spin that is neither -1 nor +1; a
    run-time error if it is not a law.
    """
    data = jnp.asarray(data)
    if data.ndim == 1 and data.shape != (model.n_visible,):
        return check_law(data, model)
    if data.ndim != 2 or data.shape[1] != model.n_visible or data.shape[0] == 0:
        raise ValueError(
            f"data is a law of shape (2**{model.n_visible},), or samples of shape "
            f"(samples, {model.n_visible}), but {data.shape} was given. For one sample "
            "add an axis: `data[None]`."
        )
    return check_spins(data, model.n_visible).astype(model.dtype)


def check_weights(
    weights: SampleWeights | None, data: Float[Array, "..."]
) -> Float[Array, " samples"] | None:
    """Weights of samples, in the type of the data and with the sum one, having checked
    them; None for None.

    **Arguments:**

    - `weights`: `(samples,)` numbers, at least 0, or None.
    - `data`: what [`trainq.models.check_data`][] returns.

    **Returns:** an array of JAX, or None.

    **Raises:** `ValueError` for a wrong shape, or a law, which has none; a run-time
    error for a negative one, or if their sum is zero or not finite.
    """
    if weights is None:
        return None
    weights = jnp.asarray(weights)
    if data.ndim == 1 or weights.shape != data.shape[:1]:
        expected = f"shape ({data.shape[0]},), one for each sample"
        raise ValueError(
            f"weights are of samples, {'and' if data.ndim == 1 else 'of'} "
            f"{'a law has its own' if data.ndim == 1 else expected}, but an array of "
            f"shape {weights.shape} was given."
        )
    weights = weights.astype(data.dtype)
    total = jnp.sum(weights)
    wrong = jnp.any(weights < 0) | ~jnp.isfinite(total) | (total <= 0)
    return eqx.error_if(
        weights / total,
        wrong,
        "weights of samples are finite, at least 0, and one of them is positive.",
    )


def _mean_free_energy(
    model: AbstractEnergyModel, samples: Any, weights: Array | None
) -> Array:
    values = model.free_energy(samples)
    return jnp.mean(values) if weights is None else weights @ values


def data_phase(
    model: AbstractEnergyModel,
    data: Data,
    weights: Float[Array, " samples"] | None = None,
) -> Float[Array, " n_parameters"]:
    """`E_data[f_a]`, for a law of the visible states or for samples, that have been
    checked: the derivative of the mean free energy.

    **Arguments:**

    - `model`: the model.
    - `data`: what [`trainq.models.check_data`][] returns.
    - `weights`: what [`trainq.models.check_weights`][] returns.

    **Returns:** one number for each parameter.
    """
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def mean(p):
        whole = eqx.combine(p, static)
        if data.ndim == 1:
            return data @ whole.free_energies()
        return _mean_free_energy(whole, data, weights)

    return ravel_pytree(jax.grad(mean)(params))[0]


def require_data_phase(model: AbstractEnergyModel, data: Data) -> None:
    """Raise at once what `data_phase` would, before other work is done: a `ValueError`
    for more interacting hidden units than can be enumerated.

    **Arguments:**

    - `model`: the model.
    - `data`: what [`trainq.models.check_data`][] returns.
    """
    eqx.filter_eval_shape(data_phase, model, data)


@eqx.filter_jit
def data_variance(
    model: AbstractEnergyModel, data: Float[Array, "..."]
) -> Float[Array, " n_parameters"]:
    """`Var_data E[f_a | v]`: the variance of the data phase of one sample, for a law of
    the visible states or for samples, that have been checked. That of a batch of
    independent samples is this over their number.

    **Arguments:**

    - `model`: the model.
    - `data`: what [`trainq.models.check_data`][] returns.

    **Returns:** one number for each parameter.
    """
    if data.ndim == 2:
        phases = jax.lax.map(lambda v: data_phase(model, v[None]), data, batch_size=256)
        return jnp.var(phases, axis=0)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(params)

    def free_energies(flat):
        return eqx.combine(unravel(flat), static).free_energies()

    means = jax.jacfwd(free_energies)(flat)  # E[f | v] = ∂F(v)
    return data @ (means - (data @ means)[None]) ** 2


def draw_visible(
    key: Key[Array, ""], model: AbstractEnergyModel, data: Array, shape: tuple[int, ...]
) -> Num[Array, "*shape n_visible"]:
    """Independent visible states from data that have been checked: from their law, or
    from samples with replacement."""
    if data.ndim == 1:
        index = jr.choice(key, data.shape[0], shape, p=data)
        return state_spins(index, model.n_visible, model.dtype)
    return data[jr.randint(key, shape, 0, data.shape[0])]
