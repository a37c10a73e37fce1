"""Where chains start: a law of the first state, and draws from it."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, Num

from .._checks import require_law
from .._spins import (
    check_enumerable,
    check_spins,
    require_spins,
    state_index,
    state_spins,
)
from ._base import AbstractEnergyModel, checked
from ._data import Data, check_data, draw_visible, empirical_distribution
from ._laws import log_stationary


class AbstractStart(eqx.Module):
    """Where chains start.

    A start of your own has two methods, `law` for what is computed exactly and `draw`
    for what is sampled. What they return is checked by those who ask. Parameters are
    its array leaves: other values compile nothing anew.

    !!! example

        ```python
        class AllUp(tq.models.AbstractStart):
            def law(self, model, data=None):
                return jnp.zeros(2**model.n_units, model.dtype).at[-1].set(1)

            def draw(self, key, model, data, n_chains):
                return jnp.ones((n_chains, model.n_units), model.dtype)
        ```
    """

    @property
    def is_stationary(self) -> bool:
        """Whether this is the stationary law for every model, from which nothing moves:
        there is then no bias, and exact answers take fewer products with the chain."""
        return False

    @abc.abstractmethod
    def law(
        self, model: AbstractEnergyModel, data: Data | None = None
    ) -> Float[Array, " states"]:
        """The law of the first state.

        **Arguments:**

        - `model`: the model.
        - `data`: `(2**n_visible,)`, the law of the data, or `(samples, n_visible)`
            spins. None where there are none.

        **Returns:** `(2**n_units,)` probabilities, in order.
        """

    @abc.abstractmethod
    def draw(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        data: Data | None,
        n_chains: int,
    ) -> Num[Array, "n_chains n_units"]:
        """Independent states from that law.

        **Arguments:**

        - `key`: random key.
        - `model`, `data`: as for `law`.
        - `n_chains`: their number.

        **Returns:** `(n_chains, n_units)` spins.
        """


class Uniform(AbstractStart):
    """Every state alike: chains that know nothing of the model. The default."""

    def law(self, model, data=None):
        del data
        check_enumerable(model.n_units)
        n_states = 2**model.n_units
        return jnp.full(n_states, 1 / n_states, model.dtype)

    def draw(self, key, model, data, n_chains):
        del data
        return jr.rademacher(key, (n_chains, model.n_units), model.dtype)


class Stationary(AbstractStart):
    """The law of the model itself: chains that have forgotten where they came from.

    Drawn exactly, by enumeration of up to [20 units](../choosing.md#limits): those of
    the smaller layer of an RBM, whatever the size of the other one. For a larger model
    start elsewhere and burn in.
    """

    @property
    def is_stationary(self) -> bool:
        return True

    def law(self, model, data=None):
        del data
        return jnp.exp(log_stationary(model))

    def draw(self, key, model, data, n_chains):
        del data
        return checked(model).draw(key, n_chains)


class FromData(AbstractStart):
    """Visible units from the data, and hidden ones from their law given these: the
    start of contrastive divergence.

    ??? cite "Source"

        Hinton, *Training products of experts by minimizing contrastive divergence*,
        Neural Comput. 14, 1771, 2002.
    """

    def law(self, model, data=None):
        data = _needed(data, model)
        if data.ndim == 2:
            data = empirical_distribution(data).astype(model.dtype)
        joint = log_stationary(model).reshape(2**model.n_visible, -1)
        given_visible = jnp.exp(jax.nn.log_softmax(joint, axis=1))
        return (data[:, None] * given_visible).reshape(-1)

    def draw(self, key, model, data, n_chains):
        data = _needed(data, model)
        first, second = jr.split(key)
        visible = draw_visible(first, model, data, (n_chains,))
        if model.n_hidden == 0:
            return visible
        hidden = jnp.ones((n_chains, model.n_hidden), model.dtype)
        x = jnp.concatenate([visible, hidden], axis=1)
        return checked(model).sample_block(second, x, "hidden")


def _needed(data: Data | None, model: AbstractEnergyModel) -> Array:
    if data is None:
        raise ValueError(
            "`FromData` starts chains from the data, but none were given: give `data`, "
            "a law of the visible states or samples."
        )
    return check_data(data, model)


class At(AbstractStart):
    """All chains from one state.

    !!! example

        ```python
        up = tq.At(jnp.ones(model.n_units))
        chains = tq.start_chains(key, model, n_chains=8, start=up)
        ```
    """

    state: Num[Array, " n_units"] = eqx.field(converter=jnp.asarray)

    def __check_init__(self):
        require_spins(self.state)

    def _checked(self, model: AbstractEnergyModel) -> Array:
        state = check_spins(self.state, model.n_units)
        if state.ndim != 1:
            raise ValueError(
                f"`At` starts all chains from one state, of shape ({model.n_units},), "
                f"but {state.shape} was given. For a state of each chain use "
                "`trainq.sampling.ChainState.begin(x, key)`."
            )
        return state.astype(model.dtype)

    def law(self, model, data=None):
        del data
        check_enumerable(model.n_units)
        index = state_index(self._checked(model))
        return jnp.zeros(2**model.n_units, model.dtype).at[index].set(1)

    def draw(self, key, model, data, n_chains):
        del key, data
        return jnp.broadcast_to(self._checked(model), (n_chains, model.n_units))


At.__init__.__doc__ = """**Arguments:**

- `state`: `(n_units,)` spins.
"""


class Law(AbstractStart):
    """Chains from a law of all states that is given.

    !!! example

        ```python
        warmer = jnp.exp(tq.log_stationary(model.tempered(0.5)))
        start = tq.Law(warmer)
        chains = tq.start_chains(key, model, n_chains=8, start=start)
        ```
    """

    p: Float[Array, " states"] = eqx.field(converter=jnp.asarray)

    def law(self, model, data=None):
        del data
        return _checked_law(self.p, self, model)

    def draw(self, key, model, data, n_chains):
        law = self.law(model, data)
        index = jr.choice(key, law.shape[0], (n_chains,), p=law)
        return state_spins(index, model.n_units, model.dtype)


Law.__init__.__doc__ = """**Arguments:**

- `p`: `(2**n_units,)` probabilities, in order.
"""


def check_start(start: Any) -> AbstractStart:
    """Return a start; a `TypeError` for anything else."""
    if isinstance(start, AbstractStart):
        return start
    given = start.__name__ if isinstance(start, type) else repr(start)
    raise TypeError(
        "start is an object such as `Uniform()`, `Stationary()`, `FromData()`, "
        f"`At(state)` or `Law(p)`, but {given} was given."
    )


def initial_law(
    start: AbstractStart, model: AbstractEnergyModel, data: Data | None
) -> Float[Array, " states"]:
    """The law of the first state, in the model's dtype, having checked that it is one.

    **Raises:** `ValueError` for a wrong shape, and as the start does; a run-time error
    if it is not a law.
    """
    return _checked_law(start.law(model, data), start, model)


def _checked_law(law: Any, start: AbstractStart, model: AbstractEnergyModel) -> Array:
    check_enumerable(model.n_units)
    law, n_states = jnp.asarray(law), 2**model.n_units
    if law.shape != (n_states,):
        raise ValueError(
            f"The law of a start has shape ({n_states},), one probability for each "
            f"state, but that of this {type(start).__name__} has {law.shape}."
        )
    return require_law(law, model.dtype, "start")


@eqx.filter_jit
def initial_states(
    key: Key[Array, ""],
    start: AbstractStart,
    model: AbstractEnergyModel,
    data: Data | None,
    n_chains: int,
) -> Num[Array, "n_chains n_units"]:
    """The first states of some chains, in the model's dtype, having checked them.

    **Raises:** `ValueError` for a wrong shape, and as the start does; a run-time error
    if a spin is neither -1 nor +1.
    """
    x = check_spins(start.draw(key, model, data, n_chains), model.n_units)
    if x.shape != (n_chains, model.n_units):
        raise ValueError(
            f"A start draws states of shape (n_chains, n_units), here ({n_chains}, "
            f"{model.n_units}), but this {type(start).__name__} drew {x.shape}."
        )
    return x.astype(model.dtype)
