"""Autocorrelation times, R-hat and `T_O` from moments, without the values."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._autocovariances import Autocovariances
from ._lag_sums import Sum, Windowing, lag_weights, summed
from ._moments import Moments


# Means that differ by no more roundings than these are the same.
_ROUNDINGS = 8


class StreamedSums(eqx.Module):
    """Sums of autocorrelations of bins, on one level for each observable."""

    level: Int[Array, " n_obs"]
    bins: Int[Array, " n_obs"]
    """How many values make a bin."""
    n_bins: Int[Array, " n_obs"]
    """How many bins there are of each chain."""
    scale: Float[Array, " n_obs"]
    """The time of the values over that of the bins, in their own steps."""
    whole: Sum
    half: Float[Array, " n_obs"]
    """The value from the first bins, fewer of them by `ratio`."""
    ratio: Float[Array, " n_obs"]
    sokal: Float[Array, " n_obs"]
    """The value by Sokal's rule."""
    within: Bool[Array, " n_obs"]
    """Whether the lags of any level hold the sum."""
    most: Int[Array, ""]
    """The longest lag that there is, of a sum within a share of the chain."""
    moves: Bool[Array, " n_obs"]
    n_chains: int = eqx.field(static=True)


def required(moments: Moments) -> Autocovariances:
    """The autocovariances of moments."""
    found = moments.autocovariances
    if found is None:
        raise ValueError(
            "These moments have no autocovariances: `run` sums them up only if it is "
            "told to, by lags=16 from the first run on."
        )
    return found


def streamed_sums(
    moments: Moments, windowing: Windowing = "sokal", share: int = 8
) -> StreamedSums:
    """Sums over the finest bins whose lags hold them."""
    # The sum of the covariances of a stationary series at all lags is that of its bins
    # times the length of a bin: C(0) τ = b C_b(0) τ_b. Bins that are too coarse for a
    # series have τ_b = 1, and lose precision alone.
    lagged = required(moments)
    chains, most = lagged.n_chains, lagged.lags + 1
    covariance, (half, early) = lagged.value, lagged.of_half()
    dtype = covariance.dtype
    moves = _moves(moments, covariance[0, 0])

    def sums(covariance, count, rule):
        rho = covariance / jnp.where(covariance[:, :1] > 0, covariance[:, :1], 1)
        n = jnp.maximum(count // lagged.bins, 1).astype(dtype)
        return jax.vmap(lambda r, n: summed(r, chains * n, rule, 1 / n))(rho, n)

    n_bins = lagged.count // lagged.bins
    whole = sums(covariance, lagged.count, windowing)
    holds = (whole.stop < most) & (share * whole.stop <= n_bins[:, None])
    # The variance of a single bin is rounding.
    holds = holds & (n_bins >= most)[:, None] & (covariance[:, 0] > 0)
    level = jnp.argmax(holds, axis=0)

    def at(x):
        return jnp.take_along_axis(x, level[None], axis=0)[0]

    # A level whose bins are all the same has no time, and no sum.
    before = half.count // lagged.bins
    ratio = n_bins.astype(dtype) / jnp.maximum(before, 1).astype(dtype)
    scale = at(covariance[:, 0]) / jnp.where(moves, covariance[0, 0], 1)
    useful = lagged.bins * jnp.minimum(n_bins // share, lagged.lags)
    return StreamedSums(
        level=level,
        bins=lagged.bins[level],
        n_bins=n_bins[level],
        scale=scale * lagged.bins[level].astype(dtype),
        whole=jax.tree.map(at, whole),
        half=at(sums(early, half.count, windowing).value),
        ratio=ratio[level],
        sokal=at(sums(covariance, lagged.count, "sokal").value),
        within=jnp.any(holds, axis=0),
        most=jnp.max(useful),
        moves=moves & jnp.any(holds, axis=0),
        n_chains=chains,
    )


def _moves(moments: Moments, variance: Array) -> Bool[Array, " n_obs"]:
    """Whether values change by more than rounding."""
    size = jnp.max(jnp.abs(moments.mean), axis=0)
    rounding = _ROUNDINGS * jnp.finfo(variance.dtype).eps * size
    return variance > rounding**2


def streamed_r_hat(
    moments: Moments, signs: Float[Array, " chains"] | None = None
) -> Float[Array, " n_obs"]:
    """R-hat of two parts of each chain, of `n₁` and `n₂` values, which may count with
    another sign in some of the chains."""
    lagged = required(moments)
    half, _ = lagged.of_half()
    mean, _, deviations, _ = moments._merged()
    dtype = mean.dtype
    n = moments.count.astype(dtype)
    before = half.count.astype(dtype)
    after = n - before
    # Chan, Golub and LeVeque backwards: what the second part adds.
    later = (n * mean - before * half.mean) / after
    change = (later - half.mean) ** 2 * (before * after / n)
    rest = jnp.maximum(deviations - half.deviations - change, 0)
    # Of all chains on an axis of their own, which may be spread over devices.
    means = jnp.stack([half.mean, later])
    if signs is not None:
        means = means * signs[None, :, None]
    within = (half.deviations / (before - 1) + rest / (after - 1)) / 2
    within = jnp.mean(within, axis=0)
    between = jnp.var(means, axis=(0, 1), ddof=1)
    # The mean of 1/n₁ and 1/n₂ is what independent values would scatter by.
    inverse = (1 / before + 1 / after) / 2
    size = jnp.max(jnp.abs(means), axis=(0, 1))
    rounding = (_ROUNDINGS * jnp.finfo(dtype).eps * size) ** 2
    moving = within > rounding
    ratio = 1 - inverse + between / jnp.where(moving, within, 1)
    still = jnp.where(between > rounding, jnp.inf, 1)
    found = jnp.where(moving, jnp.sqrt(ratio), still)
    return jnp.where(half.count > 1, found, jnp.inf)


def streamed_pieces(
    moments: Moments,
) -> tuple[Float[Array, "groups n_obs"], Float[Array, " n_obs"], StreamedSums]:
    """`½ Var f (τ + 1)` of each group of chains, and `Var f`."""
    lagged = required(moments)
    found = streamed_sums(moments)
    groups = lagged.of_groups()
    chains, dtype = lagged.n_chains, groups.dtype

    def at(x):  # on the level of each observable, which is last
        return jax.vmap(lambda x, level: x[level], (-1, 0), -1)(x, found.level)

    local = at(groups)
    n = found.n_bins.astype(dtype)
    lags = jnp.arange(lagged.lags + 1)[:, None]
    # As for pieces of kept values: see `sampled_time`.
    pairs = n[None] / jnp.maximum(n[None] - lags.astype(dtype), 1)
    window = jnp.minimum(found.whole.lags, lagged.lags)
    weights = lag_weights(local[:, 0], window) * pairs
    lost = (2 * window + 1).astype(dtype) / (chains * n)
    sums = jnp.sum(weights[:, None] * local, axis=0)
    sums = sums / (1 - jnp.minimum(lost, 0.5))[None]
    variance = groups[0, 0]
    doubled = (2 * sums - local[0]) * found.bins.astype(dtype)[None]
    # C(0) + Σ C(k) = ½ (C(0) + C(0) τ), and C(0) τ is that of the bins times b.
    pieces = jnp.where((found.level == 0)[None], sums, (variance + doubled) / 2)
    pieces = jnp.where(found.moves[None], pieces, jnp.inf)
    return pieces, jnp.mean(variance, axis=0), found
