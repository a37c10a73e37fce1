"""The jackknife and intervals, against NumPy and what they promise."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import IDENTITY, assert_close
from scipy import stats

from trainq.sampling._statistics import (
    jackknife_error,
    log_interval,
    squared_mean,
    standard_error,
    student_quantile,
)


def naive(x):
    """The squared mean, its noise, and the variance of one."""
    noise = np.sum(np.var(x, axis=0, ddof=1)) / len(x)
    return np.sum(x.mean(axis=0) ** 2), noise, noise * len(x)


def test_everything_is_what_it_is_without_each_replicate():
    x = np.asarray(jr.normal(jr.key(0), (7, 3))) + 1
    mean = x.mean(axis=0)
    found = squared_mean(jnp.asarray(mean), jnp.asarray(x - mean))
    rows = [naive(x)] + [naive(np.delete(x, i, axis=0)) for i in range(7)]
    square, noise, variance = np.transpose(rows)
    for one, expected in (
        (found.square, square),
        (found.noise, noise),
        (found.unbiased, square - noise),
        (found.variance, variance),
    ):
        assert_close(one.whole, expected[0], IDENTITY)
        assert_close(one.without, expected[1:], 1e-11)


@pytest.mark.slow
def test_the_unbiased_square_is_unbiased_and_the_plain_one_is_not():
    x = np.asarray(jr.normal(jr.key(1), (2000, 9, 2))) + 0.3
    plain, unbiased = [], []
    for one in x:
        mean = one.mean(axis=0)
        found = squared_mean(jnp.asarray(mean), jnp.asarray(one - mean))
        plain.append(float(found.square.whole))
        unbiased.append(float(found.unbiased.whole))
    error = np.std(unbiased) / np.sqrt(len(x))
    assert abs(np.mean(unbiased) - 0.18) < 5 * error < abs(np.mean(plain) - 0.18)


@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_the_jackknife_of_a_mean_is_its_standard_error(of):
    x = np.random.default_rng(0).normal(size=(20, 2))
    without = of((x.sum(axis=0) - x) / 19)
    expected = x.std(axis=0, ddof=1) / np.sqrt(20)
    assert_close(jackknife_error(without), expected, 1e-11)
    for column, error in zip(x.T, expected, strict=True):
        assert_close(standard_error(jnp.asarray(column)), error, IDENTITY)


@pytest.mark.parametrize("scale", [2.0**600, 2.0**-600, 0.0])
def test_a_standard_error_of_any_size(scale):
    x = jnp.asarray(np.random.default_rng(0).normal(size=20))
    assert standard_error(scale * x) == scale * standard_error(x)


def test_intervals():
    assert_close(student_quantile(0.975, 31), stats.t.ppf(0.975, 31), IDENTITY)
    low, high = log_interval(jnp.array(2.0), jnp.array(0.1), 31, 0.95)
    reach = 0.1 * stats.t.ppf(0.975, 31)
    assert_close([low, high], [2 * np.exp(-reach), 2 * np.exp(reach)], IDENTITY)
    wide = log_interval(jnp.array(2.0), jnp.array(jnp.inf), 31, 0.95)
    assert wide.tolist() == [0, np.inf]
    with pytest.raises(ValueError, match="confidence is between 0 and 1, but 1.0"):
        log_interval(jnp.array(2.0), jnp.array(0.1), 31, 1.0)
