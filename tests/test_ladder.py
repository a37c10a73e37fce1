"""Ladders of temperatures: closed forms, and the exact acceptance of each rung."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import (
    DIFFERENCES,
    DIRECT,
    IDENTITY,
    MODELS,
    assert_close,
    energies,
    neural,
    rbm,
    slow_except,
)
from scipy.special import erfc

import trainq as tq
from trainq import markov


BETAS = (1.0, 0.6, 0.25, 0.0)


def independent(n, field):
    return tq.BoltzmannMachine(jnp.zeros((n, n)), jnp.full(n, field), n)


def gudermann(x):
    return 2 * np.arctan(np.tanh(x / 2))


def brute(e, cold, hot):
    """The acceptance, pair by pair."""
    p, q = oracle.law(cold * e), oracle.law(hot * e)
    change = (cold - hot) * (e[:, None] - e[None, :])
    return p @ np.minimum(1, np.exp(np.minimum(change, 0))) @ q


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "name", slow_except(MODELS, "rbm 2x2", "biased machine 3+2", "neural 3+2")
)
def test_acceptance_and_variance_are_those_of_all_pairs(name):
    model = MODELS[name]
    e = energies(model)
    pairs = zip(BETAS[:-1], BETAS[1:], strict=True)
    expected = [brute(e, cold, hot) for cold, hot in pairs]
    assert_close(markov.swap_acceptance(model, BETAS), np.array(expected), IDENTITY)
    for beta in BETAS:
        p = oracle.law(beta * e)
        variance = p @ (e - p @ e) ** 2
        assert_close(markov.energy_variance(model, beta), variance, DIRECT)


def test_a_swap_that_is_hardly_ever_accepted_is_known_to_all_digits():
    # Two energies, 0 and 60, each of one state: π(cold is up) and π(hot is down).
    model = independent(1, 30.0)
    up, down = (1 / (1 + np.exp(s * 60.0)) for s in (1, -1))
    expected = 2 * up * 0.5 + down * 0.5 + up * 0.5
    assert_close(markov.swap_acceptance(model, [1.0, 0.0])[0], expected, IDENTITY)
    cold = independent(12, 30.0)
    rare = markov.swap_acceptance(cold, [1.0, 0.0])[0]
    assert_close(rare, 2.0**-12, 1e-9)  # the hot one happens to be in the cold state


def test_the_derivative_of_an_acceptance():
    weights = rbm(2, 2).weights

    def acceptance(weights, beta):
        betas = jnp.array([1.0, 0.0]) + jnp.array([0.0, 1.0]) * beta
        return markov.swap_acceptance(tq.RBM(weights), betas)[0]

    at = jnp.asarray(0.4)
    by_weights, by_beta = jax.grad(acceptance, (0, 1))(weights, at)
    h = 1e-5
    slope = (acceptance(weights, at + h) - acceptance(weights, at - h)) / (2 * h)
    assert_close(by_beta, slope, DIFFERENCES)
    step = jnp.zeros((2, 2)).at[0, 1].set(h)
    ends = [acceptance(weights + s * step, at) for s in (1, -1)]
    assert_close(by_weights[0, 1], (ends[0] - ends[1]) / (2 * h), DIFFERENCES)


def test_the_ladder_of_independent_spins():
    # C = n h² / cosh²(βh), so that the length is √n gd(βh).
    n, field, lowest = 13, 1.3, 0.1
    model = independent(n, field)
    ladder = markov.ladder(model, lowest, n_replicas=5)

    def length(beta):
        return np.sqrt(n) * gudermann(field * beta)

    whole = length(1.0) - length(lowest)
    assert_close(ladder.length, whole, 1e-7)
    assert_close(-np.diff(length(ladder.betas)), np.full(4, whole / 4), 1e-6)
    assert ladder.betas[0] == 1 and ladder.betas[-1] == lowest
    assert ladder.acceptance == pytest.approx(erfc(whole / 8))
    # Energies that are nearly normal: the prediction is that of each rung.
    exact = markov.swap_acceptance(model, ladder.betas)
    np.testing.assert_allclose(exact, ladder.acceptance, rtol=0.04)
    # In equal steps of β it is not.
    equal = markov.swap_acceptance(model, np.linspace(1, lowest, 5))
    assert equal.max() - equal.min() > 3 * (exact.max() - exact.min())
    assert "5 replicas, length" in str(ladder)


@pytest.mark.parametrize("acceptance", [0.234, 0.6])
def test_the_number_of_replicas_follows_from_the_acceptance(acceptance):
    model = rbm(4, 3, scale=2.0)
    ladder = markov.ladder(model, 0.0, acceptance=acceptance)
    spacing = {0.234: 1.683, 0.6: 0.7416}[acceptance]
    assert erfc(spacing / 2) == pytest.approx(acceptance, abs=3e-4)
    assert ladder.betas.size == 1 + round(ladder.length / spacing)
    assert np.all(np.diff(ladder.betas) < 0) and ladder.betas[-1] == 0
    tq.ParallelTempering(tq.RandomScanGibbs(), ladder.betas)


def test_ladders_of_any_energy_and_of_none():
    model = neural(3, 2)
    e = energies(model)
    grid = np.linspace(0.2, 1, 2001)
    laws = np.array([oracle.law(beta * e) for beta in grid])
    means = laws @ e
    rates = np.sqrt(np.sum(laws * (e[None] - means[:, None]) ** 2, axis=1))
    whole = np.trapezoid(rates, grid)
    assert_close(markov.ladder(model, 0.2).length, whole, 1e-6)
    nothing = markov.ladder(independent(2, 0.0), 0.5, n_replicas=3)
    assert nothing.length == 0 and nothing.acceptance == 1
    assert_close(nothing.betas, np.array([1, 0.75, 0.5]), IDENTITY)


def test_a_wide_machine_needs_its_smaller_layer_alone():
    # Ten hidden units hang on two visible ones: 2**42 states, log Z from four.
    wide, base = rbm(2, 40, scale=0.3), rbm(2, 40, scale=0.3)
    found = markov.energy_variance(wide, 0.7)
    h = 1e-4

    def mean(beta):
        # ∂ log Z, from the sum over the visible layer.
        v = oracle.states(2)
        fields = np.log(2 * np.cosh(beta * v @ np.asarray(base.weights))).sum(axis=1)
        slope = (v @ np.asarray(base.weights)) * np.tanh(
            beta * v @ np.asarray(base.weights)
        )
        p = np.exp(fields - fields.max())
        return p @ slope.sum(axis=1) / p.sum()

    assert_close(found, (mean(0.7 + h) - mean(0.7 - h)) / (2 * h), DIFFERENCES)
    assert markov.ladder(wide, 0.0).betas.size > 2


WRONG = {
    "lowest is the inverse temperature .* 1.0 was given": {"lowest": 1.0},
    "acceptance is between 0 and 1": {"lowest": 0.5, "acceptance": 1.0},
    "n_replicas is a whole number, at least 2": {"lowest": 0.5, "n_replicas": 1},
}


@pytest.mark.parametrize("message", WRONG)
def test_mistakes_are_told(message):
    with pytest.raises(ValueError, match=message):
        markov.ladder(rbm(2, 2), **WRONG[message])


def test_a_ladder_is_made_of_numbers():
    with pytest.raises(ValueError, match="a traced model was given"):
        jax.jit(lambda w: markov.ladder(tq.RBM(w), 0.5).length)(jnp.ones((2, 2)))
