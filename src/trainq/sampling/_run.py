"""Chains run by compiled loops, with moments that are summed up on the way."""

from collections.abc import Callable, Hashable
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, Num, Shaped, UInt

from .._checks import check_key, whole_number
from .._show import AbstractShown, Table, count, number
from .._spins import check_spins
from ..markov import (
    AbstractKernel,
    checked_kernel,
    first_states,
    observed,
    with_replicas,
)
from ..models import (
    AbstractEnergyModel,
    AbstractStart,
    Data,
    Uniform,
    check_data,
    check_start,
    checked,
    initial_states,
    require_model,
)
from ._progress import bar
from ._sums import add_up


# Values whose sums are short enough to be plain, and so cost half as much.
_RECENT = 128

Functions = Callable[[Num[Array, "chains n_units"]], Float[Array, "chains n_obs"]]


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

        **Raises:** `ValueError` for a wrong shape; `TypeError` for another thing than a
        key; a run-time error for another value than ±1.
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


class Moments(AbstractShown):
    """Means and variances over time, for each chain, without the values themselves.

    A run that goes on from them counts in what came before. They are as good after a
    billion steps as after one, since the sums of recent values are short. Read `mean`
    and `variance`.
    """

    count: Int[Array, ""]
    """The number of values of each chain."""
    totals: tuple[Float[Array, "chains n_obs"], ...]
    """The mean of all values but the recent ones, and the sum of squared deviations
    from it, each followed by what rounding has taken from it."""
    recent: tuple[Float[Array, "chains n_obs"], ...]
    """The first of the last few values, and sums of what the others differ from it and
    of the squares of that."""

    @classmethod
    def begin(cls, shape: tuple[int, ...], dtype: Any) -> "Moments":
        """Those of no values yet, for values of a shape `(chains, n_obs)`."""
        zeros = jnp.zeros(shape, dtype)
        return cls(jnp.zeros((), int), (zeros,) * 4, (zeros,) * 3)

    def _shown(self) -> list[str | Table]:
        if self.count.ndim:  # a batch, by `eqx.filter_vmap`
            return super()._shown()
        chains, n_obs = self.recent[0].shape
        return [
            f"moments of {count(int(self.count), 'value')} of "
            f"{count(n_obs, 'observable')} in {count(chains, 'chain')}: means "
            f"{number(self.mean)}, variances {number(self.variance)}"
        ]

    @property
    def mean(self) -> Float[Array, "chains n_obs"]:
        """The mean of the values of each chain."""
        return self._merged()[0]

    @property
    def variance(self) -> Float[Array, "chains n_obs"]:
        """The variance of the values of each chain about its own mean."""
        count = jnp.maximum(self.count, 1).astype(self.totals[0].dtype)
        return self._merged()[2] / count

    def add(self, values: Float[Array, "chains n_obs"]) -> "Moments":
        """With one more value for every chain."""
        return self._open(values)._add(values)._close()

    @property
    def _room(self) -> Int[Array, ""]:
        """How many more values fit into the recent ones."""
        return _RECENT - self.count % _RECENT

    def _open(self, values: Array) -> "Moments":
        """With a first value for the recent ones, if there are none."""
        first = jnp.where(self._room == _RECENT, values, self.recent[0])
        return Moments(self.count, self.totals, (first, *self.recent[1:]))

    def _add(self, values: Array) -> "Moments":
        """With one more of the recent values, of which there is a first."""
        first, total, deviations = self.recent
        change = values - first
        recent = first, total + change, deviations + change**2
        return Moments(self.count + 1, self.totals, recent)

    def _close(self) -> "Moments":
        """With the recent values counted in, if these are as many as fit."""
        full = self._room == _RECENT
        first, *sums = self.recent
        totals = (
            jnp.where(full, new, old)
            for new, old in zip(self._merged(_RECENT), self.totals, strict=True)
        )
        recent = first, *(jnp.where(full, 0, x) for x in sums)
        return Moments(self.count, tuple(totals), recent)

    def _merged(self, size: int | None = None) -> tuple[Array, ...]:
        """The totals with the recent values, so many of them (Chan, Golub and LeVeque
        1983)."""
        mean, lost, deviations, less = self.totals
        first, total, about = self.recent
        dtype = mean.dtype
        within = self.count % _RECENT if size is None else jnp.array(size)
        before = (self.count - within).astype(dtype)
        size_ = within.astype(dtype)
        change = total / jnp.maximum(size_, 1)
        about = jnp.maximum(about - total * change, 0)
        change = first - mean + change
        share = size_ / jnp.maximum(before + size_, 1)
        mean, lost = add_up(mean, lost, change * share)
        deviations, less = add_up(
            deviations, less, about + change**2 * (before * share)
        )
        return mean, lost, deviations, less


class Run(AbstractShown):
    """What a run leaves."""

    state: ChainState
    """Where the chains stand: to go on from."""
    moments: Moments
    """Means and variances of the functions over time, for each chain."""
    values: Float[Array, "chains records n_obs"] | None
    """The values of the functions, if `keep` asked for them."""


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
    return ChainState.begin(x, rest)


def run(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    state: ChainState,
    n_steps: SupportsIndex,
    *,
    functions: Functions | None = None,
    every: SupportsIndex = 1,
    keep: bool = False,
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
    - `moments`: what to add to, from an earlier run.
    - `progress`: show a line of progress, from compiling on; needs `tqdm`.
    - `chunk`: steps in one compiled call, a multiple of `every`: how often the bar
        moves. About a hundredth of the run by default, or a million without a bar.

    **Returns:** a [`trainq.sampling.Run`][].

    **Raises:** `ValueError` for numbers of steps that are not whole or do not fit,
    functions of another shape or type, or a state or moments of another model;
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
    if functions is not None and not callable(functions):
        raise ValueError(
            f"functions is a function of states, or None, but {functions!r} was given."
        )
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
    state = ChainState(x, state.key_data, state.step, state.key_impl)
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
        n_before = moments.count.astype(int)
        moments = Moments(n_before, moments.totals, moments.recent)
        full = n_before > most - n_steps // every
        moments = _checked_moments(moments, full, too_many)
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
    trees = kernel, checked(model), state, moments, functions
    layout: Any = jax.typeof(state.x).sharding
    if AxisType.Explicit not in layout.mesh.axis_types:
        return _records(*trees, records, every, keep)
    # Where the type of an array says how it is laid out, the loop is compiled as on a
    # mesh with automatic axes, and all that there is for each chain goes with it.
    arrays, static = eqx.partition(trees, eqx.is_array)
    same: Any = NamedSharding(layout.mesh, PartitionSpec())
    chains: Any = NamedSharding(layout.mesh, PartitionSpec(*layout.spec[:1]))
    layouts = (
        ChainState(layout, same, same, state.key_impl),
        Moments(same, (chains,) * 4, (chains,) * 3),
        chains if keep else None,
    )

    def automatic(arrays):
        kernel, model, state, moments, functions = eqx.combine(arrays, static)
        return _records(kernel, model, state, moments, functions, records, every, keep)

    explicit: Any = jax.sharding.auto_axes(automatic, out_sharding=layouts)
    return explicit(arrays)


def _records(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    state: ChainState,
    moments: Moments | None,
    functions: Functions | None,
    records: int,
    every: int,
    keep: bool,
) -> tuple[ChainState, Moments, Array | None]:
    functions = model.observables if functions is None else functions

    def of(x):
        return functions(observed(x))

    values = jax.eval_shape(of, state.x)
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
    if moments is None:
        precise = jnp.finfo(values.dtype).bits >= 32
        moments = Moments.begin(shape, values.dtype if precise else jnp.float32)
    elif moments.recent[0].shape != shape:
        raise ValueError(
            f"moments to go on from have shape {moments.recent[0].shape}, but values "
            f"have shape {shape}: these are of other functions, or of other chains."
        )

    move = kernel.stepper(model)
    keys, key_data, number = step_keys(state, records * every)
    keys = keys.reshape(records, every)

    dtype = moments.recent[0].dtype

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
    found = _checked_moments(
        found,
        ~jnp.all(jnp.isfinite(found.mean) & jnp.isfinite(found.variance)),
        "A value of the functions that a run averages is not finite, or too large to "
        "be squared. Without `functions` these are the gradients of the energy.",
    )
    state = ChainState(x, key_data, number, state.key_impl)
    return state, found, kept


def _checked_moments(moments: Moments, wrong: Array, message: str) -> Moments:
    """The moments, or a run-time error. It hangs on their number, which every reading
    takes: what passes such a check comes together on one device."""
    count = eqx.error_if(moments.count, wrong, message)
    return Moments(count, moments.totals, moments.recent)


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
