"""The interface of an energy-based model."""

import abc
import math
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree

from .._spins import check_enumerable, map_states, merge, spins


Block = Literal["visible", "hidden"]
_Model = TypeVar("_Model", bound="AbstractEnergyModel")


class AbstractEnergyModel(eqx.Module):
    """Anything with an energy on ±1 spins: the law is `π(x) ∝ exp(-E(x))`.

    A model of your own needs `n_visible`, `n_hidden` and `energy`; everything else
    follows from these, by automatic differentiation and enumeration. Its parameters are
    its inexact array leaves. Set `is_symmetric` if the energy is the same at `x` and
    `-x` for every value of the parameters: exact computations then halve their work.

    !!! example

        ```python
        class NeuralEnergy(tq.AbstractEnergyModel):
            mlp: eqx.nn.MLP
            n_visible: int = eqx.field(static=True)
            n_hidden: int = eqx.field(static=True)

            def energy(self, x):
                return self.mlp(x)
        ```
    """

    n_visible: eqx.AbstractVar[int]
    n_hidden: eqx.AbstractVar[int]

    @abc.abstractmethod
    def energy(self, x: Num[Array, "*batch n_units"]) -> Float[Array, "*batch"]:
        """The energy of the state `x`.

        A model of your own need only take one state of shape `(n_units,)`: the library
        maps over batches. The models of trainq take any leading shape.
        """

    @property
    def n_units(self) -> int:
        """Number of units, visible and hidden."""
        return self.n_visible + self.n_hidden

    @property
    def is_symmetric(self) -> bool:
        """Whether `E(-x) = E(x)` for every value of the parameters."""
        return False

    @property
    def is_linear(self) -> bool:
        """Whether the energy is linear in the parameters, as that of an exponential
        family is: its observables then do not depend on them."""
        return False

    @property
    def dtype(self):
        """The dtype of the parameters, which results share."""
        leaves = jax.tree.leaves(parameters(self))
        return jnp.result_type(*leaves) if leaves else jnp.result_type(float)

    def free_energy(self, v: Num[Array, "*batch n_visible"]) -> Float[Array, "*batch"]:
        """`F(v) = -log Σ_h exp(-E(v, h))` of some visible states, nats.

        The default enumerates the states of the hidden units, at most 20 of them.
        """
        check_enumerable(self.n_hidden, 20, "hidden units")
        hidden = spins(self.n_hidden, self.dtype)

        def one(v):
            states = merge((v, hidden), self.dtype)
            return -jax.nn.logsumexp(-jax.vmap(self.energy)(states))

        flat = jax.vmap(one)(v.reshape(-1, self.n_visible).astype(self.dtype))
        return flat.reshape(v.shape[:-1])

    # What follows has closed forms in the models that know them.

    def energies(self) -> Float[Array, " states"]:
        """The energies of all `2**n_units` states, in order."""
        energies = map_states(self.energy, self.n_units, self.dtype)
        return eqx.error_if(
            energies,
            ~jnp.all(jnp.isfinite(energies)),
            f"The energy of a state of this {type(self).__name__} is not finite. Every "
            "state needs one: for a forbidden state use a large number.",
        )

    def free_energies(self) -> Float[Array, " visible_states"]:
        """`-log Σ_h exp(-E(v, h))` for every visible state, nats."""
        table = self.energies().reshape(2**self.n_visible, 2**self.n_hidden)
        return -jax.nn.logsumexp(-table, axis=1)

    def hidden_free_energies(self) -> Float[Array, " hidden_states"]:
        """`-log Σ_v exp(-E(v, h))` for every hidden state, nats."""
        table = self.energies().reshape(2**self.n_visible, 2**self.n_hidden)
        return -jax.nn.logsumexp(-table, axis=0)

    def log_partition(self) -> Float[Array, ""]:
        """`log Σ_x exp(-E(x))`, nats."""
        return jax.nn.logsumexp(-self.free_energies())

    def observables(
        self, x: Num[Array, "*batch n_units"]
    ) -> Float[Array, "*batch n_parameters"]:
        """The gradient observables `f_a(x) = ∂E(x)/∂θ_a`.

        Parameters are in the order of the model's leaves, each raveled in C order.
        """
        params, static = eqx.partition(self, eqx.is_inexact_array)

        def one(x):
            gradient = jax.grad(lambda p: eqx.combine(p, static).energy(x))(params)
            return ravel_pytree(gradient)[0]

        flat = jax.vmap(one)(x.reshape(-1, x.shape[-1]))
        return flat.reshape(*x.shape[:-1], flat.shape[-1])

    def local_fields(
        self, x: Num[Array, "*batch n_units"], units: Int[Array, " some"]
    ) -> Float[Array, "*batch some"]:
        """The field on some units: each is up with probability `σ(2 field)` given all
        others, and to flip it costs the energy `2 x_i field_i`."""

        def one(x, unit):
            down, up = x.at[unit].set(-1), x.at[unit].set(1)
            return (self.energy(down) - self.energy(up)) / 2

        flat = x.reshape(-1, self.n_units).astype(self.dtype)
        fields = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(flat, units)
        return fields.reshape(*x.shape[:-1], units.shape[0])

    def colouring(self) -> tuple[np.ndarray, ...]:
        """Units in blocks of one colour: units of the same colour do not interact, and
        can be redrawn at once. One unit a block unless the model knows better.

        It needs concrete values, and cannot be traced.
        """
        return tuple(np.arange(self.n_units).reshape(-1, 1))

    def is_proper(self, colours: Int[Array, " n_units"]) -> Bool[Array, ""]:
        """Whether no two units of the same colour interact."""
        ordered = jnp.sort(colours)
        return jnp.all(ordered[1:] != ordered[:-1])

    @property
    def _is_batch(self) -> bool:
        """Whether this is many models in one, by `eqx.filter_vmap`."""
        return False

    def sample_block(
        self, key: Key[Array, ""], x: Num[Array, "*batch n_units"], block: Block
    ) -> Num[Array, "*batch n_units"]:
        """Draw one block of units from its law given the other block.

        The default enumerates the `2**size` states of the block.
        """
        m = self.n_visible
        size = m if block == "visible" else self.n_hidden
        check_enumerable(size, 20, f"{block} block")
        states = spins(size, x.dtype)

        def one(key, x):
            parts = (states, x[m:]) if block == "visible" else (x[:m], states)
            candidates = merge(parts, x.dtype)
            energies = jax.vmap(self.energy)(candidates.astype(self.dtype))
            return candidates[jr.categorical(key, -energies)]

        flat = x.reshape(-1, self.n_units)
        new = jax.vmap(one)(jr.split(key, flat.shape[0]), flat)
        return new.reshape(x.shape)

    def tempered(self, beta: int | float) -> "AbstractEnergyModel":
        """The model at inverse temperature `beta`: its energy is `beta` times ours.

        Models that are linear in their parameters scale these, and `beta` may be
        traced; for any other the energy is scaled, and `beta` is a Python number.
        """
        return Tempered(self, beta)


class Tempered(AbstractEnergyModel):
    """A model with its energy multiplied by an inverse temperature.

    What `AbstractEnergyModel.tempered` returns for a model that cannot scale its
    parameters. The observables are those of the inner model's parameters.
    """

    model: AbstractEnergyModel
    beta: float = eqx.field(static=True)
    n_visible: int = eqx.field(static=True)
    n_hidden: int = eqx.field(static=True)

    def __init__(self, model: AbstractEnergyModel, beta: int | float):
        if not math.isfinite(beta):
            raise ValueError(
                f"beta is a finite inverse temperature, but {beta} was given."
            )
        self.model = model
        self.beta = float(beta)
        self.n_visible = model.n_visible
        self.n_hidden = model.n_hidden

    @property
    def is_symmetric(self) -> bool:
        return self.model.is_symmetric

    @property
    def is_linear(self) -> bool:
        return self.model.is_linear

    def energy(self, x: Num[Array, "*batch n_units"]) -> Float[Array, "*batch"]:
        return self.beta * self.model.energy(x)

    def energies(self) -> Float[Array, " states"]:
        return self.beta * self.model.energies()

    def observables(
        self, x: Num[Array, "*batch n_units"]
    ) -> Float[Array, "*batch n_parameters"]:
        return self.beta * self.model.observables(x)

    def local_fields(
        self, x: Num[Array, "*batch n_units"], units: Int[Array, " some"]
    ) -> Float[Array, "*batch some"]:
        return self.beta * self.model.local_fields(x, units)

    def colouring(self) -> tuple[np.ndarray, ...]:
        return self.model.colouring()

    def is_proper(self, colours: Int[Array, " n_units"]) -> Bool[Array, ""]:
        return self.model.is_proper(colours)

    @property
    def _is_batch(self) -> bool:
        return self.model._is_batch


def parameters(model: AbstractEnergyModel) -> PyTree:
    """The model's tree with everything but its parameters set to None."""
    return eqx.filter(model, eqx.is_inexact_array)


def require_model(model: Any) -> None:
    """A `TypeError` for another thing than a model, and a `ValueError` for a batch."""
    if not isinstance(model, AbstractEnergyModel):
        given = "array" if isinstance(model, Array) else type(model).__name__
        raise TypeError(
            "model is an energy model such as `trainq.RBM`, but an object of type "
            f"{given} was given. Look at the order of the arguments."
        )
    if model._is_batch:
        raise ValueError(
            f"This {type(model).__name__} is a batch of models: map the function over "
            "it, as in `eqx.filter_vmap(f)(models)`; with other arguments that all "
            "models share, `eqx.filter_vmap(f, in_axes=(0, None))(models, shared)`."
        )


def checked(model: _Model) -> _Model:
    """Return the model; a run-time error if one of its parameters is not finite."""
    require_model(model)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    leaves = jax.tree.leaves(params)
    if not leaves:
        return model
    bad = jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).any()
    params = eqx.error_if(
        params,
        bad,
        f"A parameter of this {type(model).__name__} is not finite. A training step "
        "may have diverged: lower the learning rate, or look at the gradient.",
    )
    return eqx.combine(params, static)
