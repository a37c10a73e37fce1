"""Strategies against each other, and what they say of themselves."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import (
    AUTODIFF,
    DIRECT,
    KERNELS,
    MODELS,
    assert_close,
    flatten,
    machine,
    neural,
    random_law,
    rbm,
    slow_except,
)

import trainq as tq
from trainq.solvers._systems import DenseSystem


CG = tq.ConjugateGradient()
# Every way of elimination, and every kind of model.
KINDS = ("rbm 3x3", "rbm 3x2", "biased rbm 2x3", "machine 4+2", "neural 3+2")


def value_and_gradient(kernel, model, solver, convention="resolvent"):
    predictor = tq.QStruct(KERNELS[kernel], 100, convention, solver=solver)
    flat, build = flatten(model)
    data = random_law(model.n_visible)

    def fn(x):
        return predictor(build(x), data).log_q

    return jax.jit(jax.value_and_grad(fn))(flat)


def assert_agree(kernel, model, solver, other=None, tolerance=AUTODIFF):
    value, gradient = value_and_gradient(kernel, model, solver)
    expected, slopes = value_and_gradient(kernel, model, other or tq.Direct())
    assert abs(value - expected) <= tolerance
    assert_close(gradient, slopes, tolerance)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        pytest.param("metropolis", "rbm 3x3", marks=pytest.mark.slow),
        *(
            pytest.param("gibbs", name, marks=() if name in KINDS else pytest.mark.slow)
            for name in MODELS
        ),
        *(pytest.param("metropolis", n, marks=pytest.mark.slow) for n in KINDS[1:]),
    ],
)
def test_conjugate_gradients_agree_with_a_factorisation(kernel, name):
    assert_agree(kernel, MODELS[name], tq.ConjugateGradient(block=4))


BLOCKS = ["random", "palindromic", "alternating"]


@pytest.mark.parametrize("kernel", slow_except(BLOCKS, "random"))
def test_they_agree_on_layers(kernel):
    assert_agree(kernel, rbm(4, 3), CG)


@pytest.mark.parametrize("block", slow_except([1, 5, None], None))
def test_blocks_and_memory_change_nothing(block):
    whole = value_and_gradient("gibbs", rbm(3, 3), CG)
    solver = tq.ConjugateGradient(block=block, memory=1e-5)
    blocked = value_and_gradient("gibbs", rbm(3, 3), solver)
    assert_close(blocked[0], whole[0], DIRECT)
    assert_close(blocked[1], whole[1], DIRECT)


@pytest.mark.slow
def test_single_precision_is_refined():
    # In float32 alone the error would be 1e-6.
    assert_agree("gibbs", rbm(3, 3), tq.ConjugateGradient(inner_dtype=jnp.float32))


@pytest.mark.slow
def test_second_derivatives_by_conjugate_gradients():
    flat, build = flatten(rbm(2, 2))
    data = random_law(2)

    def log_q(solver):
        predictor = tq.QStruct(KERNELS["gibbs"], 100, solver=solver)
        return lambda x: predictor(build(x), data).log_q

    hessian = jax.jit(jax.hessian(log_q(tq.ConjugateGradient(block=2))))(flat)
    assert_close(hessian, jax.jit(jax.hessian(log_q(tq.Direct())))(flat), AUTODIFF)


@pytest.mark.slow
def test_a_batch_of_models():
    flats = jnp.stack([flatten(rbm(3, 3, scale=s))[0] for s in (0.1, 1.0, 1.5)])
    _, build = flatten(rbm(3, 3))
    predictor = tq.QStruct(KERNELS["gibbs"], 100, solver=tq.ConjugateGradient(block=4))

    def fn(x):
        return predictor(build(x), random_law(3))

    together = jax.jit(jax.vmap(fn))(flats)
    for i, flat in enumerate(flats):
        alone = jax.jit(fn)(flat)
        assert_close(together.parameter_mse[i], alone.parameter_mse, DIRECT)
        assert jnp.array_equal(together.stats.iterations[i], alone.stats.iterations)
    # The hot model takes fewer, and stops for itself.
    counts = together.stats.iterations.max(axis=1)
    assert counts[0] < min(counts[1], counts[2])


@pytest.mark.parametrize("block", slow_except([9, 4], 4))
def test_the_backward_pass_repeats_no_solve(block):
    solver = tq.ConjugateGradient(block=block)
    predictor = tq.QStruct(KERNELS["gibbs"], 100, solver=solver)

    def fn(w):
        return predictor(tq.RBM(w), random_law(3)).log_q

    def iterations(fn):
        shape = jax.ShapeDtypeStruct((3, 3), jnp.float64)
        lines = jax.jit(fn).lower(shape).compile().as_text().splitlines()
        loops = [line for line in lines if " while(" in line]
        # Those over blocks and the like know how often they turn.
        return sum("known_trip_count" not in line for line in loops)

    assert iterations(jax.value_and_grad(fn)) == iterations(fn) == 1


@pytest.mark.slow
def test_memory_of_the_gradient_is_that_of_the_value():
    # 36 observables of 12 units, four at a time.
    predictor = tq.QStruct(KERNELS["gibbs"], 100, solver=tq.ConjugateGradient(block=4))
    data = random_law(6)

    def fn(w):
        return predictor(tq.RBM(w), data).log_q

    def peak(fn):
        shape = jax.ShapeDtypeStruct((6, 6), jnp.float64)
        stats = jax.jit(fn).lower(shape).compile().memory_analysis()
        return stats.temp_size_in_bytes

    table = 2**12 * 36 * 8
    assert peak(fn) < 1.25 * table
    # The solutions are kept, on half of the states at most, and a few tables of the
    # rates with their slopes.
    assert peak(jax.value_and_grad(fn)) < 3 * table


@pytest.mark.slow
def test_statistics():
    snr = tq.QStruct(KERNELS["gibbs"], 100, solver=CG)(rbm(3, 3), random_law(3))
    stats = snr.stats
    assert stats.ok and stats.residual.shape == stats.iterations.shape == (9,)
    assert 0 < stats.iterations.min() <= stats.iterations.max() < 16
    assert 0 < stats.residual.max() < 1e-10
    assert re.search(r"9 right-hand sides.*\n9 +successful", str(stats), re.DOTALL)
    direct = tq.QStruct(KERNELS["gibbs"], 100)(rbm(3, 3), random_law(3)).stats
    assert direct.ok and direct.iterations.max() == 0 and direct.residual.max() < 1e-13


def test_the_residual_is_the_true_one():
    # Of a solve that is stopped early, against the residual of what it returns.
    chain = KERNELS["gibbs"].chain(machine(4, biased=True))
    f = jr.normal(jr.key(0), (16, 2))
    solver = tq.ConjugateGradient(max_steps=3, throw=False)
    stats = tq.markov.solve_resolvent(chain, f, solver=solver).stats
    assert list(stats.result) == [1, 1] and not stats.ok
    assert "max_steps" in str(stats)
    assert jnp.all(stats.iterations == 3) and jnp.all(stats.residual > 1e-6)
    more = tq.ConjugateGradient(max_steps=5, throw=False)
    assert jnp.all(
        tq.markov.solve_resolvent(chain, f, solver=more).stats.residual < stats.residual
    )


@pytest.mark.slow
def test_solve_resolvent_returns_both():
    chain = KERNELS["gibbs"].chain(rbm(2, 2))
    f = jr.normal(jr.key(0), (16,))
    found = tq.markov.solve_resolvent(chain, f, solver=CG)
    assert_close(found.value, tq.markov.resolvent(chain, f), DIRECT)
    assert found.stats.ok and found.stats.residual.shape == (2 - 1,)


@pytest.mark.slow
def test_tolerances_are_kept():
    f = tq.observables(rbm(3, 3))
    chain = KERNELS["gibbs"].chain(rbm(3, 3))
    counts = []
    for solver in (
        tq.ConjugateGradient(1e-3),
        tq.ConjugateGradient(1e-9),
        tq.ConjugateGradient(0.0, 1e-12),
    ):
        stats = tq.markov.solve_resolvent(chain, f, solver=solver).stats
        bound = max(solver.rtol, solver.atol * 10)
        assert stats.ok and stats.residual.max() <= 10 * bound
        counts.append(int(stats.iterations.max()))
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_warm_starts_take_fewer_iterations():
    predictor = tq.QStruct(KERNELS["gibbs"], 100, solver=CG)
    model, data = rbm(3, 3), random_law(3)
    cold, guess = predictor.from_guess(model, data, predictor.zero_guess(model, data))
    again, _ = predictor.from_guess(model, data, guess)
    near, _ = predictor.from_guess(model.tempered(1 + 1e-6), data, guess)
    assert again.stats.iterations.max() == 0
    assert 0 < near.stats.iterations.max() < cold.stats.iterations.max()
    expected = predictor(model.tempered(1 + 1e-6), data)
    assert_close(near.parameter_mse, expected.parameter_mse, DIRECT)


@pytest.mark.slow
def test_warm_starts_in_a_training_loop():
    predictor = tq.QStruct(KERNELS["gibbs"], 100, solver=tq.ConjugateGradient(block=4))
    data, model = random_law(3), rbm(3, 3)

    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model, guess):
        snr, guess = predictor.from_guess(model, data, guess)
        return -snr.log_q, (snr.stats.iterations, guess)

    def step(carry, _):
        model, guess = carry
        (value, (count, guess)), grads = loss(model, guess)
        model = jax.tree.map(lambda p, g: p - 1e-4 * g, model, grads)
        return (model, guess), (value, count.max())

    start = (model, predictor.zero_guess(model, data))
    _, (values, counts) = jax.jit(lambda s: jax.lax.scan(step, s, length=5))(start)
    assert jnp.all(jnp.diff(values) < 0)
    assert jnp.all(counts[1:] < counts[0])


@pytest.mark.parametrize(
    ("kernel", "m", "n", "biased", "chosen"),
    [
        ("gibbs", 6, 6, False, tq.Direct),
        ("gibbs", 7, 7, False, tq.ConjugateGradient),
        ("metropolis", 5, 6, True, tq.Direct),
        ("metropolis", 7, 7, True, tq.ConjugateGradient),
        ("random", 10, 10, False, tq.Direct),
    ],
)
def test_auto_factorises_up_to_the_promised_size(kernel, m, n, biased, chosen):
    model = rbm(m, n, biased=biased)

    def select():
        chain = KERNELS[kernel].chain(model)
        generator = chain.reductions()[0].generator
        found.append(tq.Auto().select(generator.system(), m * n))

    found = []
    jax.eval_shape(select)  # without computing the arrays
    assert isinstance(found[0], chosen)


def test_auto_minds_the_memory():
    system = KERNELS["gibbs"].chain(rbm(4, 4)).generator("even").system()
    assert isinstance(tq.Auto().select(system, 16), tq.Direct)
    small = tq.Auto(memory=1e-6).select(system, 16)
    assert isinstance(small, tq.ConjugateGradient) and small.memory == 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "model"),
    [
        ("gibbs", rbm(7, 7, scale=0.3)),
        ("metropolis", rbm(7, 7, scale=0.3)),
        ("gibbs", rbm(7, 6, scale=0.3)),
        ("gibbs", machine(12, 6, biased=True, scale=0.2)),
        ("gibbs", neural(6, 6)),
        ("random", rbm(10, 10, scale=0.2)),
    ],
    ids=["gibbs 14", "metropolis 14", "odd 13", "biased 12", "neural 12", "block 20"],
)
def test_strategies_agree_at_medium_size(kernel, model):
    assert_agree(kernel, model, CG)


def test_an_iteration_that_does_not_converge_raises():
    solver = tq.ConjugateGradient(max_steps=2)
    predictor = tq.QStruct(KERNELS["gibbs"], 100, solver=solver)
    with pytest.raises(eqx.EquinoxRuntimeError, match="reached its `max_steps`"):
        predictor(rbm(3, 3), random_law(3))


def test_an_error_is_not_less_than_it_is_along_the_slowest_mode():
    # An error along a mode of eigenvalue 1e-8 hardly leaves a residual.
    slow = 1e-8
    system = DenseSystem(
        hops=jnp.diag(jnp.array([0.3, 0.0, 1 - slow])),
        root=jnp.ones(3),
        null=None,
        is_self_adjoint=True,
    )
    matrix = np.diag([0.7, 1.0, slow])
    exact = np.ones((3, 1))
    wrong = np.array([[0.0], [0.0], [2.0]])
    b, zero = jnp.asarray(matrix @ exact), jnp.zeros(())
    found = CG.error(system, b, jnp.asarray(exact + wrong), jnp.asarray(slow), zero)
    y = exact + wrong
    expected = np.sqrt((wrong.T @ matrix @ wrong) / (y.T @ matrix @ exact))[0, 0]
    assert_close(found, expected[None], 1e-6)


def test_an_iteration_returns_its_best_iterate():
    # A chain so slow that the residual grows again before the tolerance is reached.
    model = tq.RBM(jnp.full((3, 3), 5.0).at[0, 0].add(0.25), jnp.array([0.25, 0, 0]))
    data = jnp.full(8, 0.125)
    found = tq.QStruct(KERNELS["gibbs"], 2, solver=tq.ConjugateGradient())(model, data)
    expected = tq.QStruct(KERNELS["gibbs"], 2, solver=tq.Direct())(model, data)
    np.testing.assert_allclose(found.parameter_mse, expected.parameter_mse, rtol=1e-7)
