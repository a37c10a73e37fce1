"""The closed forms of the restricted Boltzmann machine."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import IDENTITY, assert_close, random_law, rbm

import trainq as tq
from trainq.models._rbm import log_2cosh


def arrays(model):
    parts = (model.weights, model.visible_bias, model.hidden_bias)
    return [None if p is None else np.asarray(p) for p in parts]


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.int64, jnp.int8])
@pytest.mark.parametrize("biased", [False, True])
def test_energy_takes_any_leading_shape_and_int_spins(biased, dtype):
    model = rbm(2, 3, biased=biased)
    expected = oracle.rbm_energies(*arrays(model))
    states = jnp.asarray(oracle.states(5), dtype)
    assert_close(model.energy(states), expected, IDENTITY)
    cube = model.energy(states.reshape(2, 4, 4, 5))
    assert_close(cube, expected.reshape(2, 4, 4), IDENTITY)
    assert_close(model.energy(states[7]), expected[7], IDENTITY)
    assert model.energy(states[:0]).shape == (0,)


def test_observables_are_products_then_visible_then_hidden_spins():
    states = jnp.asarray(oracle.states(5))
    for biased in (False, True):
        actual = rbm(2, 3, biased=biased).observables(states)
        assert_close(actual, oracle.rbm_observables(2, 3, biased), IDENTITY)


@pytest.mark.parametrize("layer", ["visible", "hidden"])
def test_one_layer_alone_may_have_biases(layer):
    full = rbm(2, 3, biased=True)
    bias = {f"{layer}_bias": getattr(full, f"{layer}_bias")}
    model = tq.RBM(full.weights, **bias)
    assert not model.is_symmetric
    expected = oracle.rbm_energies(*arrays(model))
    assert_close(model.energies(), expected, IDENTITY)
    assert_close(model.energy(jnp.asarray(oracle.states(5))), expected, IDENTITY)
    assert_close(model.log_partition(), np.log(np.exp(-expected).sum()), IDENTITY)
    spins = slice(6, 8) if layer == "visible" else slice(8, 11)
    table = oracle.rbm_observables(2, 3, biased=True)
    expected = np.concatenate([table[:, :6], table[:, spins]], axis=1)
    assert_close(tq.observables(model), expected, IDENTITY)


def test_parameters_may_be_lists_and_integers():
    model = tq.RBM([[1, -2, 0], [3, 1, 1]], [1, 0], np.array([0, 1, 2]))
    assert all(p.dtype == jnp.float64 for p in jax.tree.leaves(model))
    assert (model.n_visible, model.n_hidden, model.n_units) == (2, 3, 5)
    assert_close(model.energies(), oracle.rbm_energies(*arrays(model)), IDENTITY)


@pytest.mark.parametrize("bias", [-1.3, 0.0, 0.4])
def test_a_free_spin_is_up_with_the_probability_of_its_field(bias):
    up = 1 / (1 + np.exp(-2 * bias))
    seen = tq.RBM([[0.0]], [bias])
    assert_close(tq.visible_distribution(seen), [1 - up, up], IDENTITY)
    unseen = tq.RBM([[0.0]], None, [bias])
    assert_close(tq.visible_distribution(unseen), [0.5, 0.5], IDENTITY)
    assert_close(tq.mean_observables(unseen)[1], 1 - 2 * up, IDENTITY)


@pytest.mark.parametrize("biased", [False, True])
def test_fields_give_the_conditional_laws(biased):
    model = rbm(2, 3, biased=biased)
    v, h = oracle.states(2), oracle.states(3)
    law = oracle.law(oracle.rbm_energies(*arrays(model))).reshape(4, 8)
    hidden = law / law.sum(axis=1, keepdims=True)
    visible = law.T / law.T.sum(axis=1, keepdims=True)
    field = model.hidden_field(jnp.asarray(v))
    assert_close(jnp.tanh(field), hidden @ h, IDENTITY)
    assert_close(jax.nn.sigmoid(2 * field), hidden @ (h > 0), IDENTITY)
    field = model.visible_field(jnp.asarray(h).reshape(2, 4, 3))
    assert_close(jnp.tanh(field).reshape(8, 2), visible @ v, IDENTITY)
    single = model.hidden_field(jnp.asarray(v[2]))
    assert_close(jnp.tanh(single), hidden[2] @ h, IDENTITY)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("m", "n"), [(1, 4), (4, 1)])
def test_the_partition_function_is_the_same_from_either_layer(m, n, biased):
    model = rbm(m, n, biased=biased)
    swapped = tq.RBM(model.weights.T, model.hidden_bias, model.visible_bias)
    expected = np.log(np.exp(-oracle.rbm_energies(*arrays(model))).sum())
    assert_close(model.log_partition(), expected, IDENTITY)
    assert_close(swapped.log_partition(), expected, IDENTITY)


def test_the_partition_function_enumerates_the_smaller_layer_alone():
    # The larger layer has 2**40 states.
    model = rbm(40, 2, biased=True)
    swapped = tq.RBM(model.weights.T, model.hidden_bias, model.visible_bias)
    weights, a, b = arrays(model)
    h = oracle.states(2)
    terms = np.exp(h @ b) * np.prod(2 * np.cosh(h @ weights.T + a), axis=1)
    assert_close(model.log_partition(), np.log(terms.sum()), IDENTITY)
    assert_close(swapped.log_partition(), np.log(terms.sum()), IDENTITY)


def derivatives(fn, x, order):
    for _ in range(order):
        fn = jax.grad(fn)
    return jax.vmap(fn)(x)


@pytest.mark.quick(1)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_log_2cosh_and_its_derivatives_are_right_at_any_size(dtype):
    x = np.array([-1000, -9, -2, -1e-9, -0.0, 0, 0.3, 5, 30, 1000], dtype)
    exact = x.astype(np.longdouble)
    small = np.clip(exact, -100, 100)
    square = 1 / np.cosh(small) ** 2  # of sech, without a difference
    expected = [
        np.abs(exact) + np.log1p(np.exp(-2 * np.abs(exact))),
        np.tanh(exact),
        square,
        -2 * np.tanh(small) * square,
    ]
    rounding = np.finfo(dtype).eps
    for order, values in enumerate(expected):
        found = np.asarray(derivatives(log_2cosh, jnp.asarray(x), order))
        assert found.dtype == dtype
        scale = np.maximum(np.abs(exact), 1) if order == 0 else 1
        assert np.max(np.abs(found - values) / scale) <= 8 * rounding
        assert (found[x == 0] == values[x == 0].astype(dtype)).all()
    # A curvature keeps its digits in a strong field.
    found = derivatives(log_2cosh, jnp.asarray(x), 2)[:-1]
    np.testing.assert_allclose(found[1:], square[1:-1], 16 * rounding)


@pytest.mark.slow
def test_many_threads_trace_at_once():
    # JAX keeps the rule of a `custom_jvp` in a place that threads share, and raises
    # where two of them fill it.
    data = random_law(2)

    def curvature(weights):
        def along(fn):
            return lambda w: jax.jvp(fn, (w,), (jnp.ones_like(w),))[1]

        law = along(along(lambda w: tq.kl_divergence(tq.RBM(w), data)))
        visible = along(along(lambda w: tq.visible_distribution(tq.RBM(w))[0]))
        return law(weights) + visible(weights)

    weights = 0.3 * jnp.ones((2, 2))
    expected = curvature(weights)
    rules = r"custom_jvp_call\[\s*name=(\w+)"
    # Equinox makes one for each of its checks, which nothing shares.
    found = set(re.findall(rules, str(jax.make_jaxpr(curvature)(weights))))
    assert found == {"fn_wrapper"}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(10) as pool:
            for _ in range(3):
                jax.clear_caches()
                traced = pool.map(
                    lambda _: jax.jit(curvature).trace(weights), range(10)
                )
                assert len(list(traced)) == 10
    finally:
        sys.setswitchinterval(interval)
    assert_close(curvature(weights), expected, IDENTITY)
