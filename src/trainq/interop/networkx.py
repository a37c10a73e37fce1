"""Graphs of networkx as Boltzmann machines, and back."""

from collections.abc import Hashable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import needed_for, require_concrete
from ..models import AbstractEnergyModel, BoltzmannMachine, checked
from ._pairwise import pairwise, units_of


with needed_for("trainq.interop.networkx", "networkx"):
    import networkx as nx


def from_networkx(
    graph: nx.Graph,
    n_visible: int | None = None,
    *,
    nodes: Iterable[Hashable] | None = None,
    weight: Any = "weight",
    bias: Any = "bias",
) -> BoltzmannMachine:
    """The Boltzmann machine of a graph: an edge for each of its edges, in their order,
    with the couplings and the fields that its attributes say, or with others.

    **Arguments:**

    - `graph`: an undirected graph without loops.
    - `n_visible`: how many of the units are visible, which come first. All, by default.
    - `nodes`: the node of each unit, in order, where nodes are not the numbers of the
        units, such as `list(graph)`.
    - `weight`: the attribute of edges with the couplings, by which a positive one
        aligns spins; or the couplings themselves, one for all or one for each of
        `graph.edges`.
    - `bias`: the attribute of nodes with the fields, which a graph need not have; or
        the fields, one for all units or one for each, in order; or None for a machine
        without.

    **Returns:** a [`trainq.BoltzmannMachine`][]. It has biases if nodes have the
    attribute, or if these are given.

    **Raises:** `ValueError` for another thing than such a graph, nodes that are not its
    own, an attribute that some have and others lack, or numbers of a wrong shape.

    !!! example

        ```python
        import networkx as nx
        from trainq.interop.networkx import from_networkx

        grid = nx.grid_2d_graph(3, 3)
        model = from_networkx(grid, nodes=list(grid), weight=0.3)
        assert len(model.edges) == 12 and model.is_symmetric
        ```
    """
    if not isinstance(graph, nx.Graph) or graph.is_directed():
        raise ValueError(
            "graph is an undirected graph of networkx, but a "
            f"{type(graph).__name__} was given."
        )
    units = units_of(graph.nodes, nodes, "nodes")
    edges = [[units[one] for one in pair] for pair in graph.edges()]
    if isinstance(weight, str):
        found = [(pair, graph.edges[pair]) for pair in graph.edges]
        weight = _attribute("edge", found, weight)
    if isinstance(bias, str):
        found = [(one, graph.nodes[one]) for one in units]
        some = any(bias in attributes for _, attributes in found)
        bias = _attribute("node", found, bias) if some else None
    return BoltzmannMachine.from_edges(
        np.array(edges, int).reshape(-1, 2),
        _one_each(weight, len(edges)),
        None if bias is None else _one_each(bias, len(units)),
        n_visible,
        n_units=len(units),
    )


def to_networkx(model: AbstractEnergyModel) -> nx.Graph:
    """The graph of a pairwise model: a node for each unit, with its field as `bias`,
    and an edge for each coupling, with that as `weight`.

    **Arguments:**

    - `model`: an [`trainq.RBM`][], a [`trainq.BoltzmannMachine`][], one with a
        temperature, which is multiplied in, or a model with such an `equivalent`.

    **Returns:** a `networkx.Graph` whose nodes are the units, numbered from 0, visible
    units first. A model that is symmetric under the global flip has no `bias`.

    **Raises:** `ValueError` for a model that is not pairwise, and under `jax.jit` and
    its like; a run-time error if a parameter is not finite.

    !!! example

        ```python
        import networkx as nx
        from trainq.interop.networkx import to_networkx

        graph = to_networkx(model)
        assert nx.is_bipartite(graph) and graph.number_of_nodes() == 5
        ```
    """
    require_concrete("A graph", model=model)
    edges, couplings, fields = pairwise(checked(model), "A graph")
    graph = nx.Graph()
    graph.add_nodes_from(range(model.n_units))
    if not model.is_symmetric:
        values = dict(enumerate(np.asarray(fields, float).tolist()))
        nx.set_node_attributes(graph, values, "bias")
    weights = np.asarray(couplings, float).tolist()
    graph.add_weighted_edges_from(
        (i, j, weight) for (i, j), weight in zip(edges.tolist(), weights, strict=True)
    )
    return graph


def _attribute(
    kind: str, found: list[tuple[Any, dict[str, Any]]], name: str
) -> np.ndarray:
    for one, attributes in found:
        if name not in attributes:
            raise ValueError(
                f"Every {kind} needs the attribute {name!r}, but {one!r} has none. "
                "Name another one, or give the numbers in its place."
            )
    return np.array([attributes[name] for _, attributes in found], float)


def _one_each(values: Any, size: int) -> Array:
    """One number for all, or as many as there are."""
    values = jnp.asarray(values)
    return jnp.broadcast_to(values, (size,)) if values.ndim == 0 else values
