"""Neighbours and colourings, on graphs of every kind."""

import itertools
import pickle

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, assert_close, machine, neural, rbm
from hypothesis import given, strategies as st

import trainq as tq
from trainq import sampling
from trainq.models._graph import Graph


@st.composite
def graphs(draw):
    """A number of units and distinct edges between them."""
    n = draw(st.integers(1, 12))
    pairs = [(i, j) for i in range(n) for j in range(i)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return n, np.array(edges, int).reshape(-1, 2)


def machine_on(n, edges):
    values = 1.0 + np.arange(len(edges))
    return tq.BoltzmannMachine(values, np.zeros(n), edges=edges)


@given(graphs())
def test_colours_are_proper_and_few(graph):
    n, edges = graph
    model = machine_on(n, edges)
    blocks = model.colouring()
    assert sorted(np.concatenate(blocks).tolist()) == list(range(n))
    colour = np.empty(n, int)
    for c, block in enumerate(blocks):
        colour[block] = c
    assert all(colour[i] != colour[j] for i, j in edges)
    degree = np.bincount(edges.ravel(), minlength=n)
    assert len(blocks) <= degree.max() + 1


def test_a_proper_colouring_has_no_edge_inside_a_colour():
    model = machine_on(4, np.array([(0, 1), (1, 2), (2, 3)]))
    for colours in itertools.product(range(2), repeat=4):
        same = [(i, i + 1) for i in range(3) if colours[i] == colours[i + 1]]
        assert model.conflict(np.array(colours)) == next(iter(same), None)


@given(graphs())
def test_even_cycles_and_trees_have_two_colours(graph):
    n, edges = graph
    # Any graph between even and odd units is bipartite.
    edges = np.array([e for e in edges if sum(e) % 2], int).reshape(-1, 2)
    assert len(machine_on(n, edges).colouring()) == (2 if len(edges) else 1)


def test_many_components_take_no_time():
    edges = np.arange(40_000).reshape(-1, 2)
    assert len(machine_on(40_000, edges).colouring()) == 2


def star(n):
    """One unit with all of the edges."""
    return np.stack([np.zeros(n - 1, int), np.arange(1, n)], axis=1)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "n, edges",
    [(30, star(30)), (7, [(0, 3), (2, 3), (5, 6)]), (3, np.zeros((0, 2), int))],
)
def test_fields_are_products_with_the_matrix(n, edges):
    model = machine_on(n, np.asarray(edges))
    x = jr.rademacher(jr.key(0), (2, 3, n), float)
    units = jnp.array([n - 1, 0])
    expected = np.asarray(x) @ np.asarray(model.coupling_matrix)
    assert_close(model.local_fields(x, units), expected[..., units], DIRECT)
    assert_close(model.local_fields(x[0, 0], units), expected[0, 0, units], DIRECT)


def test_a_hub_does_not_fill_the_memory():
    model = machine_on(20_000, star(20_000))
    assert model.graph.adjacency.neighbour.size < 50_000


def test_other_models_know_their_colours():
    layers = rbm(2, 3).colouring()
    assert [block.tolist() for block in layers] == [[0, 1], [2, 3, 4]]
    assert len(neural(2, 1).colouring()) == 3
    assert len(machine(4).colouring()) == 4  # a complete graph
    tempered = neural(2, 1).tempered(2.0)
    assert len(tempered.colouring()) == 3
    assert tempered.conflict(np.arange(3)) is None
    assert tempered.conflict(np.array([0, 1, 0])) == (0, 2)
    assert neural(4, 1).conflict(np.array([2, 0, 1, 0, 0])) == (1, 3)
    assert rbm(2, 3).conflict(np.array([0, 0, 1, 1, 1])) is None
    assert rbm(2, 3).conflict(np.array([2, 0, 1, 0, 1])) == (1, 3)


def test_graphs_are_compared_by_what_they_hold():
    edges = np.array([(0, 1), (1, 2)])
    graph = Graph.of(edges, 3)
    assert graph == Graph.of(edges.astype(np.int32), 3)
    assert hash(graph) == hash(Graph.of(edges.copy(), 3))
    assert graph != Graph.of(edges, 4) and graph != Graph.of(edges[::-1], 3)
    assert graph.edges.tolist() == edges.tolist()
    assert repr(graph) == "Graph(3 units, 2 edges)"
    with pytest.raises(ValueError, match="read-only"):
        graph.edges[0, 0] = 2
    tables = len(pickle.dumps(graph))
    assert graph.adjacency is not None  # it is made when it is asked for
    assert len(pickle.dumps(graph)) == tables
    assert pickle.loads(pickle.dumps(graph)) == graph


@pytest.mark.slow
def test_a_grid_of_ten_thousand_units_runs():
    side = 100
    unit = np.arange(side**2).reshape(side, side)
    across = np.stack([unit[:, :-1].ravel(), unit[:, 1:].ravel()], axis=1)
    down = np.stack([unit[:-1].ravel(), unit[1:].ravel()], axis=1)
    edges = np.concatenate([across, down])
    beta = 0.2
    model = tq.BoltzmannMachine(np.full(len(edges), beta), edges=edges)
    kernel = tq.AlternatingBlockGibbs(model.colouring())
    assert len(kernel.blocks) == 2

    def mean_edge(x):
        return jnp.mean(model.observables(x), axis=1, keepdims=True)

    state = sampling.start_chains(jr.key(0), model, 4)
    state = sampling.run(kernel, model, state, 50, functions=mean_edge).state
    run = sampling.run(kernel, model, state, 200, functions=mean_edge)
    # Open boundaries, far above the critical temperature: the expansion in tanh β.
    t = np.tanh(beta)
    per_chain = np.asarray(run.moments.mean)[:, 0]
    error = per_chain.std(ddof=1) / np.sqrt(len(per_chain))
    expected = -(t + 2 * t**3 + 4 * t**5)  # two plaquettes an edge, at most
    assert abs(per_chain.mean() - expected) < 5 * error + 3e-4
