import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, assert_close

from trainq.markov._cholesky import cholesky, cholesky_solve


def positive_definite(n):
    root = jr.normal(jr.key(n), (n, n))
    return root @ root.T / n + jnp.eye(n)


# A single block, several of them, an odd split, and the blocks of a large matrix.
@pytest.mark.parametrize(
    "n", [1, 5, 16, 64, 67, pytest.param(2048, marks=pytest.mark.slow)]
)
def test_solution_is_that_of_numpy(n):
    matrix, b = positive_definite(n), jr.normal(jr.key(0), (n, 3))
    found = jax.jit(lambda a, b: cholesky_solve(cholesky(a), b))(matrix, b)
    expected = np.linalg.solve(np.asarray(matrix), np.asarray(b))
    assert_close(found, expected, DIRECT)


def test_a_batch_is_solved_one_by_one():
    matrices = jnp.stack([positive_definite(40), 2 * positive_definite(40)])
    b = jr.normal(jr.key(0), (2, 40, 3))
    found = jax.vmap(lambda a, b: cholesky_solve(cholesky(a), b))(matrices, b)
    assert_close(found, np.linalg.solve(matrices, b), DIRECT)


def test_an_indefinite_matrix_gives_no_number():
    matrix = positive_definite(40).at[30, 30].set(-1.0)
    assert jnp.any(jnp.isnan(cholesky_solve(cholesky(matrix), jnp.ones((40, 1)))))


@pytest.mark.parametrize("n", [16, 256, 8192])
def test_there_are_at_most_64_blocks(n):
    text = str(jax.make_jaxpr(cholesky)(jax.ShapeDtypeStruct((n, n), jnp.float64)))
    # The blocks have one shape, and so one definition, called once for each.
    assert len(re.findall(r"name=cholesky\b", text)) == min(n // 16, 64)
