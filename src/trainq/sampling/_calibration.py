"""The error of the gradient from a run of many chains, and how well it is known."""

from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._numbers import whole_number
from ..markov import AbstractKernel, EnergyGradients
from ..models import AbstractEnergyModel
from ..models._base import checked
from ..predictors._qoperational import data_variance
from ._error_table import BudgetError, ErrorTable, LeftOut
from ._qsampled import QSampled, checked_data, data_phase, draw_starts
from ._run import bar, check_key
from ._sums import add_up


# Independent states that the second half of a run holds at least.
_MIXED = 5


def calibrate(
    key: Array,
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: Any,
    start: Any,
    batch: int | None,
    grid: np.ndarray,
    replicates: SupportsIndex,
    progress: bool,
) -> ErrorTable:
    replicates = whole_number("replicates", replicates, least=8)
    if grid[-1] < 8:
        raise ValueError("A calibration takes at least 8 steps: raise max_steps.")
    if hasattr(start, "shape"):
        raise ValueError(
            'A calibration starts from "uniform", "data" or "stationary", but an array '
            "was given."
        )
    QSampled(kernel, 1, start=start, batch=batch)  # which checks them
    check_key(key)
    data = checked_data(data, model)
    start_key, key = jr.split(key)
    x = draw_starts(start_key, model, data, replicates, start)
    times = np.append(0, grid)
    sums = [jnp.zeros(jax.eval_shape(model.observables, x).shape, model.dtype)]
    with bar(int(times[-1]), progress) as advance:
        for first, last in zip(times[:-1], times[1:], strict=True):
            x, more = _segment(
                kernel, model, x, key, jnp.asarray(first), jnp.asarray(last)
            )
            sums.append(sums[-1] + more)
            if progress:
                jax.block_until_ready(x)
            advance(int(last - first))

    # The truth is what the second half of the run says, if the first one has forgotten
    # the start: in a time in which a chain finds some states independent of each other
    # its law approaches the stationary one by a factor of e or more for each of them.
    half = int(np.argmin(abs(times - times[-1] // 2)))
    late = (sums[-1] - sums[half]) / float(times[-1] - times[half])
    last = model.observables(x)
    _require_moving(last, late, int(times[-1]))
    if start != "stationary":
        _require_mixed(kernel, last, late, int(times[-1]))
    truth = jnp.mean(late, axis=0)
    doubt = late - truth[None]
    (square, noise), left_out = _square(data_phase(model, data) - truth, -doubt)
    signal, signals = square - noise, left_out[0] - left_out[1]

    burn_in, window, entries = [], [], []
    for i, first in enumerate(times[:-1]):
        for j in range(i + 1, len(times)):
            burn_in.append(first)
            window.append(times[j] - first)
            means = (sums[j] - sums[i]) / float(window[-1])
            entries.append(_bias_and_variance(means, truth, doubt))
    (bias2, variance), (biases, variances) = jax.tree.map(
        lambda *entry: np.stack(entry, axis=-1), *entries
    )
    return ErrorTable(
        burn_in=np.array(burn_in),
        window=np.array(window),
        bias2=bias2,
        variance=variance,
        signal=float(signal),
        data_variance=_batch_variance(model, data, batch),
        site_updates=float(kernel.site_updates(model)),
        left_out=LeftOut(bias2=biases, variance=variances, signal=np.asarray(signals)),
    )


def _require_moving(
    last: Float[Array, "replicates n_obs"],
    late: Float[Array, "replicates n_obs"],
    max_steps: int,
) -> None:
    """Raise a `BudgetError` if all replicates came to the same values and stayed."""
    if not any(jnp.any(x != x[:1]) for x in (last, late)):
        raise BudgetError(
            f"The calibration is frozen: within {max_steps // 2} steps all of its "
            f"{last.shape[0]} replicates came to the same values of the observables, "
            "and none of them left these again, so that nothing tells how large an "
            "error is. The model is too cold for its chains: make it warmer by "
            "`model.tempered`, or leave out `key` for an exact answer, which takes "
            "a model of up to 14 units."
        )


def _require_mixed(
    kernel: AbstractKernel,
    last: Float[Array, "replicates n_obs"],
    late: Float[Array, "replicates n_obs"],
    max_steps: int,
) -> None:
    """Raise a `BudgetError` if the means over the second half of a run scatter as if
    there were only a few independent states in it."""
    single, mean = (float(jnp.sum(jnp.var(x, axis=0))) for x in (last, late))
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


def _square(
    mean: Float[Array, " n_obs"], scatter: Float[Array, "replicates n_obs"]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The square of a mean over replicates and the noise in it, from all of them and
    without each; `scatter` is what each has about the mean."""
    n = scatter.shape[0]
    squares = jnp.sum(scatter**2, axis=1)
    noise = jnp.sum(squares) / (n * (n - 1))
    noises = (jnp.sum(squares) - squares * n / (n - 1)) / ((n - 1) * (n - 2))
    means = mean[None] - scatter / (n - 1)
    return (jnp.sum(mean**2), noise), (jnp.sum(means**2, axis=1), noises)


@jax.jit
def _bias_and_variance(
    means: Float[Array, "replicates n_obs"],
    truth: Float[Array, " n_obs"],
    doubt: Float[Array, "replicates n_obs"],
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Squared bias and variance from all replicates, and without each of them."""
    n = means.shape[0]
    mean = jnp.mean(means, axis=0)
    scatter = means - mean[None]
    whole, left_out = _square(mean - truth, scatter - doubt)
    (_, noise), (_, noises) = _square(mean, scatter)

    # A square is too large by its noise, and not known better than to about as much.
    def known(square, noise):
        return jnp.maximum(square - noise, 0) + noise

    return (known(*whole), n * noise), (known(*left_out), (n - 1) * noises)


@eqx.filter_jit
def _segment(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    x: Array,
    key: Array,
    first: Array,
    last: Array,
) -> tuple[Array, Array]:
    """The states after some steps, and the sums of the observables before each."""
    model = checked(model)
    move = kernel.stepper(model)

    def body(step, carry):
        x, sums, lost = carry
        sums, lost = add_up(sums, lost, model.observables(x))
        return move(jr.fold_in(key, step), x), sums, lost

    zeros = jnp.zeros(jax.eval_shape(model.observables, x).shape, model.dtype)
    x, sums, _ = jax.lax.fori_loop(first, last, body, (x, zeros, zeros))
    finite = jnp.all(jnp.isfinite(sums))
    return x, eqx.error_if(sums, ~finite, "A gradient of the energy is not finite.")


@eqx.filter_jit
def _sample_variance(model: AbstractEnergyModel, data: Array) -> Array:
    """The variance of the data phase of one sample, over all samples."""

    def one(v):
        return data_phase(model, v[None])

    phases = jax.lax.map(one, data, batch_size=256)
    return jnp.sum(jnp.var(phases, axis=0))


def _batch_variance(
    model: AbstractEnergyModel, data: Array, batch: int | None
) -> float:
    if batch is None:
        return 0.0
    if data.ndim == 2:
        return float(_sample_variance(model, data)) / batch
    return float(jnp.sum(data_variance(EnergyGradients(model), data, batch)))
