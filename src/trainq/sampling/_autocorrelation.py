"""Autocorrelation times that say whether they can be trusted."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


Windowing = Literal["sokal", "geyer"]
STATUS = {
    0: "resolved: long enough, and the first half agrees with the whole",
    1: "unresolved: the error is above a quarter, or the first half disagrees",
    2: "too short: a chain is shorter than 50 autocorrelation times",
}
# Sokal's rule: sum up to the first lag that is this many times the sum so far.
_SOKAL = 5
_ENOUGH = 50
_PRECISION = 0.25


class AutocorrelationTime(eqx.Module):
    """Integrated autocorrelation times `τ = 1 + 2 Σ_{t≥1} ρ(t)`, in steps of the series
    that they were estimated from, with a status each: see
    [`trainq.sampling.STATUS`][].

    An estimate that is not resolved is usually too *small*: what the chain has not seen
    cannot add to it.
    """

    value: Float[Array, "*obs"]
    error: Float[Array, "*obs"]
    window: Int[Array, "*obs"]
    status: Int[Array, "*obs"]
    n_samples: int = eqx.field(static=True)

    @property
    def ok(self) -> Bool[Array, ""]:
        """Whether all of them are resolved."""
        return jnp.all(self.status == 0)

    @property
    def effective_samples(self) -> Float[Array, "*obs"]:
        """The number of independent samples worth as much for a mean, of all chains
        together."""
        return self.n_samples / self.value

    def __str__(self) -> str:
        counts = [int(jnp.sum(self.status == code)) for code in STATUS]
        what = ", ".join(
            f"{n} {text.partition(':')[0]}"
            for n, text in zip(counts, STATUS.values(), strict=True)
            if n
        )
        low, high = float(jnp.min(self.value)), float(jnp.max(self.value))
        return f"autocorrelation times {low:.3g} to {high:.3g} ({what})"


def autocovariance(
    values: Float[Array, "chains steps *obs"],
) -> Float[Array, "chains steps *obs"]:
    """`(1/n) Σ_t (f(X_t) - m) (f(X_t+k) - m)` of each chain at every lag `k`, with `m`
    the mean over all chains.

    The common mean is what makes chains that sit in different places show: about its
    own mean each of them may look well mixed.
    """
    values = _series(values)
    n = values.shape[1]
    centred = values - jnp.mean(values, axis=(0, 1), keepdims=True)
    size = 2 ** (2 * n - 1).bit_length()
    spectrum = jnp.fft.rfft(centred, size, axis=1)
    power = jnp.real(spectrum * jnp.conj(spectrum))
    return jnp.fft.irfft(power, size, axis=1)[:, :n] / n


@eqx.filter_jit
def autocorrelation_time(
    values: Float[Array, "chains steps *obs"], *, windowing: Windowing = "sokal"
) -> AutocorrelationTime:
    """Integrated autocorrelation times, from the autocovariance averaged over chains.

    The sum over lags must stop before it is all noise. `"sokal"` stops at the first lag
    that is at least 5 times the sum so far; `"geyer"` sums pairs of lags while they are
    positive, and keeps them from increasing, which needs a reversible chain.

    A number alone would mislead: too short a run gives an estimate that looks as good
    as any other. So the same is estimated from the first half of the run. The result is
    *resolved* if each chain is at least 50 times as long as it, its standard error
    `τ √(2 (2 W + 1) / n)` for a window of `W` lags and `n` samples is below a quarter,
    and doubling the run has not moved it by more than three errors.

    **Arguments:**

    - `values`: `(chains, steps, ...)` values of observables, as `run` keeps them.
    - `windowing`: how to stop the sum.

    **Returns:** an [`trainq.sampling.AutocorrelationTime`][], with arrays `(...)`. A
    series that never changes is too short, with `τ` equal to its length.

    **Raises:** `ValueError` for fewer than 8 steps, or a wrong shape.

    ??? cite "Source"

        Sokal, *Monte Carlo methods in statistical mechanics: foundations and new
        algorithms*, 1997; Geyer, *Practical Markov chain Monte Carlo*, Stat. Sci. 7,
        473, 1992.
    """
    values = _series(values)
    if windowing not in ("sokal", "geyer"):
        raise ValueError(f'windowing is "sokal" or "geyer", not {windowing!r}.')
    n_chains, n = values.shape[:2]
    if n < 8:
        raise ValueError(f"At least 8 steps are needed, but {n} were given.")
    value, window, moved = _time(values, windowing)
    half, _, _ = _time(values[:, : n // 2], windowing)
    value = jnp.where(moved, value, n)
    width = (2 * window + 1).astype(value.dtype)
    error = value * jnp.sqrt(2 * width / (n_chains * n))
    short = n < _ENOUGH * value
    vague = (error > _PRECISION * value) | (jnp.abs(value - half) > 3 * error)
    status = jnp.where(short | ~moved, 2, jnp.where(vague, 1, 0))
    return AutocorrelationTime(value, error, window, status, n_chains * n)


def _time(values: Array, windowing: Windowing) -> tuple[Array, Array, Array]:
    """The time, its window, and whether the series changes at all."""
    covariance = jnp.mean(autocovariance(values), axis=0)
    variance = covariance[0]
    moved = jnp.max(values, axis=(0, 1)) > jnp.min(values, axis=(0, 1))
    rho = covariance / jnp.where(moved, variance, 1)[None]
    if windowing == "geyer":
        n = rho.shape[0] // 2 * 2
        pairs = rho[:n].reshape(-1, 2, *rho.shape[1:]).sum(axis=1)
        positive = jnp.cumprod(pairs > 0, axis=0)
        decreasing = jax.lax.cummin(pairs, axis=0)
        value = 2 * jnp.sum(jnp.where(positive == 1, decreasing, 0), axis=0) - 1
        window = 2 * jnp.sum(positive, axis=0) - 1
    else:
        value, window = sokal_window(rho)
    # Anticorrelated series have a time below one, which cannot fall to zero.
    return jnp.maximum(value, 1 / values.shape[1]), window, moved


def sokal_window(rho: Float[Array, "lags *obs"]) -> tuple[Array, Array]:
    """The time and the lag that its sum stops at."""
    times = 2 * jnp.cumsum(rho, axis=0) - 1
    lags = jnp.arange(rho.shape[0], dtype=rho.dtype)
    lags = lags.reshape(-1, *(1,) * (rho.ndim - 1))
    enough = lags >= _SOKAL * times
    window = jnp.where(
        jnp.any(enough, axis=0), jnp.argmax(enough, axis=0), len(rho) - 1
    )
    return jnp.take_along_axis(times, window[None], axis=0)[0], window


@eqx.filter_jit
def r_hat(values: Float[Array, "chains steps *obs"]) -> Float[Array, "*obs"]:
    """The potential scale reduction of chains cut in halves: the square root of the
    variance of all values together over the mean variance within a half. Near 1 for
    chains that have mixed; above 1.01 is a reason to run longer.

    **Arguments:**

    - `values`: `(chains, steps, ...)`, at least 4 steps.

    **Raises:** `ValueError` for a wrong shape, or fewer steps.

    ??? cite "Source"

        Gelman et al., *Bayesian Data Analysis*, 3rd edition, section 11.4, 2013.
    """
    values = _series(values)
    n = values.shape[1] // 2
    if n < 2:
        raise ValueError(
            f"At least 4 steps are needed, but {values.shape[1]} were given."
        )
    halves = jnp.concatenate([values[:, :n], values[:, -n:]])
    within = jnp.mean(jnp.var(halves, axis=1, ddof=1), axis=0)
    between = jnp.var(jnp.mean(halves, axis=1), axis=0, ddof=1)
    total = (n - 1) / n * within + between
    moves = within > 0
    ratio = jnp.sqrt(jnp.where(moves, total / jnp.where(moves, within, 1), 1))
    return jnp.where(moves | (between == 0), ratio, jnp.inf)


def _series(values: Any) -> Array:
    if values is None:
        raise ValueError(
            "There are no values: `run` keeps them only if it is told to, by keep=True."
        )
    values = jnp.asarray(values)
    if values.ndim < 2:
        raise ValueError(
            "Values have shape (chains, steps, ...), but an array of shape "
            f"{values.shape} was given. For one chain add an axis: `values[None]`."
        )
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.result_type(float))
    return values
