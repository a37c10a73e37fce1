"""Elimination that only adds, against exact fractions and dense solves."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIRECT, IDENTITY, assert_close

from trainq.solvers._elimination import (
    eliminate,
    log_stationary_law,
    solve_eliminated,
    solve_eliminated_transposed,
)


def rates(n, seed=0, power=8):
    matrix = np.random.default_rng(seed).random((n, n)) ** power
    return matrix / matrix.sum(axis=1, keepdims=True)


# One state, few, and several blocks of matrix products.
SIZES = [1, 2, 33, 545]


@pytest.mark.quick(1)
@pytest.mark.parametrize("n", SIZES)
def test_a_closed_chain(n):
    matrix, order = rates(n), np.random.default_rng(1).permutation(n)
    factors = eliminate(jnp.asarray(matrix), None, jnp.asarray(order))
    assert factors.is_regular
    law = np.exp(log_stationary_law(factors))
    assert_close(law @ matrix, law, IDENTITY)
    f = np.random.default_rng(2).normal(size=(n, 3))
    f = f - (law @ f)[None]
    x = solve_eliminated(factors, jnp.asarray(f))
    assert jnp.all(x[order[-1]] == 0)
    assert np.max(np.abs(x - matrix @ x - f), initial=0) <= DIRECT
    f = f - f.mean(axis=0, keepdims=True)
    x = solve_eliminated_transposed(factors, jnp.asarray(f))
    assert np.max(np.abs(x - matrix.T @ x - f), initial=0) <= DIRECT


@pytest.mark.quick(2)
@pytest.mark.parametrize("n", SIZES)
def test_a_chain_that_leaks(n):
    leak = np.random.default_rng(1).random(n) / 10
    matrix = rates(n) * (1 - leak[:, None])
    order = jnp.arange(n)[::-1]
    factors = eliminate(jnp.asarray(matrix), jnp.asarray(leak), order)
    f = np.random.default_rng(2).normal(size=(n, 3))
    for found, a in (
        (solve_eliminated(factors, jnp.asarray(f)), np.eye(n) - matrix),
        (solve_eliminated_transposed(factors, jnp.asarray(f)), (np.eye(n) - matrix).T),
    ):
        assert_close(found, np.linalg.solve(a, f), DIRECT)


def walk(n, epsilon):
    """A birth and death chain that drifts to both ends, and its law by fractions."""
    epsilon = Fraction(epsilon)
    up = [
        (1 - Fraction(i, n)) * (1 - epsilon / 2 if 3 * i > n - 1 else epsilon / 2)
        for i in range(n)
    ]
    down = [
        Fraction(i, n) * (epsilon / 2 if 3 * (i - 1) > n - 1 else 1 - epsilon / 2)
        for i in range(1, n + 1)
    ]
    law = [Fraction(1)]
    for a, b in zip(up, down, strict=True):
        law.append(law[-1] * a / b)
    matrix = np.diag([float(x) for x in up], 1) + np.diag([float(x) for x in down], -1)
    matrix = matrix + np.diag(1 - matrix.sum(axis=1))
    return matrix, np.array([float(x / sum(law)) for x in law])


@pytest.mark.quick(3)
@pytest.mark.parametrize("epsilon", ["1/100", "1/1000", "1/1000000"])
@pytest.mark.parametrize("n", [12, 40])
def test_every_entry_of_a_law_has_all_its_digits(n, epsilon):
    matrix, expected = walk(n, epsilon)
    order = jnp.asarray(np.random.default_rng(0).permutation(n + 1))
    law = np.exp(log_stationary_law(eliminate(jnp.asarray(matrix), None, order)))
    assert expected.min() < 1e-9
    assert np.max(np.abs(law / expected - 1)) <= 1e-13
    # The negative control: the system that has one equation replaced.
    system = np.eye(n + 1) - matrix.T + 1
    naive = np.linalg.solve(system, np.ones(n + 1))
    assert np.max(np.abs(naive / expected - 1)) > 1e-9


def test_states_that_cannot_be_left_are_told():
    blocks = np.kron(np.eye(2), rates(3))
    assert not eliminate(jnp.asarray(blocks), None, jnp.arange(6)).is_regular
    leak = jnp.array([0.1, 0, 0, 0, 0, 0])
    assert not eliminate(jnp.asarray(blocks), leak, jnp.arange(6)).is_regular
    leak = jnp.array([0.1, 0, 0, 0, 1e-30, 0])
    assert eliminate(jnp.asarray(blocks), leak, jnp.arange(6)).is_regular


def test_batches():
    matrices = jnp.stack([jnp.asarray(rates(40, seed)) for seed in range(3)])

    def law(matrix):
        return log_stationary_law(eliminate(matrix, None, jnp.arange(40)))

    one_by_one = jnp.stack([law(matrix) for matrix in matrices])
    assert_close(jax.jit(jax.vmap(law))(matrices), one_by_one, IDENTITY)
