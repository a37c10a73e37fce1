"""The sampled signal-to-noise against the exact one, and its intervals."""

import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest
from helpers import DIRECT, KERNELS, SIGMAS, assert_close, random_law, rbm

import trainq as tq
from trainq import sampling
from trainq._spins import spins
from trainq.sampling._qsampled import data_phase


MODEL, DATA = rbm(3, 2), random_law(3)
TRIALS = 60


@pytest.mark.parametrize("start", ["uniform", "data", "stationary"])
def test_the_error_is_that_of_the_exact_rung(start):
    kernel, plan = KERNELS["random"], (20, 5, start, 2)
    exact = tq.QOperational(kernel, *plan, batch=30)(MODEL, DATA)
    sampled = sampling.QSampled(kernel, *plan, batch=30, replicates=2000)
    found = sampled(jr.key(1), MODEL, DATA)
    assert found.knows_bias
    assert abs(found.mse - exact.mse) < SIGMAS * found.mse_error
    assert_close(found.signal, exact.signal, DIRECT)
    # A negative control: half of the window is another number.
    half = tq.QOperational(kernel, 10, 5, start, 2, batch=30)(MODEL, DATA)
    assert abs(found.mse - half.mse) > SIGMAS * found.mse_error


@pytest.mark.parametrize("known", [True, False])
def test_intervals_cover_as_often_as_they_say(known):
    kernel = KERNELS["palindromic"]
    sampled = sampling.QSampled(kernel, 20, start="stationary", replicates=32)
    q = tq.QOperational(kernel, 20)(MODEL, DATA).q
    gradient = tq.kl_gradient(DATA, MODEL) if known else "sampled"
    hits = 0
    for key in jr.split(jr.key(2), TRIALS):
        low, high = sampled(key, MODEL, DATA, gradient=gradient).interval(0.9)
        hits += bool(low <= q <= high)
    # Binomial: 54 on average, with a standard deviation of 2.3.
    assert abs(hits - 0.9 * TRIALS) < SIGMAS * np.sqrt(TRIALS * 0.09)


def test_intervals_of_t_o_cover_too():
    kernel = KERNELS["alternating"]
    chain, f = kernel.chain(MODEL), tq.observables(MODEL)
    exact = tq.markov.resolvent_trace(chain, f)
    state = sampling.start_chains(jr.key(3), MODEL, TRIALS)
    state = sampling.run(kernel, MODEL, state, 100).state
    values = sampling.run(kernel, MODEL, state, 12_000, keep=True).values
    found = [sampling.sampled_time(one[None]) for one in values]
    assert all(one.resolved for one in found)
    inside = [
        bool(low <= exact <= high) for low, high in (x.interval(0.9) for x in found)
    ]
    assert abs(sum(inside) - 0.9 * TRIALS) < SIGMAS * np.sqrt(TRIALS * 0.09)


def test_the_data_phase_of_samples():
    v = spins(3, jnp.float64)[jnp.array([0, 5, 5, 7])]
    expected = data_phase(MODEL, tq.empirical_distribution(v))
    assert_close(data_phase(MODEL, v), expected, DIRECT)
    sampled = sampling.QSampled(KERNELS["gibbs"], 5, start="data", replicates=8)
    assert np.isfinite(sampled(jr.key(0), MODEL, v).mse)


def test_the_bias_of_the_start_is_in_the_error_where_the_gradient_is_known():
    sampled = sampling.QSampled(KERNELS["gibbs"], 2, replicates=400)
    samples = spins(3, jnp.float64)[jnp.array([0, 5, 5, 7])]
    data = tq.empirical_distribution(samples)
    exact = tq.QOperational(KERNELS["gibbs"], 2, start="uniform")(MODEL, data)
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
    large = rbm(12, 10, scale=0.1)
    visible = jr.rademacher(jr.key(6), (9, 12), float)
    assert not sampled(jr.key(5), large, visible).knows_bias


def test_no_signal_is_told_from_zero():
    data = tq.visible_distribution(MODEL)
    sampled = sampling.QSampled(KERNELS["gibbs"], 5, start="stationary", replicates=8)
    keys = jr.split(jr.key(4), 6)
    found = [sampled(key, MODEL, data, gradient="sampled") for key in keys]
    negative = [one for one in found if one.signal <= 0]
    assert negative
    for one in negative:
        assert one.log_q_error == np.inf
        assert one.interval().tolist() == [0, np.inf]


MISTAKES = {
    "at least 8 replicates, but 2": lambda: sampling.QSampled(
        KERNELS["gibbs"], 5, replicates=2
    ),
    "but 'cold' was given": lambda: sampling.QSampled(
        KERNELS["gibbs"], 5, start="cold"
    ),
    r"samples of shape \(samples, 3\), but \(4, 2\) was": lambda: sampling.QSampled(
        KERNELS["gibbs"], 5
    )(jr.key(0), MODEL, jnp.ones((4, 2))),
    "at most 20 units, but there are 22": lambda: sampling.QSampled(
        KERNELS["gibbs"], 5, start="stationary"
    )(jr.key(0), rbm(11, 11), jnp.ones((4, 11))),
    "or None, but 'exakt' was given": lambda: sampling.QSampled(KERNELS["gibbs"], 5)(
        jr.key(0), MODEL, DATA, gradient="exakt"
    ),
    "have shape .chains, steps, n_obs., as .* but None was": lambda: (
        sampling.sampled_time(None)
    ),
    r"For one sample add an axis: `data\[None\]`": lambda: sampling.QSampled(
        KERNELS["gibbs"], 5
    )(jr.key(0), MODEL, jnp.ones(3)),
    "confidence is between 0 and 1, but 1.5": lambda: sampling.SampledTime(
        jnp.ones(8), jnp.ones(()), jnp.array(True)
    ).interval(1.5),
    "cannot be cut into at least 8 pieces": lambda: sampling.sampled_time(
        jnp.ones((1, 20, 2))
    ),
    "n_chains is at least 1, but 0": lambda: sampling.start_chains(jr.key(0), MODEL, 0),
    r"x has shape \(2, 5\), one state for each chain": lambda: sampling.start_chains(
        jr.key(0), MODEL, 2, jnp.ones((3, 5))
    ),
    "n_steps is a positive multiple of every": lambda: sampling.run(
        KERNELS["gibbs"], MODEL, sampling.start_chains(jr.key(0), MODEL, 2), 5, every=2
    ),
    "chains with 5 units, but the model has 4": lambda: sampling.run(
        KERNELS["gibbs"], rbm(2, 2), sampling.start_chains(jr.key(0), MODEL, 2), 5
    ),
    "chunk is a positive multiple of every = 2, but 3": lambda: sampling.run(
        KERNELS["gibbs"],
        MODEL,
        sampling.start_chains(jr.key(0), MODEL, 2),
        6,
        every=2,
        chunk=3,
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(message, monkeypatch):
    # Users have no run-time type checks, which would be the first to complain.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        MISTAKES[message]()
