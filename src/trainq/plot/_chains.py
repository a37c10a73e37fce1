"""How a chain forgets: its spectrum, and the autocorrelation of samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes

from ..markov import Modes
from ..sampling import STATUS, Windowing, autocorrelation_time, autocovariance
from ._style import COLOURS, NEUTRAL, axes, finite, short, style


# Smaller shares of the variance are ticks at the bottom.
_LEAST = 1e-6


def spectrum(modes: Modes, *, ax: Axes | None = None) -> Axes:
    """The gaps of a chain, in inverse kernel steps, and what each mode weighs in the
    observables: its share `Σ_a ⟨f̃_a, φ⟩² / Σ_a Var f_a`.

    A mode adds to the noise of a gradient in proportion to its weight over its gap:
    slow modes count, if the observables feel them. Shares below 1e-6, zero as a rule,
    are ticks at the bottom. Modes of one level are drawn as one, since their weights by
    themselves depend on the choice of a basis. The legend says how much of the variance
    is in none of the modes: that which one step of a two-layer kernel forgets, or modes
    that were not asked for.

    **Arguments:**

    - `modes`: what [`trainq.markov.modes`][] found.
    - `ax`: the axes to draw on; a new figure by default.

    **Returns:** the axes. Modes of a chain that is symmetric under the global flip are
    in two colours, by parity.

    **Raises:** `TypeError` for another thing than modes; `ValueError` for a batch of
    them, or observables that feel none.

    !!! example

        ```python
        import jax
        import trainq as tq
        from trainq import plot

        model = tq.RBM(jax.random.normal(jax.random.key(0), (3, 2)))
        chain = tq.RandomScanGibbs().chain(model)
        ax = plot.spectrum(tq.markov.modes(chain, tq.observables(model)))
        ```
    """
    if not isinstance(modes, Modes):
        raise TypeError(
            "modes is what `trainq.markov.modes(chain, f)` found, but an object of "
            f"type {type(modes).__name__} was given."
        )
    if modes.gap.ndim != 1:
        raise ValueError(
            f"modes is of one chain, but a batch of shape {modes.gap.shape[:-1]} was "
            "given. Draw one of them: `jax.tree.map(lambda x: x[0], modes)`."
        )
    gaps, shares = finite("modes", modes.gap), finite("modes", modes.share)
    if not (shares > 0).any():
        raise ValueError("The observables feel none of these modes: are they constant?")
    level, first = np.unique(np.asarray(modes.level), return_index=True)
    shares = np.bincount(np.asarray(modes.level), shares)[level]
    gaps, parity = gaps[first], np.asarray(modes.parity)[first]
    ax = axes(ax)
    bottom = _LEAST / 2
    for sign, name, place, marker in _LOOKS:
        rates, share = gaps[parity == sign], shares[parity == sign]
        some = share > _LEAST
        label = f"{name} modes".strip()
        look: dict[str, Any] = {"color": COLOURS[place], "ls": ""}
        if some.any():
            ax.vlines(rates[some], bottom, share[some], color=COLOURS[place], lw=0.6)
            ax.plot(rates[some], share[some], **look, marker=marker, ms=4, label=label)
        if not some.all():
            y = np.full((~some).sum(), 0.02)
            look |= {"marker": "|", "ms": 9, "transform": ax.get_xaxis_transform()}
            ax.plot(rates[~some], y, **look, label=f"{label}, share below 10⁻⁶")
    rest = float(modes.rest_share)
    if rest > _LEAST:
        ax.plot([], [], ls="", label=f"{short(100 * rest)} % in none of these modes")
    ax.set(xscale="log", yscale="log", ylim=(bottom, 30))
    ax.set_yticks(10.0 ** np.arange(-6, 1))  # no share is above one
    ax.set(xlabel="gap 1 − λ, per kernel step")
    ax.set_ylabel("share of the variance of f")
    ax.legend(loc="upper right")
    return ax


_LOOKS = ((1, "even", 2, "o"), (-1, "odd", 1, "s"), (0, "", 0, "o"))


def autocorrelation(
    values: Float[Array | np.ndarray, "chains steps *obs"],
    *,
    names: Sequence[str] = (),
    windowing: Windowing = "sokal",
    ax: Axes | None = None,
) -> Axes:
    """The autocorrelation `ρ(t)` of observables along chains, up to three times the
    window that its sum was taken over, with the time `τ` and whether to trust it.

    A vertical line, or the shade of a single observable, ends the window. The legend
    has the status, as [`trainq.sampling.autocorrelation_time`][] says it.

    **Arguments:**

    - `values`: `(chains, steps)` or `(chains, steps, n_obs)` values, as
        [`trainq.sampling.run`][] keeps them; up to 7 observables.
    - `names`: a name for each observable; numbers by default.
    - `windowing`: how to stop the sum, as for the time.
    - `ax`: the axes to draw on; a new figure by default.

    **Returns:** the axes. Lags are in steps of the series.

    **Raises:** `ValueError` for a wrong shape, too many observables, names that do not
    fit, an observable that never changes, or a value that is not finite.

    !!! example

        ```python
        import jax
        import trainq as tq
        from trainq import plot

        model = tq.RBM(jax.random.normal(jax.random.key(0), (3, 2)))
        state = tq.start_chains(jax.random.key(1), model, 16)
        kernel = tq.RandomScanGibbs()
        run = tq.run(kernel, model, state, 500, keep=True)
        ax = plot.autocorrelation(run.values[..., :2], names=["W00", "W01"])
        ```
    """
    time = autocorrelation_time(values, windowing=windowing)
    if time.value.ndim > 1:
        raise ValueError(
            "values has shape (chains, steps) or (chains, steps, n_obs), but "
            f"{values.shape} was given."
        )
    finite("values", values)
    covariance = np.asarray(autocovariance(values), float).mean(axis=0)
    covariance = covariance.reshape(len(covariance), -1)
    n_obs = covariance.shape[1]
    if not 0 < n_obs <= len(COLOURS):
        raise ValueError(
            f"At most {len(COLOURS)} observables are told apart, but {n_obs} were "
            "given. Take some: `values[..., :3]`."
        )
    if names and len(names) != n_obs:
        raise ValueError(
            f"names has one name for each of the {n_obs} observables, but {len(names)} "
            "were given."
        )
    if (covariance[0] == 0).any():
        raise ValueError(
            f"Observable {np.argmin(covariance[0])} never changes: it has no "
            "autocorrelation."
        )
    rho = covariance / covariance[0]
    taus, errors, lags, states = (
        np.atleast_1d(x) for x in (time.value, time.error, time.lags, time.status)
    )
    ax = axes(ax)
    last = min(max(3 * int(lags.max()), 10), len(rho) - 1)
    ax.axhline(0, color=NEUTRAL, lw=0.8)
    for place in range(n_obs):
        look = style(place, marker="")
        status = STATUS[int(states[place])].partition(":")[0]
        name = names[place] if names else str(place) if n_obs > 1 else ""
        label = f"τ = {taus[place]:.3g} ± {errors[place]:.1g}, {status}"
        label = f"{name}: {label}" if name else label
        ax.plot(np.arange(last + 1), rho[: last + 1, place], **look, label=label)
        if n_obs > 1:
            ax.axvline(lags[place], lw=0.8, **look)
    if n_obs == 1:
        ax.axvspan(0, lags[0], color=COLOURS[6], alpha=0.2, lw=0, label="window of τ")
    ax.set(xlim=(0, last), xlabel="lag, steps of the series", ylabel="autocorrelation")
    ax.legend()
    return ax
