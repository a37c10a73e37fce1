"""Autocorrelation times that say whether they can be trusted."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._meshes import on_any_axes
from .._show import AbstractShown, Table, count, number
from ._lag_sums import Sum, Windowing, summed
from ._moments import Moments
from ._streamed import streamed_r_hat, streamed_sums


STATUS = {
    0: "resolved: long enough, and the first half agrees with the whole",
    1: "unresolved: the error is above a quarter, or the first half disagrees, or "
    "Sokal's rule with Geyer's",
    2: "too short: a chain is shorter than 50 autocorrelation times",
    3: "not finite: a value of the series is NaN or infinite",
    4: "longer than the lags: the sum goes on past them, or past an eighth of a chain, "
    "as that of a series does which never relaxes",
}
"""What the codes in `AutocorrelationTime.status` mean."""
_ENOUGH = 50
_PRECISION = 0.25
# The sum of a series that never relaxes stops too: about the mean of its own chain the
# correlations sum to zero. Of 20,000 random walks, one chain
# each, 31 stopped within this share, and none was resolved.
_SHARE = 8
_LONGER = 4
# Values that differ by no more roundings than these are the same.
_ROUNDINGS = 8


class AutocorrelationTime(AbstractShown):
    """Integrated autocorrelation times `τ = 1 + 2 Σ_{t≥1} ρ(t)`, in steps of the series
    that they were estimated from, with a status each: see
    [`trainq.sampling.STATUS`][].

    An estimate that is not resolved is usually too *small*: what the chain has not seen
    cannot add to it. It is infinite if it cannot be told from that of a series which
    never relaxes, or if the series is not finite.
    """

    value: Float[Array, "*obs"]
    """`τ`, in steps of the series."""
    error: Float[Array, "*obs"]
    """The standard error of `τ`, in steps of the series."""
    lags: Int[Array, "*obs"]
    """The lag that the sum stops at; or, of a time that is longer, the last lag that
    there is for it."""
    status: Int[Array, "*obs"]
    """A key of [`trainq.sampling.STATUS`][], zero if it is resolved."""
    n_samples: Float[Array, "*obs"] = eqx.field(repr=False)
    """The number of values that it comes from, of all chains together: it may be more
    than an integer holds."""

    @property
    def ok(self) -> Bool[Array, ""]:
        """Whether all of them are resolved."""
        return jnp.all(self.status == 0)

    @property
    def effective_samples(self) -> Float[Array, "*obs"]:
        """The number of independent samples worth as much for a mean, of all chains
        together. Of `n` samples whose errors cancel it can be more than `n`, and is
        taken to be `n log10(n)` at most (Vehtari et al. 2021)."""
        n = self.n_samples
        return n / jnp.maximum(self.value, 1 / jnp.log10(n))

    def _shown(self) -> list[str | Table]:
        counts = [int(jnp.sum(self.status == code)) for code in STATUS]
        what = ", ".join(
            f"{n} {text.partition(':')[0]}"
            for n, text in zip(counts, STATUS.values(), strict=True)
            if n
        )
        known = np.asarray(self.value)[np.isfinite(self.value)]
        some = f"; the finite {known.size} of {self.value.size}"
        some = "" if known.size == self.value.size else some
        times = f" of {number(known)} steps{some}" if known.size else ""
        longer = np.asarray(self.lags)[np.asarray(self.status) == 4]
        if longer.size:
            what += f": {count(int(np.max(longer)), 'step')}"
        return [f"autocorrelation times{times} ({what})"]


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
@on_any_axes
def autocorrelation_time(
    values: Float[Array | np.ndarray, "chains steps *obs"] | Moments,
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

    - `values`: `(chains, steps, ...)` values of observables, as `run` keeps them; or
        moments with [`trainq.sampling.Autocovariances`][], from `run(..., lags=16)`.
    - `windowing`: how to stop the sum.

    **Returns:** an [`trainq.sampling.AutocorrelationTime`][], with arrays `(...)`. A
    sum that goes on past an eighth of a chain is that of a series which may never
    relax: `τ` is then infinite, and the status says so. So it is of a series that never
    changes, but for rounding, and of one that is not finite.

    From moments the sum is that of the finest bins whose lags hold it, `L` or fewer,
    times the length of a bin; of single values, where `L` lags are enough, and then the
    result is that of the values. The "first half" is what there was at the largest
    power of two up to it.

    **Raises:** `ValueError` for fewer than 8 steps, a wrong shape or type, or moments
    without autocovariances.

    ??? cite "Source"

        Sokal, *Monte Carlo methods in statistical mechanics: foundations and new
        algorithms*, 1997; Geyer, *Practical Markov chain Monte Carlo*, Stat. Sci. 7,
        473, 1992; the half lag and the bound of effective samples: Vehtari et al.,
        *Rank-normalization, folding, and localization*, Bayesian Anal. 16, 667, 2021.
    """
    if windowing not in ("sokal", "geyer"):
        raise ValueError(f'windowing is "sokal" or "geyer", not {windowing!r}.')
    if isinstance(values, Moments):
        return _of_moments(values, windowing)
    values = check_series(values)
    n_chains, n = values.shape[:2]
    if n < 8:
        raise ValueError(f"At least 8 steps are needed, but {n} were given.")
    series = Series(values)
    rho = series.correlation()
    whole = summed(rho, n_chains * n, windowing)
    first = Series(values[:, : n // 2]).correlation()
    half = summed(first, n_chains * (n // 2), windowing).value
    other = summed(rho, n_chains * n).value
    value, error, status = _judged(
        whole, n, n_chains, (half, n / (n // 2)), other, series.moves, series.finite
    )
    lags = jnp.where(status == _LONGER, n // _SHARE, whole.lags)
    n_samples = jnp.full_like(value, n_chains * n)
    return AutocorrelationTime(value, error, lags, status, n_samples)


def _judged(
    whole: Sum,
    n: Any,
    n_chains: int,
    half: tuple[Array, Any],
    other: Array,
    moves: Array,
    finite: Array | bool = True,
) -> tuple[Array, Array, Array]:
    """The value, the error and the status of sums of `n` values of each chain, which
    have been estimated from a part of them as well, and by Sokal's rule."""
    first, ratio = half
    error = jnp.sqrt(2 * whole.noise / (n_chains * n))
    # Each has to be shown: a comparison with NaN shows nothing.
    within = moves & (_SHARE * whole.stop.astype(error.dtype) <= n)
    long = within & (n >= _ENOUGH * jnp.maximum(whole.value, whole.span))
    # The estimate from n/r of n values differs by √(r - 1) errors of that from all.
    sharp = error <= _PRECISION * whole.value
    for same, reach in ((first, 3 * jnp.sqrt(ratio - 1.0)), (other, 3)):
        sharp = sharp & (jnp.abs(whole.value - same) <= reach * error)
    status = jnp.where(long, jnp.where(sharp, 0, 1), jnp.where(within, 2, _LONGER))
    status = jnp.where(finite, status, 3).astype(int)
    known = finite & within
    value, error = (jnp.where(known, x, jnp.inf) for x in (whole.value, error))
    return value, error, status


def _of_moments(moments: Moments, windowing: Windowing) -> AutocorrelationTime:
    """The times from streamed autocovariances."""
    found = streamed_sums(moments, windowing, _SHARE)
    n_chains = found.n_chains
    value, error, status = _judged(
        found.whole,
        found.n_bins.astype(found.scale.dtype),
        n_chains,
        (found.half, found.ratio),
        found.sokal,
        found.moves,
    )
    longer = status == _LONGER
    lags = jnp.where(longer, found.most, found.whole.lags * found.bins)
    n_samples = jnp.full_like(value, moments.count.astype(value.dtype) * n_chains)
    # An infinite time has no scale: it may be zero.
    value, error = (jnp.where(longer, x, x * found.scale) for x in (value, error))
    return AutocorrelationTime(value, error, lags, status, n_samples)


@eqx.filter_jit
@on_any_axes
def r_hat(
    values: Float[Array | np.ndarray, "chains steps *obs"] | Moments,
) -> Float[Array, "*obs"]:
    """The potential scale reduction of chains cut in halves: the square root of the
    variance of all values together over the mean variance within a half. Near 1 for
    chains that have mixed; above 1.01 is a reason to run longer.

    Where nothing changes within the halves, but for rounding, it is 1 if all of them
    hold the same value and infinite if they are stuck at different ones. It is infinite
    for a series that is not finite.

    **Arguments:**

    - `values`: `(chains, steps, ...)`, at least 4 steps; or moments with
        [`trainq.sampling.Autocovariances`][], from `run(..., lags=16)`. Chains are then
        cut where the number of values was the largest power of two up to half of it.

    **Raises:** `ValueError` for a wrong shape or type, fewer steps, or moments without
    autocovariances.

    ??? cite "Source"

        Gelman et al., *Bayesian Data Analysis*, 3rd edition, section 11.4, 2013.
    """
    if isinstance(values, Moments):
        return streamed_r_hat(values)
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
