"""Where chains stand, and the keys of their next steps."""

from collections.abc import Hashable
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int, Key, Num, Shaped, UInt

from .._checks import check_key, whole_number
from .._meshes import of_axes, spread
from .._show import AbstractShown, Table, count
from .._spins import check_spins
from ..markov import AbstractKernel, checked_kernel, first_states
from ..models import (
    AbstractEnergyModel,
    AbstractStart,
    Data,
    Uniform,
    check_data,
    check_start,
    initial_states,
    require_model,
)


class ChainState(AbstractShown):
    """Where a batch of independent chains stands: all that is needed to go on.

    It is a tree of arrays: [`trainq.save`][] saves it.
    """

    x: Num[Array, "chains *replicas n_units"]
    """The states, ±1 spins, visible units first. Of a kernel that runs several replicas
    of the model those of all of them, the model's own first."""
    key_data: UInt[Array, " words"]
    """The words of the key, as a plain array."""
    step: UInt[Array, ""]
    """The number of steps taken with the key. After `2**32` of them another key
    follows, and it counts from zero again."""
    key_impl: Hashable = eqx.field(static=True)
    """The name of the generator that the key is of."""

    @classmethod
    def begin(cls, x: Shaped[Array, "..."], key: Key[Array, ""]) -> "ChainState":
        """Chains before their first step, at states of your own.

        **Arguments:**

        - `x`: `(n_chains, n_units)` spins; or `(n_chains, replicas, n_units)`, for
            [`trainq.ParallelTempering`][].
        - `key`: random key of all steps.

        **Returns:** what [`trainq.sampling.run`][] goes on from.

        **Raises:** `ValueError` for a wrong shape, or another value than ±1;
        `TypeError` for another thing than a key.
        """
        check_key(key)
        x = check_spins(x, None)
        if x.ndim not in (2, 3):
            raise ValueError(
                f"x has shape (n_chains, n_units), but {x.shape} was given. For one "
                "chain add an axis: `x[None]`."
            )
        data = jr.key_data(key)
        return cls(x, data, jnp.zeros((), jnp.uint32), jr.key_impl(key))

    def layouts(self, chains: Any) -> Any:
        """How the arrays lie on a mesh, where the states lie in this way."""
        same: Any = of_axes(chains)()
        return ChainState(chains, same, same, self.key_impl)

    def _shown(self) -> list[str | Table]:
        if self.step.ndim:  # a batch, by `eqx.filter_vmap`
            return super()._shown()
        chains, *replicas, n_units = self.x.shape
        of = "".join(f"{count(n, 'replica')} of " for n in replicas)
        return [
            f"{count(chains, 'chain')} of {of}{count(n_units, 'unit')}, after "
            f"{count(int(self.step), 'step')}"
        ]

    @property
    def key(self) -> Key[Array, ""]:
        """The key that the randomness of every step comes from."""
        return jr.wrap_key_data(self.key_data, impl=self.key_impl)

    @property
    def n_chains(self) -> int:
        """Number of chains."""
        return self.x.shape[0]


def start_chains(
    key: Key[Array, ""],
    model: AbstractEnergyModel,
    n_chains: SupportsIndex,
    start: AbstractStart = Uniform(),
    data: Data | None = None,
    *,
    kernel: AbstractKernel | None = None,
) -> ChainState:
    """A batch of chains at their start. For states of your own, one for each chain, use
    `ChainState.begin`.

    **Arguments:**

    - `key`: random key, of the start and of everything after.
    - `model`: the model.
    - `n_chains`: number of independent chains.
    - `start`: where they start, as for [`trainq.QOperational`][].
    - `data`: `(2**n_visible,)`, the law of the data, or `(samples, n_visible)` spins,
        for a start that takes them, as [`trainq.FromData`][] does.
    - `kernel`: a kernel that runs several replicas of the model: each of them then
        starts by itself, as `start` says for its temperature. Without it there is one
        state for each chain, which all replicas begin with.

    **Returns:** what [`trainq.sampling.run`][] goes on from.

    **Raises:** `ValueError` for a wrong shape, a number of chains that is not whole or
    not positive, or data that are missing; `TypeError` for another thing than a start;
    a run-time error for data or a start that are not what they should be.
    """
    check_key(key)
    require_model(model)
    n_chains = whole_number("n_chains", n_chains)
    start = check_start(start)
    first, rest = jr.split(key)
    if data is not None:
        data = check_data(data, model)
    if kernel is None:
        x = initial_states(first, start, model, data, n_chains)
    else:
        kernel = checked_kernel(kernel)
        x = first_states(first, kernel, start, model, data, n_chains)
    return ChainState.begin(spread(x), rest)


def step_keys(
    state: ChainState, n_steps: int, taken: Int[Array, ""] | None = None
) -> tuple[Array, Array, Array]:
    """The keys of the next steps, and the `key_data` and the `step` of the state after
    as many of them as are taken, all by default."""
    # All at once: a key made alone costs as much as a thousand random numbers.
    numbers = state.step + jnp.arange(n_steps, dtype=jnp.uint32)
    # A step has one word in the random numbers, and past the last one comes a new key.
    both = jnp.stack([state.key_data, jr.key_data(_key_after(state.key))])
    era = (numbers < state.step).astype(int)
    keys = jr.wrap_key_data(both[era], impl=state.key_impl)
    count = jnp.uint32(n_steps) if taken is None else taken.astype(jnp.uint32)
    number = state.step + count
    key_data = both[(number < state.step).astype(int)]
    return jax.vmap(jr.fold_in)(keys, numbers), key_data, number


def _key_after(key: Key[Array, ""]) -> Key[Array, ""]:
    """The key of the steps after the `2**32` that one key has numbers for: a child of
    the last step's that no step comes to, as it would have to draw `2**32` numbers."""
    last = jnp.uint32(2**32 - 1)
    return jr.fold_in(jr.fold_in(key, last), last)
