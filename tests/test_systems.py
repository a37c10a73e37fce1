"""What elimination leaves of the systems of single flips."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, IDENTITY, KERNELS, assert_close, machine, rbm

import trainq as tq
from trainq._spins import xor
from trainq.solvers import SolveOptions, _systems


GENERATORS = {
    f"{kernel}, {name}, {sector}": KERNELS[kernel].chain(model).generator(sector)
    for kernel in ("gibbs", "metropolis")
    for name, model, sector in (
        ("even N", rbm(2, 2), "even"),
        ("even N", rbm(2, 2), "odd"),
        ("odd N", rbm(3, 2), "even"),
        ("odd N", rbm(3, 2), "odd"),
        ("biased", machine(4, biased=True), None),
    )
}


@pytest.fixture(params=GENERATORS)
def generator(request):
    return GENERATORS[request.param]


@pytest.mark.quick(4)
def test_a_system_is_its_matrix(generator):
    # Up to the null vector, which `mv` annihilates and `matrix` shifts away from it.
    system = generator.system()
    n = system.n_states
    matrix, applied = system.matrix(), system.mv(jnp.eye(n))
    values, vectors = np.linalg.eigh(applied)
    assert values[-1] <= 2 + IDENTITY
    if generator.null is None:
        assert_close(matrix, applied, IDENTITY)
        return
    assert abs(values[0]) <= IDENTITY < values[1]
    assert_close(matrix, applied + np.outer(vectors[:, 0], vectors[:, 0]), DIRECT)


@pytest.mark.quick(2)
def test_the_way_there_and_back_solves_the_whole(generator):
    system = generator.system()
    b = jr.normal(jr.key(0), (generator.n_states, 3))
    y = jnp.linalg.solve(system.matrix(), system.restrict(b))
    whole = system.prolong(y, b)
    assert_close(whole, np.linalg.solve(generator.regular().matrix(), b), DIRECT)


def test_split_is_by_parity():
    even, odd = (half.astype(int) for half in _systems.split(jnp.arange(16.0)))
    assert sorted(even.tolist()) == [0, 3, 5, 6, 9, 10, 12, 15]
    assert jnp.array_equal(even >> 1, odd >> 1)
    assert jnp.array_equal(even >> 1, jnp.arange(8))


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("m", "n", "biased", "size"),
    # 2^(N-2) for even N, 2^(N-1) for odd N, and by the elimination alone with biases.
    [(3, 3, False, 2**4), (3, 2, False, 2**4), (3, 3, True, 2**5), (3, 2, True, 2**4)],
)
def test_elimination_leaves_the_promised_size(m, n, biased, size):
    chain = KERNELS["gibbs"].chain(rbm(m, n, biased=biased))
    assert chain.reductions()[0].generator.system().n_states == size


@pytest.mark.slow
def test_elimination_halves_the_iterations():
    # The condition number is a quarter, and iterations go as its square root.
    generator = KERNELS["gibbs"].chain(rbm(4, 4)).generator("even")
    b = jr.normal(jr.key(0), (generator.n_states, 8))
    whole = _systems.JacobiFlips(
        jnp.sqrt(generator.diagonal), generator.null, *_scaled_hops(generator)
    )
    solver, options = tq.ConjugateGradient(), SolveOptions(None, jnp.asarray(0.0))
    counts = [
        jnp.max(solver.compute(solver.init(s), s.restrict(b), options)[1])
        for s in (generator.system(), whole)
    ]
    assert 1.6 <= counts[1] / counts[0] <= 2.4, counts


def _scaled_hops(generator):
    root = jnp.sqrt(generator.diagonal)
    towards = jnp.stack([xor(root, mask) for mask in generator.masks])
    return generator.hops / (root[None] * towards), generator.masks
