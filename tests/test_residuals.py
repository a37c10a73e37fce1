import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    IDENTITY,
    KERNELS,
    MODELS,
    PAIRS,
    assert_close,
    dense,
    kernel_of,
    rbm,
)

import trainq as tq
from trainq.markov import AbstractFlipRule, SingleFlipChain


@pytest.mark.quick(5)
@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_residuals_are_zero_up_to_rounding(name, model):
    model = MODELS[model]
    chain = kernel_of(name, model).chain(model)
    assert tq.markov.row_sum_residual(chain) < IDENTITY
    assert tq.markov.stationarity_residual(chain) < IDENTITY
    if chain.is_reversible:
        assert tq.markov.detailed_balance_residual(chain) < IDENTITY
    if chain.is_symmetric:
        assert tq.markov.symmetry_residual(chain, tq.observables(model)) < IDENTITY


def test_alternating_is_stationary_but_not_reversible():
    model = rbm(2, 3)
    pi, matrix = dense("alternating", model)
    flow = pi[:, None] * matrix
    chain = KERNELS["alternating"].chain(model)
    expected = np.max(np.abs(flow - flow.T))
    assert_close(tq.markov.detailed_balance_residual(chain), expected, IDENTITY)
    assert expected > 1e-3


class Wrong(AbstractFlipRule):
    """Flips with one probability wherever it is: the uniform law, whatever `π`."""

    def acceptance(self, delta):
        return jnp.full_like(delta, 0.3)

    def symmetrised(self, delta):
        return self.acceptance(delta)


def test_a_wrong_rule_has_large_residuals():
    law = KERNELS["gibbs"].chain(rbm(2, 2)).log_stationary
    chain = SingleFlipChain(log_stationary=law, rule=Wrong(), is_symmetric=True)
    assert tq.markov.row_sum_residual(chain) < IDENTITY
    matrix, pi = np.asarray(chain.matrix()), np.exp(law)
    flow = pi[:, None] * matrix
    balance = tq.markov.detailed_balance_residual(chain)
    assert_close(balance, np.max(np.abs(flow - flow.T)), IDENTITY)
    stationarity = tq.markov.stationarity_residual(chain)
    assert_close(stationarity, np.max(np.abs(pi @ matrix - pi)), IDENTITY)
    assert min(balance, stationarity) > 1e-3


def test_biases_show_as_asymmetry():
    model = rbm(2, 2, biased=True)
    chain = KERNELS["gibbs"].chain(model)
    pi, matrix = dense("gibbs", model)
    in_law = np.max(np.abs(pi - pi[::-1]))
    in_matrix = np.max(np.abs(matrix - matrix[::-1, ::-1]))
    found = tq.markov.symmetry_residual(chain)
    assert_close(found, max(in_law, in_matrix), IDENTITY)
    symmetric = KERNELS["gibbs"].chain(rbm(2, 2))
    neither = jnp.arange(16.0) ** 2
    assert tq.markov.symmetry_residual(symmetric, neither) > 1
    # One function of mixed parity among others, and in one pair of states.
    mixed = jnp.zeros(16).at[3].set(0.25)
    both = jnp.stack([tq.observables(rbm(2, 2))[:, 0], mixed], axis=1)
    for f in (both, both[:, ::-1], mixed):
        assert_close(tq.markov.symmetry_residual(symmetric, f), 0.25, IDENTITY)


def test_what_is_no_number_is_no_residual():
    law = KERNELS["gibbs"].chain(rbm(2, 2)).log_stationary.at[5].set(jnp.nan)
    chain = SingleFlipChain(
        log_stationary=law, rule=tq.markov.HeatBath(), is_symmetric=True
    )
    for residual in (
        tq.markov.stationarity_residual,
        tq.markov.detailed_balance_residual,
        tq.markov.symmetry_residual,
    ):
        assert jnp.isnan(residual(chain))
