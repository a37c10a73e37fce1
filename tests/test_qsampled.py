"""The sampled signal-to-noise against the exact one, and its intervals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    SIGMAS,
    STARTS,
    assert_close,
    random_law,
    rbm,
)

import trainq as tq
from trainq import sampling
from trainq._spins import spins
from trainq.models import data_phase
from trainq.sampling._qsampled import signal_and_errors


MODEL, DATA = rbm(3, 2), random_law(3)
TRIALS = 60


@pytest.mark.quick(1)
@pytest.mark.parametrize("start", ["uniform", "data", "stationary"])
def test_the_error_is_that_of_the_exact_rung(start):
    kernel, plan = KERNELS["random"], (20, 5, STARTS[start], 2)
    exact = tq.QOperational(kernel, *plan, batch=30)(MODEL, DATA)
    sampled = sampling.QSampled(kernel, *plan, batch=30, replicates=2000)
    found = sampled(jr.key(1), MODEL, DATA)
    assert found.knows_bias
    assert abs(found.mse - exact.mse) < SIGMAS * found.mse_error
    assert_close(found.signal, exact.signal, DIRECT)
    # A negative control: half of the window is another number.
    half = tq.QOperational(kernel, 10, 5, STARTS[start], 2, batch=30)(MODEL, DATA)
    assert abs(found.mse - half.mse) > SIGMAS * found.mse_error


@pytest.mark.quick(1)
@pytest.mark.parametrize("known", [True, False])
def test_intervals_cover_as_often_as_they_say(known):
    kernel = KERNELS["palindromic"]
    sampled = sampling.QSampled(kernel, 20, start=tq.Stationary(), replicates=32)
    q = tq.QOperational(kernel, 20, start=tq.Stationary())(MODEL, DATA).q
    gradient = tq.kl_gradient(MODEL, DATA) if known else "sampled"
    hits = 0
    for key in jr.split(jr.key(2), TRIALS):
        low, high = sampled(key, MODEL, DATA, gradient=gradient).interval(0.9)
        hits += bool(low <= q <= high)
    # Binomial: 54 on average, with a standard deviation of 2.3.
    assert abs(hits - 0.9 * TRIALS) < SIGMAS * np.sqrt(TRIALS * 0.09)


def test_samples_for_data():
    v = spins(3, jnp.float64)[jnp.array([0, 5, 5, 7])]
    sampled = sampling.QSampled(KERNELS["gibbs"], 5, start=tq.FromData(), replicates=8)
    assert np.isfinite(sampled(jr.key(0), MODEL, v).mse)


@pytest.mark.slow
def test_the_bias_of_the_start_is_in_the_error_where_the_gradient_is_known():
    sampled = sampling.QSampled(KERNELS["gibbs"], 2, replicates=400)
    samples = spins(3, jnp.float64)[jnp.array([0, 5, 5, 7])]
    data = tq.empirical_distribution(samples)
    exact = tq.QOperational(KERNELS["gibbs"], 2)(MODEL, data)
    assert exact.bias2 > 0.1 * exact.mse
    for one in (data, samples):
        found = sampled(jr.key(5), MODEL, one)
        assert found.knows_bias
        assert abs(found.mse - exact.mse) < SIGMAS * found.mse_error
    unknown = sampled(jr.key(5), MODEL, data, gradient="sampled")
    assert not unknown.knows_bias and "bias of the start left out" in str(unknown)
    assert abs(unknown.mse - exact.variance) < SIGMAS * unknown.mse_error
    assert unknown.mse < exact.mse - SIGMAS * unknown.mse_error
    # Too many units to enumerate: the mean of the replicates has to do.
    large = rbm(22, 21, scale=0.1)
    visible = jr.rademacher(jr.key(6), (9, 22), float)
    assert not sampled(jr.key(5), large, visible).knows_bias


def test_no_signal_is_told_from_zero():
    data = tq.visible_distribution(MODEL)
    sampled = sampling.QSampled(
        KERNELS["gibbs"], 5, start=tq.Stationary(), replicates=8
    )
    keys = jr.split(jr.key(4), 6)
    found = [sampled(key, MODEL, data, gradient="sampled") for key in keys]
    negative = [one for one in found if one.signal <= 0]
    assert negative
    assert len(negative) < len(found)
    for one in negative:
        assert one.q == 0 and one.log_q == -np.inf and "Q = 0:" in str(one)
        assert one.log_q_error == np.inf
        assert one.interval().tolist() == [0, np.inf]


def test_no_noise_and_no_signal():
    def snr(signal, *squares):
        return sampling.SampledSNR(
            estimated_signal=jnp.asarray(signal),
            signal_error=jnp.zeros(()),
            squared_error=jnp.asarray(squares),
            window=5,
            n_chains=1,
            knows_bias=True,
        )

    silent = snr(-1e-3, *[0.0] * 8)
    assert silent.q == 0 and silent.log_q_error == np.inf
    # All replicates are right: nothing tells how far they are from being wrong.
    sure = snr(1.0, *[0.0] * 8)
    assert sure.q == np.inf and sure.log_q_error == np.inf
    assert sure.interval().tolist() == [0, np.inf]
    some = snr(2.0, *[0.5, 1.5] * 4)
    assert some.q == 2 and 0 < some.interval()[0] < 2 < some.interval()[1] < np.inf


def test_the_jackknife_is_what_the_others_say():
    n = 9
    size = tq.observables(MODEL).shape[1]
    means = np.asarray(jr.normal(jr.key(0), (n, size))) + 1
    estimates = np.asarray(data_phase(MODEL, DATA)) - means
    found_signal, error, squares = signal_and_errors(jnp.asarray(estimates), None)

    def signal(x):
        noise = np.sum(np.var(x, axis=0, ddof=1)) / len(x)
        return np.sum(x.mean(axis=0) ** 2) - noise

    assert_close(found_signal, signal(estimates), IDENTITY)
    assert_close(squares.mean(), np.sum(np.var(estimates, axis=0, ddof=1)), IDENTITY)
    others = [signal(np.delete(estimates, i, axis=0)) for i in range(n)]
    assert_close(error, np.sqrt((n - 1) * np.var(others)), IDENTITY)
    # Errors of each replicate, n / (n - 1) times its distance from their mean.
    far = np.sum((estimates - estimates.mean(axis=0)) ** 2, axis=1)
    assert_close(squares, far * n / (n - 1), IDENTITY)


@pytest.mark.parametrize("kind", [list, np.float32, jnp.asarray])
def test_a_gradient_that_is_given(kind):
    sampled = sampling.QSampled(KERNELS["gibbs"], 5, replicates=8)
    exact = tq.kl_gradient(MODEL, DATA)
    right = sampled(jr.key(0), MODEL, DATA)
    given = exact.tolist() if kind is list else kind(exact)
    found = sampled(jr.key(0), MODEL, DATA, gradient=given)
    assert_close(found.q, right.q, 1e-6 if kind is np.float32 else IDENTITY)
    assert found.knows_bias


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite(bad):
    sampled = sampling.QSampled(KERNELS["gibbs"], 5, replicates=8)
    gradient = tq.kl_gradient(MODEL, DATA).at[2].set(bad)
    with pytest.raises(eqx.EquinoxRuntimeError, match="gradient is not finite"):
        jax.block_until_ready(sampled(jr.key(0), MODEL, DATA, gradient=gradient))


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_numbers_of_numpy_are_numbers(kind):
    numbers = {"window": 200, "burn_in": 3, "n_chains": 2, "batch": 20, "replicates": 8}
    given = {name: kind(n) for name, n in numbers.items()}
    sampled = sampling.QSampled(KERNELS["gibbs"], **given)
    assert {name: getattr(sampled, name) for name in numbers} == numbers
    assert all(type(getattr(sampled, name)) is int for name in numbers)
    plain = sampling.QSampled(KERNELS["gibbs"], **numbers)
    same, other = (one(jr.key(0), MODEL, DATA).q for one in (sampled, plain))
    assert same == other


MISTAKES = {
    "replicates is a whole number, at least 8, but 2": lambda: sampling.QSampled(
        KERNELS["gibbs"], 5, replicates=2
    ),
    r"samples of shape \(samples, 3\), but \(4, 2\) was": lambda: sampling.QSampled(
        KERNELS["gibbs"], 5
    )(jr.key(0), MODEL, jnp.ones((4, 2))),
    "of 21 units: .* at most 20 units": lambda: sampling.QSampled(
        KERNELS["gibbs"], 5, start=tq.Stationary()
    )(jr.key(0), rbm(21, 21), jnp.ones((4, 21))),
    "or None, but 'exakt' was given": lambda: sampling.QSampled(KERNELS["gibbs"], 5)(
        jr.key(0), MODEL, DATA, gradient="exakt"
    ),
    r"For one sample add an axis: `data\[None\]`": lambda: sampling.QSampled(
        KERNELS["gibbs"], 5
    )(jr.key(0), MODEL, jnp.ones(3)),
    r"x has shape \(n_chains, n_units\), but \(5,\)": lambda: sampling.ChainState.begin(
        jnp.ones(5), jr.key(0)
    ),
    "chains with 5 units, but the model has 4": lambda: sampling.run(
        KERNELS["gibbs"], rbm(2, 2), sampling.start_chains(jr.key(0), MODEL, 2), 5
    ),
    "window is a whole number of kernel steps, at least 1, but 5.0": lambda: (
        sampling.QSampled(KERNELS["gibbs"], 5.0)
    ),
    "burn_in is a whole number of kernel steps, at least 0, but -1": lambda: (
        sampling.QSampled(KERNELS["gibbs"], 5, -1)
    ),
    "n_chains is a whole number, at least 1, but 0": lambda: sampling.QSampled(
        KERNELS["gibbs"], 5, n_chains=0
    ),
    "batch is a whole number, at least 1, but 1.5": lambda: sampling.QSampled(
        KERNELS["gibbs"], 5, batch=1.5
    ),
    **{
        rf"gradient has shape \(11,\), one float .* {given}": (
            lambda make=make: sampling.QSampled(KERNELS["gibbs"], 5)(
                jr.key(0), rbm(3, 2, biased=True), DATA, gradient=make
            )
        )
        for given, make in [
            (r"shape \(1,\)", np.ones(1)),
            (r"shape \(\)", 1.0),
            (r"shape \(64, 11\)", np.ones((64, 11))),
            (r"shape \(10,\)", [0.5] * 10),
            ("dtype bool", np.ones(11, bool)),
            ("dtype complex", np.ones(11, complex)),
        ]
    },
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(message, monkeypatch):
    # Users have no run-time type checks, which would be the first to complain.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        MISTAKES[message]()
