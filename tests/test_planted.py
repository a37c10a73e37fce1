"""Teachers with planted patterns."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import IDENTITY, SIGMAS, assert_close

import trainq as tq


def patterns(model, beta):
    return np.asarray(model.weights) * np.sqrt(model.n_visible) / beta


@pytest.mark.parametrize(("m", "n"), [(5, 2), (1, 1), (2, 4)])
def test_weights_are_scaled_patterns_of_signs(m, n, key):
    model = tq.planted_rbm(key, m, n, 1.7)
    assert isinstance(model, tq.RBM) and model.is_symmetric
    assert (model.n_visible, model.n_hidden) == (m, n)
    assert_close(np.abs(patterns(model, 1.7)), np.ones((m, n)), IDENTITY)
    assert model.dtype == jnp.float64


def test_signs_are_fair_and_independent(key):
    xi = patterns(tq.planted_rbm(key, 100, 100, 2.0), 2.0)
    assert abs(xi.sum()) < SIGMAS * np.sqrt(xi.size)
    for overlap in (xi.T @ xi, xi @ xi.T):
        off = overlap[~np.eye(100, dtype=bool)]
        assert np.abs(off).max() < 60
        # Each square has mean 100 and variance 2 · 100 · 99; pairs are counted twice.
        error = np.sqrt(2 * 100 * 99 / (off.size / 2))
        assert abs((off**2).mean() - 100) < SIGMAS * error


def test_the_visible_law_has_the_form_of_a_hopfield_model(key):
    beta, m = 2.5, 5
    model = tq.planted_rbm(key, m, 2, beta)
    overlaps = oracle.states(m) @ np.sign(np.asarray(model.weights))
    weights = np.prod(2 * np.cosh(beta * overlaps / np.sqrt(m)), axis=1)
    expected = weights / weights.sum()
    assert_close(tq.visible_distribution(model), expected, IDENTITY)


def test_a_single_pattern_and_its_opposite_are_the_likeliest_states(key):
    model = tq.planted_rbm(key, 5, 1, 3.0)
    xi = np.sign(np.asarray(model.weights[:, 0]))
    likeliest = np.argsort(np.asarray(tq.visible_distribution(model)))[-2:]
    found = {tuple(x) for x in oracle.states(5)[likeliest]}
    assert found == {tuple(xi), tuple(-xi)}


def test_the_key_alone_sets_the_patterns(key):
    one = tq.planted_rbm(key, 6, 3, 1)
    assert (one.weights == tq.planted_rbm(key, 6, 3, 1).weights).all()
    assert (one.weights != tq.planted_rbm(jr.key(1), 6, 3, 1).weights).any()
    warmer = one.tempered(2.5).weights
    assert_close(tq.planted_rbm(key, 6, 3, 2.5).weights, warmer, IDENTITY)


def test_the_temperature_may_be_traced(key):
    def log_partition(beta):
        return tq.log_partition(tq.planted_rbm(key, 3, 2, beta))

    value, gradient = jax.jit(jax.value_and_grad(log_partition))(2.0)
    table = oracle.rbm_energies(np.asarray(tq.planted_rbm(key, 3, 2, 1.0).weights))
    assert_close(value, np.log(np.exp(-2 * table).sum()), IDENTITY)
    assert_close(gradient, -oracle.law(2 * table) @ table, IDENTITY)


def test_sizes_are_whole_numbers(key, as_for_users):
    model = tq.planted_rbm(key, np.uint8(20), np.int8(20), 1.0)
    assert (model.n_visible, model.n_hidden) == (20, 20)
    for sizes in ((0, 2), (2.0, 2), (2, True)):
        with pytest.raises(ValueError, match=r"n_\w+ is a whole number of .*units, at"):
            tq.planted_rbm(key, *sizes, 1.0)
