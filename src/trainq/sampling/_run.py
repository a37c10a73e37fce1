"""Chains run by compiled loops, with moments that are summed up on the way."""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key, Num, UInt

from .._spins import check_spins
from ..markov import AbstractKernel
from ..markov._kernels import checked_kernel
from ..models import AbstractEnergyModel
from ..models._base import checked


Functions = Callable[[Num[Array, "chains n_units"]], Float[Array, "chains n_obs"]]


class ChainState(eqx.Module):
    """Where a batch of independent chains stands: all that is needed to go on.

    It is a tree of arrays: save it with `eqx.tree_serialise_leaves`.
    """

    x: Num[Array, "chains n_units"]
    key_data: UInt[Array, " words"]  # keys themselves cannot be saved
    step: Int[Array, ""]
    key_impl: Hashable = eqx.field(static=True)

    @classmethod
    def begin(
        cls, x: Num[Array, "chains n_units"], key: Key[Array, ""]
    ) -> "ChainState":
        """Chains at the states `x`, before their first step."""
        data = jr.key_data(key)
        return cls(x, data, jnp.zeros((), int), jr.key_impl(key))

    @property
    def key(self) -> Key[Array, ""]:
        """The key that the randomness of every step comes from."""
        return jr.wrap_key_data(self.key_data, impl=self.key_impl)

    @property
    def n_chains(self) -> int:
        """Number of chains."""
        return self.x.shape[0]


class Moments(eqx.Module):
    """Means and variances over time, for each chain, without the values themselves.

    A run that goes on from them counts in what came before.
    """

    count: Int[Array, ""]
    mean: Float[Array, "chains n_obs"]
    squares: Float[Array, "chains n_obs"]

    @property
    def variance(self) -> Float[Array, "chains n_obs"]:
        """The variance of the values of each chain about its own mean."""
        return self.squares / jnp.maximum(self.count, 1).astype(self.mean.dtype)

    def add(self, values: Float[Array, "chains n_obs"]) -> "Moments":
        """With one more value for every chain (Welford 1962)."""
        count = self.count + 1
        change = values - self.mean
        mean = self.mean + change / count.astype(change.dtype)
        return Moments(count, mean, self.squares + change * (values - mean))


class Run(eqx.Module):
    """What a run leaves: the state to go on from, the moments, and the values of the
    functions where they were asked for."""

    state: ChainState
    moments: Moments
    values: Float[Array, "chains records n_obs"] | None


def check_key(key: Any) -> None:
    """Raise a `TypeError` if this is not one random key."""
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and key.ndim == 0 or dtype == jnp.uint32 and key.ndim == 1):
        raise TypeError(
            "key is one random key, such as `jax.random.key(0)`, but "
            f"{f'shape {key.shape}' if typed else repr(key)} was given."
        )


def start_chains(
    key: Key[Array, ""],
    model: AbstractEnergyModel,
    n_chains: int,
    x: Num[Array, "*chains n_units"] | None = None,
) -> ChainState:
    """A batch of chains at their start.

    **Arguments:**

    - `key`: random key, of the start and of everything after.
    - `model`: the model.
    - `n_chains`: number of independent chains.
    - `x`: ±1 spins of shape `(n_units,)`, for all chains to start from, or
        `(n_chains, n_units)`. By default each chain starts from a state drawn
        uniformly.

    **Raises:** `ValueError` for a wrong shape, or no chain; a run-time error for
    another value than ±1.
    """
    check_key(key)
    if n_chains < 1:
        raise ValueError(f"n_chains is at least 1, but {n_chains} was given.")
    shape = (n_chains, model.n_units)
    start, rest = jr.split(key)
    if x is None:
        x = jr.rademacher(start, shape, model.dtype)
    else:
        x = check_spins(jnp.asarray(x), model.n_units)
        if x.shape not in (shape, shape[1:]):
            raise ValueError(
                f"x has shape {shape}, one state for each chain, or {shape[1:]}, but "
                f"{x.shape} was given."
            )
        x = jnp.broadcast_to(x.astype(model.dtype), shape)
    return ChainState.begin(x, rest)


def run(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    state: ChainState,
    n_steps: int,
    *,
    functions: Functions | None = None,
    every: int = 1,
    keep: bool = False,
    moments: Moments | None = None,
    progress: bool = False,
    chunk: int | None = None,
) -> Run:
    """Run all chains, and record functions of their states.

    The states recorded are those *before* the steps `0, every, 2 every, …` of this
    call, so that two runs in a row record what one long run does, to the last bit:
    randomness depends on the key and the number of the step alone.

    **Arguments:**

    - `kernel`, `model`: what to run.
    - `state`: where the chains stand, from [`trainq.sampling.start_chains`][] or from
        an earlier run.
    - `n_steps`: number of kernel steps, a multiple of `every`.
    - `functions`: takes states `(chains, n_units)` and returns `(chains, n_obs)`; the
        gradient observables of the model by default. Every new function is compiled:
        define it once.
    - `every`: record after so many steps.
    - `keep`: also keep the values, `chains · (n_steps / every) · n_obs` of them.
    - `moments`: what to add to, from an earlier run.
    - `progress`: show a bar; needs `rich`.
    - `chunk`: steps in one compiled call, a multiple of `every`: how often the bar
        moves. About a hundredth of the run by default, or a million without a bar.

    **Returns:** a [`trainq.sampling.Run`][].

    **Raises:** `ValueError` for numbers of steps that do not fit, or a state of another
    model; a run-time error if a parameter is not finite.
    """
    checked_kernel(kernel)
    if every < 1 or n_steps < 1 or n_steps % every:
        raise ValueError(
            f"n_steps is a positive multiple of every, which is at least 1, but "
            f"{n_steps} and {every} were given."
        )
    if state.x.shape[-1] != model.n_units:
        raise ValueError(
            f"The state is of chains with {state.x.shape[-1]} units, but the model has "
            f"{model.n_units}. `start_chains` makes a new one."
        )
    if chunk is None:
        most = 2**20 if not progress else n_steps // 100
        chunk = min(n_steps, max(1, most // every) * every)
    if chunk < 1 or chunk % every:
        raise ValueError(
            f"chunk is a positive multiple of every = {every}, but {chunk} was given."
        )
    values = []
    with bar(n_steps, progress) as advance:
        done = 0
        while done < n_steps:
            length = min(chunk, n_steps - done)
            state, moments, some = _chunk(
                kernel, model, state, moments, functions, length // every, every, keep
            )
            values.append(some)
            done += length
            if progress:
                jax.block_until_ready(state)
            advance(length)
    kept = None
    if keep:
        kept = values[0] if len(values) == 1 else jnp.concatenate(values, axis=1)
    assert moments is not None
    return Run(state, moments, kept)


@eqx.filter_jit
def _chunk(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    state: ChainState,
    moments: Moments | None,
    functions: Functions | None,
    records: int,
    every: int,
    keep: bool,
) -> tuple[ChainState, Moments, Array | None]:
    model = checked(model)
    of = model.observables if functions is None else functions
    shape = jax.eval_shape(of, state.x)
    if len(shape.shape) != 2 or shape.shape[0] != state.x.shape[0]:
        raise ValueError(
            "functions returns values of shape (chains, n_obs) for states of shape "
            f"{state.x.shape}, but it returned {shape.shape}. For one function add an "
            "axis: `values[:, None]`."
        )
    if moments is None:
        zeros = jnp.zeros(shape.shape, shape.dtype)
        moments = Moments(jnp.zeros((), int), zeros, zeros)

    move = kernel.stepper(model)
    # All at once: a key made alone costs as much as a thousand random numbers.
    numbers = state.step + jnp.arange(records * every)
    keys = jax.vmap(partial(jr.fold_in, state.key))(numbers).reshape(records, every)

    def body(carry, keys):
        x, moments = carry
        values = of(x)
        x, _ = jax.lax.scan(lambda x, key: (move(key, x), None), x, keys)
        return (x, moments.add(values)), values if keep else None

    (x, moments), values = jax.lax.scan(body, (state.x, moments), keys)
    values = None if values is None else jnp.swapaxes(values, 0, 1)
    number = state.step + records * every
    state = ChainState(x, state.key_data, number, state.key_impl)
    return state, moments, values


@contextlib.contextmanager
def bar(n_steps: int, show: bool) -> Iterator[Callable[[int], Any]]:
    if not show:
        yield lambda _: None
        return
    try:
        from rich.progress import Progress
    except ImportError as error:
        raise ImportError(
            "A progress bar needs `rich`: pip install rich, or leave out `progress`."
        ) from error
    with Progress(transient=True) as bars:
        task = bars.add_task("sampling", total=n_steps)
        yield lambda steps: bars.advance(task, steps)
