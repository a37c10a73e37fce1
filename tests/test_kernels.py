"""Samplers against their own matrices, and against exact means."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    COLOURED,
    KERNELS,
    MODELS,
    ON_COLOURS,
    SIGMAS,
    draw,
    excess,
    kernel_of,
    machine,
    rbm,
    ring,
    slow_except,
)

import trainq as tq


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "model"),
    slow_except(
        [(k, m) for m in ("rbm 2x2", "biased rbm 2x3", "neural 3+2") for k in KERNELS],
        *((k, "biased rbm 2x3") for k in KERNELS),
        ("gibbs", "neural 3+2"),
        ("random", "neural 3+2"),
    )
    + ON_COLOURS,
)
def test_one_step_has_the_frequencies_of_the_matrix(name, model, key):
    model = MODELS[model]
    kernel = kernel_of(name, model)
    matrix = np.asarray(kernel.chain(model).matrix())
    start = oracle.states(model.n_units)[1]
    counts = draw(kernel, model, jnp.asarray(start), key)
    assert excess(counts, matrix[1]) < SIGMAS


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "name", [*KERNELS, *slow_except(COLOURED, "coloured alternating")]
)
def test_a_wrong_sampler_is_found_out(name, key):
    # A temperature that is ten percent off, from the same start.
    model = ring(4, 2) if name in COLOURED else rbm(2, 2, scale=1.0)
    kernel = kernel_of(name, model)
    matrix = np.asarray(kernel.chain(model).matrix())
    start = jnp.asarray(oracle.states(4)[1])
    counts = draw(kernel, model.tempered(0.9), start, key)
    assert excess(counts, matrix[1]) > SIGMAS


def effective_standard_error(values, chain, f):
    """From the exact asymptotic variance: the error of a mean over all values."""
    noise = tq.markov.asymptotic_covariance(chain, f[:, None])[0, 0]
    return float(jnp.sqrt(noise / values.size))


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", slow_except(KERNELS, "metropolis", "alternating"))
def test_long_run_means_are_the_exact_ones(name, key):
    kernel, model = KERNELS[name], machine(5, 3, biased=True)
    n_chains, n_steps, burn_in = 100, 2000, 200

    def run(model):
        def body(x, key):
            x = kernel.step(key, model, x)
            return x, x[:, 0] * x[:, 4]

        start = jnp.ones((n_chains, 5))
        return jax.lax.scan(body, start, jr.split(key, n_steps))[1][burn_in:]

    products = eqx.filter_jit(run)(model)
    x = oracle.states(5)
    f = jnp.asarray(x[:, 0] * x[:, 4])
    chain = kernel.chain(model)
    error = effective_standard_error(products, chain, f)
    exact = chain.stationary @ f
    assert abs(products.mean() - exact) < SIGMAS * error
    # The same statistic, of a model that is slightly too hot.
    hot = eqx.filter_jit(run)(model.tempered(0.8))
    assert abs(hot.mean() - exact) > SIGMAS * error


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", slow_except([jnp.float32, jnp.int8], jnp.int8))
def test_states_keep_their_shape_and_dtype(name, dtype, key):
    model = rbm(3, 2)
    for shape in [(5,), (2, 5), (2, 3, 5)]:
        x = KERNELS[name].step(key, model, jnp.ones(shape, dtype))
        assert x.shape == shape and x.dtype == dtype
        assert jnp.all(jnp.abs(x) == 1)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", KERNELS)
def test_the_precision_of_the_states_does_not_matter(name, key):
    model, start = rbm(3, 2, biased=True), jnp.ones((50, 5))
    expected = KERNELS[name].step(key, model, start)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.int8):
        found = KERNELS[name].step(key, model, start.astype(dtype))
        assert found.dtype == dtype and jnp.array_equal(found.astype(float), expected)


def test_states_may_be_a_list(key, as_for_users):
    for kernel in KERNELS.values():
        x = kernel.step(key, rbm(2, 2), [1, -1, -1, 1])
        assert x.shape == (4,) and x.dtype.kind == "i"


@pytest.mark.parametrize("name", KERNELS)
def test_steps_work_under_vmap_over_models(name, key):
    models = eqx.filter_vmap(lambda key: tq.RBM(jr.normal(key, (2, 2))))(
        jr.split(key, 3)
    )
    step = eqx.filter_vmap(KERNELS[name].step, in_axes=(0, 0, None))
    x = step(jr.split(key, 3), models, jnp.ones((4, 4)))
    assert x.shape == (3, 4, 4)


def test_site_updates():
    model = rbm(3, 2)
    updates = {name: kernel.site_updates(model) for name, kernel in KERNELS.items()}
    assert updates == {
        "gibbs": 1,
        "metropolis": 1,
        "random": 2.5,
        "palindromic": 8,
        "alternating": 5,
    }


def test_sweeps_are_counted_in_steps():
    model = rbm(3, 2)
    steps = {name: kernel.steps(model, 250) for name, kernel in KERNELS.items()}
    assert steps == {
        "gibbs": 1250,
        "metropolis": 1250,
        "random": 500,
        "palindromic": 156,  # of 156.25
        "alternating": 250,
    }
    assert tq.RandomScanGibbs().steps(rbm(2, 1), sweeps=0.1 + 0.2) == 1
    assert tq.PalindromicBlockGibbs().steps(model, sweeps=0.1) == 1
    with pytest.raises(ValueError, match="sweeps is a finite positive number, but 0"):
        tq.RandomScanGibbs().steps(model, sweeps=0)


@pytest.mark.slow
def test_kernels_hold_no_parameters_and_compare_equal():
    for kernel in KERNELS.values():
        assert not jax.tree.leaves(kernel)
        assert kernel == type(kernel)() and hash(kernel) == hash(type(kernel)())


class Lazy(tq.markov.AbstractKernel):
    """A kernel of a user's own: half of the time, do nothing."""

    kernel: tq.markov.AbstractKernel
    is_reversible = True

    def stepper(self, model):
        move = self.kernel.stepper(model)

        def step(key, x):
            coin, rest = jr.split(key)
            heads = jr.bernoulli(coin, shape=(*x.shape[:-1], 1))
            return jnp.where(heads, move(rest, x), x)

        return step

    def chain(self, model):
        inner = self.kernel.chain(model)
        matrix = (jnp.eye(inner.n_states) + inner.matrix()) / 2
        return tq.markov.DenseChain(matrix, inner.stationary, is_reversible=True)

    def site_updates(self, model):
        return self.kernel.site_updates(model) / 2


@pytest.mark.slow
def test_a_kernel_of_a_users_own_works_everywhere(key):
    model = rbm(2, 2)
    data = tq.visible_distribution(rbm(2, 2, seed=1))
    lazy, base = Lazy(tq.RandomScanGibbs()), tq.RandomScanGibbs()
    matrix = np.asarray(lazy.chain(model).matrix())
    assert excess(draw(lazy, model, jnp.ones(4), key), matrix[-1]) < SIGMAS
    # Half the speed: twice the noise.
    slow, fast = (tq.QStruct(k, 100)(model, data) for k in (lazy, base))
    np.testing.assert_allclose(slow.t_o, 2 * fast.t_o, rtol=1e-10)
    certificate = tq.certify(lazy, model)
    assert certificate.ok
    assert not certificate.checks["symmetry"].applicable
