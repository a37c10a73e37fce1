"""Runs of chains: moments, values, going on, and their law."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, IDENTITY, KERNELS, SIGMAS, assert_close, rbm
from rich.progress import Progress

import trainq as tq
from trainq import sampling


MODEL = rbm(3, 2, biased=True)


def start(n_chains=4, seed=0):
    return sampling.start_chains(jr.key(seed), MODEL, n_chains)


@pytest.mark.parametrize("name", KERNELS)
def test_moments_are_those_of_the_values(name):
    run = sampling.run(KERNELS[name], MODEL, start(), 50, keep=True)
    assert run.values.shape == (4, 50, 11)
    assert_close(run.moments.mean, np.mean(run.values, axis=1), IDENTITY)
    assert_close(run.moments.variance, np.var(run.values, axis=1), IDENTITY)
    assert run.state.step == 50 and run.moments.count == 50


def test_chunks_and_going_on_change_nothing():
    kernel = KERNELS["gibbs"]
    whole = sampling.run(kernel, MODEL, start(), 60, keep=True, every=2)
    parts = sampling.run(kernel, MODEL, start(), 60, keep=True, every=2, chunk=14)
    first = sampling.run(kernel, MODEL, start(), 20, keep=True, every=2)
    rest = sampling.run(
        kernel, MODEL, first.state, 40, keep=True, every=2, moments=first.moments
    )
    assert np.array_equal(parts.values, whole.values)
    both = np.concatenate([first.values, rest.values], axis=1)
    assert np.array_equal(both, whole.values)
    assert np.array_equal(rest.state.x, whole.state.x)
    assert_close(rest.moments.mean, whole.moments.mean, IDENTITY)


def test_the_first_record_is_the_state_given():
    x = jnp.array([1, -1, 1, 1, -1])
    state = sampling.start_chains(jr.key(0), MODEL, 3, x)
    assert state.x.shape == (3, 5) and state.n_chains == 3
    run = sampling.run(
        KERNELS["random"], MODEL, state, 2, functions=lambda x: x, keep=True
    )
    assert np.array_equal(run.values[:, 0], np.tile(x, (3, 1)))


def test_means_are_the_exact_ones_and_those_of_another_model_are_not():
    kernel, n = KERNELS["alternating"], 4000
    state = sampling.run(kernel, MODEL, start(64), 50).state
    found = sampling.run(kernel, MODEL, state, n).moments.mean
    chain, f = kernel.chain(MODEL), tq.observables(MODEL)
    noise = jnp.diag(tq.markov.asymptotic_covariance(chain, f))
    error = jnp.sqrt(noise / (64 * n))
    exact = tq.mean_observables(MODEL)
    assert np.all(np.abs(found.mean(axis=0) - exact) < SIGMAS * error)
    hot = tq.mean_observables(MODEL.tempered(0.9))
    assert np.any(np.abs(found.mean(axis=0) - hot) > SIGMAS * error)


def test_a_state_is_saved_and_loaded(tmp_path):
    run = sampling.run(KERNELS["gibbs"], MODEL, start(), 10)
    eqx.tree_serialise_leaves(tmp_path / "state.eqx", run.state)
    loaded = eqx.tree_deserialise_leaves(tmp_path / "state.eqx", start(seed=1))
    again, more = (
        sampling.run(KERNELS["gibbs"], MODEL, state, 5).state.x
        for state in (loaded, run.state)
    )
    assert np.array_equal(again, more)


def test_progress_is_shown(monkeypatch):
    moved = []
    monkeypatch.setattr(Progress, "advance", lambda _, task, n: moved.append(n))
    sampling.run(KERNELS["gibbs"], MODEL, start(), 12, progress=True, chunk=5)
    assert moved == [5, 5, 2]


def test_free_energies_of_some_states():
    for model in (MODEL, tq.BoltzmannMachine(jnp.ones((4, 4)) - jnp.eye(4), None, 3)):
        v = jnp.array([[1.0, -1, 1], [-1, -1, 1]])
        found = model.free_energy(v)
        assert_close(found, tq.free_energy(model)[jnp.array([5, 1])], DIRECT)


@pytest.mark.parametrize("functions", [jnp.sum, lambda x: jnp.sum(x, axis=1)])
def test_functions_return_a_value_for_each_chain(functions):
    model = rbm(2, 2)
    state = sampling.start_chains(jr.key(0), model, 3)
    with pytest.raises(ValueError, match=r"of shape \(chains, n_obs\).* it returned"):
        sampling.run(KERNELS["gibbs"], model, state, 2, functions=functions)
