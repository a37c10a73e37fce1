import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    MODELS,
    REVERSIBLE,
    REVERSIBLE_ON_COLOURS,
    assert_close,
    dense,
    kernel_of,
    rbm,
    slow_except,
)

import trainq as tq


CHAINS = ["rbm 3x2", "rbm 2x2", "biased rbm 2x3", "visible machine 4"]


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "model"),
    [(k, m) for m in CHAINS for k in REVERSIBLE] + REVERSIBLE_ON_COLOURS,
)
def test_every_cut_flow_is_that_of_the_matrix(name, model):
    model = MODELS[model]
    pi, matrix = dense(name, model)
    chain = kernel_of(name, model).chain(model)
    order = np.random.default_rng(0).permutation(len(pi))
    flow = pi[:, None] * matrix
    expected = [flow[np.ix_(order[:k], order[k:])].sum() for k in range(1, len(pi))]
    found = jnp.exp(chain.log_cut_flows(jnp.asarray(order)))
    assert_close(found / jnp.asarray(expected), np.ones(len(pi) - 1), IDENTITY)


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", REVERSIBLE)
@pytest.mark.parametrize("model", slow_except(CHAINS, "rbm 2x2", "biased rbm 2x3"))
def test_sweep_conductance_is_the_best_prefix_of_the_mode(name, model):
    pi, matrix = dense(name, MODELS[model])
    chain = KERNELS[name].chain(MODELS[model])
    mode = np.asarray(tq.markov.slowest_mode(chain).mode)
    values = np.sort(mode)
    levels = (values[1:] + values[:-1])[np.diff(values) > 1e-9] / 2
    best = min(oracle.conductance(matrix, pi, mode < level) for level in levels)
    phi = tq.markov.sweep_conductance(chain)
    assert_close(phi, best, DIRECT)
    margins = tq.markov.cheeger_margins(chain)
    gap = 1 - oracle.eigenvalues(matrix, pi)[1]
    assert abs(margins.lower - (best - gap / 2)) < DIRECT
    assert abs(margins.upper - (np.sqrt(2 * gap) - best)) < DIRECT
    margin = tq.markov.cheeger_margin(chain)
    assert margin == min(margins.lower, margins.upper) and margin >= 0


def test_states_that_the_mode_does_not_tell_apart_are_on_one_side():
    # The palindromic chain forgets the visible units, and so its modes do not see them.
    model = tq.RBM(jnp.array([[-0.024], [0.28]]), jnp.array([-0.917, -1.842]))
    pi, matrix = dense("palindromic", model)
    hidden_up = oracle.states(3)[:, 2] > 0
    phi = tq.markov.sweep_conductance(KERNELS["palindromic"].chain(model))
    assert_close(phi, oracle.conductance(matrix, pi, hidden_up), DIRECT)
    # A cut between two of them may carry less.
    order = np.argsort(hidden_up, kind="stable")
    prefixes = [np.isin(np.arange(8), order[:k]) for k in range(1, 8)]
    assert min(oracle.conductance(matrix, pi, p) for p in prefixes) < phi - 0.05


def test_the_bottleneck_of_two_wells_is_found():
    # Strong positive couplings: the wells are all up and all down, and by symmetry the
    # best cut has half of the mass on each side. Only flips through it carry flow.
    model = tq.RBM(1.5 * jnp.ones((2, 2)))
    pi, matrix = dense("gibbs", model)
    up = oracle.states(4).sum(axis=1) > 0
    tie = oracle.states(4).sum(axis=1) == 0
    halves = [up | (tie & (oracle.states(4)[:, 0] > 0)), up]
    best = min(oracle.conductance(matrix, pi, half) for half in halves)
    phi = tq.markov.sweep_conductance(KERNELS["gibbs"].chain(model))
    assert phi <= best + IDENTITY
    assert phi < 0.01 < tq.markov.sweep_conductance(KERNELS["gibbs"].chain(rbm(2, 2)))


def test_a_wrong_gap_shows_as_a_negative_margin():
    margins = tq.markov.cheeger_margins(KERNELS["gibbs"].chain(rbm(2, 2)))
    assert margins.violation == 0
    wrong = tq.markov.CheegerMargins(3 * margins.conductance, margins.conductance)
    assert wrong.lower < 0
    assert_close(wrong.violation, 1 / 3, IDENTITY)  # of a bound that is 3/2 too large
    wrong = tq.markov.CheegerMargins(margins.conductance**2 / 3, margins.conductance)
    assert wrong.upper < 0
    assert_close(wrong.violation, np.sqrt(1.5) - 1, IDENTITY)
