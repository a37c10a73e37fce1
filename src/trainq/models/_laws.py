"""Exact laws of a model, and what is measured on them, in log space."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Num

from .._memory import require_memory
from .._spins import (
    check_enumerable,
    check_spins,
    compiled_with_spins,
    map_states,
    shard,
    spins,
)
from ._base import AbstractEnergyModel, checked, exactly, parameters


@eqx.filter_jit
def log_partition(model: AbstractEnergyModel) -> Float[Array, ""]:
    """`log Z = log Σ_x exp(-E(x))`, nats.

    **Raises:** `ValueError` if there are too many states; a run-time error if a
    parameter is not finite.

    !!! example

        ```python
        print(tq.log_partition(model))
        ```
    """
    return exactly(model).log_partition()


@eqx.filter_jit
def free_energies(model: AbstractEnergyModel) -> Float[Array, " visible_states"]:
    """`F(v) = -log Σ_h exp(-E(v, h))` for every visible state, in order, nats.

    **Raises:** as [`trainq.log_partition`][].

    !!! example

        ```python
        log_law = -tq.free_energies(model) - tq.log_partition(model)
        ```
    """
    return exactly(model).free_energies()


@compiled_with_spins("v")
def free_energy(
    model: AbstractEnergyModel, v: Num[Array | np.ndarray, "*batch n_visible"]
) -> Float[Array, "*batch"]:
    """`F(v) = -log Σ_h exp(-E(v, h))` of some visible states, nats.

    The log-likelihood of `v` is `-F(v) - log Z`. Its last term is the same for all
    states: differences of free energies compare them, for models of any size.

    **Arguments:**

    - `model`: the model, with hidden units that do not interact, such as an RBM; or at
        most 20 of them.
    - `v`: ±1 spins of any leading shape.

    **Returns:** a number for each of them.

    **Raises:** `ValueError` for a wrong shape, another value than ±1, or more
    interacting hidden units; a run-time error if a parameter is not finite.

    !!! example

        ```python
        v = jax.random.rademacher(key, (100, 3))
        mean = -tq.free_energy(model, v).mean() - tq.log_partition(model)
        print(mean)  # log-likelihood of a sample, nats
        ```
    """
    return checked(model).free_energy(check_spins(jnp.asarray(v), model.n_visible))


@eqx.filter_jit
def visible_distribution(model: AbstractEnergyModel) -> Float[Array, " visible_states"]:
    """The law of the visible units: `(2**n_visible,)` probabilities, in order.

    **Raises:** as [`trainq.log_partition`][].
    """
    return jnp.exp(jax.nn.log_softmax(-free_energies(model)))


@eqx.filter_jit
def log_stationary(model: AbstractEnergyModel) -> Float[Array, " states"]:
    """`log π(x)` for every state, in order, nats.

    **Raises:** as [`trainq.log_partition`][].

    !!! example

        ```python
        log_law = tq.log_stationary(model)
        assert log_law.shape == (2**model.n_units,)
        ```
    """
    return jax.nn.log_softmax(-shard(exactly(model).energies()))


@eqx.filter_jit
def log_laws(
    model: AbstractEnergyModel,
) -> tuple[
    Float[Array, ""], Float[Array, " visible_states"], Float[Array, " hidden_states"]
]:
    """`log Z`, `log π(v)` and `log π(h)`, nats, from the closed forms of the model."""
    model = exactly(model)
    visible, hidden = model.free_energies(), model.hidden_free_energies()
    log_z = jax.nn.logsumexp(-visible)
    return log_z, -visible - log_z, -hidden - log_z


@eqx.filter_jit
def entropy(model: AbstractEnergyModel) -> Float[Array, ""]:
    """The entropy `-Σ_x π(x) log π(x)` of the law of all units, nats.

    **Raises:** as [`trainq.log_partition`][].

    !!! example

        ```python
        bits = tq.entropy(model) / jnp.log(2)
        ```
    """
    log_law = log_stationary(model)
    return -jnp.sum(jnp.exp(log_law) * log_law)


@eqx.filter_jit
def observables(model: AbstractEnergyModel) -> Float[Array, "states n_parameters"]:
    """The gradient observables `f_a(x) = ∂E(x)/∂θ_a` at every state, in order.

    Columns are the parameters, in the order of the model's leaves, each raveled in C
    order: for an RBM the weights row by row, then visible and hidden biases.

    **Raises:** as [`trainq.log_partition`][]; `MemoryError` for a table that is larger
    than memory.

    !!! example

        ```python
        f = tq.observables(model)
        law = jnp.exp(tq.log_stationary(model))
        assert jnp.allclose(law @ f, tq.mean_observables(model))
        ```
    """
    model = exactly(model)
    check_enumerable(model.n_units)
    n_observables = sum(leaf.size for leaf in jax.tree.leaves(parameters(model)))
    require_memory(
        2.0**model.n_units * n_observables * model.dtype.itemsize,
        f"A table of {n_observables} observables of 2**{model.n_units} states",
        "`expectation` sums over states, and `mean_observables` needs no table.",
    )
    return model.observables(spins(model.n_units, model.dtype))


@eqx.filter_jit
def mean_observables(model: AbstractEnergyModel) -> Float[Array, " n_parameters"]:
    """`E_π[f_a]` for every parameter, without a table of observables: it is minus the
    gradient of `log Z`.

    **Raises:** as [`trainq.log_partition`][].
    """
    return model_phase(exactly(model))


def model_phase(model: AbstractEnergyModel) -> Float[Array, " n_parameters"]:
    """`E_π[f_a]` for a model that has been checked."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    gradient = jax.grad(lambda p: eqx.combine(p, static).log_partition())(params)
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

    !!! example

        ```python
        def aligned(x):
            return jnp.all(x == x[0])


        print(tq.expectation(model, aligned))  # a probability
        ```
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
