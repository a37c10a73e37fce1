"""Exact laws and what is measured on them, against full enumeration in NumPy."""

import collections
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    DIFFERENCES,
    IDENTITY,
    MODELS,
    assert_close,
    central_difference,
    energies,
    flatten,
    machine,
    random_law,
    rbm,
)
from jax.flatten_util import ravel_pytree

import trainq as tq
from trainq.models import log_stationary


FEW = ["biased rbm 2x3", "biased machine 3+2", "neural 3+2"]


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def functions_of_spins(x):
    magnetisation = jnp.sum(x) / x.size
    return {
        "moments": (magnetisation**2, jnp.exp(magnetisation)),
        "products": jnp.outer(x, x),
        "up": x[0] > 0,
        "count": jnp.sum(x > 0),
    }


def kl_autodiff(model, data):
    return ravel_pytree(eqx.filter_grad(lambda m: tq.kl_divergence(m, data))(model))[0]


def energy_autodiff(model, data):
    flat, rebuild = flatten(model)
    states = jnp.asarray(oracle.states(model.n_units), flat.dtype)
    return jax.jacrev(lambda p: jax.vmap(rebuild(p).energy)(states))(flat)


RESULTS = {
    "log_partition": lambda model, data: tq.log_partition(model),
    "free_energy": lambda model, data: tq.free_energies(model),
    "visible_distribution": lambda model, data: tq.visible_distribution(model),
    "log_stationary": lambda model, data: log_stationary(model),
    "entropy": lambda model, data: tq.entropy(model),
    "kl_divergence": tq.kl_divergence,
    "kl_gradient": tq.kl_gradient,
    "kl_autodiff": kl_autodiff,
    "observables": lambda model, data: tq.observables(model),
    "energy_autodiff": energy_autodiff,
    "mean_observables": lambda model, data: tq.mean_observables(model),
    "mean_energy": lambda model, data: tq.expectation(model, model.energy),
    "expectation": lambda model, data: tq.expectation(model, functions_of_spins),
}


def every_result(model, data):
    return {label: fn(model, data) for label, fn in RESULTS.items()}


# One compilation a model, whatever the data.
compiled = eqx.filter_jit(every_result)


def data_of(model, zeros=False):
    """A law of the visible units, with zeros at every third state if asked."""
    data = np.array(random_law(model.n_visible))
    if zeros:
        data[::3] = 0
    return jnp.asarray(data / data.sum())


@functools.cache
def results(name, zeros=False):
    return compiled(MODELS[name], data_of(MODELS[name], zeros))


@functools.cache
def law_of(name):
    model = MODELS[name]
    states = jnp.asarray(oracle.states(model.n_units))
    table = np.asarray(jax.jit(jax.vmap(model.energy))(states))
    return table, oracle.law(table)


def visible_law(name):
    return law_of(name)[1].reshape(2 ** MODELS[name].n_visible, -1).sum(axis=1)


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def assert_trees_close(actual, expected, tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(a, b, tolerance)


@pytest.mark.quick(1)
def test_log_partition_and_free_energy_are_those_of_enumeration(name):
    weights = np.exp(-law_of(name)[0])
    visible = weights.reshape(2 ** MODELS[name].n_visible, -1).sum(axis=1)
    assert_close(results(name)["log_partition"], np.log(weights.sum()), IDENTITY)
    assert_close(results(name)["free_energy"], -np.log(visible), IDENTITY)


def test_the_free_energy_of_given_states_is_theirs(name):
    model = MODELS[name]
    states = oracle.states(model.n_visible)
    v = states[np.random.default_rng(0).integers(len(states), size=(2, 3))]
    found = jax.jit(lambda v: tq.free_energy(model, v))(jnp.asarray(v))
    weights = np.exp(-law_of(name)[0]).reshape(2**model.n_visible, -1).sum(axis=1)
    up = (v > 0).astype(int)
    index = up @ (1 << np.arange(model.n_visible)[::-1])
    assert_close(found, -np.log(weights)[index], IDENTITY)


def test_laws_and_entropy_are_those_of_enumeration(name):
    table, law = law_of(name)
    found = results(name)
    assert_close(found["visible_distribution"], visible_law(name), IDENTITY)
    assert_close(found["log_stationary"], np.log(law), IDENTITY)
    assert_close(found["entropy"], -law @ np.log(law), IDENTITY)
    assert_close(found["mean_energy"], law @ table, IDENTITY)


def test_entropy_is_log_z_and_the_mean_energy(name):
    found = results(name)
    expected = found["log_partition"] + found["mean_energy"]
    assert_close(found["entropy"], expected, IDENTITY)


@pytest.mark.parametrize("zeros", [False, True])
def test_kl_divergence_is_that_of_enumeration(name, zeros):
    data = np.asarray(data_of(MODELS[name], zeros))
    assert (data == 0).any() == zeros
    expected = kl(data, visible_law(name))
    assert_close(results(name, zeros)["kl_divergence"], expected, IDENTITY)


def test_kl_divergence_of_a_law_from_itself_is_zero(name):
    law = results(name)["visible_distribution"]
    assert abs(compiled(MODELS[name], law)["kl_divergence"]) < IDENTITY
    assert np.abs(compiled(MODELS[name], law)["kl_gradient"]).max() < IDENTITY
    assert results(name)["kl_divergence"] > 0.01


def test_kl_divergence_of_one_state_is_its_information(name):
    state = jnp.zeros(2 ** MODELS[name].n_visible).at[1].set(1)
    information = -np.log(visible_law(name)[1])
    found = compiled(MODELS[name], state)
    assert_close(found["kl_divergence"], information, IDENTITY)
    assert_close(found["kl_gradient"], found["kl_autodiff"], IDENTITY)


def test_kl_divergence_is_differentiable_in_data_with_zeros():
    name = "biased rbm 2x3"
    data = data_of(MODELS[name], zeros=True)
    gradient = jax.grad(tq.kl_divergence, 1)(MODELS[name], data)
    p, q = np.asarray(data), visible_law(name)
    expected = [np.log(a / b) + 1 if a > 0 else 0 for a, b in zip(p, q, strict=True)]
    assert_close(gradient, expected, IDENTITY)


@pytest.mark.parametrize("zeros", [False, True])
def test_kl_gradient_is_the_derivative_and_that_of_the_oracle(name, zeros):
    model, found = MODELS[name], results(name, zeros)
    data, table = data_of(model, zeros), found["energy_autodiff"]
    expected = oracle.kl_gradient(
        law_of(name)[1], model.n_visible, np.asarray(data), np.asarray(table)
    )
    assert_close(found["kl_gradient"], expected, IDENTITY)
    assert_close(found["kl_autodiff"], expected, IDENTITY)


def test_the_signal_of_an_rbm_has_its_closed_form():
    name = "biased rbm 2x3"
    model, v = MODELS[name], oracle.states(2)
    hidden = np.tanh(v @ np.asarray(model.weights) + np.asarray(model.hidden_bias))
    averages = [np.outer(x, h).ravel() for x, h in zip(v, hidden, strict=True)]
    phase = np.concatenate([averages, v, hidden], axis=1)
    expected = (visible_law(name) - np.asarray(data_of(model))) @ phase
    assert_close(results(name)["kl_gradient"], expected, IDENTITY)


def test_observables_are_derivatives_at_every_state_in_order(name):
    found = results(name)
    assert_close(found["observables"], found["energy_autodiff"], IDENTITY)


def test_mean_observables_are_averages_over_the_law(name):
    found = results(name)
    expected = law_of(name)[1] @ np.asarray(found["energy_autodiff"])
    assert_close(found["mean_observables"], expected, IDENTITY)


def test_expectation_averages_a_tree_of_any_functions(name):
    x, law = oracle.states(MODELS[name].n_units), law_of(name)[1]
    m = x.mean(axis=1)
    expected = {
        "moments": (law @ m**2, law @ np.exp(m)),
        "products": x.T @ (law[:, None] * x),
        "up": law @ (x[:, 0] > 0),
        "count": law @ (x > 0).sum(axis=1),
    }
    assert_trees_close(results(name)["expectation"], expected, IDENTITY)


def test_free_spins_have_the_uniform_law():
    model = tq.RBM(jnp.zeros((2, 3)))
    assert_close(tq.log_partition(model), 5 * np.log(2), IDENTITY)
    assert_close(tq.entropy(model), 5 * np.log(2), IDENTITY)
    assert_close(tq.visible_distribution(model), np.full(4, 0.25), IDENTITY)


def test_results_are_the_same_called_one_by_one():
    name = "biased rbm 2x3"
    for label in ("kl_divergence", "kl_gradient", "observables", "expectation"):
        alone = RESULTS[label](MODELS[name], data_of(MODELS[name]))
        assert_trees_close(alone, results(name)[label], IDENTITY)


@pytest.mark.quick(1)
@pytest.mark.parametrize(("m", "n", "biased"), [(3, 2, False), (2, 3, True)])
def test_a_batch_of_models_and_of_data_gives_a_batch_of_results(m, n, biased):
    singles = [rbm(m, n, biased=biased, seed=seed) for seed in range(3)]
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)
    data = jnp.stack([random_law(m, seed) for seed in range(3)])
    batch = eqx.filter_jit(eqx.filter_vmap(every_result))(models, data)
    expected = [compiled(*pair) for pair in zip(singles, data, strict=True)]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
    assert_trees_close(batch, expected, IDENTITY)


def single(model):
    return jax.tree.map(
        lambda p: p.astype(jnp.float32) if eqx.is_inexact_array(p) else p, model
    )


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["biased rbm 2x3", "neural 3+2"])
def test_single_precision_parameters_give_single_precision_results(name):
    small = single(MODELS[name])
    actual = compiled(small, data_of(MODELS[name]).astype(jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {jnp.dtype("float32")}
    # Some thirty roundings, each of 6e-8, of numbers of order one to five.
    for a, b in zip(*map(jax.tree.leaves, (actual, results(name))), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 5e-6


def test_data_in_double_precision_fits_a_model_in_single_precision():
    model = single(rbm(2, 3))
    kl = tq.kl_divergence(model, random_law(2))
    assert kl.dtype == jnp.float32
    assert_close(kl, tq.kl_divergence(model, random_law(2).astype(jnp.float32)), 2e-6)


QUANTITIES = {
    "log_partition": lambda model, data: tq.log_partition(model),
    "entropy": lambda model, data: tq.entropy(model),
    "kl_divergence": tq.kl_divergence,
    "kl_gradient": lambda model, data: jnp.sum(tq.kl_gradient(model, data) ** 2),
    "mean_observables": lambda model, data: jnp.sum(tq.mean_observables(model) ** 2),
    "expectation": lambda model, data: tq.expectation(
        model, lambda x: jnp.sin(model.energy(x)) * x[0] * x[-1]
    ),
}


def quantities(data, rebuild):
    """A vector of scalars to differentiate, as a function of the parameters."""

    def fn(flat):
        model = rebuild(flat)
        return jnp.stack([fn(model, data) for fn in QUANTITIES.values()])

    return fn


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", FEW)
def test_gradients_are_central_differences(name):
    flat, rebuild = flatten(MODELS[name])
    fn = jax.jit(quantities(data_of(MODELS[name], zeros=True), rebuild))
    direction = jr.normal(jr.key(2), flat.shape)
    slopes = jax.jit(jax.jacrev(fn))(flat) @ direction
    differences = central_difference(fn, flat, direction)
    # One by one, so that a small slope is as strict as a large one.
    assert_close(slopes / differences, np.ones(len(QUANTITIES)), DIFFERENCES)


@pytest.mark.parametrize("name", ["biased rbm 2x3", "biased machine 3+2"])
def test_the_second_derivative_of_log_z_is_the_covariance_of_observables(name):
    flat, rebuild = flatten(MODELS[name])
    hessian = jax.jit(jax.hessian(lambda p: tq.log_partition(rebuild(p))))(flat)
    law, f = law_of(name)[1], np.asarray(results(name)["observables"])
    centred = f - law @ f
    assert_close(hessian, centred.T @ (law[:, None] * centred), IDENTITY)


def large(label):
    random = np.random.default_rng(1)
    if label == "rbm":
        return tq.RBM(300 * random.normal(size=(3, 2)))
    if label == "biased rbm":
        weights = 300 * random.normal(size=(2, 3))
        return tq.RBM(weights, np.full(2, 300.0), np.full(3, -300.0))
    upper = np.triu(300 * random.normal(size=(5, 5)), 1)
    return tq.BoltzmannMachine(upper + upper.T, np.arange(5.0), 3)


@pytest.mark.parametrize("label", ["rbm", "biased rbm", "machine"])
def test_weights_of_300_stay_exact_in_log_space(label):
    model = large(label)
    data = data_of(model)
    table = np.asarray(model.energy(jnp.asarray(oracle.states(5))))
    log_z = np.logaddexp.reduce(-table)
    log_law = (-table - log_z).reshape(data.size, -1)
    assert log_z > 800 and log_law.min() < -1500
    found = compiled(model, data)
    assert_close(found["log_partition"], log_z, IDENTITY)
    assert_close(found["log_stationary"], log_law.ravel(), IDENTITY)
    log_visible = np.logaddexp.reduce(log_law, axis=1, keepdims=True)
    expected = np.asarray(data) @ (np.log(data) - log_visible[:, 0])
    assert_close(found["kl_divergence"], expected, IDENTITY)

    # What follows is left of differences of numbers of order a thousand.
    law, tolerance = np.exp(log_law), 1000 * IDENTITY
    assert abs(found["entropy"] + (law * log_law).sum()) < tolerance
    excess = np.asarray(data)[:, None] * np.exp(log_law - log_visible) - law
    expected = excess.ravel() @ np.asarray(found["observables"])
    assert_close(found["kl_gradient"], expected, tolerance)
    assert_close(found["kl_autodiff"], expected, tolerance)
    assert np.isfinite(flatten(eqx.filter_grad(tq.entropy)(model))[0]).all()


def test_the_empirical_law_counts_samples(key):
    samples = jr.rademacher(key, (5, 20, 3), int)
    counts = collections.Counter(map(tuple, samples.reshape(-1, 3).tolist()))
    expected = [counts[tuple(x)] / 100 for x in oracle.states(3)]
    for x in (samples, samples.astype(float), samples.reshape(100, 3)):
        law = tq.empirical_distribution(x)
        assert law.dtype == jnp.float64
        assert_close(law, expected, IDENTITY)
    alone = tq.empirical_distribution(jnp.array([1, -1]))
    assert alone.tolist() == [0, 0, 1, 0]


def test_the_empirical_law_is_data_for_a_model():
    model = machine(3)
    data = tq.empirical_distribution(jnp.array([[1, 1, 1], [1, 1, 1], [-1, 1, 1]]))
    law = oracle.law(oracle.pair_energies(np.asarray(model.coupling_matrix)))
    expected = kl([0, 0, 0, 1 / 3, 0, 0, 0, 2 / 3], law)
    assert_close(tq.kl_divergence(model, data), expected, IDENTITY)


def test_a_law_in_float32_is_a_law_for_a_model_in_float64():
    data = jax.nn.softmax(jnp.linspace(0, 3, 32, dtype=jnp.float32))
    expected = tq.kl_divergence(
        rbm(5, 3), data.astype(float) / data.astype(float).sum()
    )
    np.testing.assert_allclose(tq.kl_divergence(rbm(5, 3), data), expected, rtol=1e-6)


def test_expectation_of_complex_values():
    model = rbm(2, 2)
    found = tq.expectation(model, lambda x: jnp.exp(1j * x.sum().astype(complex)))
    x = oracle.states(4)
    pi = oracle.law(energies(model))
    assert_close(found, pi @ np.exp(1j * x.sum(axis=1)), IDENTITY)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_expectations_of_booleans_and_integers_are_means(dtype):
    model = jax.tree.map(lambda p: p.astype(dtype), rbm(2, 2, biased=True))
    pi, x = oracle.law(energies(model)), oracle.states(4)

    def fn(x):
        index = (x > 0).astype(jnp.int8)
        return {"up": x > 0, "sum": index.sum(), "one": 1, "c": x[0].astype("c8")}

    found = tq.expectation(model, fn)
    expected = {"up": pi @ (x > 0), "sum": pi @ (x > 0).sum(axis=1), "one": 1.0}
    tolerance = IDENTITY if dtype == jnp.float64 else 1e-6
    for name, value in expected.items():
        assert found[name].dtype == dtype
        assert_close(found[name], value, tolerance)
    assert found["c"].dtype == (jnp.complex64 if dtype == jnp.float32 else complex)
    assert_close(found["c"], pi @ x[:, 0] + 0j, tolerance)


def test_temperature_keeps_the_dtype():
    for model in (rbm(2, 2), machine(3, biased=True)):
        single = jax.tree.map(
            lambda p: p.astype(jnp.float32) if eqx.is_inexact_array(p) else p, model
        )
        assert single.tempered(np.float64(2.0)).dtype == jnp.float32
