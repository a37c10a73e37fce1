import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, IDENTITY, KERNELS, assert_close, machine, rbm

import trainq as tq
from trainq._spins import xor
from trainq.markov._chains import DenseChain
from trainq.markov._forms import solver_of
from trainq.markov._systems import JacobiFlips


MODELS = {"even N": rbm(3, 3), "odd N": rbm(3, 2), "biased": machine(4, biased=True)}
SECTORS = [
    (name, sector)
    for name, model in MODELS.items()
    for sector in ((None, "even", "odd") if model.is_symmetric else (None,))
]
TARGET = jnp.arange(16) % 5 == 0


def layer(sector):
    return KERNELS["random"].chain(rbm(2, 3))._layers(sector, on_hidden=False)


def dense(kernel):
    return DenseChain(KERNELS[kernel].chain(rbm(2, 2)).matrix())


# Every generator, in every sector and with every path of elimination.
CASES = {
    **{
        f"{kernel}, {name}, {sector}": lambda k=kernel, n=name, s=sector: (
            KERNELS[k].chain(MODELS[n]).generator(s)
        )
        for kernel in ("gibbs", "metropolis")
        for name, sector in SECTORS
    },
    **{
        f"one unit, {sector}": lambda s=sector: (
            KERNELS["gibbs"].chain(machine(1)).generator(s)
        )
        for sector in ("even", "odd")
    },
    **{
        f"layer, {sector}": lambda s=sector: layer(s).generator
        for sector in ("even", "odd")
    },
    **{
        f"dense {kernel}": lambda k=kernel: dense(k)._generator()
        for kernel in ("gibbs", "alternating")
    },
    **{
        f"killed {kernel}": lambda k=kernel: (
            KERNELS[k].chain(rbm(2, 2)).killed_generator(TARGET)
        )
        for kernel in KERNELS
    },
}


@pytest.fixture(params=CASES)
def generator(request):
    return CASES[request.param]()


def test_matrix_is_apply_and_the_null_vector_is_null(generator):
    n = generator.n_states
    matrix = generator.matrix()
    assert_close(generator.apply(jnp.eye(n)), matrix, IDENTITY)
    assert_close(generator.mv(jnp.eye(n)), generator.dense(), IDENTITY)
    assert_close(generator.transposed().matrix(), matrix.T, IDENTITY)
    if generator.is_symmetric:
        assert_close(matrix, matrix.T, IDENTITY)
    if generator.null is not None:
        assert abs(jnp.linalg.norm(generator.null) - 1) <= IDENTITY
        assert jnp.max(jnp.abs(matrix @ generator.null)) <= IDENTITY
        assert jnp.max(jnp.abs(generator.null @ matrix)) <= IDENTITY


@pytest.mark.parametrize("solver", [tq.Direct(), tq.ConjugateGradient(rtol=1e-14)])
def test_what_is_left_of_the_system_solves_the_whole(generator, solver):
    b = jr.normal(jr.key(0), (generator.n_states, 3))
    matrix = np.asarray(generator.dense())
    if not generator.is_symmetric and isinstance(solver, tq.ConjugateGradient):
        pytest.skip("refused, see test_errors")
    solve = solver_of(generator, solver, 3)
    for transpose in (False, True):
        y, stats, _ = solve(b, transpose=transpose)
        expected = np.linalg.solve(matrix.T if transpose else matrix, np.asarray(b))
        assert_close(y, expected, DIRECT)
        assert stats.ok and jnp.max(stats.residual) <= 1e-12


def test_a_system_is_its_matrix(generator):
    # Up to the null vector, which `mv` may annihilate and `dense` shifts away from it.
    system = generator.system()
    n = system.n_states
    matrix, applied = system.dense(), system.mv(jnp.eye(n))
    shift = matrix - applied
    assert jnp.linalg.matrix_rank(shift, rtol=1e-9) <= 1
    if generator.null is None:
        assert_close(applied, matrix, IDENTITY)
    assert jnp.linalg.norm(matrix @ shift - shift @ matrix) <= IDENTITY * n


@pytest.mark.parametrize(
    ("m", "n", "biased", "size"),
    # 2^(N-2) for even N, 2^(N-1) for odd N, and by the elimination alone with biases.
    [(3, 3, False, 2**4), (3, 2, False, 2**4), (3, 3, True, 2**5), (3, 2, True, 2**4)],
)
def test_elimination_leaves_the_promised_size(m, n, biased, size):
    chain = KERNELS["gibbs"].chain(rbm(m, n, biased=biased))
    assert chain.generator(chain.sectors()[0]).system().n_states == size


def test_elimination_halves_the_iterations():
    # The condition number is a quarter, and iterations go as its square root.
    generator = KERNELS["gibbs"].chain(rbm(4, 4)).generator("even")
    b = jr.normal(jr.key(0), (generator.n_states, 8))
    whole = JacobiFlips(
        jnp.sqrt(generator.diagonal), generator.null, *_scaled_hops(generator)
    )
    solver, floor = tq.ConjugateGradient(), jnp.asarray(0.0)
    counts = [
        jnp.max(solver.solve(s, None, s.restrict(b), None, floor, False)[1])
        for s in (generator.system(), whole)
    ]
    assert 1.6 <= counts[1] / counts[0] <= 2.4, counts


def _scaled_hops(generator):
    root = jnp.sqrt(generator.diagonal)
    towards = jnp.stack([xor(root, mask) for mask in generator.masks])
    return generator.hops / (root[None] * towards), generator.masks
