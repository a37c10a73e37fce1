"""The interface of an energy-based model."""

import abc
import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from .._checks import require_precision, tell_precision, whole_number
from .._random import draw_spins
from .._spins import (
    MAX_BLOCK,
    MAX_PAIRED,
    as_spins,
    check_enumerable,
    draw_states,
    map_blocks,
    map_states,
    merge,
    spins,
    state_spins,
)


Block = Literal["visible", "hidden"]
# In place of drawing a block that is too large.
COLOURS_INSTEAD = (
    "Kernels with `blocks=model.colouring()` redraw units that do not interact, and "
    "chains start from `Uniform()`, or from states of your own by "
    "`ChainState.begin(x, key)`."
)
CLAMPED_INSTEAD = (
    "`trainq.sampling.GradientEstimator` samples the data phase of such a model by "
    "`ClampedChains`."
)
_Model = TypeVar("_Model", bound="AbstractEnergyModel")
_P = ParamSpec("_P")
_T = TypeVar("_T")


def _in_closed_form(
    offset: Literal[-1, 0, 1] = 0,
) -> Callable[
    [Callable[Concatenate[_Model, _P], _T]], Callable[Concatenate[_Model, _P], _T]
]:
    """A method that asks the model's equivalent, if it has one. What it returns grows
    by so many offsets: by one where it is an energy."""

    def closed(
        default: Callable[Concatenate[_Model, _P], _T],
    ) -> Callable[Concatenate[_Model, _P], _T]:
        @wraps(default)
        def method(self: _Model, *args: _P.args, **kwargs: _P.kwargs) -> _T:
            equivalent = self.equivalent
            if equivalent is None:
                return default(self, *args, **kwargs)
            found = getattr(equivalent, default.__name__)(*args, **kwargs)
            constant = self.offset if offset else None
            return found if constant is None else found + offset * constant

        return method

    return closed


def log_2cosh(field: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`log(2 cosh(field))`: minus the free energy of a spin in a field."""
    # For a sign s = ±1 it is s x + log(1 + exp(-2 s x)), an identity in x, so that its
    # derivatives of every order hold with s kept constant: also at 0, where those of
    # |x| do not. With s that of x nothing overflows, and the curvature, which is
    # 4u/(1+u) - 4u²/(1+u)² with u = exp(-2 |x|), loses no digits in a strong field.
    # (`jnp.logaddexp` has a `custom_jvp`, which JAX cannot trace in several threads.)
    sign = jnp.where(field < 0, -1, 1).astype(field.dtype)
    return sign * field + jnp.log1p(jnp.exp(-2 * sign * field))


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

    def __check_init__(self):
        # A NumPy integer would wrap round in 2**n, and a float fail deep inside.
        for name in ("n_visible", "n_hidden"):
            size = whole_number(name, getattr(self, name), 0, "units")
            if name in vars(self):  # a field, and not a property
                object.__setattr__(self, name, size)

    @abc.abstractmethod
    def energy(self, x: Num[Array, "*batch n_units"]) -> Float[Array, "*batch"]:
        """The energy of the state `x`.

        A model of your own need only take one state of shape `(n_units,)`: the library
        maps over batches. It returns one number: a scalar in float32 or float64. The
        models of trainq take any leading shape.
        """

    @property
    def n_units(self) -> int:
        """Number of units, visible and hidden."""
        return self.n_visible + self.n_hidden

    @property
    def equivalent(self) -> "AbstractEnergyModel | None":
        """A model with the same energies, up to an `offset`, that knows closed forms,
        such as an RBM whose weights are computed from our parameters; None if there is
        none.

        Laws, free energies, fields, colours and draws are then its own, and derivatives
        are by our parameters all the same. [Extending](../extending.md#an-energy) has
        an example.
        """
        return None

    @property
    def offset(self) -> Float[Array, ""] | None:
        """What our energies are above those of the equivalent: one number, the same for
        every state, which parameters may change. None, for nothing, by default."""
        return None

    @property
    def is_symmetric(self) -> bool:
        """Whether `E(-x) = E(x)` for every value of the parameters."""
        return self.equivalent is not None and self.equivalent.is_symmetric

    @property
    def is_linear(self) -> bool:
        """Whether the energy is linear in the parameters, as that of an exponential
        family is: its observables then do not depend on them."""
        return False

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the parameters, which results share."""
        leaves = jax.tree.leaves(parameters(self))
        return jnp.result_type(*leaves) if leaves else jnp.result_type(float)

    @_in_closed_form(1)
    def free_energy(self, v: Num[Array, "*batch n_visible"]) -> Float[Array, "*batch"]:
        """`F(v) = -log Σ_h exp(-E(v, h))` of some visible states, nats.

        The default enumerates the states of the hidden units, at most 20 of them, but
        where these are known not to interact.
        """
        v = as_spins(v, self.n_visible, self.dtype)
        flat = v.reshape(math.prod(v.shape[:-1]), self.n_visible)
        if not self.interacts("hidden"):
            # E(v, h) = E(v, 1) + Σ_j φ_j (1 - h_j), with the fields φ of the units.
            x = merge((flat, jnp.ones(self.n_hidden, self.dtype)), self.dtype)
            field = self.local_fields(x, jnp.arange(self.n_visible, self.n_units))
            free = jax.vmap(energy_of(self))(x)
            free = free + jnp.sum(field - log_2cosh(field), axis=-1)
            return free.reshape(v.shape[:-1])
        check_enumerable(
            self.n_hidden,
            MAX_BLOCK,
            "interacting hidden units",
            CLAMPED_INSTEAD,
        )
        hidden = spins(self.n_hidden, self.dtype)

        def one(v):
            states = merge((v, hidden), self.dtype)
            return -jax.nn.logsumexp(-jax.vmap(energy_of(self))(states))

        return jax.vmap(one)(flat).reshape(v.shape[:-1])

    # What follows has closed forms in the models that know them.

    @_in_closed_form(1)
    def energies(self) -> Float[Array, " states"]:
        """The energies of all `2**n_units` states, in order."""
        return self._finite(map_states(energy_of(self), self.n_units, self.dtype))

    @_in_closed_form(1)
    def energy_table(
        self, v: Num[Array, "some n_visible"], h: Num[Array, "others n_hidden"]
    ) -> Float[Array, "some others"]:
        """The energies of some visible states, each with each of some hidden ones."""
        x = merge((v[:, None], h[None, :]), self.dtype)
        return self._finite(jax.vmap(jax.vmap(energy_of(self)))(x))

    def _finite(self, energies: Float[Array, "..."]) -> Float[Array, "..."]:
        return eqx.error_if(
            energies,
            ~jnp.all(jnp.isfinite(energies)),
            f"The energy of a state of this {type(self).__name__} is not finite. Every "
            "state needs one: for a forbidden state use a large number.",
        )

    @_in_closed_form(1)
    def free_energies(self) -> Float[Array, " visible_states"]:
        """`-log Σ_h exp(-E(v, h))` for every visible state, nats."""
        if self.n_hidden and not self.interacts("hidden"):
            return self.free_energy(spins(self.n_visible, self.dtype))
        check_enumerable(self.n_units)
        hidden = spins(self.n_hidden, self.dtype)

        def some(v):
            return -jax.nn.logsumexp(-self.energy_table(v, hidden), axis=1)

        return map_blocks(some, self.n_visible, self.dtype, 2**self.n_hidden)

    @_in_closed_form(1)
    def hidden_free_energies(self) -> Float[Array, " hidden_states"]:
        """`-log Σ_v exp(-E(v, h))` for every hidden state, nats."""
        check_enumerable(self.n_units, MAX_PAIRED)
        visible = spins(self.n_visible, self.dtype)

        def some(h):
            return -jax.nn.logsumexp(-self.energy_table(visible, h), axis=0)

        return map_blocks(some, self.n_hidden, self.dtype, 2**self.n_visible)

    @property
    def n_enumerated(self) -> int:
        """Number of units whose states are enumerated for `log_partition` and `draw`:
        all of them unless the model knows how the others sum out, as those of the
        larger layer of an RBM do. It says whether these can be had, whatever the number
        of units."""
        return self.n_units if self.equivalent is None else self.equivalent.n_enumerated

    @_in_closed_form(-1)
    def log_partition(self) -> Float[Array, ""]:
        """`log Σ_x exp(-E(x))`, nats."""
        return jax.nn.logsumexp(-self.free_energies())

    @_in_closed_form()
    def draw(
        self, key: Key[Array, ""], n_states: int
    ) -> Num[Array, "n_states n_units"]:
        """Independent states from the law of the model, exactly.

        The default enumerates all states.

        **Arguments:**

        - `key`: random key.
        - `n_states`: their number.

        **Returns:** `(n_states, n_units)` spins.

        **Raises:** `ValueError` if `n_enumerated` is more than 20.
        """
        check_drawn(self)
        index = draw_states(key, -self.energies(), n_states)
        return state_spins(index, self.n_units, self.dtype)

    def observables(
        self, x: Num[Array, "*batch n_units"]
    ) -> Float[Array, "*batch n_parameters"]:
        """The gradient observables `f_a(x) = ∂E(x)/∂θ_a`.

        Parameters are in the order of the model's leaves, each raveled in C order.
        """
        x = as_spins(x, self.n_units, self.dtype)
        params, static = eqx.partition(self, eqx.is_inexact_array)

        def one(x):
            gradient = jax.grad(lambda p: energy_of(eqx.combine(p, static))(x))(params)
            return ravel_pytree(gradient)[0]

        flat = jax.vmap(one)(x.reshape(-1, x.shape[-1]))
        return flat.reshape(*x.shape[:-1], flat.shape[-1])

    @_in_closed_form()
    def local_fields(
        self, x: Num[Array, "*batch n_units"], units: Int[Array, " some"]
    ) -> Float[Array, "*batch some"]:
        """The field on some units: each is up with probability `σ(2 field)` given all
        others, and to flip it costs the energy `2 x_i field_i`."""

        x = as_spins(x, self.n_units, self.dtype)
        energy = energy_of(self)

        def one(x, unit):
            down, up = x.at[unit].set(-1), x.at[unit].set(1)
            return (energy(down) - energy(up)) / 2

        flat = x.reshape(-1, self.n_units)
        fields = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(flat, units)
        return fields.reshape(*x.shape[:-1], units.shape[0])

    @_in_closed_form()
    def colouring(self) -> tuple[np.ndarray, ...]:
        """Units in blocks of one colour: units of the same colour do not interact, and
        can be redrawn at once. One unit a block unless the model knows better."""
        return tuple(np.arange(self.n_units).reshape(-1, 1))

    @_in_closed_form()
    def conflict(self, colours: Int[np.ndarray, " n_units"]) -> tuple[int, int] | None:
        """Two units of the same colour that interact, or None if there are none: any
        two of the same colour unless the model knows better."""
        order = np.argsort(colours, kind="stable")
        same = np.flatnonzero(np.diff(colours[order]) == 0)
        if same.size == 0:
            return None
        return int(order[same[0]]), int(order[same[0] + 1])

    def interacts(self, layer: Block) -> bool:
        """Whether two units of a layer interact, as far as the model knows."""
        colours = np.arange(self.n_units)
        start, end = {
            "visible": (0, self.n_visible),
            "hidden": (self.n_visible, self.n_units),
        }[layer]
        colours[start:end] = start
        return self.conflict(colours) is not None

    @property
    def is_batch(self) -> bool:
        """Whether this is many models in one, by `eqx.filter_vmap`: a model that can
        tell, by the shape of a parameter, gets a clear error in place of a wrong
        shape."""
        return False

    @_in_closed_form()
    def sample_block(
        self, key: Key[Array, ""], x: Num[Array, "*batch n_units"], block: Block
    ) -> Num[Array, "*batch n_units"]:
        """Draw one block of units from its law given the other block.

        The default enumerates the `2**size` states of the block, but where its units
        are known not to interact.

        **Arguments:**

        - `key`: random key.
        - `x`: ±1 spins of shape `(..., n_units)`, visible units first.
        - `block`: `"visible"` or `"hidden"`.

        **Returns:** the states with that block drawn anew, in the shape of `x`.

        **Raises:** `ValueError` for a block that is too large to enumerate.
        """
        x = as_spins(x, self.n_units)
        m = self.n_visible
        size = m if block == "visible" else self.n_hidden
        if not self.interacts(block):
            start = 0 if block == "visible" else m
            units = jnp.arange(start, start + size)
            new = draw_spins(key, self.local_fields(x, units)).astype(x.dtype)
            return jax.lax.dynamic_update_slice_in_dim(x, new, start, axis=-1)
        check_enumerable(size, MAX_BLOCK, f"{block} block", COLOURS_INSTEAD)
        states = spins(size, x.dtype)

        def one(key, x):
            parts = (states, x[m:]) if block == "visible" else (x[:m], states)
            candidates = merge(parts, x.dtype)
            energies = jax.vmap(energy_of(self))(candidates.astype(self.dtype))
            return candidates[jr.categorical(key, -energies)]

        flat = x.reshape(-1, self.n_units)
        new = jax.vmap(one)(jr.split(key, flat.shape[0]), flat)
        return new.reshape(x.shape)

    def tempered(self, beta: int | float | Float[Array, ""]) -> "AbstractEnergyModel":
        """The model at inverse temperature `beta`: its energy is `beta` times ours.

        Models that are linear in their parameters scale these; for any other the energy
        is scaled, and derivatives by `beta` raise. It may be traced, and another
        temperature never compiles another program.

        **Raises:** `ValueError` if `beta` is not one finite real number; a run-time
        error if it is traced and not finite.
        """
        from ._tempered import Tempered  # which is made of what is here

        return Tempered(self, beta)

    def given(
        self, units: Int[np.ndarray, " some"], values: Float[Array, " some"]
    ) -> "tuple[AbstractEnergyModel, Float[Array, '']] | None":
        """The closed form of a clamped model: the model of the other units, and the
        `offset` that its energies lack. None if there is none."""
        del units, values
        return None

    def clamp(
        self,
        units: Sequence[int] | Int[np.ndarray, " some"],
        values: Sequence[int] | Num[Array | np.ndarray, " some"],
    ) -> "AbstractEnergyModel":
        """The model of the other units, given these: its law is `π(rest | values)`.

        It keeps the parameters of the whole model, and so its observables: `f_a(x)` is
        taken at the whole state, with the clamped units filled in, and Q is that of the
        whole gradient. The other units keep their order, and those of them that are
        visible stay visible. Its `log_partition` is `log Σ_rest exp(-E(rest, values))`:
        with all visible units clamped to `v` that is minus their free energy.

        Clamping shifts the fields of an `RBM` and of a `BoltzmannMachine`, and what is
        left is one with fewer units. Of any other energy the clamped units are filled
        in.

        **Arguments:**

        - `units`: the units to clamp, each once, by number: structure, which is
            compiled in.
        - `values`: their spins ±1, in that order. They may be traced: others compile
            nothing anew. For several conditions use `eqx.filter_vmap`.

        **Returns:** a [`trainq.models.Clamped`][]; the model itself if no unit is
        clamped.

        **Raises:** `ValueError` for units that are traced, not there or given twice,
        if none is left, and for values of another shape, other than ±1, or derivatives
        by them.

        !!! example

            ```python
            v = jnp.array([1, -1, 1])
            hidden = model.clamp([0, 1, 2], v)
            free = model.free_energy(v)
            assert jnp.allclose(hidden.log_partition(), -free)
            ```
        """
        from ._clamped import clamped  # which is made of what is here

        return clamped(self, units, values)


def check_drawn(model: AbstractEnergyModel) -> None:
    """Raise a `ValueError` if exact draws have too many states to choose from."""
    check_enumerable(
        model.n_enumerated,
        MAX_BLOCK,
        "states that an exact draw chooses from",
        "Start chains from `Uniform()`, and burn in.",
    )


def made(cls: type[_Model], **fields: Any) -> _Model:
    """A model with fields that are known to fit, which no constructor judges."""
    model = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(model, name, value)
    return model


def energy_of(
    model: AbstractEnergyModel,
) -> Callable[[Num[Array, " n_units"]], Float[Array, ""]]:
    """The energy of one state, having checked that it is one number."""

    def energy(x):
        value = jnp.asarray(model.energy(x))
        if value.shape != ():
            raise ValueError(
                f"The energy of one state of this {type(model).__name__} is a scalar, "
                f"but an array of shape {value.shape} was returned. Sum it, or take "
                "its only element."
            )
        require_precision(value.dtype, f"The energy of a {type(model).__name__}")
        return value

    return energy


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
    for leaf in jax.tree.leaves(parameters(model)):
        require_precision(leaf.dtype, f"Every parameter of this {type(model).__name__}")
    if model.is_batch:
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


def exactly(model: _Model) -> _Model:
    """`checked`, for what is computed exactly: a warning if that is in float32."""
    model = checked(model)
    tell_precision(model.dtype)
    return model
