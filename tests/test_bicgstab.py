"""Stabilised biconjugate gradients, on scans of three blocks in a fixed order."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import AUTODIFF, DIRECT, assert_close, random_law, ring, slow_except

import trainq as tq
from trainq.solvers import BiCGStab, LinearSolve


MODEL = ring(5, 3)
KERNEL = tq.AlternatingBlockGibbs(MODEL.colouring())
TIGHT = BiCGStab(rtol=1e-14)


def generator(sector, model=MODEL):
    (reduction,) = KERNEL.chain(model).reductions(sector)
    return reduction.generator


@pytest.mark.parametrize("sector", slow_except(["even", "odd"], "odd"))
def test_it_solves_the_system_and_its_transpose(sector):
    left = generator(sector)
    assert not left.is_self_adjoint
    matrix = np.asarray(left.regular().matrix())
    b = jr.normal(jr.key(0), (16, 3)).at[:, 1].set(0)
    for transpose in (False, True):
        y, stats, _ = LinearSolve(left, TIGHT, 3)(b, transpose=transpose)
        expected = np.linalg.solve(matrix.T if transpose else matrix, np.asarray(b))
        assert_close(y, expected, DIRECT)
        assert stats.ok and stats.iterations[1] == 0 < stats.iterations[0] <= 16


@pytest.mark.slow
def test_the_gradient_is_that_of_a_direct_solve():
    data = random_law(3)

    @eqx.filter_jit
    def slope(model, solver):
        def log_q(model):
            return tq.QStruct(KERNEL, 100, solver=solver)(model, data).log_q

        return eqx.filter_value_and_grad(log_q)(model)

    (value, found), (exact, expected) = (slope(MODEL, s) for s in (TIGHT, tq.Direct()))
    assert_close(value, exact, DIRECT)
    assert_close(found.couplings, expected.couplings, AUTODIFF)


@pytest.mark.slow
def test_what_is_not_solved_is_told():
    f = jnp.asarray(tq.observables(MODEL))
    chain = KERNEL.chain(MODEL)

    def stats(**given):
        solver = BiCGStab(throw=False, **given)
        return tq.markov.solve_resolvent(chain, f, solver=solver).stats

    assert jnp.all(stats(max_steps=1).result == 1)
    assert stats().ok
    # So cold that it is not known what the solution is.
    chain = KERNEL.chain(MODEL.tempered(40.0))
    with pytest.raises(eqx.EquinoxRuntimeError, match="could not be solved"):
        jax.block_until_ready(tq.markov.resolvent(chain, f, solver=BiCGStab()))


@pytest.mark.slow
def test_it_goes_on_from_a_guess():
    # From its own solution there is nothing left to do.
    left = generator("even")
    b = jr.normal(jr.key(1), (16, 2))
    _, stats, guess = LinearSolve(left, BiCGStab(), 2)(b)
    again = LinearSolve(left, BiCGStab(rtol=1e-9), 2)(b, guess=guess)
    assert jnp.all(stats.iterations > 0) and jnp.all(again.stats.iterations == 0)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="rtol of a `BiCGStab` is a finite number"):
        BiCGStab(rtol=-1.0)
    with pytest.raises(ValueError, match="A `BiCGStab` with rtol = 0 and atol = 0"):
        BiCGStab(rtol=0.0)


def test_a_system_that_does_not_know_its_transpose():
    class Opaque(tq.solvers.AbstractSystem):
        is_self_adjoint = False

        @property
        def n_states(self):
            return 2

        @property
        def products(self):
            return 4

        def mv(self, y):
            return y

        def matrix(self):
            return jnp.eye(2)

    with pytest.raises(ValueError, match="Opaque does not know its transpose"):
        BiCGStab().transpose(Opaque())


@pytest.mark.slow
def test_auto_iterates_where_a_matrix_is_too_large():
    edges = [(i, (i + 1) % 15) for i in range(15)]
    model = tq.BoltzmannMachine.from_edges(edges, jnp.full(15, 0.2))
    kernel = tq.AlternatingBlockGibbs(model.colouring())
    assert kernel.n_blocks == 3
    for make, kind in (
        (kernel, BiCGStab),
        (tq.Symmetrised(kernel), tq.ConjugateGradient),
    ):
        (reduction,) = make.chain(model).reductions("odd")
        system = reduction.generator.system()
        assert isinstance(tq.Auto().select(system, 15), kind)
        with pytest.raises(ValueError, match="between 32768 states are too many"):
            reduction.generator.rates()
    (small,) = KERNEL.chain(MODEL).reductions("even")
    assert isinstance(tq.Auto().select(small.generator.system(), 5), tq.Direct)
