"""Averages over a number of steps that is traced: another number compiles nothing."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Int

from .._checks import whole_number
from ..markov import AbstractKernel, observed
from ..models import AbstractEnergyModel
from ._chain_state import ChainState, step_keys
from ._moments import Moments


# Steps whose keys are made at once, as many as recent values of `Moments`.
_BLOCK = 128


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
    x = eqx.error_if(
        x,
        ~jnp.all(finite),
        "A gradient of the energy is not finite, or too large to be squared.",
    )
    return ChainState(x, state.key_data, state.step, state.key_impl), moments


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


def steps(name: str, value: Any, least: int) -> Int[Array, ""]:
    """A number of steps as data, which may be traced."""
    if not isinstance(value, Tracer):
        return jnp.asarray(whole_number(name, value, least, of="kernel steps"), int)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(
            f"{name} is a whole number of kernel steps, at least {least}, but "
            f"{value.aval} was given."
        )
    value = value.astype(int)
    message = f"{name} is at least {least} kernel steps, but a smaller one was given."
    return eqx.error_if(value, value < least, message)
