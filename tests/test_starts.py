"""Starts: laws and draws agree, and one of a user's own goes everywhere."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    MODELS,
    SIGMAS,
    assert_close,
    excess,
    neural,
    random_law,
    rbm,
)

import trainq as tq
from trainq import sampling
from trainq._spins import spins, state_index
from trainq.models import AbstractStart, initial_law, initial_states


MODEL, DATA = rbm(3, 2, biased=True), random_law(3)
SAMPLES = spins(3, jnp.float64)[jnp.array([0, 5, 5, 7])]


class Tilted(AbstractStart):
    """A start of a user's own: independent units, up with probability `σ(field)`."""

    field: jax.Array

    def law(self, model, data=None):
        x = spins(model.n_units, model.dtype)
        return jnp.prod(jax.nn.sigmoid(self.field * x), axis=1)

    def draw(self, key, model, data, n_chains):
        shape = (n_chains, model.n_units)
        up = jr.bernoulli(key, jax.nn.sigmoid(self.field), shape)
        return 2 * up.astype(model.dtype) - 1


OWN = Tilted(jnp.array(-2.0))
STARTS = {
    "uniform": tq.Uniform(),
    "stationary": tq.Stationary(),
    "data": tq.FromData(),
    "at": tq.At(np.array([1, -1, 1, 1, -1])),
    "law": tq.Law(random_law(5, seed=1)),
    "own": OWN,
}


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("data", [DATA, SAMPLES], ids=["law", "samples"])
def test_draws_follow_the_law(name, data):
    start = STARTS[name]
    law = initial_law(start, MODEL, data)
    assert_close(jnp.sum(law), 1.0, IDENTITY)
    x = initial_states(jr.key(0), start, MODEL, data, 40_000)
    counts = np.bincount(np.asarray(state_index(x)), minlength=32)
    assert abs(excess(counts, np.asarray(law))) < SIGMAS
    # A negative control: no other start has this law.
    for other, one in STARTS.items():
        if other != name:
            law = np.asarray(initial_law(one, MODEL, data))
            assert excess(counts, (law + 1e-6) / (1 + 32e-6)) > 50


def test_laws_are_what_they_say():
    assert_close(tq.Stationary().law(MODEL), np.exp(tq.log_stationary(MODEL)), IDENTITY)
    assert_close(tq.Uniform().law(MODEL), np.full(32, 1 / 32), IDENTITY)
    at = STARTS["at"].law(MODEL)
    assert at.sum() == 1 and state_index(STARTS["at"].state) == jnp.argmax(at)
    # Visible units from the data, and hidden ones given these.
    joint = tq.FromData().law(MODEL, DATA).reshape(8, 4)
    assert_close(joint.sum(axis=1), DATA, IDENTITY)
    given = np.exp(tq.log_stationary(MODEL)).reshape(8, 4)
    expected = given / given.sum(axis=1, keepdims=True)
    assert_close(joint / joint.sum(axis=1, keepdims=True), expected, DIRECT)
    of_samples = tq.FromData().law(MODEL, SAMPLES)
    law = tq.empirical_distribution(SAMPLES)
    assert_close(of_samples, tq.FromData().law(MODEL, law), IDENTITY)


@pytest.mark.parametrize("name", ["visible machine 4", "neural 3+2"])
def test_data_and_any_model(name):
    model = MODELS[name]
    data = random_law(model.n_visible)
    law = initial_law(tq.FromData(), model, data)
    assert_close(law.reshape(data.size, -1).sum(axis=1), data, DIRECT)
    x = initial_states(jr.key(0), tq.FromData(), model, data, 40_000)
    counts = np.bincount(np.asarray(state_index(x)), minlength=law.size)
    assert abs(excess(counts, np.asarray(law))) < SIGMAS


@pytest.mark.slow
def test_a_start_of_ones_own_goes_everywhere(key):
    kernel, plan = KERNELS["alternating"], (6, 2, OWN, 2)
    exact = tq.QOperational(kernel, *plan)(MODEL, DATA)
    by_law = tq.QOperational(kernel, 6, 2, tq.Law(OWN.law(MODEL)), 2)(MODEL, DATA)
    assert_close(exact.mse, by_law.mse, DIRECT)
    assert exact.bias2 > 0
    sampled = sampling.QSampled(kernel, *plan, replicates=2000)(key, MODEL, DATA)
    assert abs(sampled.mse - exact.mse) < SIGMAS * sampled.mse_error
    table = sampling.exact_errors(kernel, MODEL, DATA, start=OWN, max_steps=8)
    (entry,) = np.flatnonzero((table.burn_in == 1) & (table.window == 6))
    exact = tq.QOperational(kernel, 6, 1, OWN)(MODEL, DATA)
    assert_close(table.bias2[entry], exact.bias2, DIRECT)
    assert_close(table.variance[entry], exact.variance, DIRECT)
    calibrated = sampling.calibrated_errors(
        key, kernel, MODEL, DATA, start=OWN, max_steps=100, replicates=2000
    )
    (entry,) = np.flatnonzero((calibrated.burn_in == 0) & (calibrated.window == 1))
    # The first state alone: the error is that of 2000 of them.
    alone = tq.QOperational(kernel, 1, 0, OWN)(MODEL, DATA)
    assert_close(calibrated.bias2[entry], alone.bias2, 0.1)
    uniform = tq.QOperational(kernel, 1)(MODEL, DATA)
    assert abs(uniform.bias2 / alone.bias2 - 1) > 0.5
    state = tq.start_chains(key, MODEL, 4000, OWN)
    tilt = np.tanh(-1.0)
    assert abs(state.x.mean() - tilt) < SIGMAS * np.sqrt((1 - tilt**2) / 20_000)


def test_the_default_is_uniform_everywhere(key):
    kernel = KERNELS["gibbs"]
    assert tq.QOperational(kernel, 5).start == tq.Uniform()
    assert sampling.QSampled(kernel, 5).start == tq.Uniform()
    tables = [
        sampling.exact_errors(kernel, MODEL, DATA, max_steps=8, **start)
        for start in ({}, {"start": tq.Uniform()})
    ]
    assert np.array_equal(tables[0].bias2, tables[1].bias2) and tables[0].bias2.any()
    states = [
        tq.start_chains(key, MODEL, 50, *start).x for start in ([], [tq.Uniform()])
    ]
    assert np.array_equal(*states) and np.unique(states[0], axis=0).shape[0] > 10


def test_chains_start_where_they_are_told(key):
    for start in (tq.Stationary(), tq.FromData()):
        law = initial_law(start, MODEL, DATA)
        x = tq.start_chains(key, MODEL, 20_000, start, DATA).x
        counts = np.bincount(np.asarray(state_index(x)), minlength=32)
        assert abs(excess(counts, np.asarray(law))) < SIGMAS
    assert tq.start_chains(key, neural(3, 2), 7, tq.FromData(), SAMPLES).n_chains == 7


def test_a_start_in_a_gradient():
    def loss(field):
        q = tq.QOperational(KERNELS["gibbs"], 4, start=Tilted(field))
        return q(MODEL, DATA).log_q

    slope = jax.grad(loss)(jnp.array(0.7))
    step = 1e-4
    expected = (loss(jnp.array(0.7 + step)) - loss(jnp.array(0.7 - step))) / (2 * step)
    assert_close(slope, expected, 1e-6)


def test_a_start_keeps_its_numbers_among_the_leaves():
    q = tq.QOperational(KERNELS["gibbs"], 4, start=tq.Law(random_law(5)))
    starts = jnp.stack([random_law(5, seed) for seed in range(3)])
    many = eqx.filter_vmap(
        lambda p: eqx.tree_at(lambda q: q.start.p, q, p)(MODEL, DATA)
    )(starts)
    one = tq.QOperational(KERNELS["gibbs"], 4, start=tq.Law(starts[2]))(MODEL, DATA)
    assert_close(many.mse[2], one.mse, IDENTITY)


class Broken(AbstractStart):
    """One that returns what it must not."""

    value: float = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def law(self, model, data=None):
        return jnp.full(2**self.size, self.value)

    def draw(self, key, model, data, n_chains):
        return jnp.full((n_chains, self.size), self.value)


def test_what_a_start_returns_is_checked(as_for_users):
    q = tq.QOperational(KERNELS["gibbs"], 4, start=Broken(0.25, 2))
    with pytest.raises(ValueError, match=r"\(32,\), .* of this Broken has \(4,\)"):
        q(MODEL, DATA)
    q = tq.QOperational(KERNELS["gibbs"], 4, start=Broken(0.5, 5))
    with pytest.raises(eqx.EquinoxRuntimeError, match="start is not a law"):
        jax.block_until_ready(q(MODEL, DATA))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 5\)"):
        tq.start_chains(jr.key(0), MODEL, 3, Broken(1.0, 2))
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"Spins are -1 or \+1"):
        jax.block_until_ready(tq.start_chains(jr.key(0), MODEL, 3, Broken(0.5, 5)).x)
