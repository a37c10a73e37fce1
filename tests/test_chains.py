import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    MODELS,
    PAIRS,
    assert_close,
    dense,
    kernel_of,
    machine,
    rbm,
    slow_except,
)

import trainq as tq


pairs = pytest.mark.parametrize(("kernel_name", "model"), PAIRS, indirect=["model"])


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


@pytest.mark.quick(1)
@pairs
def test_matrix_and_law_are_those_of_the_oracle(kernel_name, model):
    chain = kernel_of(kernel_name, model).chain(model)
    pi, matrix = dense(kernel_name, model)
    assert_close(chain.stationary, pi, IDENTITY)
    assert_close(chain.matrix(), matrix, IDENTITY)
    assert_close(chain.root**2, pi, IDENTITY)


@pytest.mark.quick(1)
@pairs
def test_apply_and_push_are_products_with_the_matrix(kernel_name, model):
    chain = kernel_of(kernel_name, model).chain(model)
    _, matrix = dense(kernel_name, model)
    f = jr.normal(jr.key(1), (chain.n_states, 3))
    assert_close(chain.apply(f), matrix @ f, IDENTITY)
    assert_close(chain.apply(f[:, 0]), matrix @ f[:, 0], IDENTITY)
    assert_close(chain.push(f[:, 0]), f[:, 0] @ matrix, IDENTITY)


@pytest.mark.quick(2)
@pairs
def test_resolvent_is_that_of_the_oracle(kernel_name, model):
    chain = kernel_of(kernel_name, model).chain(model)
    pi, matrix = dense(kernel_name, model)
    f = jr.normal(jr.key(1), (chain.n_states, 3))
    expected = oracle.resolvent(matrix, pi, np.asarray(f))
    assert_close(tq.markov.resolvent(chain, f), expected, DIRECT)


@pytest.mark.quick(2)
@pairs
def test_noise_is_that_of_the_oracle(kernel_name, model):
    chain = kernel_of(kernel_name, model).chain(model)
    pi, matrix = dense(kernel_name, model)
    f = jr.normal(jr.key(1), (chain.n_states, 3))
    expected = oracle.noise_matrix(matrix, pi, np.asarray(f))
    covariance = tq.markov.asymptotic_covariance(chain, f, convention="resolvent")
    assert_close(covariance, expected + expected.T, DIRECT)


def test_a_chain_is_symmetric_only_if_its_model_says_so(model):
    chain = KERNELS["gibbs"].chain(model)
    assert chain.is_symmetric == model.is_symmetric
    sectors = tuple(reduction.sector for reduction in chain.reductions())
    assert sectors == (("even", "odd") if model.is_symmetric else (None,))


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_except(KERNELS, "gibbs", "alternating"))
def test_a_dense_chain_of_the_matrix_gives_the_same_answers(name):
    model = rbm(2, 3, biased=True)
    chain = KERNELS[name].chain(model)
    copy = tq.markov.DenseChain(chain.matrix())
    assert copy.is_reversible == chain.is_reversible
    assert_close(copy.stationary, chain.stationary, DIRECT)
    f = tq.observables(model)
    for fn in (
        tq.markov.resolvent,
        tq.markov.resolvent_trace,
        tq.markov.asymptotic_covariance,
    ):
        assert_close(fn(copy, f), fn(chain, f), DIRECT)
    target = jnp.arange(chain.n_states) < 3
    times = tq.markov.hitting_times(chain, target)
    assert_close(tq.markov.hitting_times(copy, target), times, DIRECT)
    if chain.is_reversible:
        gap = tq.markov.spectral_gap(chain)
        assert_close(tq.markov.spectral_gap(copy), gap, DIRECT)
        phi = tq.markov.sweep_conductance(chain)
        assert_close(tq.markov.sweep_conductance(copy), phi, DIRECT)


@pytest.mark.slow
def test_a_dense_chain_takes_a_law_and_integers():
    swap = tq.markov.DenseChain(np.array([[0, 1], [1, 0]]), np.array([0.5, 0.5]))
    assert swap.is_reversible and not swap.is_symmetric
    # x = (1, -1)/2 solves (I - P) x = (1, -1).
    assert_close(
        tq.markov.resolvent(swap, jnp.array([1.0, -1.0])), [0.5, -0.5], IDENTITY
    )
    rotation = tq.markov.DenseChain(np.roll(np.eye(3), 1, axis=1))
    assert not rotation.is_reversible
    # In single precision, with flows that are all small.
    slow = 0.999 * np.eye(16) + 0.001 * np.roll(np.eye(16), 1, axis=1)
    assert not tq.markov.DenseChain(jnp.asarray(slow, jnp.float32)).is_reversible


@pytest.mark.slow
def test_a_dense_chain_can_be_traced_if_told_whether_it_is_reversible():
    matrix = KERNELS["gibbs"].chain(rbm(2, 2)).matrix()
    f = jnp.arange(16.0)

    @jax.jit
    def trace(matrix):
        chain = tq.markov.DenseChain(matrix, is_reversible=True)
        return tq.markov.resolvent_trace(chain, f)

    expected = tq.markov.resolvent_trace(tq.markov.DenseChain(matrix), f)
    assert_close(trace(matrix), expected, DIRECT)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", KERNELS)
def test_rare_states_have_accurate_values(name):
    # States of probability down to 1e-33: a solution that is divided by √π has no
    # correct digit there.
    model = machine(5, 3, biased=True, scale=4.0)
    chain = KERNELS[name].chain(model)
    pi, matrix = dense(name, model)
    assert pi.min() < 1e-30
    f = np.asarray(tq.observables(model))[:, :2]
    centred = f - pi @ f
    # Elimination in extended precision, without pivots, which dominance allows.
    target = pi.argmax()
    keep = np.arange(len(pi)) != target
    system = (np.eye(len(pi)) - matrix)[np.ix_(keep, keep)].astype(np.longdouble)
    # Rows of I - P from the off-diagonal entries, which are exact.
    off = matrix.astype(np.longdouble)
    np.fill_diagonal(off, 0)
    system[np.diag_indices(keep.sum())] = off.sum(axis=1)[keep]
    rhs = np.column_stack([centred[keep], np.ones(keep.sum())]).astype(np.longdouble)
    solution = _eliminate(system, rhs)
    x = np.zeros_like(f)
    x[keep] = solution[:, :2]
    times = np.zeros(len(pi))
    times[keep] = solution[:, 2]
    # State by state: the values in states of probability 1e-33 are right too.
    ours = tq.markov.resolvent(chain, jnp.asarray(f))
    assert_close(ours, x - pi @ x, 1e-8)
    found = tq.markov.hitting_times(chain, jnp.arange(len(pi)) == target)
    assert_close(found / np.maximum(times, 1), times / np.maximum(times, 1), 1e-8)


def _eliminate(system, rhs):
    a, b = system.copy(), rhs.copy()
    n = len(a)
    for k in range(n):
        b[k] /= a[k, k]
        a[k] /= a[k, k]
        for i in range(n):
            if i != k:
                b[i] -= a[i, k] * b[k]
                a[i] -= a[i, k] * a[k]
    return b.astype(float)
