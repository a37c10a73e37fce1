"""Autocorrelation times against the exact ones, and their status."""

import emcee
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from arviz_stats.base.array import array_stats
from helpers import IDENTITY, KERNELS, SIGMAS, assert_close, rbm
from scipy.signal import lfilter

import trainq as tq
from trainq import sampling


MODEL = rbm(3, 2)
NAN = float("nan")


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


@pytest.mark.quick(1)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_is_not_known_says_so():
    short = sampling.autocorrelation_time(series("gibbs", 300))
    slow = exact("gibbs") > 30
    assert 0 < np.sum(slow) < 6
    assert np.all(short.status[slow] == 4) and not short.ok
    assert np.all(short.value[slow] == np.inf) and "longer" in str(short)
    # Long enough, and only one chain: the error is still too large.
    vague = sampling.autocorrelation_time(series("gibbs", 4000, n_chains=1))
    assert np.all(vague.status[slow] > 0)
    still = sampling.autocorrelation_time(jnp.ones((2, 100)))
    assert still.status == 4 and still.value == np.inf and still.lags == 12
    # Chains that sit in different places look mixed, each about its own mean.
    apart = jr.normal(jr.key(1), (2, 5000)) + jnp.array([[0.0], [9.0]])
    assert not sampling.autocorrelation_time(apart).ok
    assert sampling.r_hat(apart) > 2


def test_r_hat_of_mixed_chains():
    values = jr.normal(jr.key(2), (4, 2000, 3))
    assert np.all(np.abs(sampling.r_hat(values) - 1) < 0.01)


def signs(phi=0.0, n_chains=4, n_steps=4000, seed=0):
    """±1 along chains that keep their sign with probability `(1 + phi) / 2`: their
    autocorrelation is `phi**t`."""
    rng = np.random.default_rng(seed)
    flips = np.where(rng.random((n_chains, n_steps)) < (1 + phi) / 2, 1.0, -1.0)
    flips[:, 0] = np.where(rng.random(n_chains) < 0.5, 1, -1)
    return np.cumprod(flips, axis=1)


def gaussian(phi, n_chains=8, n_steps=4000, seed=0):
    """A Gaussian autoregression of order 1."""
    noise = np.random.default_rng(seed).normal(size=(n_chains, n_steps))
    noise[:, 0] /= np.sqrt(1 - phi**2)
    return lfilter([1], [1, -phi], noise)


WINDOWINGS = ["sokal", "geyer"]


@pytest.mark.quick(3)
@pytest.mark.parametrize("windowing", WINDOWINGS)
@pytest.mark.parametrize("bad", [NAN, np.inf, -np.inf])
def test_a_series_that_is_not_finite_says_so(windowing, bad):
    values = np.stack([signs(), signs(seed=1)], axis=-1)
    values[2, 700, 0] = bad
    found = sampling.autocorrelation_time(jnp.asarray(values), windowing=windowing)
    assert found.status.tolist() == [3, 0] and not found.ok
    assert found.value[0] == found.error[0] == np.inf
    assert found.effective_samples[0] == 0
    assert "1 not finite" in str(found)
    assert sampling.r_hat(values)[0] == np.inf and sampling.r_hat(values)[1] < 1.01
    with pytest.raises(eqx.EquinoxRuntimeError, match="not finite, or too large to be"):
        jax.block_until_ready(sampling.autocovariance(jnp.asarray(values)))


@pytest.mark.quick(5)
@pytest.mark.parametrize("windowing", WINDOWINGS)
@pytest.mark.parametrize("size", [1e200, 1e-170, 1.7e308, 3e-308])
def test_values_of_any_size(windowing, size):
    # By a power of two next to the size, which is exact.
    scale = 2.0 ** np.floor(np.log2(size))
    values = signs(0.5)
    found = sampling.autocorrelation_time(scale * values, windowing=windowing)
    same = sampling.autocorrelation_time(values, windowing=windowing)
    for name in ("value", "error", "lags", "status"):
        assert getattr(found, name) == getattr(same, name)
    assert abs(found.value - 3) < SIGMAS * found.error and found.ok
    assert sampling.r_hat(scale * values) == sampling.r_hat(values)
    if size > 1e154:
        with pytest.raises(eqx.EquinoxRuntimeError, match="too large to be squared"):
            jax.block_until_ready(sampling.autocovariance(scale * values))


def test_autocovariance_of_small_and_large_values():
    values = signs(0.5)
    found = sampling.autocovariance(2.0**500 * values)
    assert np.array_equal(found, 2.0**1000 * sampling.autocovariance(values))


@pytest.mark.parametrize("windowing", WINDOWINGS)
@pytest.mark.parametrize("make", [signs, gaussian])
@pytest.mark.parametrize("phi", [-0.9, -0.6, -0.2])
def test_anticorrelated_series(phi, make, windowing):
    values, exact = make(phi, 64), (1 + phi) / (1 - phi)
    found = sampling.autocorrelation_time(values, windowing=windowing)
    assert found.ok
    assert abs(found.value - exact) < SIGMAS * found.error
    # A negative control: what a window of one lag would say is far away.
    assert abs(found.value - max(1 + 2 * phi, 0)) > SIGMAS * found.error
    assert found.effective_samples <= values.size * np.log10(values.size) * (1 + 1e-9)


@pytest.mark.parametrize("windowing", WINDOWINGS)
def test_errors_of_anticorrelated_series_are_as_large_as_they_say(windowing):
    z = []
    for seed in range(40):
        found = sampling.autocorrelation_time(
            gaussian(-0.9, seed=seed), windowing=windowing
        )
        z.append(float((found.value - 1 / 19) / found.error))
    # Geyer's rule stops soon and lets nothing increase: a bias of two errors. 40 draws
    # tell a deviation of one to 11 %.
    assert abs(np.mean(z)) < (2 if windowing == "geyer" else SIGMAS / np.sqrt(40))
    assert 0.6 < np.std(z) < 1.4


def test_anticorrelated_chains_that_are_short_are_not_resolved():
    # Long for a time of 0.05, and short for what the window has to outlast.
    found = sampling.autocorrelation_time(gaussian(-0.9, 256, 600))
    assert found.status == 4 and found.value == np.inf
    short = sampling.autocorrelation_time(gaussian(-0.9, 256, 850))
    assert short.value < 0.1 and short.error < short.value / 5 and short.status == 2
    assert sampling.autocorrelation_time(gaussian(-0.9, 256, 1500)).ok


@pytest.mark.parametrize("windowing", WINDOWINGS)
def test_a_series_that_oscillates(windowing):
    # The eigenvalues are ±0.9i: ρ is zero at odd lags, and so is a sum that stops soon.
    noise = np.random.default_rng(0).normal(size=(64, 4000))
    values = lfilter([1], [1, 0, 0.81], noise)[:, 200:]
    found = sampling.autocorrelation_time(values, windowing=windowing)
    exact = (1 - 0.81) / (1 + 0.81)
    right = abs(found.value - exact) < SIGMAS * found.error
    # The chain is not reversible, which Geyer's rule asks for.
    assert right if windowing == "sokal" else right or not found.ok


def test_errors_of_a_series_that_oscillates_have_what_leaks_in():
    z = []
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(size=(4, 4200))
        values = lfilter([1], [1, 0, 0.9], noise)[:, 200:]
        found = sampling.autocorrelation_time(values)
        z.append(float((found.value - 0.1 / 1.9) / found.error))
    assert abs(np.mean(z)) < SIGMAS / np.sqrt(40)
    assert 0.5 < np.std(z) < 1.5


def test_alternation_is_not_resolved():
    values = np.tile([1.0, -1.0], (3, 1000))
    for windowing in WINDOWINGS:
        found = sampling.autocorrelation_time(values, windowing=windowing)
        assert not found.ok
        assert 0 <= found.effective_samples <= 6000 * np.log10(6000) * (1 + 1e-9)


def test_windows_of_positive_series_are_those_of_sokal():
    for phi in (0.3, 0.7, 0.9, 0.98):
        values = signs(phi, 8, 20_000)
        covariance = np.mean(np.asarray(sampling.autocovariance(values)), axis=0)
        rho = covariance / covariance[0]
        window = int(emcee.autocorr.auto_window(2 * np.cumsum(rho) - 1, 5))
        found = sampling.autocorrelation_time(values)
        assert found.lags == window
        value = 2 * np.sum(rho[:window]) - 1 + rho[window]
        assert_close(found.value, value, IDENTITY)
        error = value * np.sqrt(2 * (2 * window + 1) / values.size)
        assert_close(found.error, error, IDENTITY)


CONSTANTS = [1.0, 0.1, -0.3, 1e300, 1e-300, 0.0]


@pytest.mark.quick(1)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_steps", [1000, 1001, 1024])
def test_a_constant(n_steps, dtype):
    for constant in CONSTANTS[: 3 if dtype == np.float32 else None]:
        values = np.full((4, n_steps), constant, dtype)
        assert sampling.r_hat(values) == 1
        # But for rounding, of what a function of the same state gives elsewhere.
        rounded = values.copy()
        rounded[1::2, ::3] *= 1 + 2 * np.finfo(dtype).eps
        assert sampling.r_hat(rounded) == 1
        for series in (values, rounded):
            for windowing in WINDOWINGS:
                still = sampling.autocorrelation_time(series, windowing=windowing)
                assert still.status == 4 and still.value == np.inf
        # Stuck at different values, in one chain or from one half to the next.
        stuck = values.copy()
        stuck[1] += dtype(0.5) * constant if constant else 1
        assert sampling.r_hat(stuck) == np.inf
        late = values.copy()
        late[:, n_steps // 2 :] += dtype(0.5) * constant if constant else 1
        # An odd number of steps leaves the one in the middle out.
        assert sampling.r_hat(late) == np.inf
        # One that moves is enough for a number.
        some = values.copy()
        some[0] += (dtype(0.5) * constant if constant else 1) * signs()[0, :n_steps]
        assert 0.99 < sampling.r_hat(some) < np.inf


def test_a_first_half_that_does_not_move_is_not_resolved():
    values = signs(n_steps=8000)
    values[:, :4000] = 1
    assert not sampling.autocorrelation_time(values).ok


@pytest.mark.parametrize("windowing", WINDOWINGS)
def test_halves_that_disagree_are_not_resolved(windowing):
    slow = signs(0.8, 8, 20_000)
    assert sampling.autocorrelation_time(slow, windowing=windowing).ok
    slow[:, :10_000] = signs(0, 8, 10_000, seed=1)
    found = sampling.autocorrelation_time(slow, windowing=windowing)
    assert found.status == 1


def test_values_of_other_types(as_for_users):
    values = signs(0.5)
    expected = sampling.autocorrelation_time(values).value
    for other in (values > 0, values.astype(int), values.tolist()):
        assert_close(sampling.autocorrelation_time(other).value, expected, IDENTITY)
    half = jnp.asarray(values, jnp.bfloat16)
    assert_close(sampling.autocorrelation_time(half).value, expected, 1e-5)
    with pytest.raises(ValueError, match="Values are real, but .* complex"):
        sampling.r_hat(1j * values)


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
