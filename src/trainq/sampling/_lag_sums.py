"""Sums of autocorrelations, cut off before they are all noise."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


Windowing = Literal["sokal", "geyer"]
"""How the sum over lags is cut off: `"sokal"` or `"geyer"`."""

# Sokal's rule: sum up to the first lag that is this many times the sum so far.
_SOKAL = 5
# A correlation that is this many standard errors below zero is no noise.
_SIGNIFICANT = 4


class Sum(eqx.Module):
    """A sum of autocorrelations up to a lag, of which half is counted; what it would be
    if those that are negative beyond their noise were positive; `½ n Var` of it, for
    `n` samples; and the lag that Sokal's rule stops at too, or all if it does not."""

    value: Float[Array, "*obs"]
    lags: Int[Array, "*obs"]
    span: Float[Array, "*obs"]
    noise: Float[Array, "*obs"]
    stop: Int[Array, "*obs"]


def summed(
    rho: Float[Array, "lags *obs"],
    n_samples: int | Array,
    windowing: Windowing = "sokal",
    least: float | Array | None = None,
) -> Sum:
    """The time from autocorrelations, as `autocorrelation_time` says, and `least` of
    one that cannot fall to zero: the inverse of the length of a chain."""
    times = 2 * jnp.cumsum(rho, axis=0) - 1
    # The noise of a correlation that is zero (Bartlett 1946).
    noise = jnp.sqrt((2 * jnp.cumsum(rho**2, axis=0) - 1) / n_samples)
    sizes = jnp.where(rho < -_SIGNIFICANT * noise, -rho, rho)
    spans = 2 * jnp.cumsum(sizes, axis=0) - 1
    enough = _lags(rho).astype(rho.dtype) >= _SOKAL * spans
    last = len(rho) - 1
    found = jnp.any(enough, axis=0)
    window = jnp.where(found, jnp.argmax(enough, axis=0), last)
    stop = jnp.where(found, window, len(rho))
    if windowing == "geyer":
        # For a reversible chain ½ ρ(2m) + ρ(2m + 1) + ½ ρ(2m + 2) is ½ Σ w λ²ᵐ (1 + λ)²
        # over eigenvalues λ with weights w: positive and decreasing, as is Geyer's
        # ρ(2m) + ρ(2m + 1), and blind to λ = -1, whose noise would be all of the sum.
        even, odd = rho[: last // 2 * 2 + 1 : 2], rho[1 : last // 2 * 2 : 2]
        pairs = (even[:-1] + even[1:]) / 2 + odd
        positive = jnp.cumprod(pairs > 0, axis=0)
        decreasing = jax.lax.cummin(pairs, axis=0)
        window = 2 * jnp.sum(positive, axis=0)
        stop = jnp.maximum(stop, jnp.where(positive[-1] == 1, len(rho), window))
        value = 2 * jnp.sum(jnp.where(positive == 1, decreasing, 0), axis=0)
    else:
        value = _at(times, window) - _at(rho, window)
    # Anticorrelated series have a time below one, which cannot fall to zero.
    value = jnp.maximum(value, 1 / len(rho) if least is None else least)
    return Sum(value, window, _at(spans, window), _noise(rho, value, window), stop)


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
    # K² S² has lags of up to four windows.
    n, size = 2 * len(rho), 4 * len(rho)
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
