"""Functions of the state, in the forms that chains ask for."""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..._spins import MAX_TABLE, shard, state_spins
from ...models import AbstractEnergyModel, observables, parameters
from ...solvers import SOLUTION, Form, Pairing, pair
from ._layers import AbstractLayers


class AbstractFunctions(eqx.Module):
    """Some number of functions of the state, which need not exist all at once."""

    @property
    @abc.abstractmethod
    def n_functions(self) -> int:
        """How many there are."""

    @abc.abstractmethod
    def table(self, half: bool = False) -> Float[Array, "some n_functions"]:
        """Their values at every state, or at the first half of them: those with unit 0
        down."""

    @abc.abstractmethod
    def layer_means(self, layers: AbstractLayers) -> tuple[Array, Array]:
        """`E[f | v]` and `E[f | h]`, of shapes `(visible_states, n_functions)` and
        `(hidden_states, n_functions)`."""

    @abc.abstractmethod
    def covariance_given_visible(
        self, layers: AbstractLayers, given_visible: Array, pairing: Pairing
    ) -> Array:
        """`E[Cov(f_a, f_b | v)]` for `a = b` or for all pairs."""

    @abc.abstractmethod
    def columns(self) -> Float[Array, "n_functions size"]:
        """What tells one function from another, one a row; rows of zeros are the
        function zero."""

    @abc.abstractmethod
    def only(self, columns: Float[Array, "some size"]) -> "AbstractFunctions":
        """The functions with these rows of `columns`."""


class Table(AbstractFunctions):
    """Functions given by their values."""

    values: Float[Array, "states n_functions"]

    @property
    def n_functions(self) -> int:
        return self.values.shape[1]

    def table(self, half: bool = False) -> Float[Array, "some n_functions"]:
        return self.values[: self.values.shape[0] // 2] if half else self.values

    def layer_means(self, layers: AbstractLayers) -> tuple[Array, Array]:
        return layers.means(self.values)

    def covariance_given_visible(
        self, layers: AbstractLayers, given_visible: Array, pairing: Pairing
    ) -> Array:
        rest = layers.table(self.values) - given_visible[:, None]
        rest = jnp.exp(layers.log_joint / 2)[:, :, None] * rest
        rest = rest.reshape(-1, self.n_functions)
        return pair(rest, rest, pairing)

    def columns(self) -> Float[Array, "n_functions size"]:
        return self.values.T

    def only(self, columns: Float[Array, "some size"]) -> "Table":
        return Table(columns.T)


class EnergyGradients(AbstractFunctions):
    """The gradient observables `Σ_a d_a ∂E/∂θ_a` of a model along directions `d` in the
    space of its parameters; along every axis, by default.

    They are derivatives of the energies, and their conditional means are derivatives of
    free energies: `E[∂E | v] = ∂F(v)`. So no table of all of them need ever exist.
    """

    model: AbstractEnergyModel
    directions: Float[Array, "n_functions n_parameters"] | None = None

    @property
    def _n_parameters(self) -> int:
        size = sum(leaf.size for leaf in jax.tree.leaves(parameters(self.model)))
        if not size:
            raise ValueError(
                f"This {type(self.model).__name__} has no parameters, which are its "
                "array leaves of floats: give it some, by `jnp.asarray`."
            )
        return size

    @property
    def n_functions(self) -> int:
        if self.directions is None:
            return self._n_parameters
        return self.directions.shape[0]

    def table(self, half: bool = False) -> Float[Array, "some n_functions"]:
        model = self.model
        if self.directions is None and half:
            index = jnp.arange(2 ** (model.n_units - 1))
            return model.observables(state_spins(index, model.n_units, model.dtype))
        if self.directions is None:
            return observables(model)

        def energies(model):
            found = shard(model.energies())
            return shard(found[: found.size // 2]) if half else found

        return shard(self._along(energies))

    def layer_means(self, layers: AbstractLayers) -> tuple[Array, Array]:
        if layers.order is not None:
            return layers.means(self.table())
        hidden_means = self._of_layer(lambda model: model.hidden_free_energies())
        return self.visible_means(), hidden_means

    def visible_means(self) -> Float[Array, "visible_states n_functions"]:
        """`E[f | v]`."""
        return self._of_layer(lambda model: model.free_energies())

    def covariance_given_visible(
        self, layers: AbstractLayers, given_visible: Array, pairing: Pairing
    ) -> Array:
        linear = self.model
        if not linear.is_linear:
            linear = self.model.equivalent or self.model
        closed = layers.order is None and pairing == "diagonal"
        if not closed or not linear.is_linear:
            return Table(self.table()).covariance_given_visible(
                layers, given_visible, pairing
            )
        # Var(∂E | v) = E[∂²E | v] - ∂²F(v). An energy that is linear in parameters w
        # has the mean ⟨w, ∂F(v)⟩, which is of second order in ours if w is.
        curvature = self._of_layer(lambda model: model.free_energies(), order=2)
        if linear is not self.model:
            here, static = eqx.partition(linear, eqx.is_inexact_array)

            def mean_energies(model):
                def free_energies(w):
                    return eqx.combine(w, static).free_energies()

                w = parameters(model.equivalent)
                mean = jax.jvp(free_energies, (here,), (w,))[1]
                return mean if model.offset is None else mean + model.offset

            curvature = curvature - self._of_layer(mean_energies, order=2)
        return -jnp.exp(layers.log_visible) @ curvature

    def columns(self) -> Float[Array, "n_functions n_parameters"]:
        if self.directions is not None:
            return self.directions
        return jnp.eye(self._n_parameters, dtype=self.model.dtype)

    def only(self, columns: Float[Array, "some n_parameters"]) -> "EnergyGradients":
        return EnergyGradients(self.model, columns)

    def _along(
        self, fn: Callable[[Any], Float[Array, " n"]], order: int = 1
    ) -> Float[Array, "n n_functions"]:
        """The derivatives of `fn(model)`."""
        return jax.vmap(self._derivative(fn, order), out_axes=-1)(self.columns())

    def _of_layer(
        self, fn: Callable[[Any], Float[Array, " n"]], order: int = 1
    ) -> Float[Array, "n n_functions"]:
        """`_along`, for energies of the states of a layer, which are made of tables of
        fields: along as many directions at a time as their tables may be large."""
        derivative, columns = self._derivative(fn, order), self.columns()
        n = jax.eval_shape(derivative, columns[0]).size
        # A second derivative has some ten such tables at once.
        some = max(1, MAX_TABLE // (4 * n * self.model.n_units))
        if some >= len(columns):
            return jax.vmap(derivative, out_axes=-1)(columns)
        padded = _split(columns, some)
        found = jax.lax.map(jax.checkpoint(jax.vmap(derivative)), padded)
        return found.reshape(-1, n)[: len(columns)].T

    def _derivative(
        self, fn: Callable[[Any], Float[Array, " n"]], order: int
    ) -> Callable[[Float[Array, " n_parameters"]], Float[Array, " n"]]:
        """That of `fn(model)`, of some order along a direction."""
        params, static = eqx.partition(self.model, eqx.is_inexact_array)
        flat, unravel = ravel_pytree(params)

        def derivative(direction):
            def along(fn):
                return lambda p: jax.jvp(fn, (p,), (direction,))[1]

            def moved(p):
                return fn(eqx.combine(unravel(p), static))

            for _ in range(order):
                moved = along(moved)
            return moved(flat)

        return derivative


def blocks_alike(n: int, block: int) -> tuple[int, int]:
    """How many blocks of at most `block` it takes for `n`, and the least size of each
    that will do."""
    n_blocks = max(1, -(-n // block))
    return n_blocks, -(-n // n_blocks)


def _split(columns: Float[Array, "n width"], block: int) -> Float[Array, "b n_b width"]:
    """The rows in blocks alike, with rows of zeros after the last."""
    n_blocks, size = blocks_alike(len(columns), block)
    padded = jnp.pad(columns, ((0, n_blocks * size - len(columns)), (0, 0)))
    return padded.reshape(n_blocks, size, -1)


def in_blocks(
    fn: Callable[[AbstractFunctions, Any], Form],
    functions: AbstractFunctions,
    block: int,
    guess: Any = None,
) -> Form:
    """`fn(functions, guess)` by at most `block` functions at a time.

    The guess of the result has the blocks along its first axis. The backward pass keeps
    the solutions and computes everything else anew, block by block, so that it needs no
    more memory than the forward pass but for them.
    """
    n = functions.n_functions
    if n <= block:
        return fn(functions, guess)
    columns = _split(functions.columns(), block)
    policy = jax.checkpoint_policies.save_only_these_names(SOLUTION)

    @partial(jax.checkpoint, policy=policy)
    def one(args):
        columns, guess = args
        return fn(functions.only(columns), guess)

    form = jax.lax.map(one, (columns, guess))

    def flat(x):
        return x.reshape(-1, *x.shape[2:])[:n]

    return Form(flat(form.value), jax.tree.map(flat, form.stats), form.guess)
