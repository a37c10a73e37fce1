"""What is different about a kernel that runs several replicas of a model: the only file
that knows. For any other kernel these functions do nothing, and cost nothing.

The first replica is the model itself, and all that is observed is observed there.
"""

from functools import reduce

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from ..._random import split
from ...models import (
    AbstractEnergyModel,
    AbstractStart,
    Data,
    initial_law,
    initial_states,
)
from ._base import AbstractKernel


def first_law(
    kernel: AbstractKernel,
    start: AbstractStart,
    model: AbstractEnergyModel,
    data: Data | None,
) -> Float[Array, " states"]:
    """The law of the first state of a kernel's chain, having checked it: every replica
    starts by itself, as the start says for its temperature.

    **Raises:** as `trainq.models.initial_law`.
    """
    laws = [initial_law(start, one, data) for one in kernel.replicas(model)]
    return reduce(lambda p, q: jnp.outer(p, q).reshape(-1), laws)


def first_states(
    key: Key[Array, ""],
    kernel: AbstractKernel,
    start: AbstractStart,
    model: AbstractEnergyModel,
    data: Data | None,
    n_chains: int,
) -> Num[Array, "n_chains *replicas n_units"]:
    """Draws from `first_law`, in the model's dtype, having checked them.

    **Raises:** as `trainq.models.initial_states`.
    """
    replicas = kernel.replicas(model)
    if len(replicas) == 1:
        return initial_states(key, start, model, data, n_chains)
    keys = split(key, len(replicas))
    draws = [
        initial_states(key, start, one, data, n_chains)
        for key, one in zip(keys, replicas, strict=True)
    ]
    return jnp.stack(draws, axis=1)


def with_replicas(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    x: Num[Array, "chains *some n_units"],
) -> Num[Array, "chains *replicas n_units"]:
    """States of a model as those of a kernel, which all of its replicas share; states
    of the kernel as they are.

    **Raises:** `ValueError` for states of another number of replicas.
    """
    n = len(kernel.replicas(model))
    own = () if n == 1 else (n,)
    if x.ndim == 2 and own:
        return jnp.broadcast_to(x[:, None], (x.shape[0], n, x.shape[1]))
    if x.shape[1:-1] != own:
        expected = "(n_chains, n_units)"
        expected += f" or (n_chains, {n}, n_units)" if own else ""
        raise ValueError(
            f"States of a {type(kernel).__name__} have shape {expected}, but "
            f"{x.shape} was given. `start_chains` makes new ones; those of the first "
            "of several replicas are `x[:, 0]`."
        )
    return x


def observed(
    x: Num[Array, "chains *replicas n_units"],
) -> Num[Array, "chains n_units"]:
    """The states of the model itself: the first replica, if there are several."""
    return x[:, 0] if x.ndim == 3 else x
