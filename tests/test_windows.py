"""Bias and variance of averages over a window, against all pairs of times."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    MODELS,
    ON_COLOURS,
    assert_close,
    dense,
    kernel_of,
    rbm,
    slow_except,
)

import trainq as tq
from trainq._spins import spins


def moments(matrix, pi, f, window, law, burn_in):
    """Mean and variance of the average, by a double sum over times."""
    f = f - pi @ f
    at = [law @ np.linalg.matrix_power(matrix, burn_in + t) for t in range(window)]
    powers = [np.linalg.matrix_power(matrix, lag) @ f for lag in range(window)]
    mean = sum(at) @ f / window
    square = 0
    for s in range(window):
        for t in range(window):
            early, lag = min(s, t), abs(s - t)
            square = square + at[early] @ (f * powers[lag])
    return mean, square / window**2 - mean**2


FEW = ["rbm 3x2", "biased rbm 2x3", "visible machine 4"]


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("kernel", "model"),
    slow_except(
        [(k, m) for m in MODELS for k in KERNELS],
        *((k, m) for m in FEW for k in KERNELS),
    )
    + ON_COLOURS,
)
def test_moments(kernel, model):
    model = MODELS[model]
    chain = kernel_of(kernel, model).chain(model)
    pi, matrix = dense(kernel, model)
    f = jr.normal(jr.key(1), (len(pi), 3))
    found = tq.markov.window_moments(chain, f, 7)
    _, variance = moments(matrix, pi, np.asarray(f), 7, pi, 0)
    assert_close(found.variance, variance, DIRECT)
    # The two ways to it agree: a polynomial of the chain, and its steps one by one.
    stepwise = tq.markov.window_moments(chain, f, 7, law=chain.stationary)
    assert_close(stepwise.variance, found.variance, DIRECT)
    assert np.max(np.abs(stepwise.bias - found.bias)) <= IDENTITY
    law = jr.dirichlet(jr.key(2), jnp.ones(len(pi)))
    found = tq.markov.window_moments(chain, f, 7, law=law, burn_in=2)
    bias, variance = moments(matrix, pi, np.asarray(f), 7, np.asarray(law), 2)
    assert np.max(np.abs(found.bias - bias)) <= IDENTITY  # it may be zero
    assert_close(found.variance, variance, DIRECT)
    assert_close(found.mse, bias**2 + variance, DIRECT)


@pytest.mark.parametrize("reversible", [True, False])
def test_chains_of_your_own(reversible):
    pi, matrix = dense("gibbs" if reversible else "alternating", rbm(2, 2))
    chain = tq.markov.DenseChain(matrix, pi)
    assert chain.is_reversible == reversible
    f = np.asarray(jr.normal(jr.key(3), (16,)))
    found = tq.markov.window_moments(chain, jnp.asarray(f), 9)
    assert found.variance.shape == ()
    assert_close(found.variance, moments(matrix, pi, f, 9, pi, 0)[1], IDENTITY)


def test_a_law_and_its_own_start_agree():
    # Two paths: a polynomial of the reduced chain, and one step after the other.
    for name in ("metropolis", "random", "palindromic"):
        chain = KERNELS[name].chain(rbm(3, 3, biased=True))
        f = jr.normal(jr.key(4), (64, 2))
        short = tq.markov.window_moments(chain, f, 60)
        long = tq.markov.window_moments(chain, f, 60, law=chain.stationary, burn_in=5)
        assert_close(long.variance, short.variance, DIRECT)
        assert np.max(np.abs(long.bias)) <= IDENTITY


def test_a_promised_sector():
    chain = KERNELS["gibbs"].chain(rbm(3, 2))
    f = jr.normal(jr.key(5), (32, 2))
    even = f + f[::-1]
    whole = tq.markov.window_moments(chain, even, 20)
    half = tq.markov.window_moments(chain, even, 20, sector="even")
    assert_close(half.variance, whole.variance, IDENTITY)


@pytest.mark.slow
def test_a_window_of_more_units_than_a_matrix_takes():
    # Three colours: no reduction, and steps one by one without a matrix.
    ring = tq.BoltzmannMachine(
        jnp.full(15, 0.3), edges=[(i, (i + 1) % 15) for i in range(15)]
    )
    chain = tq.AlternatingBlockGibbs(ring.colouring()).chain(ring)
    magnetisation = spins(15, float).mean(axis=1)
    found = tq.markov.window_moments(chain, magnetisation, 1)
    # On a ring ⟨s_0 s_d⟩ = (t^d + t^(n-d)) / (1 + t^n) with t = tanh J.
    t, n = np.tanh(0.3), 15
    correlation = [(t**d + t ** (n - d)) / (1 + t**n) for d in range(n)]
    assert_close(found.variance, sum(correlation) / n, DIRECT)
    two = tq.markov.window_moments(chain, magnetisation, 2)
    lagged = chain.stationary @ (magnetisation * chain.apply(magnetisation))
    assert_close(two.variance, (found.variance + lagged) / 2, DIRECT)
