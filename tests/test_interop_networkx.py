"""Graphs of networkx, against the matrices that networkx itself makes of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import oracle
import pytest
from helpers import IDENTITY, MODELS, assert_close, grid, neural, rbm

import trainq as tq
from trainq.interop.networkx import from_networkx, to_networkx


def energies(model):
    x = jnp.asarray(oracle.states(model.n_units))
    return np.asarray(jax.vmap(model.energy)(x))


def random_graph():
    """Named nodes, in an order that is not that of their names."""
    random = np.random.default_rng(0)
    graph = nx.relabel_nodes(
        nx.gnp_random_graph(6, 0.6, seed=3), dict(enumerate("fbdace"))
    )
    for one in graph:
        graph.nodes[one]["bias"] = random.normal()
    for pair in graph.edges:
        graph.edges[pair]["weight"] = random.normal()
    return graph


def test_energies_are_those_of_the_matrix_of_networkx():
    graph, order = random_graph(), list("abcdef")
    model = from_networkx(graph, 4, nodes=order)
    matrix = nx.to_numpy_array(graph, nodelist=order)
    bias = np.array([graph.nodes[one]["bias"] for one in order])
    assert_close(energies(model), oracle.pair_energies(matrix, bias), IDENTITY)
    assert (model.n_visible, model.n_hidden) == (4, 2)
    # A negative control: in the order of the graph it is another model.
    other = energies(from_networkx(graph, nodes=list(graph)))
    assert np.abs(other - energies(model)).max() > 0.1


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", [*MODELS, "scaled"])
def test_there_and_back(name):
    model = MODELS.get(name, tq.models.Tempered(grid(), 0.5))
    if name.startswith(("neural", "tempered")):
        with pytest.raises(ValueError, match="A graph is pairwise: .* was given"):
            to_networkx(model)
        return
    graph = to_networkx(model)
    matrix = nx.to_numpy_array(graph, nodelist=range(model.n_units))
    fields = nx.get_node_attributes(graph, "bias")
    assert bool(fields) != model.is_symmetric
    bias = np.array([fields.get(i, 0.0) for i in range(model.n_units)])
    assert_close(oracle.pair_energies(matrix, bias), energies(model), IDENTITY)
    back = from_networkx(graph, model.n_visible)
    assert_close(energies(back), energies(model), IDENTITY)
    assert (back.n_visible, back.is_symmetric) == (model.n_visible, model.is_symmetric)
    if isinstance(model, tq.BoltzmannMachine):
        assert len(back.edges) == len(model.edges)


def test_couplings_of_ones_own():
    lattice = nx.grid_2d_graph(2, 3)
    model = from_networkx(lattice, nodes=list(lattice), weight=0.3)
    assert model.is_symmetric and model.couplings.tolist() == [0.3] * 7
    matrix = 0.3 * nx.to_numpy_array(lattice)
    assert_close(energies(model), oracle.pair_energies(matrix), IDENTITY)
    each = np.arange(7.0)
    model = from_networkx(lattice, nodes=list(lattice), weight=each, bias=0.5)
    for (i, j), weight in zip(model.edges, model.couplings, strict=True):
        number = list(lattice.edges).index((list(lattice)[i], list(lattice)[j]))
        assert weight == each[number]
    assert model.bias.tolist() == [0.5] * 6
    bare = nx.Graph()
    bare.add_nodes_from([2, 0, 1], size=2.0)
    nx.set_node_attributes(bare, {0: 0.0, 1: 1.0, 2: 2.0}, "h")
    bare.add_edge(2, 0, J=1.5)
    model = from_networkx(bare, weight="J", bias="h")
    assert model.edges.tolist() == [[0, 2]] and model.bias.tolist() == [0, 1, 2]
    assert from_networkx(bare, weight="J", bias=None).is_symmetric


def test_mistakes_are_told(as_for_users):
    graph = random_graph()
    with pytest.raises(ValueError, match="undirected graph of networkx, but a DiGraph"):
        from_networkx(nx.DiGraph(graph))
    with pytest.raises(ValueError, match="undirected graph of networkx, but a RBM"):
        from_networkx(rbm(2, 2))
    with pytest.raises(ValueError, match="from 0 to 5, but 'f' was given.* in order.$"):
        from_networkx(graph)
    with pytest.raises(ValueError, match="nodes has .* once, but 'g' is not known"):
        from_networkx(graph, nodes="abcdefg")
    del graph.nodes["c"]["bias"]
    with pytest.raises(
        ValueError, match="node needs the attribute 'bias', but 'c' has"
    ):
        from_networkx(graph, nodes="abcdef")
    with pytest.raises(
        ValueError, match="edge needs the attribute 'J', but .* has none"
    ):
        from_networkx(graph, nodes="abcdef", weight="J")
    loop = nx.Graph([(0, 1), (1, 1)])
    with pytest.raises(ValueError, match="Each edge joins two different units"):
        from_networkx(loop, weight=1.0)
    double = nx.MultiGraph([(0, 1), (0, 1)])
    with pytest.raises(ValueError, match="Each edge is given once"):
        from_networkx(double, weight=1.0)
    with pytest.raises(ValueError, match="a traced model was given"):
        eqx.filter_jit(lambda m: to_networkx(m) and None)(rbm(2, 2))
    with pytest.raises(eqx.EquinoxRuntimeError, match="RBM is not finite"):
        to_networkx(tq.RBM(np.array([[np.nan]])))
    with pytest.raises(ValueError, match="pairwise: .* but a NeuralEnergy was given"):
        to_networkx(neural(2, 2))
