"""`T_O` from a trajectory, and its intervals."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, KERNELS, SIGMAS, assert_close, rbm
from scipy.signal import lfilter

import trainq as tq
from trainq import sampling


MODEL = rbm(3, 2)
TRIALS = 60


@pytest.mark.slow
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


# T_O of the two is ½ Var (τ + 1).
SPIN = tq.BoltzmannMachine(jnp.zeros((1, 1)), jnp.array([0.05]))


def flipping(seed=0, n_chains=64, n_steps=4000):
    kernel = KERNELS["metropolis"]
    state = sampling.start_chains(jr.key(seed), SPIN, n_chains)
    state = sampling.run(kernel, SPIN, state, 100).state
    return sampling.run(kernel, SPIN, state, n_steps, keep=True).values


@pytest.mark.slow
def test_t_o_of_a_chain_that_alternates():
    exact = tq.QStruct(KERNELS["metropolis"], 100)(SPIN, jnp.full(2, 0.5)).t_o
    assert_close(exact, 0.5236689238287197, DIRECT)
    # An interval of 95 % at a time.
    hits = 0
    for seed in range(8):
        found = sampling.sampled_time(flipping(seed))
        assert found.resolved
        assert abs(found.t_o - exact) < SIGMAS * found.t_o_error
        low, high = found.interval()
        hits += bool(low < exact < high)
    assert hits >= 6
    values = flipping()
    for windowing in ("sokal", "geyer"):
        time = sampling.autocorrelation_time(values, windowing=windowing)
        tau = 2 * exact / (1 - np.tanh(0.05) ** 2) - 1
        assert abs(time.value[0] - tau) < SIGMAS * time.error[0]


@pytest.mark.parametrize("phi", [-0.9, -0.5, 0.0, 0.9])
def test_t_o_of_an_autoregression(phi):
    z = []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=(4, 8000, 1))
        noise[:, 0] /= np.sqrt(1 - phi**2)
        series = lfilter([1], [1, -phi], noise, axis=1)
        found = sampling.sampled_time(series, segments=16)
        assert found.resolved
        exact = 0.5 * ((1 + phi) / (1 - phi) + 1) / (1 - phi**2)
        z.append(float((found.t_o - exact) / found.t_o_error))
    # Student's t of 15 degrees of freedom.
    assert abs(np.mean(z)) < SIGMAS / np.sqrt(20)
    assert np.std(z) < 1.8


@pytest.mark.quick(1)
@pytest.mark.parametrize("scale", [2.0**300, 2.0**-300])
def test_t_o_of_values_of_any_size(scale):
    values = flipping(n_steps=1000)
    plain, found = (sampling.sampled_time(x) for x in (values, scale * values))
    assert found.resolved == plain.resolved
    assert found.t_o == scale**2 * plain.t_o
    assert found.t_o_error == scale**2 * plain.t_o_error
    assert found.variance == scale**2 * plain.variance


UNRESOLVED = {
    "nan": lambda x: x.at[1, 3, 0].set(jnp.nan),
    "inf": lambda x: x.at[1, 3, 0].set(jnp.inf),
    "too large to be squared": lambda x: 2.0**700 * x,
    "too small to be squared": lambda x: 2.0**-700 * x,
    "constant": lambda x: 0.1 + 0 * x,
    "constant, but for rounding": lambda x: 0.1 * (1 + 2e-16 * x),
    "one that does not change": lambda x: jnp.concatenate([x, 0 * x + 0.1], axis=2),
    "chains apart": lambda x: x + 9 * jnp.arange(float(x.shape[0]))[:, None, None],
    "alternating": lambda x: jnp.ones_like(x).at[:, ::2].set(-1),
}


@pytest.mark.quick(2)
@pytest.mark.parametrize("case", UNRESOLVED)
def test_t_o_that_is_not_resolved(case):
    values = flipping(n_chains=32)
    assert sampling.sampled_time(values).resolved
    found = sampling.sampled_time(UNRESOLVED[case](values))
    assert not found.resolved
    low, high = found.interval()
    assert low <= high and low >= 0
    if case.startswith("constant"):
        assert found.t_o == found.variance == 0


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_a_number_of_numpy_is_a_number(kind):
    values = jr.normal(jr.key(0), (2, 400, 2))
    found = sampling.sampled_time(values, segments=kind(10))
    assert found.segments.shape == (10,) and found.resolved


MISTAKES = {
    "There are no values: `run` keeps them only if": lambda: sampling.sampled_time(
        None
    ),
    "confidence is between 0 and 1, but 1.5": lambda: sampling.SampledTime(
        jnp.ones(8), jnp.ones(()), jnp.array(True)
    ).interval(1.5),
    "20 steps of 1 chains cannot be cut into at least 32 pieces": lambda: (
        sampling.sampled_time(jnp.ones((1, 20, 2)))
    ),
    r"but \(20, 2\) was given. For one chain add an axis": lambda: (
        sampling.sampled_time(jnp.ones((20, 2)))
    ),
    "segments is a whole number, at least 8, but 4": lambda: sampling.sampled_time(
        jnp.ones((4, 100, 2)), segments=4
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(message, as_for_users):
    with pytest.raises(ValueError, match=message):
        MISTAKES[message]()
