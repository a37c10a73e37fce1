"""Means and variances along chains, summed up while they run."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._show import AbstractShown, Table, count, number
from ._autocovariances import Autocovariances
from ._sums import add_up


# Values whose sums are short enough to be plain, and so cost half as much.
_RECENT = 128


class Moments(AbstractShown):
    """Means and variances over time, for each chain, without the values themselves.

    A run that goes on from them counts in what came before. They are as good after a
    billion steps as after one, since the sums of recent values are short. Read `mean`
    and `variance`.
    """

    count: Int[Array, ""]
    """The number of values of each chain."""
    totals: tuple[Float[Array, "chains n_obs"], ...]
    """The mean of all values but the recent ones, and the sum of squared deviations
    from it, each followed by what rounding has taken from it."""
    recent: tuple[Float[Array, "chains n_obs"], ...]
    """The first of the last few values, and sums of what the others differ from it and
    of the squares of that."""
    autocovariances: Autocovariances | None = None
    """Those of the same values, if the run was told how many `lags`: what
    [`trainq.sampling.autocorrelation_time`][], [`trainq.sampling.r_hat`][] and
    [`trainq.sampling.sampled_time`][] take in place of values."""

    @classmethod
    def begin(
        cls, shape: tuple[int, ...], dtype: Any, lags: int | None = None
    ) -> "Moments":
        """Those of no values yet, for values of a shape `(chains, n_obs)`, with
        autocovariances at so many lags, or without: in float32, or better where the
        values are."""
        if jnp.finfo(dtype).bits < 32:
            dtype = jnp.float32
        zeros = jnp.zeros(shape, dtype)
        lagged = None if lags is None else Autocovariances.begin(shape, dtype, lags)
        return cls(jnp.zeros((), int), (zeros,) * 4, (zeros,) * 3, lagged)

    @classmethod
    def layouts(cls, of: Callable[..., Any], chains: Any, lagged: int | None) -> Any:
        """How the arrays lie on a mesh, over whose axes `chains` chains are spread,
        with autocovariances of so many of them, or without."""
        each = of(*chains)
        covariances = None
        if lagged is not None:
            covariances = Autocovariances.layouts(of, chains, lagged)
        return cls(of(), (each,) * 4, (each,) * 3, covariances)

    def _shown(self) -> list[str | Table]:
        if self.count.ndim:  # a batch, by `eqx.filter_vmap`
            return super()._shown()
        chains, n_obs = self.recent[0].shape
        return [
            f"moments of {count(int(self.count), 'value')} of "
            f"{count(n_obs, 'observable')} in {count(chains, 'chain')}: means "
            f"{number(self.mean)}, variances {number(self.variance)}"
        ]

    @property
    def mean(self) -> Float[Array, "chains n_obs"]:
        """The mean of the values of each chain."""
        return self._merged()[0]

    @property
    def variance(self) -> Float[Array, "chains n_obs"]:
        """The variance of the values of each chain about its own mean."""
        count = jnp.maximum(self.count, 1).astype(self.totals[0].dtype)
        return self._merged()[2] / count

    def add(self, values: Float[Array, "chains n_obs"]) -> "Moments":
        """With one more value for every chain."""
        opened = self._refer(values)._open(values)
        added = opened._add(values)
        due = opened._room == 1
        return jax.lax.cond(due, lambda m: m._close(), lambda m: m, added)

    def _refer(self, values: Array) -> "Moments":
        """With a value that autocovariances refer to, if there is none yet: what one
        device tells the others, and so is no part of a loop."""
        lagged = self.autocovariances
        lagged = None if lagged is None else lagged.refer(values)
        return Moments(self.count, self.totals, self.recent, lagged)

    @property
    def _room(self) -> Int[Array, ""]:
        """How many more values fit in until `_close`."""
        room = _RECENT - self.count % _RECENT
        if self.autocovariances is None:
            return room
        return jnp.minimum(room, self.autocovariances.room)

    def _open(self, values: Array) -> "Moments":
        """With a first value for the recent ones, if there are none."""
        empty = self.count % _RECENT == 0
        recent = jnp.where(empty, values, self.recent[0]), *self.recent[1:]
        return Moments(self.count, self.totals, recent, self.autocovariances)

    def _add(self, values: Array) -> "Moments":
        """With one more of the recent values, of which there is a first."""
        first, total, deviations = self.recent
        change = values - first
        recent = first, total + change, deviations + change**2
        lagged = self.autocovariances
        lagged = None if lagged is None else lagged.add(values)
        return Moments(self.count + 1, self.totals, recent, lagged)

    def _close(self) -> "Moments":
        """With the recent values counted in, if these are as many as fit."""
        full = self.count % _RECENT == 0
        first, *sums = self.recent
        totals = (
            jnp.where(full, new, old)
            for new, old in zip(self._merged(_RECENT), self.totals, strict=True)
        )
        recent = first, *(jnp.where(full, 0, x) for x in sums)
        closed = Moments(self.count, tuple(totals), recent, self.autocovariances)
        if self.autocovariances is None:
            return closed
        mean, _, deviations, _ = closed._merged()
        lagged = self.autocovariances.close(mean, deviations, full)
        return eqx.tree_at(lambda m: m.autocovariances, closed, lagged)

    def _merged(self, size: int | None = None) -> tuple[Array, ...]:
        """The totals with the recent values, so many of them (Chan, Golub and LeVeque
        1983)."""
        mean, lost, deviations, less = self.totals
        first, total, about = self.recent
        dtype = mean.dtype
        within = self.count % _RECENT if size is None else jnp.array(size)
        before = (self.count - within).astype(dtype)
        size_ = within.astype(dtype)
        change = total / jnp.maximum(size_, 1)
        about = jnp.maximum(about - total * change, 0)
        change = first - mean + change
        share = size_ / jnp.maximum(before + size_, 1)
        mean, lost = add_up(mean, lost, change * share)
        deviations, less = add_up(
            deviations, less, about + change**2 * (before * share)
        )
        return mean, lost, deviations, less


def checked_moments(moments: Moments, wrong: Array, message: str) -> Moments:
    """The moments, or a run-time error. It hangs on their number, which every reading
    takes: what passes such a check comes together on one device."""
    count = eqx.error_if(moments.count, wrong, message)
    return eqx.tree_at(lambda m: m.count, moments, count)
