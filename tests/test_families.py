"""Families of models: mean fields, glasses, and planted patterns."""

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


def naive_energies(n, pairs):
    """From the coupling of two units, by loops."""
    return np.array(
        [
            -sum(pairs(i, j) * x[i] * x[j] for i in range(n) for j in range(i + 1, n))
            for x in oracle.states(n)
        ]
    )


def test_a_mean_field_ferromagnet_knows_the_magnetisation_alone():
    n, beta = 5, 1.3
    model = tq.curie_weiss(n, beta, n_visible=3)
    assert (model.n_visible, model.n_hidden, model.is_symmetric) == (3, 2, True)
    total = oracle.states(n).sum(axis=1)
    assert_close(model.energies(), -beta / n * (total**2 - n) / 2, IDENTITY)


def test_a_glass_has_couplings_of_variance_one_over_n(key):
    n = 200
    model = tq.sherrington_kirkpatrick(key, n, 1.5)
    scaled = np.asarray(model.couplings) * np.sqrt(n) / 1.5
    assert scaled.shape == (n * (n - 1) // 2,)
    assert abs(scaled.mean()) < SIGMAS / np.sqrt(scaled.size)
    assert abs((scaled**2).mean() - 1) < SIGMAS * np.sqrt(2 / scaled.size)
    small = tq.sherrington_kirkpatrick(key, 4, 1.5)
    table = naive_energies(4, lambda i, j: small.coupling_matrix[i, j])
    assert_close(small.energies(), table, IDENTITY)


def test_a_network_of_patterns_is_hopfields(key):
    n, beta = 5, 0.9
    xi = tq.random_patterns(key, 3, n)
    assert xi.shape == (3, n) and (np.abs(xi) == 1).all()
    table = naive_energies(n, lambda i, j: beta / n * sum(p[i] * p[j] for p in xi))
    assert_close(tq.hopfield(xi, beta).energies(), table, IDENTITY)
    assert_close(tq.hopfield(xi.astype(int), beta).energies(), table, IDENTITY)


def test_pairs_of_patterns_are_planted_in_both_layers(key):
    m, n, beta = 4, 3, 2.0
    visible, hidden = tq.random_patterns(key, 2, m), tq.random_patterns(key, 2, n)
    model = tq.paired_rbm(visible, hidden, beta)
    v, h = oracle.states(m + n)[:, :m], oracle.states(m + n)[:, m:]
    expected = np.zeros(2 ** (m + n))
    for xi, eta in zip(np.asarray(visible), np.asarray(hidden), strict=True):
        expected -= beta / np.sqrt(m * n) * (v @ xi) * (h @ eta)
    assert_close(model.energies(), expected, IDENTITY)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: tq.hopfield(p[0], 1.0), r"n_patterns, n_units.*\(4,\) was given"),
        (lambda p: tq.paired_rbm(p, p[:1], 1.0), "2 visible and 1 hidden ones"),
        (lambda p: tq.hopfield(p, np.ones(2)), "beta is an inverse temperature"),
        (lambda p: tq.curie_weiss(0, 1.0), "n_units is a whole number of units"),
    ],
)
def test_what_is_no_family_has_a_sentence(make, message, as_for_users):
    with pytest.raises(ValueError, match=message):
        make(np.ones((2, 4)))


def test_patterns_are_signs(as_for_users):
    with pytest.raises(ValueError, match=r"Spins are -1 or \+1"):
        tq.hopfield(np.full((2, 4), 0.5), 1.0)
