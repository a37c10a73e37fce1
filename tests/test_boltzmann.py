"""The Boltzmann machine from a matrix and from edges."""

import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from helpers import IDENTITY, assert_close, machine, rbm

import trainq as tq


# A path, a triangle and an edge apart, some pairs written backwards.
EDGES = np.array([[1, 0], [4, 2], [1, 2], [0, 2], [3, 5]])
VALUES = np.array([0.7, -0.4, 0.2, 1.1, -0.9])

# Compiled as a whole, which is much faster than one operation after another.
all_energies = eqx.filter_jit(lambda model: model.energies())
each_energy = eqx.filter_jit(lambda model, x: model.energy(x))
all_observables = eqx.filter_jit(tq.observables)
log_partition = eqx.filter_jit(tq.log_partition)


def matrix_of(edges, values, n_units):
    matrix = np.zeros((n_units, n_units))
    for (i, j), value in zip(edges, values, strict=True):
        matrix[i, j] = matrix[j, i] = value
    return matrix


def random_matrix(n_units):
    upper = np.triu(np.random.default_rng(n_units).normal(size=(n_units, n_units)), 1)
    return upper + upper.T


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("n_units", [1, 2, 3, 6])
def test_energies_of_a_matrix_are_those_of_the_oracle(n_units, biased):
    matrix = random_matrix(n_units)
    bias = np.linspace(-1, 0.5, n_units) if biased else None
    model = tq.BoltzmannMachine(matrix, bias)
    assert (model.n_visible, model.n_hidden) == (n_units, 0)
    expected = oracle.pair_energies(matrix, bias)
    assert_close(all_energies(model), expected, IDENTITY)
    states = jnp.asarray(oracle.states(n_units))
    assert_close(each_energy(model, states), expected, IDENTITY)
    assert_close(model.coupling_matrix, matrix, IDENTITY)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.int64, jnp.int8])
@pytest.mark.parametrize("biased", [False, True])
def test_energy_takes_any_leading_shape_and_int_spins(biased, dtype):
    model = machine(4, 2, biased=biased)
    bias = None if model.bias is None else np.asarray(model.bias)
    expected = oracle.pair_energies(np.asarray(model.coupling_matrix), bias)
    states = jnp.asarray(oracle.states(4), dtype)
    cube = each_energy(model, states.reshape(2, 4, 2, 4))
    assert_close(cube, expected.reshape(2, 4, 2), IDENTITY)
    assert_close(model.energy(states[7]), expected[7], IDENTITY)
    assert model.energy(states[:0]).shape == (0,)


def test_observables_are_products_in_the_order_of_edges_then_spins():
    bias = np.linspace(-1, 1, 6)
    x = oracle.states(6)
    products = np.stack([-x[:, i] * x[:, j] for i, j in EDGES], axis=1)
    model = tq.BoltzmannMachine(VALUES, edges=EDGES)
    assert_close(all_observables(model), products, IDENTITY)
    model = tq.BoltzmannMachine(VALUES, bias, edges=EDGES)
    expected = np.concatenate([products, -x], axis=1)
    assert_close(all_observables(model), expected, IDENTITY)
    every = tq.BoltzmannMachine(random_matrix(4))
    x = oracle.states(4)
    pairs = [-x[:, i] * x[:, j] for i in range(4) for j in range(i + 1, 4)]
    assert_close(all_observables(every), np.stack(pairs, axis=1), IDENTITY)


@pytest.mark.parametrize("biased", [False, True])
def test_a_machine_from_edges_is_that_of_its_matrix(biased):
    matrix = matrix_of(EDGES, VALUES, 6)
    bias = np.linspace(-1, 1, 6) if biased else None
    expected = oracle.pair_energies(matrix, bias)
    from_edges = tq.BoltzmannMachine(VALUES, bias, 4, edges=EDGES)
    from_matrix = tq.BoltzmannMachine(matrix, bias, 4)
    from_both = tq.BoltzmannMachine(matrix, bias, 4, edges=EDGES)
    for model in (from_edges, from_matrix, from_both):
        assert (model.n_visible, model.n_hidden) == (4, 2)
        assert_close(all_energies(model), expected, IDENTITY)
        assert_close(model.coupling_matrix, matrix, IDENTITY)
    assert_close(from_both.couplings, VALUES, IDENTITY)
    assert from_edges.edges.tolist() == np.sort(EDGES, axis=1).tolist()


def test_units_past_the_edges_are_free():
    edges, values = EDGES[:4], VALUES[:4]
    inner = tq.BoltzmannMachine(values, edges=edges)
    assert inner.n_units == 5
    by_visible = tq.BoltzmannMachine(values, n_visible=6, edges=edges)
    by_bias = tq.BoltzmannMachine(values, np.zeros(6), 2, edges=edges)
    by_number = tq.BoltzmannMachine.from_edges(edges, values, n_visible=2, n_units=6)
    for model in (by_visible, by_bias, by_number):
        assert model.n_units == 6
        expected = oracle.pair_energies(matrix_of(edges, values, 6))
        assert_close(all_energies(model), expected, IDENTITY)
        free = log_partition(inner) + np.log(2)
        assert_close(log_partition(model), free, IDENTITY)
    hidden = [model.n_hidden for model in (by_visible, by_bias, by_number)]
    assert hidden == [0, 4, 4]


def test_each_way_to_make_a_machine_has_its_name():
    matrix, bias = matrix_of(EDGES, VALUES, 6), np.linspace(-1, 1, 6)
    make = tq.BoltzmannMachine
    for named, plain in (
        (make.from_matrix(matrix), make(matrix)),
        (make.from_matrix(matrix, bias, 4), make(matrix, bias, 4)),
        (make.from_matrix(matrix, edges=EDGES), make(matrix, edges=EDGES)),
        (make.from_edges(EDGES, VALUES), make(VALUES, edges=EDGES)),
        (make.from_edges(EDGES, VALUES, bias, 4), make(VALUES, bias, 4, edges=EDGES)),
    ):
        assert eqx.tree_equal(named, plain) and named.graph == plain.graph


def test_a_machine_may_have_no_edges():
    none = np.zeros((0, 2), int)
    model = tq.BoltzmannMachine.from_edges(none, np.zeros(0), n_units=2)
    assert_close(tq.visible_distribution(model), np.full(4, 0.25), IDENTITY)


@pytest.mark.parametrize("bias", [-1.3, 0.0, 0.4])
def test_a_free_spin_is_up_with_the_probability_of_its_field(bias):
    up = 1 / (1 + np.exp(-2 * bias))
    model = tq.BoltzmannMachine([[0.0]], [bias])
    assert_close(tq.visible_distribution(model), [1 - up, up], IDENTITY)
    assert_close(tq.observables(model), [[1.0], [-1.0]], IDENTITY)


def test_a_machine_on_the_bipartite_graph_is_an_rbm():
    layers = rbm(2, 3, biased=True)
    edges = [[i, 2 + j] for i in range(2) for j in range(3)]
    bias = jnp.concatenate([layers.visible_bias, layers.hidden_bias])
    model = tq.BoltzmannMachine(layers.weights.reshape(-1), bias, 2, edges=edges)
    free_energy = eqx.filter_jit(tq.free_energies)
    for fn in (all_energies, free_energy, all_observables):
        assert_close(fn(model), fn(layers), IDENTITY)


def test_a_matrix_may_be_traced_and_its_upper_triangle_is_read():
    matrix = random_matrix(4)
    value_and_grad = jax.value_and_grad(
        lambda J: tq.BoltzmannMachine(J, None, 2).log_partition()
    )
    value, gradient = jax.jit(value_and_grad)(matrix)
    energies, x = oracle.pair_energies(matrix), oracle.states(4)
    assert_close(value, np.log(np.exp(-energies).sum()), IDENTITY)
    correlations = x.T @ (oracle.law(energies)[:, None] * x)
    assert_close(gradient, np.triu(correlations, 1), IDENTITY)


def test_machines_are_built_in_a_batch():
    matrices = np.stack([random_matrix(3), 2 * random_matrix(3)])
    build = eqx.filter_vmap(lambda J: tq.BoltzmannMachine(J, None, 2))
    models = eqx.filter_jit(build)(matrices)
    values = eqx.filter_jit(eqx.filter_vmap(tq.log_partition))(models)
    sums = [np.exp(-oracle.pair_energies(J)).sum() for J in matrices]
    assert_close(values, np.log(sums), IDENTITY)


def test_parameters_may_be_lists_and_integers():
    model = tq.BoltzmannMachine([1, -2], [0, 1, 2], edges=[[0, 1], [2, 1]])
    assert model.couplings.dtype == model.bias.dtype == jnp.float64
    matrix = matrix_of([[0, 1], [2, 1]], [1, -2], 3)
    expected = oracle.pair_energies(matrix, np.arange(3))
    assert_close(all_energies(model), expected, IDENTITY)


def test_edges_are_not_parameters():
    model = tq.BoltzmannMachine(VALUES, np.ones(6), edges=EDGES)
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    assert [leaf.shape for leaf in leaves] == [(5,), (6,)]
    assert len(jax.tree.leaves(model)) == 2
    tempered = model.tempered(2.0)
    assert (tempered.edges == model.edges).all() and tempered.edges.dtype.kind == "i"


RING = tq.BoltzmannMachine([0.1, 0.2, 0.3], edges=[(0, 1), (1, 2), (0, 2)])


def test_no_map_over_the_tree_reaches_the_edges():
    expected = np.exp(-2 * oracle.pair_energies(np.asarray(RING.coupling_matrix)))
    mapped: list[Any] = [
        jax.tree.map(lambda p: 2 * p, RING),
        optax.incremental_update(jax.tree.map(lambda p: 3 * p, RING), RING, 0.5),
    ]
    for twice in mapped:
        assert_close(log_partition(twice), np.log(expected.sum()), IDENTITY)
        assert twice.graph is RING.graph
        # Sampler, fields and law are on one graph.
        table = np.log(tq.visible_distribution(twice))
        x = jnp.asarray(oracle.states(3))
        fields = np.asarray(twice.local_fields(x, jnp.arange(3)))
        for unit in range(3):
            flipped = np.flip(table.reshape(2, 2, 2), unit).reshape(-1)
            change = -2 * np.asarray(x)[:, unit] * fields[:, unit]
            assert_close(flipped - table, change, IDENTITY)


def test_edges_are_not_replaced():
    with pytest.raises(TypeError, match="is not a leaf of the pytree"):
        eqx.tree_at(lambda m: m.edges, RING, np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="read-only"):
        RING.edges[0, 0] = 2


def test_other_couplings_and_the_same_edges_again_compile_nothing():
    traced = 0

    @eqx.filter_jit
    def value(model):
        nonlocal traced
        traced += 1
        return model.log_partition()

    for scale in (1.0, 2.0):
        couplings = scale * jnp.array([0.1, 0.2, 0.3])
        value(tq.BoltzmannMachine(couplings, edges=[(0, 1), (1, 2), (0, 2)]))
    assert traced == 1
    value(tq.BoltzmannMachine(couplings, edges=[(1, 2), (0, 1), (0, 2)]))
    assert traced == 2


def test_a_machine_is_coloured_and_built_in_a_compiled_function():
    @jax.jit
    def blocks(couplings):
        model = tq.BoltzmannMachine(couplings, edges=[(0, 1), (1, 2)])
        kernel = tq.AlternatingBlockGibbs(model.colouring())
        assert kernel.blocks == ((0, 2), (1,))
        return kernel.step(jax.random.key(0), model, jnp.ones((4, 3)))

    assert blocks(jnp.array([0.1, 0.2])).shape == (4, 3)


def test_a_machine_is_pickled():
    back = pickle.loads(pickle.dumps(RING))
    assert eqx.tree_equal(back, RING) and back.graph == RING.graph
