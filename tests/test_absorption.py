import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import DIFFERENCES, DIRECT, IDENTITY, KERNELS, assert_close, dense, rbm
from hypothesis import given, strategies as st

import trainq as tq
from trainq.markov import absorption, hitting_times


def walk(n, p):
    """A gambler with 0 to n coins, who wins one with probability p."""
    matrix = np.zeros((n + 1, n + 1))
    matrix[0, 0] = matrix[n, n] = 1
    for k in range(1, n):
        matrix[k, k + 1], matrix[k, k - 1] = p, 1 - p
    return matrix, np.isin(np.arange(n + 1), [0, n])


@pytest.mark.parametrize("p", [0.5, 0.3, 1e-3])
def test_the_ruin_of_a_gambler(p):
    # At p = 1e-3 the chance to win from one coin is 1e-33: each entry has its digits.
    n, k = 12, np.arange(13)
    found = absorption(*walk(n, p))
    odds = (1 - p) / p
    wins = k / n if p == 0.5 else (odds**k - 1) / (odds**n - 1)
    times = k * (n - k) if p == 0.5 else (k - n * wins) / (1 - 2 * p)
    np.testing.assert_allclose(found.probabilities[:, 1], wins, rtol=DIRECT)
    assert_close(found.probabilities.sum(axis=1), np.ones(n + 1), IDENTITY)
    assert_close(found.times, times, DIRECT)


@given(st.integers(0, 10**6), st.sampled_from([3, 8]), st.sampled_from([1, 3]))
def test_times_and_ends_are_those_of_the_fundamental_matrix(seed, n, n_ends):
    rng = np.random.default_rng(seed)
    matrix = rng.random((n, n)) ** 3 + 1e-3
    matrix /= matrix.sum(axis=1, keepdims=True)
    ends = np.isin(np.arange(n), rng.choice(n, min(n_ends, n - 1), replace=False))
    inside = ~ends
    system = np.eye(inside.sum()) - matrix[np.ix_(inside, inside)]
    found = absorption(matrix, ends)
    assert_close(found.times, oracle.hitting_times(matrix, ends), DIRECT)
    where = np.linalg.solve(system, matrix[np.ix_(inside, ends)])
    assert_close(found.probabilities[inside], where, DIRECT)
    assert (found.probabilities[ends] == np.eye(ends.sum())).all()


def test_a_chain_with_a_law_finds_its_target_at_the_hitting_times():
    model = rbm(3, 2)
    matrix = dense("gibbs", model)[1]
    target = np.isin(np.arange(32), [3, 17])
    chain = KERNELS["gibbs"].chain(model)
    found = absorption(chain.matrix(), target)
    assert_close(found.times, hitting_times(chain, jnp.asarray(target)), DIRECT)
    assert_close(found.times, oracle.hitting_times(matrix, target), DIRECT)


def test_rare_rates_keep_their_digits():
    # Two traps that leave at 1e-200: the time is exact, and no law exists.
    slow = 1e-200
    matrix = np.array([[1 - slow, slow, 0], [0.5, 0, 0.5], [0, 0, 1]])
    found = absorption(matrix, np.array([False, False, True]))
    np.testing.assert_allclose(found.times, [2 / slow, 1 / slow, 0], rtol=1e-14)


@pytest.mark.slow
def test_derivatives_of_any_order():
    def times(p):
        up = jnp.diag(jnp.full(5, p), 1)
        down = jnp.diag(jnp.full(5, 1 - p), -1)
        return absorption(up + down, walk(5, 0.5)[1]).times[2]

    def closed(p):
        odds = (1 - p) / p
        return (2 - 5 * (odds**2 - 1) / (odds**5 - 1)) / (1 - 2 * p)

    assert_close(times(0.3), closed(0.3), DIRECT)
    for order in (jax.grad, lambda f: jax.grad(jax.grad(f))):
        assert_close(order(times)(0.3), order(closed)(0.3), DIRECT)
    assert_close(jax.jvp(times, (0.3,), (1.0,))[1], jax.grad(closed)(0.3), DIRECT)
    slope = (times(0.3 + 1e-5) - times(0.3 - 1e-5)) / 2e-5
    assert_close(jax.grad(times)(0.3), slope, DIFFERENCES)


def test_all_states_may_be_ends():
    found = absorption(np.eye(2), np.ones(2, bool))
    assert found.times.tolist() == [0, 0] and (found.probabilities == np.eye(2)).all()
    assert absorption(np.eye(2, dtype=int), np.ones(2, bool)).times.dtype == float


@pytest.mark.slow
@pytest.mark.usefixtures("as_for_users")
def test_what_is_not_absorbed_says_so():
    matrix, ends = walk(3, 0.5)
    for args, message in (
        ((matrix[:2], ends), r"is square, but the shape \(2, 4\)"),
        ((matrix, ends[:2]), r"each of the 4 states, but an array of shape \(2,\)"),
        ((matrix, ends.astype(float)), "shape .4,. and dtype float64"),
        ((matrix, ~(ends | ~ends)), "no state in it"),
        ((np.zeros((2**13 + 1,) * 2), ends), "at most 13 units"),
    ):
        with pytest.raises(ValueError, match=message):
            absorption(*args)
    with pytest.raises(ValueError, match="traced absorbing was given"):
        jax.jit(lambda e: absorption(matrix, e).times)(ends)
    with pytest.raises(RuntimeError, match="does not lead to an absorbing one"):
        absorption(matrix, np.array([True, False, False, False]))
    with pytest.raises(RuntimeError, match="not stochastic"):
        absorption(2 * matrix, ends)


@pytest.mark.quick(1)
@pytest.mark.parametrize("solver", [tq.Direct(), tq.ConjugateGradient()])
@pytest.mark.parametrize(("n", "n_parts"), [(2, 2), (16, 3)])
def test_the_resolvent_of_a_reducible_chain_is_refused(solver, n, n_parts):
    # It would have an arbitrary constant on each part.
    rng = np.random.default_rng(0)
    flow = rng.random((n, n))
    flow += flow.T
    matrix = np.kron(np.eye(n_parts), flow / flow.sum(axis=1, keepdims=True))
    law = np.tile(flow.sum(axis=1), n_parts)
    chain = tq.markov.DenseChain(matrix, law / law.sum())
    f = jnp.asarray(rng.normal(size=(n * n_parts, 2)))
    for ask in (tq.markov.resolvent, tq.markov.resolvent_trace):
        with pytest.raises(RuntimeError, match="falls apart into several"):
            ask(chain, f, solver=solver)
    # What needs no resolvent is there: windows, flows, and times to a set in each part.
    assert jnp.isfinite(tq.markov.window_moments(chain, f, 3).variance).all()
    assert tq.markov.cut(chain, jnp.arange(n * n_parts) < n).flow == 0
    target = jnp.arange(n * n_parts) % n == 0
    times = tq.markov.hitting_times(chain, target)
    assert_close(times, oracle.hitting_times(matrix, np.asarray(target)), DIRECT)


@pytest.mark.slow
def test_a_reducible_chain_is_refused_by_iterations_that_find_a_small_residual():
    # All of the first system is solved in one step, and what rounding leaves along the
    # second null vector is blown up: a residual alone would not tell.
    matrix = np.kron(np.eye(2), np.full((1024, 1024), 1 / 1024))
    chain = tq.markov.DenseChain(matrix, np.full(2048, 1 / 2048), is_reversible=True)
    f = jnp.asarray(np.random.default_rng(0).normal(size=2048))
    with pytest.raises(RuntimeError, match="falls apart into several"):
        tq.markov.resolvent_trace(chain, f, solver=tq.ConjugateGradient())
