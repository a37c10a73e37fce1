"""The time `T_O` from a trajectory, with confidence intervals."""

from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import whole_number
from .._meshes import on_any_axes
from .._show import AbstractShown, Table, number
from ._autocorrelation import Series, check_series
from ._lag_sums import lag_weights, summed
from ._moments import Moments
from ._statistics import log_interval, standard_error
from ._streamed import required, streamed_pieces


class SampledTime(AbstractShown):
    """`T_O` estimated from a trajectory, in steps of the series.

    The error is that of pieces of the trajectory.
    """

    segments: Float[Array, " segments"]
    """The estimates from the pieces, whose scatter gives the error."""
    variance: Float[Array, ""]
    """`Σ_a Var f_a`, from all of the trajectory."""
    resolved: Array
    """Whether to trust it: every observable changes, but for rounding, a piece is at
    least 10 times as long as the longest window of their autocorrelation, and the
    estimate is finite and positive."""

    def _shown(self) -> list[str | Table]:
        if self.variance.ndim:  # a batch, by `eqx.filter_vmap`
            return super()._shown()
        low, high = self.interval()
        known = "" if self.resolved else ", NOT RESOLVED"
        return [
            f"T_O = {number(self.t_o)} steps, {low:.4g} to {high:.4g} with 95 % "
            f"confidence{known}"
        ]

    @property
    def t_o(self) -> Float[Array, ""]:
        """`T_O = Σ_a ⟨f̃_a, R f̃_a⟩_π`."""
        return jnp.mean(self.segments)

    @property
    def t_o_error(self) -> Float[Array, ""]:
        """The standard error of `t_o`; infinite where that is."""
        finite = jnp.isfinite(self.segments)
        known = jnp.where(finite, self.segments, 1)
        error = jnp.where(jnp.all(finite), standard_error(known), jnp.inf)
        return jnp.where(jnp.any(jnp.isnan(self.segments)), jnp.nan, error)

    def interval(self, confidence: float = 0.95) -> Float[Array, " 2"]:
        """A confidence interval for `T_O`, from Student's `t` on the logarithm."""
        positive = self.t_o > 0
        relative = self.t_o_error / jnp.where(positive, self.t_o, 1)
        relative = jnp.where(positive, relative, jnp.inf)
        return log_interval(self.t_o, relative, self.segments.size - 1, confidence)


def sampled_time(
    values: Float[Array | np.ndarray, "chains steps n_obs"] | Moments,
    *,
    segments: SupportsIndex = 32,
) -> SampledTime:
    """`T_O` from the values of the observables along chains that have burnt in:
    `½ Σ_a Var f_a (τ_a + 1)`, with the window of each sum set by Sokal's rule from all
    of the data, as in [`trainq.sampling.autocorrelation_time`][], and the error from
    pieces of the trajectory. In the convention `"sokal"` it is `t_o - variance / 2`.

    **Arguments:**

    - `values`: `(chains, steps, n_obs)`; or moments with
        [`trainq.sampling.Autocovariances`][], from `run(..., lags=16)`, of at least 8
        chains. Groups of chains are then the pieces, and the time is infinite if one of
        an observable is longer than the lags, or one does not change.
    - `segments`: the number of pieces for the error, at least 8. Each chain is cut into
        equal ones, so that there may be more.

    **Returns:** a [`trainq.sampling.SampledTime`][]. Look at `resolved`.

    **Raises:** `ValueError` for a wrong shape, if a piece would have fewer than 8
    steps, or for moments of fewer than 8 chains.
    """
    if isinstance(values, Moments):
        return _of_moments(values)
    values = check_series(values)
    if values.ndim != 3:
        raise ValueError(
            "values have shape (chains, steps, n_obs), as `run(..., keep=True).values`,"
            f" but {values.shape} was given. For one chain add an axis, `values[None]`,"
            " for one observable `values[..., None]`."
        )
    segments = whole_number("segments", segments, least=8)
    n_chains, n_steps, _ = values.shape
    pieces = -(-segments // n_chains)
    if n_steps // pieces < 8:
        raise ValueError(
            f"{n_steps} steps of {n_chains} chains cannot be cut into at least "
            f"{segments} pieces of at least 8 steps each."
        )
    return _sampled_time(values, pieces)


@eqx.filter_jit
@on_any_axes
def _sampled_time(values: Array, pieces: int) -> SampledTime:
    n_chains, n_steps, n_obs = values.shape
    length = n_steps // pieces
    series = Series(values)
    covariance = jnp.mean(series.covariance(), axis=0)
    lags = summed(series.correlation(), n_chains * n_steps).lags
    parts = series.values[:, : pieces * length]
    parts = parts.reshape(n_chains * pieces, length, n_obs)
    local = eqx.tree_at(lambda s: s.values, series, parts).covariance()
    # Fewer pairs of times have a larger lag, and the common mean takes away a little of
    # every one of them.
    pairs = length / (length - jnp.arange(length)).astype(values.dtype)
    weights = lag_weights(covariance[:length], lags) * pairs[:, None]
    sums = jnp.sum(weights[None] * local, axis=1)
    lost = (2 * lags + 1).astype(values.dtype) / (n_chains * n_steps)
    sums = sums / (1 - jnp.minimum(lost, 0.5))[None]

    def total(x):
        # What only rounding moves has no variance; what is not finite is not hidden.
        still = series.finite & ~series.moves
        return jnp.sum(jnp.where(still, 0, x) * series.scale * series.scale)

    found = SampledTime(
        segments=jax.vmap(total)(sums),
        variance=total(covariance[0]),
        resolved=jnp.all(series.moves) & (10 * jnp.max(lags) <= length),
    )
    known = jnp.isfinite(found.t_o_error) & (found.t_o > 0)
    return eqx.tree_at(lambda f: f.resolved, found, found.resolved & known)


@eqx.filter_jit
@on_any_axes
def _of_moments(moments: Moments) -> SampledTime:
    chains = required(moments).n_chains
    if chains < 8:
        raise ValueError(
            "From moments the error of T_O is the scatter between chains, at least 8 "
            f"of them, but {chains} were given. Run more, or keep values."
        )
    pieces, variance, found = streamed_pieces(moments)
    segments = jnp.sum(pieces, axis=1)
    long = 10 * found.whole.lags <= found.n_bins
    resolved = jnp.all(found.moves & long) & (jnp.mean(segments) > 0)
    return SampledTime(segments, jnp.sum(variance), resolved)
