"""Autocorrelation times that say whether they can be trusted."""

import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._show import AbstractShown, Table, number


Windowing = Literal["sokal", "geyer"]
"""How the sum over lags is cut off: `"sokal"` or `"geyer"`."""

STATUS = {
    0: "resolved: long enough, and the first half agrees with the whole",
    1: "unresolved: the error is above a quarter, or the first half disagrees, or "
    "Sokal's rule with Geyer's",
    2: "too short: a chain is shorter than 50 autocorrelation times",
    3: "not finite: a value of the series is NaN or infinite",
}
"""What the codes in `AutocorrelationTime.status` mean."""
# Sokal's rule: sum up to the first lag that is this many times the sum so far.
_SOKAL = 5
_ENOUGH = 50
_PRECISION = 0.25
# A correlation that is this many standard errors below zero is no noise.
_SIGNIFICANT = 4
# Values that differ by no more roundings than these are the same.
_ROUNDINGS = 8


class AutocorrelationTime(AbstractShown):
    """Integrated autocorrelation times `τ = 1 + 2 Σ_{t≥1} ρ(t)`, in steps of the series
    that they were estimated from, with a status each: see
    [`trainq.sampling.STATUS`][].

    An estimate that is not resolved is usually too *small*: what the chain has not seen
    cannot add to it. That of a series that is not finite is infinite.
    """

    value: Float[Array, "*obs"]
    """`τ`, in steps of the series."""
    error: Float[Array, "*obs"]
    """The standard error of `τ`, in steps of the series."""
    lags: Int[Array, "*obs"]
    """The lag that the sum stops at."""
    status: Int[Array, "*obs"]
    """A key of [`trainq.sampling.STATUS`][], zero if it is resolved."""
    n_samples: int = eqx.field(static=True)
    """The number of values that it comes from, of all chains together."""

    @property
    def ok(self) -> Bool[Array, ""]:
        """Whether all of them are resolved."""
        return jnp.all(self.status == 0)

    @property
    def effective_samples(self) -> Float[Array, "*obs"]:
        """The number of independent samples worth as much for a mean, of all chains
        together. Of `n` samples whose errors cancel it can be more than `n`, and is
        taken to be `n log10(n)` at most (Vehtari et al. 2021)."""
        return self.n_samples / jnp.maximum(self.value, 1 / math.log10(self.n_samples))

    def _shown(self) -> list[str | Table]:
        counts = [int(jnp.sum(self.status == code)) for code in STATUS]
        what = ", ".join(
            f"{n} {text.partition(':')[0]}"
            for n, text in zip(counts, STATUS.values(), strict=True)
            if n
        )
        return [f"autocorrelation times of {number(self.value)} steps ({what})"]


def autocovariance(
    values: Float[Array | np.ndarray, "chains steps *obs"],
) -> Float[Array, "chains steps *obs"]:
    """`(1/n) Σ_t (f(X_t) - m) (f(X_t+k) - m)` of each chain at every lag `k`, with `m`
    the mean over all chains.

    The common mean is what makes chains that sit in different places show: about its
    own mean each of them may look well mixed.

    **Raises:** `ValueError` for a wrong shape or type; a run-time error for values that
    are not finite, or too large to be squared.
    """
    series = Series(values)
    scale = series.scale[None, None]
    covariance = series.covariance() * scale * scale
    return eqx.error_if(
        covariance,
        ~jnp.all(jnp.isfinite(covariance)),
        "A value of the series is not finite, or too large to be squared. "
        "`jnp.isfinite(values).all(axis=1)` tells in which chain.",
    )


class Series(eqx.Module):
    """Values along chains, in units in which their products neither overflow nor
    vanish: a power of two for each observable, which is exact."""

    values: Float[Array, "chains steps *obs"]
    scale: Float[Array, "*obs"]
    finite: Bool[Array, "*obs"]

    def __init__(self, values: Any):
        values = check_series(values)
        # Not from the largest value: XLA's maximum may pass over a NaN.
        self.finite = jnp.all(jnp.isfinite(values), axis=(0, 1))
        largest = jnp.where(self.finite, jnp.max(jnp.abs(values), axis=(0, 1)), 1)
        _, exponent = jnp.frexp(largest)
        # The inverse has to be a normal number too.
        most = jnp.finfo(values.dtype).maxexp - 2
        self.scale = jnp.ldexp(jnp.ones_like(largest), exponent.clip(-most, most))
        self.values = values / self.scale[None, None]

    def extent(self, axis: int | tuple[int, int] = (0, 1)) -> Float[Array, "..."]:
        """The largest value less the smallest one, or zero if this is rounding."""
        high, low = jnp.max(self.values, axis), jnp.min(self.values, axis)
        rounding = _ROUNDINGS * jnp.finfo(high.dtype).eps
        size = jnp.maximum(jnp.abs(high), jnp.abs(low))
        return jnp.where(high - low > rounding * size, high - low, 0)

    @property
    def moves(self) -> Bool[Array, "*obs"]:
        """Whether the values are finite, and change at all."""
        return self.finite & (self.extent() > 0)

    def covariance(self) -> Float[Array, "chains steps *obs"]:
        """The autocovariance of each chain about the common mean."""
        n = self.values.shape[1]
        centred = self.values - jnp.mean(self.values, axis=(0, 1), keepdims=True)
        size = 2 ** (2 * n - 1).bit_length()
        spectrum = jnp.fft.rfft(centred, size, axis=1)
        power = jnp.real(spectrum * jnp.conj(spectrum))
        return jnp.fft.irfft(power, size, axis=1)[:, :n] / n

    def correlation(self) -> Float[Array, "steps *obs"]:
        """The autocorrelation, from the average over chains."""
        covariance = jnp.mean(self.covariance(), axis=0)
        return covariance / jnp.where(self.moves, covariance[0], 1)[None]


@eqx.filter_jit
def autocorrelation_time(
    values: Float[Array | np.ndarray, "chains steps *obs"],
    *,
    windowing: Windowing = "sokal",
) -> AutocorrelationTime:
    """Integrated autocorrelation times, from the autocovariance averaged over chains.

    The sum over lags must stop before it is all noise. `"sokal"` stops at the first lag
    that is at least 5 times the sum so far, in which correlations that are negative
    beyond their noise count as positive: these make the time short, and last all the
    same. `"geyer"` sums pairs of lags while they are positive, and keeps them from
    increasing, which needs a reversible chain. The last lag of either counts half, so
    that terms of alternating sign cancel, and their noise.

    A number alone would mislead: too short a run gives an estimate that looks as good
    as any other. So the same is estimated from the first half of the run. The result is
    *resolved* if each chain is at least 50 times as long as it, and as the sum that set
    the window; its standard error `τ √(2 (2 W + 1) / n)`, for `n` samples and a
    window of `W` lags, is below a quarter; doubling the run has not moved it by more
    than three errors, and neither does Sokal's rule. Of a series that oscillates, whose
    spectrum is larger elsewhere than at zero, the error has what the window lets
    through of that.

    **Arguments:**

    - `values`: `(chains, steps, ...)` values of observables, as `run` keeps them.
    - `windowing`: how to stop the sum.

    **Returns:** an [`trainq.sampling.AutocorrelationTime`][], with arrays `(...)`. A
    series that never changes, but for rounding, is too short, with `τ` equal to its
    length. One that is not finite says so, with an infinite `τ`.

    **Raises:** `ValueError` for fewer than 8 steps, or a wrong shape or type.

    ??? cite "Source"

        Sokal, *Monte Carlo methods in statistical mechanics: foundations and new
        algorithms*, 1997; Geyer, *Practical Markov chain Monte Carlo*, Stat. Sci. 7,
        473, 1992; the half lag and the bound of effective samples: Vehtari et al.,
        *Rank-normalization, folding, and localization*, Bayesian Anal. 16, 667, 2021.
    """
    values = check_series(values)
    if windowing not in ("sokal", "geyer"):
        raise ValueError(f'windowing is "sokal" or "geyer", not {windowing!r}.')
    n_chains, n = values.shape[:2]
    if n < 8:
        raise ValueError(f"At least 8 steps are needed, but {n} were given.")
    series = Series(values)
    rho = series.correlation()
    whole = summed(rho, n_chains * n, windowing)
    half = summed(
        Series(values[:, : n // 2]).correlation(), n_chains * (n // 2), windowing
    ).value
    other = summed(rho, n_chains * n).value
    value = jnp.where(series.moves, whole.value, n)
    error = jnp.sqrt(2 * whole.noise / (n_chains * n))
    # Each has to be shown: a comparison with NaN shows nothing.
    long = series.moves & (n >= _ENOUGH * jnp.maximum(value, whole.span))
    sharp = error <= _PRECISION * value
    for same in (half, other):
        sharp = sharp & (jnp.abs(value - same) <= 3 * error)
    status = jnp.where(long, jnp.where(sharp, 0, 1), jnp.where(series.finite, 2, 3))
    value, error = (jnp.where(series.finite, x, jnp.inf) for x in (value, error))
    return AutocorrelationTime(value, error, whole.lags, status, n_chains * n)


class Sum(eqx.Module):
    """A sum of autocorrelations up to a lag, of which half is counted; what it would be
    if those that are negative beyond their noise were positive; and `½ n Var` of it,
    for `n` samples."""

    value: Float[Array, "*obs"]
    lags: Int[Array, "*obs"]
    span: Float[Array, "*obs"]
    noise: Float[Array, "*obs"]


def summed(
    rho: Float[Array, "lags *obs"], n_samples: int, windowing: Windowing = "sokal"
) -> Sum:
    """The time from autocorrelations, as `autocorrelation_time` says."""
    times = 2 * jnp.cumsum(rho, axis=0) - 1
    # The noise of a correlation that is zero (Bartlett 1946).
    noise = jnp.sqrt((2 * jnp.cumsum(rho**2, axis=0) - 1) / n_samples)
    sizes = jnp.where(rho < -_SIGNIFICANT * noise, -rho, rho)
    spans = 2 * jnp.cumsum(sizes, axis=0) - 1
    enough = _lags(rho).astype(rho.dtype) >= _SOKAL * spans
    last = len(rho) - 1
    window = jnp.where(jnp.any(enough, axis=0), jnp.argmax(enough, axis=0), last)
    if windowing == "geyer":
        # For a reversible chain ½ ρ(2m) + ρ(2m + 1) + ½ ρ(2m + 2) is ½ Σ w λ²ᵐ (1 + λ)²
        # over eigenvalues λ with weights w: positive and decreasing, as is Geyer's
        # ρ(2m) + ρ(2m + 1), and blind to λ = -1, whose noise would be all of the sum.
        even, odd = rho[: last // 2 * 2 + 1 : 2], rho[1 : last // 2 * 2 : 2]
        pairs = (even[:-1] + even[1:]) / 2 + odd
        positive = jnp.cumprod(pairs > 0, axis=0)
        decreasing = jax.lax.cummin(pairs, axis=0)
        window = 2 * jnp.sum(positive, axis=0)
        value = 2 * jnp.sum(jnp.where(positive == 1, decreasing, 0), axis=0)
    else:
        value = _at(times, window) - _at(rho, window)
    # Anticorrelated series have a time below one, which cannot fall to zero.
    value = jnp.maximum(value, 1 / len(rho))
    return Sum(value, window, _at(spans, window), _noise(rho, value, window))


def lag_weights(
    rho: Float[Array, "lags *obs"], window: Int[Array, "*obs"]
) -> Float[Array, "lags *obs"]:
    """What each lag counts in a sum: the last one half."""
    lags = _lags(rho)
    weights = jnp.where(
        lags < window[None], 1.0, jnp.where(lags == window[None], 0.5, 0.0)
    )
    return weights.astype(rho.dtype)


def _noise(rho: Array, value: Array, window: Array) -> Array:
    """`½ n Var τ`, for `n` samples.

    The sum over a window is the spectrum seen through it, `(1/2π) ∫ K I dω`, with `K`
    the transform of its weights and `I` the periodogram, whose ordinates are
    independent and as large as their errors: `Var τ = (2/n) (1/2π) ∫ K² S² dω`. A
    spectrum that is flat over the width of the window leaves `(2/n) (2 W + 1) τ²`; that
    of a series that oscillates is large elsewhere.
    """
    n, size = len(rho), 2 * len(rho)
    weights = lag_weights(rho, window)
    cut = jnp.where(weights > 0, rho, 0)
    both = 1.0
    for sequence in (weights, cut):
        both = both * (2 * jnp.real(jnp.fft.rfft(sequence, size, axis=0)) - 1)
    # All frequencies of the circle, of which one half is the mirror of the other.
    power = (2 * jnp.sum(both**2, axis=0) - both[0] ** 2 - both[n] ** 2) / size
    width = (2 * window + 1).astype(rho.dtype)
    return jnp.maximum(width * value**2, power)


def _lags(rho: Array) -> Array:
    """The lags, along the first axis."""
    return jnp.arange(len(rho)).reshape(-1, *(1,) * (rho.ndim - 1))


def _at(x: Array, lag: Array) -> Array:
    return jnp.take_along_axis(x, lag[None], axis=0)[0]


@eqx.filter_jit
def r_hat(values: Float[Array, "chains steps *obs"]) -> Float[Array, "*obs"]:
    """The potential scale reduction of chains cut in halves: the square root of the
    variance of all values together over the mean variance within a half. Near 1 for
    chains that have mixed; above 1.01 is a reason to run longer.

    Where nothing changes within the halves, but for rounding, it is 1 if all of them
    hold the same value and infinite if they are stuck at different ones. It is infinite
    for a series that is not finite.

    **Arguments:**

    - `values`: `(chains, steps, ...)`, at least 4 steps.

    **Raises:** `ValueError` for a wrong shape or type, or fewer steps.

    ??? cite "Source"

        Gelman et al., *Bayesian Data Analysis*, 3rd edition, section 11.4, 2013.
    """
    series = Series(values)
    n = series.values.shape[1] // 2
    if n < 2:
        raise ValueError(
            f"At least 4 steps are needed, but {series.values.shape[1]} were given."
        )
    halves = jnp.concatenate([series.values[:, :n], series.values[:, -n:]])
    halves = eqx.tree_at(lambda s: s.values, series, halves)
    moving = jnp.any(halves.extent(axis=1) > 0, axis=0)
    within = jnp.mean(jnp.var(halves.values, axis=1, ddof=1), axis=0)
    between = jnp.var(jnp.mean(halves.values, axis=1), axis=0, ddof=1)
    ratio = (n - 1) / n + between / jnp.where(moving, within, 1)
    still = jnp.where(halves.moves, jnp.inf, 1)
    return jnp.where(series.finite, jnp.where(moving, jnp.sqrt(ratio), still), jnp.inf)


def check_series(values: Any) -> Array:
    if values is None:
        raise ValueError(
            "There are no values: `run` keeps them only if it is told to, by keep=True."
        )
    try:
        values = jnp.asarray(values)
    except TypeError:  # JAX's own speaks of tracers
        raise TypeError(
            "values is an array, such as `run(..., keep=True).values`, but an object "
            f"of type {type(values).__name__} was given."
        ) from None
    if values.ndim < 2:
        raise ValueError(
            "Values have shape (chains, steps, ...), but an array of shape "
            f"{values.shape} was given. For one chain add an axis: `values[None]`."
        )
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise ValueError(
            "Values are real, but an array of complex numbers was given: give real and "
            "imaginary parts as two observables."
        )
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values.astype(jnp.result_type(float))
    return values if jnp.finfo(values.dtype).bits >= 32 else values.astype(jnp.float32)
