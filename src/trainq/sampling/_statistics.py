"""Errors of estimates from independent replicates: the jackknife, and intervals."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Jackknifed(eqx.Module):
    """An estimate from `n` replicates, and the same without each of them.

    What is computed from several estimates is computed from the `without` of each alike
    and once for every replicate left out: the scatter of the results is the error of
    the whole (`jackknife_error`).

    ??? cite "Source"

        Efron and Stein, *The jackknife estimate of variance*, Ann. Stat. 9, 586, 1981.
    """

    whole: Float[Array, ""]
    without: Float[Array, " replicates"]


class SquaredMean(eqx.Module):
    """The squared length of a mean over replicates, and `noise`, how much of that is
    expected of scatter alone: `square - noise` is unbiased for the squared length of
    the expectation, and `n · noise` is the variance of one replicate."""

    square: Jackknifed
    noise: Jackknifed

    @property
    def unbiased(self) -> Jackknifed:
        """The estimate of the squared length of the expectation: it may be negative."""
        return Jackknifed(
            self.square.whole - self.noise.whole,
            self.square.without - self.noise.without,
        )

    @property
    def variance(self) -> Jackknifed:
        """The estimate of the variance of one replicate."""
        n = self.square.without.shape[0]
        return Jackknifed(n * self.noise.whole, (n - 1) * self.noise.without)


def squared_mean(
    mean: Float[Array, " n_obs"], scatter: Float[Array, "replicates n_obs"]
) -> SquaredMean:
    """The squared length of a mean, with and without each of the replicates, of which
    `scatter` holds `d_r = x_r - mean`; at least 3 of them."""
    # Σ_r d_r = 0. Without replicate r the mean is mean - d_r / (n - 1), and the sum of
    # squares about it is that of all, S = Σ_s |d_s|², less |d_r|² n / (n - 1). The
    # noise of a mean of n is S / (n (n - 1)), and without one n is n - 1.
    n = scatter.shape[0]
    squares = jnp.sum(scatter**2, axis=1)
    others = jnp.sum((mean[None] - scatter / (n - 1)) ** 2, axis=1)
    rest = jnp.sum(squares) - squares * n / (n - 1)
    return SquaredMean(
        square=Jackknifed(jnp.sum(mean**2), others),
        noise=Jackknifed(jnp.sum(squares) / (n * (n - 1)), rest / ((n - 1) * (n - 2))),
    )


def jackknife_error(without: Any) -> Any:
    """The standard error of an estimate, from what it is without each replicate, of
    shape `(replicates, ...)`, in JAX or in NumPy."""
    return math.sqrt(without.shape[0] - 1) * without.std(axis=0)


def standard_error(x: Float[Array, " n"]) -> Float[Array, ""]:
    """That of a mean, for values whose squares may overflow or vanish."""
    unit = jnp.max(jnp.abs(x))
    unit = jnp.where(unit > 0, unit, 1)
    return unit * (jnp.std(x / unit[None], ddof=1) / math.sqrt(x.size))


def student_quantile(probability: float, degrees: int) -> float:
    """Where Student's `t` lies below with some probability."""
    # Imported here because it is slow to load.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def check_confidence(confidence: float) -> None:
    """That a confidence is one."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is between 0 and 1, but {confidence} was given.")


def student_reach(confidence: float, degrees: int) -> float:
    """Half an interval by Student's `t`, in standard errors.

    **Raises:** `ValueError` for a confidence that is not between 0 and 1.
    """
    check_confidence(confidence)
    return student_quantile((1 + confidence) / 2, degrees)


def log_interval(
    value: Float[Array, ""],
    log_error: Float[Array, ""],
    degrees: int,
    confidence: float,
) -> Float[Array, " 2"]:
    """A confidence interval by Student's `t` on the logarithm, of which `log_error` is
    the standard error: all that there is, if this is not known.

    **Raises:** `ValueError` for a confidence that is not between 0 and 1.
    """
    reach = student_reach(confidence, degrees) * log_error
    known = jnp.isfinite(reach) & jnp.isfinite(value)
    sides = jnp.where(known, reach, 0) * jnp.array([-1, 1], reach.dtype)
    wide = jnp.array([0, jnp.inf], reach.dtype)
    return jnp.where(known, value * jnp.exp(sides), wide)
