"""Runs that go on until they are good enough."""

from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from .._checks import positive_number, require_concrete, whole_number
from .._meshes import on_any_axes
from .._progress import bar
from ..markov import AbstractKernel, checked_kernel, observed
from ..models import (
    AbstractEnergyModel,
    Data,
    check_data,
    checked,
    data_phase,
    require_data_phase,
    require_model,
)
from ._autocorrelation import autocorrelation_time
from ._averages import averaged
from ._chain_state import ChainState
from ._estimate import GradientEstimate
from ._moments import Moments
from ._run import Functions, advance, shape_of, with_all_replicas
from ._statistics import check_confidence
from ._streamed import streamed_pieces, streamed_r_hat
from ._until_result import REACHED, SEPARATE, Until, of_each, status_of, what_is_missed


# Records in one compiled piece, as many as recent values of `Moments`.
_PIECE = 128
# How often the progress bar moves, at least.
_MOVES = 50


def run_until(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    state: ChainState,
    data: Data | None = None,
    *,
    q: float | int | None = None,
    resolved: float | int | None = None,
    r_hat: float | int | None = None,
    settled: float | int | None = None,
    max_steps: SupportsIndex,
    functions: Functions | None = None,
    every: SupportsIndex = 1,
    lags: SupportsIndex = 16,
    confidence: float = 0.95,
    progress: bool = False,
) -> Until:
    """Run all chains until what they tell is good enough, and say why they stopped.

    They are looked at after 128 records, 256, 512, and so on, and stop when all targets
    that are given are reached. Only at these: who looks after every step stops when the
    numbers happen to be good. There are at most `K` looks, and an interval has to hold
    at all of them: each is one with a confidence of `1 - (1 - confidence) / K`
    (Bonferroni), so that the one at the stopping time holds as often as it promises,
    whatever made the run stop.

    What is averaged starts with the first state: drop a burn-in before, by
    [`trainq.sampling.run`][]. Nothing is kept of the values; another `max_steps` of as
    many looks, or another target, compiles nothing.

    No target counts as reached while a chain has never moved, or while chains sit in
    different modes: their units, which are watched besides the functions, have an R-hat
    above 1.1. Modes that are images of each other by the global flip do not matter if
    the functions are even, and are told. What cannot be seen: a mode that no chain has
    been in, and modes that differ neither in the means of the units nor in those of the
    functions.

    **Arguments:**

    - `kernel`, `model`: what to run.
    - `state`: where the chains stand, at least 2 of them.
    - `data`: `(2**n_visible,)`, the law of the data, or `(samples, n_visible)` spins:
        for `q`.
    - `q`: until the lower end of the interval for the `Q` of the gradient, averaged
        over all chains and steps, is at least this, in a window that is long against
        the autocorrelation it sees.
    - `resolved`: until this share of the autocorrelation times, between 0 and 1, is
        *resolved*: see [`trainq.sampling.STATUS`][].
    - `r_hat`: until the largest R-hat of the functions is at most this, such as 1.01.
    - `settled`: until `T_O` has changed by less than this share, such as 0.15, in two
        doublings in a row.
    - `max_steps`: the most kernel steps, at least `128 · every`. A run ends at the last
        doubling up to it.
    - `functions`, `every`: as for [`trainq.sampling.run`][].
    - `lags`: lags of the autocovariances, at least 8.
    - `confidence`: what the interval of `Q` promises at the stopping time.
    - `progress`: show a line of progress; needs `tqdm`.

    **Returns:** a [`trainq.sampling.Until`][].

    **Raises:** `ValueError` if no target is given, for one that is not a number in its
    range, for `q` without data, for `q` or data with functions, for fewer than 2
    chains, or under `jax.jit`; and what [`trainq.sampling.run`][] raises.

    !!! example

        ```python
        kernel = tq.AlternatingBlockGibbs()
        state = tq.sampling.start_chains(key, model, n_chains=32)
        state = tq.sampling.run(kernel, model, state, 100).state
        until = tq.run_until(
            kernel, model, state, data, q=20, r_hat=1.05, max_steps=20_000
        )
        print(until)
        ```

    ??? cite "Source"

        Jennison and Turnbull, *Group sequential methods with applications to clinical
        trials*, 1999, chapter 1, for what looking more than once does to an interval.
    """
    checked_kernel(kernel)
    require_model(model)
    require_concrete("run_until", model=model, state=state, data=data)
    state = with_all_replicas(kernel, model, state)
    given = {"q": q, "resolved": resolved, "r_hat": r_hat, "settled": settled}
    targets = {
        name: float(positive_number(name, value))
        for name, value in given.items()
        if value is not None
    }
    _check_targets(targets, data, functions)
    if state.n_chains < 2:
        raise ValueError(
            "run_until compares chains, at least 2 of them, but the state has "
            f"{state.n_chains}."
        )
    check_confidence(confidence)
    every = whole_number("every", every, of="kernel steps")
    lags = whole_number("lags", lags, least=8)
    least = _PIECE * every
    max_steps = whole_number("max_steps", max_steps, least, of="kernel steps")
    n_looks = (max_steps // least).bit_length()
    phase = None
    if data is not None:
        data = check_data(data, model)
        require_data_phase(model, data)
        phase = _phase(model, data)
    functions = model.observables if functions is None else functions
    values = shape_of(functions, state)
    n_obs = values.shape[1]
    shape = state.n_chains, n_obs + model.n_units
    moments = Moments.begin(shape, values.dtype, lags)
    watched = _Watched(functions)
    history: dict[str, list[float]] = {name: [] for name in targets}
    steps: list[int] = []
    with bar(least * 2 ** (n_looks - 1), progress) as moved:
        while True:
            # The first look has one piece, the second one more, then 2, 4, and so on.
            pieces = max(1, 2 ** len(steps) // 2)
            most = max(1, 2 ** (n_looks - 1) // _MOVES) if progress else pieces
            for done in range(0, pieces, most):
                times = min(most, pieces - done)
                number = jnp.asarray(times)
                state, moments = advance(
                    kernel, model, state, moments, watched, _PIECE, every, number
                )
                if progress:
                    jax.block_until_ready(state)
                moved(times * least)
            steps.append(least * 2 ** len(steps))
            seen = _look(model, state, moments, phase, watched, n_obs, every)
            found = dict(seen.found)
            if "q" in targets and seen.estimate is not None:
                found["q"] = seen.estimate.interval(of_each(confidence, n_looks))[0]
            for name, row in history.items():
                row.append(float(found[name]))
            long = seen.estimate is not None and bool(seen.estimate.ok)
            missed = what_is_missed(targets, history, long)
            apart = bool((seen.units > SEPARATE) & ~seen.mirrored)
            status = status_of(missed, bool(jnp.any(seen.frozen)), apart)
            if status == REACHED or len(steps) == n_looks:
                break
    return Until(
        state=state,
        moments=_part(moments, 0, n_obs),
        estimate=seen.estimate,
        status=status,
        missed=missed,
        targets=targets,
        history={name: jnp.asarray(row) for name, row in history.items()},
        steps=jnp.asarray(steps),
        frozen=seen.frozen,
        frozen_units=seen.frozen_units,
        units_r_hat=seen.units,
        mirrored=bool(seen.mirrored),
        n_looks=n_looks,
        confidence=confidence,
    )


def _check_targets(targets: dict[str, float], data: Any, functions: Any) -> None:
    if not targets:
        raise ValueError(
            "A run goes on until a target is reached: give `q`, `resolved`, `r_hat` or "
            "`settled`. Without a target use `run`."
        )
    gradient = data is not None or "q" in targets
    if gradient and (data is None or functions is not None):
        what = "functions were given" if functions is not None else "no data"
        raise ValueError(
            "q is that of the gradient of the KL divergence from data: it takes data, "
            f"and the model's own observables, but {what}."
        )
    if targets.get("settled", 0) >= 1:
        raise ValueError(
            "settled is a share of T_O, above 0 and below 1, such as 0.15, but "
            f"{targets['settled']} was given."
        )
    if targets.get("resolved", 1) > 1:
        raise ValueError(
            "resolved is a share of the functions, above 0 and at most 1, but "
            f"{targets['resolved']} was given."
        )
    if targets.get("r_hat", 2) <= 1:
        raise ValueError(
            "r_hat is above 1, the R-hat of chains that agree, such as 1.01, but "
            f"{targets['r_hat']} was given."
        )


class _Watched(eqx.Module):
    """The functions, and the units besides."""

    functions: Functions

    def __call__(self, x: Array) -> Array:
        values = self.functions(x)
        return jnp.concatenate([values, x.astype(values.dtype)], axis=1)


@eqx.filter_jit
def _phase(model: AbstractEnergyModel, data: Array) -> Array:
    return data_phase(checked(model), data)


class _Seen(eqx.Module):
    """What a look finds."""

    estimate: GradientEstimate | None
    found: dict[str, Float[Array, ""]]
    frozen: Bool[Array, " chains"]
    frozen_units: Bool[Array, " units"]
    units: Float[Array, ""]
    mirrored: Bool[Array, ""]


def _part(moments: Moments, start: int, stop: int | None) -> Moments:
    """The moments of some of the functions."""
    return jax.tree.map(lambda x: x[..., start:stop] if x.ndim else x, moments)


@eqx.filter_jit
def _look(
    model: AbstractEnergyModel,
    state: ChainState,
    moments: Moments,
    phase: Array | None,
    watched: _Watched,
    n_obs: int,
    every: int,
) -> _Seen:
    ours, units = _part(moments, 0, n_obs), _part(moments, n_obs, None)
    estimate = None
    if phase is not None:
        estimate = averaged(model, state, ours, moments.count * every, phase)
    numbers = _numbers(observed(state.x), ours, units, watched)
    return _Seen(estimate, *numbers)


@on_any_axes
def _numbers(x: Array, ours: Moments, units: Moments, watched: _Watched) -> tuple:
    """All that a look finds but the estimate."""
    pieces, _, _ = streamed_pieces(ours)
    # Each chain with the sign of its overlap with the direction that most chains share.
    means = units.mean
    _, vectors = jnp.linalg.eigh(means.T @ means)
    signs = jnp.where(means @ vectors[:, -1] < 0, -1, 1).astype(means.dtype)
    apart, aligned = (jnp.max(streamed_r_hat(units, s)) for s in (None, signs))
    # Functions that are even at random states too: chains may all be alike.
    x = jnp.concatenate([x, jr.rademacher(jr.key(0), x.shape, x.dtype)])
    f = watched.functions
    even = jnp.allclose(f(x), f(-x), rtol=1e-5, atol=1e-6)
    found = {
        "resolved": jnp.mean(autocorrelation_time(ours).status == 0),
        "r_hat": jnp.max(streamed_r_hat(ours)),
        "settled": jnp.sum(jnp.mean(pieces, axis=0)),
    }
    frozen = (jnp.all(units.variance == 0, axis=axis) for axis in (1, 0))
    mirrored = (apart > SEPARATE) & even & (aligned <= SEPARATE)
    return found, *frozen, apart, mirrored
