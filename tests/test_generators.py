import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import (
    AUTODIFF,
    DIRECT,
    IDENTITY,
    KERNELS,
    assert_close,
    machine,
    rbm,
    ring,
)

import trainq as tq
from trainq.markov import DenseChain
from trainq.solvers import LinearSolve
from trainq.solvers._generators import without_subtraction


MODELS = {"even N": rbm(3, 3), "odd N": rbm(3, 2), "biased": machine(4, biased=True)}
SECTORS = [
    (name, sector)
    for name, model in MODELS.items()
    for sector in ((None, "even", "odd") if model.is_symmetric else (None,))
]
TARGET = jnp.arange(16) % 5 == 0


def layer(sector):
    (reduction,) = KERNELS["random"].chain(rbm(2, 3)).reductions(sector)
    return reduction.generator


def dense(kernel):
    return DenseChain(KERNELS[kernel].chain(rbm(2, 2)).matrix())


def steps(kernel, sector, model):
    """Steps without a matrix."""
    (reduction,) = kernel.chain(model).reductions(sector)
    return reduction.generator


THREE = tq.AlternatingBlockGibbs([(0,), (2, 4), (1, 3)])
STEPS = {
    "units": (tq.Symmetrised(THREE), ring(5, 3)),
    "fixed order": (THREE, ring(5, 3)),
    "flips": (tq.Power(KERNELS["metropolis"], 3), rbm(2, 2)),
    "layers": (tq.Lazy(tq.AlternatingBlockGibbs([(1, 3), (0, 2)])), ring(4, 2)),
}


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
    **{f"layer, {sector}": lambda s=sector: layer(s) for sector in ("even", "odd")},
    **{
        f"steps, {name}, {sector}": lambda k=kernel, m=model, s=sector: steps(k, s, m)
        for name, (kernel, model) in STEPS.items()
        for sector in ("even", "odd")
    },
    **{
        f"dense {kernel}": lambda k=kernel: dense(k).dense_generator()
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


@pytest.mark.quick(2)
def test_matrix_is_apply_and_the_null_vector_is_null(generator):
    n = generator.n_states
    matrix = generator.matrix()
    assert_close(generator.mv(jnp.eye(n)), matrix, IDENTITY)
    regular = generator.regular()
    assert_close(regular.mv(jnp.eye(n)), regular.matrix(), IDENTITY)
    assert_close(generator.transposed().matrix(), matrix.T, IDENTITY)
    if generator.is_self_adjoint:
        assert_close(matrix, matrix.T, IDENTITY)
    if generator.null is not None:
        assert abs(jnp.linalg.norm(generator.null) - 1) <= IDENTITY
        assert jnp.max(jnp.abs(matrix @ generator.null)) <= IDENTITY
        assert jnp.max(jnp.abs(generator.null @ matrix)) <= IDENTITY


CG = tq.ConjugateGradient(rtol=1e-14)
SOLVES = [
    *(
        pytest.param(name, tq.Direct(), marks=pytest.mark.slow)
        if name.startswith(
            ("metropolis", "killed m", "gibbs, odd N", "one unit, e", "steps")
        )
        else (name, tq.Direct())
        for name in CASES
    ),
    # One rule, and every kind of generator.
    *((name, CG) for name in CASES if name.startswith(("gibbs, even", "layer"))),
    ("dense gibbs", CG),
    ("killed gibbs", CG),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "solver"), SOLVES)
def test_what_is_left_of_the_system_solves_the_whole(name, solver):
    generator = CASES[name]()
    b = jr.normal(jr.key(0), (generator.n_states, 3))
    matrix = np.asarray(generator.regular().matrix())
    solve = LinearSolve(generator, solver, 3)
    for transpose in (False, True):
        y, stats, _ = solve(b, transpose=transpose)
        expected = np.linalg.solve(matrix.T if transpose else matrix, np.asarray(b))
        assert_close(y, expected, DIRECT)
        assert stats.ok and jnp.max(stats.residual) <= 1e-12


@pytest.mark.quick(2)
def test_elimination_solves_the_whole(generator):
    b = jr.normal(jr.key(0), (generator.n_states, 2))
    expected = np.linalg.solve(np.asarray(generator.regular().matrix()), np.asarray(b))
    y, is_regular = without_subtraction(generator, b)
    assert_close(y, expected, DIRECT)
    assert is_regular


@pytest.mark.parametrize("pairing", ["diagonal", "gram"])
@pytest.mark.parametrize("sector", ["even", "odd"])
@pytest.mark.parametrize("alike", [False, True])
def test_a_form_is_differentiated_in_its_functions_too(pairing, sector, alike):
    # They depend on parameters where a step comes after others, as in a power.
    generator = KERNELS["gibbs"].chain(rbm(2, 2)).generator(sector)
    z, x = jr.normal(jr.key(0), (2, 8, 3))
    law = jnp.exp(generator.log_law)

    def plain(z, x):
        matrix = (
            (generator.root / law)[:, None] * generator.matrix() * generator.root[None]
        )
        form = z.T @ (law[:, None] * (matrix @ x))
        return jnp.diag(form) if pairing == "diagonal" else form

    def ours(z, x):
        return generator.dirichlet(z, x, pairing)

    def slopes(form):
        def value(z, x):
            found = form(z, z if alike else x)
            return jnp.sum(jnp.cos(jnp.arange(found.size)) * found.ravel())

        return jnp.stack(jax.grad(value, (0, 1))(z, x))

    assert_close(slopes(ours), slopes(plain), AUTODIFF)
