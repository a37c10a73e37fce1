"""Autocorrelation times against the exact ones, and their status."""

import emcee
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from arviz_stats.base import array_stats
from helpers import IDENTITY, KERNELS, SIGMAS, assert_close, rbm

import trainq as tq
from trainq import sampling


MODEL = rbm(3, 2)


def series(name, n_steps, n_chains=16, seed=0):
    state = sampling.start_chains(jr.key(seed), MODEL, n_chains)
    state = sampling.run(KERNELS[name], MODEL, state, 500).state
    return sampling.run(KERNELS[name], MODEL, state, n_steps, keep=True).values


def exact(name):
    chain, f = KERNELS[name].chain(MODEL), tq.observables(MODEL)
    noise = jnp.diag(tq.markov.asymptotic_covariance(chain, f))
    return noise / (chain.stationary @ chain.centre(f) ** 2)


def test_autocovariance_by_sums():
    values = np.asarray(jr.normal(jr.key(0), (3, 10, 2)))
    centred = values - values.mean(axis=(0, 1))
    found = sampling.autocovariance(jnp.asarray(values))
    for lag in (0, 1, 9):
        expected = np.sum(centred[:, : 10 - lag] * centred[:, lag:], axis=1) / 10
        assert_close(found[:, lag], expected, IDENTITY)


@pytest.mark.parametrize("name", ["gibbs", "alternating"])
def test_times_are_the_exact_ones(name):
    found = sampling.autocorrelation_time(series(name, 20_000))
    assert found.ok and "resolved" in str(found)
    assert np.all(np.abs(found.value - exact(name)) < SIGMAS * found.error)
    assert_close(found.effective_samples * found.value, np.full(6, 320_000), IDENTITY)
    # A negative control: the time of another kernel is far away.
    other = exact("alternating" if name == "gibbs" else "gibbs")
    assert np.any(np.abs(found.value - other) > SIGMAS * found.error)


def test_geyer_agrees_for_a_reversible_chain():
    values = series("gibbs", 20_000)
    geyer = sampling.autocorrelation_time(values, windowing="geyer")
    sokal = sampling.autocorrelation_time(values)
    assert np.all(np.abs(geyer.value - sokal.value) < SIGMAS * geyer.error)


def test_emcee_and_arviz_find_the_same_on_the_same_chains():
    values = series("gibbs", 20_000)
    # emcee takes away the mean of each chain, and so loses some percent; it averages
    # what has been normalised, we normalise the average.
    alone = values - jnp.mean(values, axis=1, keepdims=True)
    theirs = emcee.autocorr.integrated_time(np.swapaxes(values, 0, 1), c=5)
    assert_close(sampling.autocorrelation_time(alone).value, theirs, 0.02)
    geyer = sampling.autocorrelation_time(values, windowing="geyer")
    for a in range(values.shape[2]):
        options = {"chain_axis": 0, "draw_axis": 1}
        one = np.asarray(values[:, :, a])
        # ArviZ cuts chains in halves and sums by Geyer's rule.
        size = array_stats.ess(one, method="mean", **options)
        assert_close(geyer.effective_samples[a], size, 0.05)
        theirs = array_stats.rhat(one, method="split", **options)
        assert_close(sampling.r_hat(values)[a], theirs, IDENTITY)


def test_what_is_not_known_says_so():
    short = sampling.autocorrelation_time(series("gibbs", 300))
    slow = exact("gibbs") > 30
    assert 0 < np.sum(slow) < 6
    assert np.all(short.status[slow] == 2) and not short.ok
    # Long enough, and only one chain: the error is still too large.
    vague = sampling.autocorrelation_time(series("gibbs", 4000, n_chains=1))
    assert np.all(vague.status[slow] > 0)
    still = sampling.autocorrelation_time(jnp.ones((2, 100)))
    assert still.status == 2 and still.value == 100
    # Chains that sit in different places look mixed, each about its own mean.
    apart = jr.normal(jr.key(1), (2, 5000)) + jnp.array([[0.0], [9.0]])
    assert not sampling.autocorrelation_time(apart).ok
    assert sampling.r_hat(apart) > 2


def test_r_hat_of_mixed_chains():
    values = jr.normal(jr.key(2), (4, 2000, 3))
    assert np.all(np.abs(sampling.r_hat(values) - 1) < 0.01)
    assert sampling.r_hat(jnp.ones((2, 10))) == 1
    assert sampling.r_hat(jnp.array([[1.0] * 8, [2.0] * 8])) == np.inf


def test_values_that_were_not_kept(as_for_users):
    with pytest.raises(ValueError, match="keep=True"):
        sampling.autocorrelation_time(None)


def test_shapes(as_for_users):
    with pytest.raises(ValueError, match="For one chain add an axis"):
        sampling.autocorrelation_time(jnp.ones(9))
    with pytest.raises(ValueError, match="At least 8 steps are needed, but 5"):
        sampling.autocorrelation_time(jnp.ones((1, 5)))
    with pytest.raises(ValueError, match='windowing is "sokal" or "geyer", not'):
        sampling.autocorrelation_time(jnp.ones((1, 9)), windowing="flat")
    with pytest.raises(ValueError, match="At least 4 steps are needed, but 3"):
        sampling.r_hat(jnp.ones((2, 3)))
