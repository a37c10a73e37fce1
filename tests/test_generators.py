import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, IDENTITY, KERNELS, assert_close, machine, rbm

from trainq.markov._chains import DenseChain
from trainq.markov._cholesky import Halves


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


@pytest.mark.parametrize("transpose", [False, True])
def test_backsolve_inverts(generator, transpose):
    b = jr.normal(jr.key(0), (generator.n_states, 3))
    matrix = np.asarray(generator.dense())
    expected = np.linalg.solve(matrix.T if transpose else matrix, np.asarray(b))
    found = generator.backsolve(generator.factor(), b, transpose)
    assert_close(found, expected, DIRECT)


@pytest.mark.parametrize(
    ("m", "n", "biased", "size"),
    # 2^(N-2) for even N, 2^(N-1) for odd N, and by the elimination alone with biases.
    [(3, 3, False, 2**4), (3, 2, False, 2**4), (3, 3, True, 2**5), (3, 2, True, 2**4)],
)
def test_elimination_leaves_the_promised_size(m, n, biased, size):
    chain = KERNELS["gibbs"].chain(rbm(m, n, biased=biased))
    generator = chain.generator(chain.sectors()[0])
    found = jax.eval_shape(lambda g: g.factor(), generator)
    eliminated = isinstance(found, tuple) and not isinstance(found, Halves)

    def order(factor):
        if isinstance(factor, Halves):
            return order(factor.first) + order(factor.last)
        return factor.shape[0]

    assert order(found[-1] if eliminated else found) == size
