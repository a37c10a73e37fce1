"""Factorisations under `vmap`: the same as one by one, and never at a standstill."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, assert_close

from trainq.solvers import _lapack


N = 6


def matrices(key, *batch):
    a = np.asarray(jr.normal(key, (*batch, N, N)))
    return jnp.asarray(a @ np.swapaxes(a, -1, -2) + N * np.eye(N))


# Longer than what is written out at once, and not a multiple of it.
SIZES = [1, 3, 2 * _lapack._AT_ONCE + 3]


@pytest.mark.quick(1)
@pytest.mark.parametrize("size", SIZES)
def test_batches_of_solves(key, size):
    a, b = matrices(key, size), jr.normal(jr.key(1), (N, 2))

    def solve(a):
        return _lapack.cholesky_solve(_lapack.cholesky(a), b)

    def solve_twice(a):
        factor = _lapack.lu(jnp.triu(a) + a)
        y = _lapack.lu_solve(*factor, b)
        return _lapack.lu_solve_transposed(*factor, y)

    unsymmetric = np.triu(a) + np.asarray(a)
    plain = np.linalg.solve(np.asarray(a), np.asarray(b))
    twice = np.linalg.solve(
        unsymmetric.transpose(0, 2, 1), np.linalg.solve(unsymmetric, np.asarray(b))
    )
    assert_close(jax.jit(jax.vmap(solve))(a), plain, DIRECT)
    assert_close(jax.vmap(solve_twice)(a), twice, DIRECT)
    values, vectors = jax.vmap(_lapack.eigenpairs)(a)
    assert_close(values, np.linalg.eigvalsh(np.asarray(a)), DIRECT)
    values = np.asarray(values)
    assert_close(a @ vectors, np.asarray(vectors) * values[:, None, :], DIRECT)


def test_the_differentiable_solve(key):
    a, b = jnp.triu(matrices(key, 3)) + 1, jr.normal(jr.key(1), (N, 2))

    def ours(a):
        return jnp.sum(_lapack.solve(a, b) ** 2)

    def plain(a):
        return jnp.sum(jnp.linalg.solve(a, b) ** 2)

    for f, g in ((ours, plain), (jax.grad(ours), jax.grad(plain))):
        assert_close(jax.vmap(f)(a), jnp.stack([g(one) for one in a]), DIRECT)


def test_a_batch_of_batches_and_one_of_right_hand_sides(key):
    a, b = matrices(key, 2, 3), jr.normal(jr.key(1), (3, N, 2))
    factor = jax.vmap(jax.vmap(_lapack.cholesky))(a)
    assert_close(factor, np.linalg.cholesky(np.asarray(a)), DIRECT)
    found = jax.vmap(_lapack.cholesky_solve, in_axes=(None, 0))(factor[0, 0], b)
    assert_close(found, np.linalg.solve(np.asarray(a[0, 0]), np.asarray(b)), DIRECT)


@pytest.mark.slow
def test_independent_solves_of_a_batch_do_not_wait_for_each_other():
    code = """if True:
        import os
        if hasattr(os, "sched_setaffinity"):  # the fewer threads, the sooner it hangs
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
        import jax, jax.numpy as jnp, trainq as tq

        jax.config.update("jax_enable_x64", True)
        kernels = tq.RandomScanGibbs(), tq.RandomScanMetropolis()
        law = jnp.full(32, 1 / 32)

        def both(weights):
            snrs = [tq.QStruct(k, 100)(tq.RBM(weights), law) for k in kernels]
            return [snr.q for snr in snrs]

        weights = 0.5 * jax.random.normal(jax.random.key(0), (4, 5, 5))
        found = jax.jit(jax.vmap(both))
        for _ in range(20):
            jax.block_until_ready(found(weights))
        """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
