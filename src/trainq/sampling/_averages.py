"""Averages over a number of steps that is traced: another number compiles nothing."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from .._meshes import explicit_layout, of_axes, on_automatic_axes, raise_if
from ..markov import AbstractKernel, observed
from ..models import AbstractEnergyModel
from ._chain_state import ChainState, step_keys
from ._estimate import GradientEstimate, scatter, summarised
from ._moments import Moments


# Steps whose keys are made at once, as many as recent values of `Moments`.
_BLOCK = 128
# Degrees of freedom of what is exact.
NO_LIMIT = 10**9


def average(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    state: ChainState,
    burn_in: Int[Array, ""],
    window: Int[Array, ""],
) -> tuple[ChainState, Moments]:
    """The chains `burn_in + window` steps later, and the moments of the observables of
    the model before each of the last `window` steps.

    These are what two calls of `trainq.sampling.run` find, the states to the last bit,
    with numbers that may be traced. The kernel and the model have been checked, and the
    state is theirs.
    """
    trees = kernel, model, state, burn_in, window
    layout = explicit_layout(state.x)
    if layout is None:
        return _average(trees)
    moments = Moments.layouts(of_axes(layout), layout.spec[:1], None)
    return on_automatic_axes(_average, trees, (state.layouts(layout), moments))


def _average(trees: Any) -> tuple[ChainState, Moments]:
    kernel, model, state, burn_in, window = trees
    move = kernel.stepper(model)
    shape = jax.eval_shape(model.observables, observed(state.x)).shape

    def values(x):
        return model.observables(observed(x))

    def skip(keys, length, x):
        return jax.lax.fori_loop(0, length, lambda i, x: move(keys[i], x), x)

    def record(keys, length, carry):
        def one(i, carry):
            x, moments = carry
            return move(keys[i], x), moments._add(values(x))

        x, moments = carry
        carry = x, moments._open(values(x))
        x, moments = jax.lax.fori_loop(0, length, one, carry)
        return x, moments._close()

    state, x = _blocks(skip, state, state.x, burn_in)
    state, (x, moments) = _blocks(
        record, state, (x, Moments.begin(shape, model.dtype)), window
    )
    finite = jnp.isfinite(moments.mean) & jnp.isfinite(moments.variance)
    x = raise_if(
        x,
        ~jnp.all(finite),
        "A gradient of the energy is not finite, or too large to be squared.",
    )
    return ChainState(x, state.key_data, state.step, state.key_impl), moments


def averaged(
    model: AbstractEnergyModel,
    state: ChainState,
    moments: Moments,
    window: Int[Array, ""],
    phase: Array,
    of_data: Array | None = None,
    degrees: int = NO_LIMIT,
) -> GradientEstimate:
    """The estimate from means along chains; the data phase is exact by default."""
    means = moments.mean
    flat = phase - jnp.mean(means, axis=0)
    _, unravel = ravel_pytree(eqx.filter(model, eqx.is_inexact_array))
    return summarised(
        unravel(flat),
        flat,
        state,
        independent_states(moments),
        window,
        -scatter(means),
        jnp.zeros((0, flat.size), flat.dtype) if of_data is None else of_data,
        min(max(len(means) - 1, 1), degrees),
    )


def independent_states(moments: Moments) -> Float[Array, ""]:
    """How many independent states the window of a chain is worth.

    For chains in their law the variance of one state is that within chains plus that of
    their means, `Var f = E[s²] + Var[m]`, for every window; and `Var[m]` is that of as
    many independent states as `Var f / Var[m]`.
    """
    n_chains = moments.mean.shape[0]
    if n_chains == 1:
        return jnp.zeros((), moments.mean.dtype)
    between = jnp.sum(jnp.var(moments.mean, axis=0, ddof=1))
    within = jnp.sum(jnp.mean(moments.variance, axis=0))
    moves = between > 0
    # Means that agree to the last bit, of chains that move: only where all run alike.
    alike = jnp.where(within > 0, jnp.inf, 0)
    return jnp.where(moves, 1 + within / jnp.where(moves, between, 1), alike)


def _blocks(
    body: Callable[[Array, Array, Any], Any],
    state: ChainState,
    carry: Any,
    n_steps: Int[Array, ""],
) -> tuple[ChainState, Any]:
    """`body(keys, length, carry)` for the next steps of a state, some at a time."""

    def block(at):
        done, state, carry = at
        length = jnp.minimum(_BLOCK, n_steps - done)
        keys, key_data, number = step_keys(state, _BLOCK, length)
        state = ChainState(state.x, key_data, number, state.key_impl)
        return done + length, state, body(keys, length, carry)

    start = jnp.zeros_like(n_steps), state, carry
    _, state, carry = jax.lax.while_loop(lambda at: at[0] < n_steps, block, start)
    return state, carry
