"""Chains run by compiled loops, with moments that are summed up on the way."""

from collections.abc import Callable
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from .._checks import whole_number
from .._memory import n_memories, require_memory
from .._meshes import explicit_layout, of_axes, on_automatic_axes
from .._progress import bar
from .._show import AbstractShown
from ..markov import AbstractKernel, checked_kernel, observed, with_replicas
from ..models import AbstractEnergyModel, checked, require_model
from ._chain_state import ChainState, step_keys
from ._moments import Moments, checked_moments


# Sokal's rule wants more than 5 of them.
_LEAST_LAGS = 8

Functions = Callable[[Num[Array, "chains n_units"]], Float[Array, "chains n_obs"]]


class Run(AbstractShown):
    """What a run leaves."""

    state: ChainState
    """Where the chains stand: to go on from."""
    moments: Moments
    """Means and variances of the functions over time, for each chain."""
    values: Float[Array, "chains records n_obs"] | None
    """The values of the functions, if `keep` asked for them."""


def run(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    state: ChainState,
    n_steps: SupportsIndex,
    *,
    functions: Functions | None = None,
    every: SupportsIndex = 1,
    keep: bool = False,
    lags: SupportsIndex | None = None,
    moments: Moments | None = None,
    progress: bool = False,
    chunk: SupportsIndex | None = None,
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
    - `functions`: takes states `(chains, n_units)`, those of the model where a kernel
        runs replicas of it, and returns floats `(chains, n_obs)`; the gradient
        observables of the model by default. Every new function is compiled: define it
        once. Moments are in float32, or better where the values are.
    - `every`: record after so many steps.
    - `keep`: also keep the values, `chains · (n_steps / every) · n_obs` of them.
    - `lags`: also sum up autocovariances, at so many lags of the values and of bins of
        them, in memory that does not depend on the number of steps: see
        [`trainq.sampling.Autocovariances`][]. At least 8; 16 is a good number. The
        moments then tell autocorrelation times, R-hat and `T_O`.
    - `moments`: what to add to, from an earlier run: with autocovariances if they have
        some.
    - `progress`: show a line of progress, from compiling on; needs `tqdm`.
    - `chunk`: steps in one compiled call, a multiple of `every`: how often the bar
        moves. About a hundredth of the run by default, or a million without a bar.

    **Returns:** a [`trainq.sampling.Run`][].

    **Raises:** `ValueError` for numbers of steps that are not whole or do not fit,
    functions of another shape or type, or a state or moments of another model;
    `MemoryError`, with an estimate, for more values to keep than there is memory for;
    `TypeError` for another thing than a kernel, a model or a state; a run-time error if
    a parameter is not finite, or a value of the functions or its square, or if moments
    would count more values than an integer holds, `2**31` without `jax_enable_x64`.

    ??? cite "Source"

        Welford, *Note on a method for calculating corrected sums of squares and
        products*, Technometrics 4, 419, 1962, with the sums of Kahan, *Further remarks
        on reducing truncation errors*, Commun. ACM 8, 40, 1965.
    """
    checked_kernel(kernel)
    require_model(model)
    n_steps = whole_number("n_steps", n_steps, of="kernel steps")
    every = whole_number("every", every, of="kernel steps")
    if n_steps % every:
        raise ValueError(
            f"n_steps is a multiple of every, but {n_steps} and {every} were given."
        )
    state = with_all_replicas(kernel, model, state)
    if chunk is None:
        most = 2**20 if not progress else n_steps // 100
        chunk = min(n_steps, max(1, most // every) * every)
    chunk = whole_number("chunk", chunk, of="kernel steps")
    if chunk % every or chunk >= 2**31:
        raise ValueError(
            f"chunk is a multiple of every = {every}, below 2**31, but {chunk} was "
            "given."
        )
    most = jnp.iinfo(jnp.result_type(int)).max
    too_many = (
        f"Moments count up to {most} values, and these would be more. Begin new ones, "
        "record less by `every`, or set jax_enable_x64."
    )
    if n_steps // every > most:
        raise ValueError(too_many)
    if moments is not None:
        if not isinstance(moments, Moments):
            raise TypeError(
                "moments is a `Moments`, such as the `moments` of an earlier `Run`, "
                f"but an object of type {type(moments).__name__} was given."
            )
        # From a file they may come with the integers of a process without x64.
        before: Moments = jax.tree.map(
            lambda x: x.astype(int) if jnp.issubdtype(x.dtype, jnp.integer) else x,
            moments,
        )
        full = before.count > most - n_steps // every
        moments = checked_moments(before, full, too_many)
    if lags is not None:
        lags = whole_number("lags", lags, least=_LEAST_LAGS)
        known = None if moments is None else moments.autocovariances
        if moments is not None and (known is None or known.lags != lags):
            had = "none" if known is None else str(known.lags)
            raise ValueError(
                f"moments to go on from have autocovariances at {had} lags, but "
                f"lags = {lags} was given: give it in the first run, and not in "
                "those that go on."
            )
    if keep:
        _require_room(functions, model, state, n_steps // every)
    values = []
    with bar(n_steps, progress) as advance:
        done = 0
        while done < n_steps:
            length = min(chunk, n_steps - done)
            state, moments, some = _chunk(
                kernel,
                model,
                state,
                moments,
                functions,
                length // every,
                every,
                keep,
                lags,
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


def _require_room(
    functions: Functions | None,
    model: AbstractEnergyModel,
    state: ChainState,
    records: int,
) -> None:
    """Raise a `MemoryError` for more values than can be kept."""
    values = shape_of(model.observables if functions is None else functions, state)
    # As they come, and chain by chain.
    n_bytes = 2.0 * records * values.size * values.dtype.itemsize
    chains, n_obs = values.shape
    require_memory(
        n_bytes / n_memories(state.x),
        f"Keeping {records:,} values of {n_obs} functions for {chains} chains",
        "The moments are there without: `lags=16` gives autocorrelation times too. "
        "`every=` keeps fewer, and `functions=` fewer of them.",
    )


def with_all_replicas(
    kernel: AbstractKernel, model: AbstractEnergyModel, state: Any
) -> ChainState:
    """A state that a kernel can move, having checked that it is one of the model."""
    if not isinstance(state, ChainState):
        raise TypeError(
            "state is a `ChainState`, from `start_chains(key, model, n_chains)` or the "
            f"`state` of a `Run`, but an object of type {type(state).__name__} was "
            "given. Spins of your own become one by `ChainState.begin(x, key)`."
        )
    if state.x.shape[-1] != model.n_units:
        raise ValueError(
            f"The state is of chains with {state.x.shape[-1]} units, but the model has "
            f"{model.n_units}. `start_chains` makes a new one."
        )
    x = with_replicas(kernel, model, state.x)
    return ChainState(x, state.key_data, state.step, state.key_impl)


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
    lags: int | None,
) -> tuple[ChainState, Moments, Array | None]:
    trees = kernel, checked(model), state, moments, functions

    def body(trees):
        kernel, model, state, moments, functions = trees
        sizes = records, every, keep, lags
        return _records(kernel, model, state, moments, functions, *sizes)

    lagged = lags is not None
    if moments is not None:
        lagged = moments.autocovariances is not None
    return _laid_out(body, trees, keep, lagged)


@eqx.filter_jit
def advance(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    state: ChainState,
    moments: Moments,
    functions: Functions | None,
    records: int,
    every: int,
    times: Int[Array, ""],
) -> tuple[ChainState, Moments]:
    """What `run` leaves of `times · records · every` steps: another number of times
    compiles nothing."""
    trees = kernel, checked(model), state, moments, functions, times

    def body(trees):
        kernel, model, state, moments, functions, times = trees

        def some(_, carry):
            state, moments = carry
            sizes = records, every, False, None
            return _records(kernel, model, state, moments, functions, *sizes)[:2]

        state, moments = jax.lax.fori_loop(0, times, some, (state, moments))
        return state, moments, None

    lagged = moments.autocovariances is not None
    return _laid_out(body, trees, False, lagged)[:2]


def _laid_out(
    body: Callable[[Any], tuple[ChainState, Moments, Array | None]],
    trees: Any,
    keep: bool,
    lagged: bool,
) -> tuple[ChainState, Moments, Array | None]:
    """`body(trees)`, of which the third is a state."""
    layout = explicit_layout(trees[2].x)
    if layout is None:
        return body(trees)
    # All that there is for each chain lies as the chains do.
    of, chains = of_axes(layout), layout.spec[:1]
    moments = Moments.layouts(of, chains, trees[2].n_chains if lagged else None)
    state = trees[2].layouts(layout)
    kept = of(*chains) if keep else None
    return on_automatic_axes(body, trees, (state, moments, kept))


def _records(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    state: ChainState,
    moments: Moments | None,
    functions: Functions | None,
    records: int,
    every: int,
    keep: bool,
    lags: int | None,
) -> tuple[ChainState, Moments, Array | None]:
    functions = model.observables if functions is None else functions

    def of(x):
        return functions(observed(x))

    values = shape_of(functions, state)
    shape = values.shape
    if moments is None:
        moments = Moments.begin(shape, values.dtype, lags)
    elif moments.recent[0].shape != shape:
        raise ValueError(
            f"moments to go on from have shape {moments.recent[0].shape}, but values "
            f"have shape {shape}: these are of other functions, or of other chains."
        )

    move = kernel.stepper(model)
    keys, key_data, number = step_keys(state, records * every)
    keys = keys.reshape(records, every)

    dtype = moments.recent[0].dtype
    moments = moments._refer(of(state.x).astype(dtype))

    def record(i, carry):
        x, moments, kept = carry
        some = of(x).astype(dtype)
        x, _ = jax.lax.scan(lambda x, key: (move(key, x), None), x, keys[i])
        kept = None if kept is None else kept.at[i].set(some.astype(kept.dtype))
        return x, moments._add(some), kept

    def block(carry):
        i, (x, moments, kept) = carry
        end = jnp.minimum(records, i + moments._room)
        moments = moments._open(of(x).astype(dtype))
        x, moments, kept = jax.lax.fori_loop(i, end, record, (x, moments, kept))
        return end, (x, moments._close(), kept)

    kept = jnp.zeros((records, *shape), values.dtype) if keep else None
    carry = jnp.zeros((), int), (state.x, moments, kept)
    _, (x, found, kept) = jax.lax.while_loop(
        lambda carry: carry[0] < records, block, carry
    )
    kept = None if kept is None else jnp.swapaxes(kept, 0, 1)
    found = checked_moments(
        found,
        ~jnp.all(jnp.isfinite(found.mean) & jnp.isfinite(found.variance)),
        "A value of the functions that a run averages is not finite, or too large to "
        "be squared. Without `functions` these are the gradients of the energy.",
    )
    state = ChainState(x, key_data, number, state.key_impl)
    return state, found, kept


def shape_of(functions: Functions, state: ChainState) -> jax.ShapeDtypeStruct:
    """The shape and the type of the values of functions, having checked them."""
    if not callable(functions):
        raise ValueError(
            f"functions is a function of states, or None, but {functions!r} was given."
        )
    values = jax.eval_shape(lambda x: functions(observed(x)), state.x)
    shape = getattr(values, "shape", ())
    if len(shape) != 2 or shape[0] != state.x.shape[0]:
        chains, n_units = state.x.shape[0], state.x.shape[-1]
        returned = shape if hasattr(values, "shape") else type(values).__name__
        hints = []
        if shape != (chains,) or chains == n_units:
            hints.append(
                "It takes all chains at once, and units are the last axis: write "
                "`x[..., 0] * x[..., 1]` for `x[0] * x[1]`, or use `jax.vmap`."
            )
        if len(shape) < 2:
            hints.append("For one function add an axis: `values[:, None]`.")
        raise ValueError(
            "functions returns values of shape (chains, n_obs) for states of shape "
            f"{(chains, n_units)}, but it returned {returned}. {' '.join(hints)}"
        )
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(
            f"functions returns floats, but it returned {values.dtype}. Convert them: "
            "`values.astype(x.dtype)`."
        )
    return values
