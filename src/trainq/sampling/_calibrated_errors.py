"""The error of the gradient from a run of many chains, and how well it is known."""

from typing import NamedTuple, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key

from .._checks import check_key, require_concrete, whole_number
from .._progress import bar
from ..markov import AbstractKernel, checked_kernel, first_states, observed
from ..models import (
    AbstractEnergyModel,
    AbstractStart,
    Data,
    Uniform,
    check_data,
    check_start,
    checked,
    data_phase,
    data_variance,
    require_data_phase,
    require_model,
    running,
)
from ._error_table import (
    BudgetError,
    ErrorTable,
    TableJackknife,
    checked_sizes,
    time_grid,
)
from ._qsampled import Truth, true_gradient
from ._statistics import Jackknifed, squared_mean
from ._sums import add_up


# Independent states that the second half of a run holds at least.
_MIXED = 5


def calibrated_errors(
    key: Key[Array, ""],
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: Data,
    *,
    start: AbstractStart = Uniform(),
    batch: SupportsIndex | None = None,
    max_steps: SupportsIndex = 10_000,
    replicates: SupportsIndex = 256,
    gradient: Truth = None,
    device: AbstractEnergyModel | None = None,
    progress: bool = False,
) -> ErrorTable:
    """The error of the gradient of any model for burn-ins and windows of up to
    `max_steps` steps in all, on a grid of times that grow by a third, from a
    calibration run: `replicates` chains of `max_steps` steps, and that is what it
    costs.

    The true gradient is exact where it can be had, for up to
    [20 enumerated units](../choosing.md#what-is-enumerated). Otherwise it is taken to
    be that of the second half of the run, which must be long enough to have forgotten
    the start: some ten sweeps and more, in steps of the kernel. Every entry has its
    error by the jackknife, so that budgets from the table keep their word 19 times of
    20.

    **Arguments:**

    - `key`: random key.
    - `kernel`, `model`, `data`, `start`, `batch`: as for
        [`trainq.sampling.QSampled`][].
    - `max_steps`: the number of steps of a chain, at least 8.
    - `replicates`: the number of chains, at least 8.
    - `gradient`: the true gradient, or `"sampled"` to take that of the run in any case,
        as for `QSampled`.
    - `device`: the model that runs, if it is another one, as for
        [`trainq.QOperational`][]. Where the true gradient is not known it is then that
        of the second half of a run of the model itself, which takes as long once more.
    - `progress`: show a line of progress, from compiling on; needs `tqdm`.

    **Returns:** a [`trainq.sampling.ErrorTable`][].

    **Raises:** [`trainq.sampling.BudgetError`][] for a run that is too short, or whose
    chains are frozen; `ValueError` under `jax.jit` and its like; and as `QSampled`.
    """
    checked_kernel(kernel)
    require_model(model)
    start = check_start(start)
    max_steps, batch = checked_sizes(max_steps, batch)
    replicates = whole_number("replicates", replicates, least=8)
    given = {"model": model, "data": data, "start": start, "device": device}
    require_concrete("A table of errors", key=key, **given)
    check_key(key)
    runs = running(model, device)
    if max_steps < 8:
        raise ValueError("A calibration takes at least 8 steps: raise max_steps.")
    data = check_data(data, model)
    require_data_phase(model, data)
    times = np.append(0, time_grid(max_steps))
    run = _calibration_run(
        key, kernel, model, runs, data, start, times, replicates, progress
    )
    known, own = true_gradient(gradient, model, data), None
    if known is not None:
        scatter = jnp.zeros((replicates, known.size), known.dtype)
        own = _Truth(data_phase(model, data) - known, scatter)
    elif device is not None:
        # Replicate r is one of the device and one of the model: their differences are
        # independent, and so one jackknife does for both.
        key = jr.fold_in(key, 1)
        again = _calibration_run(
            key, kernel, model, model, data, start, times, replicates, progress
        )
        own = _truth(again, kernel, start.is_stationary)
    # Whether chains move is asked of the run in any case; whether they have forgotten
    # their start, where it tells a mean.
    is_mixed = start.is_stationary or (own is not None and device is None)
    of_run = _truth(run, kernel, is_mixed)
    truth, device_bias2 = own or of_run, 0.0
    if device is not None:
        apart = squared_mean(of_run.mean - truth.mean, of_run.scatter - truth.scatter)
        device_bias2 = max(float(apart.unbiased.whole), 0.0)
    signal = squared_mean(data_phase(model, data) - truth.mean, -truth.scatter).unbiased

    pairs = [(i, j) for i in range(len(times)) for j in range(i + 1, len(times))]
    entries = [_entry(run.means(i, j), truth) for i, j in pairs]
    bias2, variance = (
        jax.tree.map(lambda *values: np.stack(values, axis=-1), *column)
        for column in zip(*entries, strict=True)
    )
    of_data = 0.0
    if batch is not None:
        of_data = float(jnp.sum(data_variance(model, data))) / batch
    return ErrorTable(
        burn_in=np.array([times[i] for i, _ in pairs]),
        window=np.array([times[j] - times[i] for i, j in pairs]),
        bias2=bias2.whole,
        variance=variance.whole,
        signal=float(signal.whole),
        data_variance=of_data,
        site_updates=float(kernel.site_updates(model)),
        jackknife=TableJackknife(
            bias2=bias2.without,
            variance=variance.without,
            signal=np.asarray(signal.without),
        ),
        device_bias2=device_bias2,
    )


class _Run(NamedTuple):
    """A run of replicates: the sums of the observables before each of some times, and
    their values after the last."""

    times: Int[np.ndarray, " times"]
    sums: list[Float[Array, "replicates n_obs"]]
    last: Float[Array, "replicates n_obs"]

    def means(self, i: int, j: int) -> Float[Array, "replicates n_obs"]:
        """The average of each replicate between two of the times."""
        return (self.sums[j] - self.sums[i]) / float(self.times[j] - self.times[i])


class _Truth(NamedTuple):
    """What stands for the mean of the observables: their average over replicates, and
    how far each replicate is from it, by which the average is uncertain; or what it is
    known to be, and zeros."""

    mean: Float[Array, " n_obs"]
    scatter: Float[Array, "replicates n_obs"]


def _calibration_run(
    key: Array,
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    runs: AbstractEnergyModel,
    data: Array,
    start: AbstractStart,
    times: np.ndarray,
    replicates: int,
    progress: bool,
) -> _Run:
    """A run of `runs`, with the observables of `model`."""
    start_key, key = jr.split(key)
    x = first_states(start_key, kernel, start, runs, data, replicates)
    shape = jax.eval_shape(model.observables, observed(x)).shape
    sums = [jnp.zeros(shape, model.dtype)]
    with bar(int(times[-1]), progress) as advance:
        for first, last in zip(times[:-1], times[1:], strict=True):
            x, more = _segment(
                *(kernel, model, runs, x, key),
                *(jnp.asarray(first), jnp.asarray(last)),
            )
            sums.append(sums[-1] + more)
            if progress:
                jax.block_until_ready(x)
            advance(int(last - first))
    return _Run(times, sums, model.observables(observed(x)))


def _truth(run: _Run, kernel: AbstractKernel, is_mixed: bool) -> _Truth:
    """What the second half of the run says, if the first one has forgotten the start:
    in a time in which a chain finds some states independent of each other its law
    approaches the stationary one by a factor of e or more for each of them.

    **Raises:** `BudgetError` if chains are frozen; or have not forgotten it, unless
    they need not, as `is_mixed` says.
    """
    max_steps = int(run.times[-1])
    half = int(np.argmin(abs(run.times - max_steps // 2)))
    means = run.means(half, len(run.times) - 1)
    _require_moving(run.last, means, max_steps)
    if not is_mixed:
        _require_mixed(kernel, run.last, means, max_steps)
    mean = jnp.mean(means, axis=0)
    return _Truth(mean, means - mean[None])


@jax.jit
def _entry(
    means: Float[Array, "replicates n_obs"], truth: _Truth
) -> tuple[Jackknifed, Jackknifed]:
    """The squared bias and the variance of one chain, from the averages of replicates
    over a window."""
    mean = jnp.mean(means, axis=0)
    scatter = means - mean[None]
    # Each replicate is in the truth as well. The square of the difference is too large
    # by its noise, and the squared bias not known better than to about as much: it is
    # taken to be max(square - noise, 0) + noise, on the large side.
    bias = squared_mean(mean - truth.mean, scatter - truth.scatter)
    bias2 = jax.tree.map(jnp.maximum, bias.square, bias.noise)
    return bias2, squared_mean(mean, scatter).variance


def _require_moving(
    last: Float[Array, "replicates n_obs"],
    means: Float[Array, "replicates n_obs"],
    max_steps: int,
) -> None:
    """Raise a `BudgetError` if all replicates came to the same values and stayed:
    `last` are those after the run, `means` those over its second half."""
    if not any(jnp.any(x != x[:1]) for x in (last, means)):
        raise BudgetError(
            f"The calibration is frozen: within {max_steps // 2} steps all of its "
            f"{last.shape[0]} replicates came to the same values of the observables, "
            "and none of them left these again, so that nothing tells how large an "
            "error is. The model is too cold for its chains: make it warmer by "
            "`model.tempered`, or take `exact_errors`, for a model of up to 14 "
            "units."
        )


def _require_mixed(
    kernel: AbstractKernel,
    last: Float[Array, "replicates n_obs"],
    means: Float[Array, "replicates n_obs"],
    max_steps: int,
) -> None:
    """Raise a `BudgetError` if the means over the second half of a run scatter as if
    there were only a few independent states in it."""
    single, mean = (float(jnp.sum(jnp.var(x, axis=0))) for x in (last, means))
    if single < _MIXED * mean:
        states = single / mean
        # At least one, however short the run: what grows with its length is the rest.
        longer = _MIXED / max(states - 1, 1e-9)
        advice = f"Allow some {max_steps * longer:.2g} steps by `max_steps`, or take"
        if longer > 100:
            advice = "Its chains stay where they are: take a warmer model, or"
        raise BudgetError(
            f"The calibration has not mixed: the second half of its {max_steps} steps "
            f"is worth {states:.1f} independent states a chain, and {_MIXED} are "
            f"needed to know what the gradient is. {advice} a faster kernel than "
            f"{type(kernel).__name__}."
        )


@eqx.filter_jit
def _segment(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    runs: AbstractEnergyModel,
    x: Array,
    key: Array,
    first: Array,
    last: Array,
) -> tuple[Array, Array]:
    """The states of `runs` after some steps, and the sums of the observables of `model`
    before each."""
    model = checked(model)
    move = kernel.stepper(checked(runs))

    def body(step, carry):
        x, sums, lost = carry
        sums, lost = add_up(sums, lost, model.observables(observed(x)))
        return move(jr.fold_in(key, step), x), sums, lost

    shape = jax.eval_shape(model.observables, observed(x)).shape
    zeros = jnp.zeros(shape, model.dtype)
    x, sums, _ = jax.lax.fori_loop(first, last, body, (x, zeros, zeros))
    finite = jnp.all(jnp.isfinite(sums))
    return x, eqx.error_if(sums, ~finite, "A gradient of the energy is not finite.")
