"""Graphs of interactions: neighbours, sums over them, and colourings."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Adjacency(NamedTuple):
    """The edges of every unit, as a rectangular table.

    A unit with few edges fills its row with the edge of number `n_edges`, which no
    graph has, to itself. Where a few units have most of the edges, what does not fit
    into the table is a list.
    """

    neighbour: Int[np.ndarray, "n_units width"]
    edge: Int[np.ndarray, "n_units width"]
    rest: Int[np.ndarray, "n_rest 3"]


@dataclass(frozen=True)
class Graph:
    """The edges between some units, in order: structure, and no parameters.

    It stands in the static part of a model, where no tree map, optimiser or average
    reaches it, and programs are compiled for it. So it is hashed and compared in every
    call, by what it holds: as `bytes`, which remember their hash, and which compare at
    the speed of memory.
    """

    n_units: int
    data: bytes

    @classmethod
    def of(cls, edges: Int[np.ndarray, "n_edges 2"], n_units: int) -> "Graph":
        """The graph of some pairs of units."""
        return cls(n_units, edges.astype(np.int64).tobytes())

    def __repr__(self) -> str:
        return f"Graph({self.n_units} units, {len(self.edges)} edges)"

    def __reduce__(self):
        # Without the tables, which are made anew.
        return Graph, (self.n_units, self.data)

    @cached_property
    def edges(self) -> Int[np.ndarray, "n_edges 2"]:
        """The pairs of units, which cannot be written to."""
        return np.frombuffer(self.data, np.int64).reshape(-1, 2)

    @cached_property
    def adjacency(self) -> Adjacency:
        """The neighbours of every unit."""
        edges, n_units = self.edges, self.n_units
        ends = np.concatenate([edges, edges[:, ::-1]])
        number = np.tile(np.arange(len(edges)), 2)
        order = np.argsort(ends[:, 0], kind="stable")
        (unit, other), number = ends[order].T, number[order]
        degree = np.bincount(unit, minlength=n_units)
        width = max(1, int(degree.max()))
        if n_units * width > 4 * len(unit):
            width = max(1, int(np.quantile(degree, 0.75)))
        column = np.arange(len(unit)) - (np.cumsum(degree) - degree)[unit]
        fits = column < width
        neighbour = np.repeat(np.arange(n_units)[:, None], width, axis=1)
        edge = np.full((n_units, width), len(edges))
        neighbour[unit[fits], column[fits]] = other[fits]
        edge[unit[fits], column[fits]] = number[fits]
        rest = np.stack([unit, other, number], axis=1)[~fits]
        # 32 bits are enough, and half the traffic.
        return Adjacency(*(table.astype(np.int32) for table in (neighbour, edge, rest)))

    @cached_property
    def cover(self) -> tuple[Int[np.ndarray, " cover"], Int[np.ndarray, " others"]]:
        """Units that every edge has one of, a vertex cover, and the others: independent
        of each other given these. The others are the largest colour of each connected
        component: the larger side, where that is bipartite."""
        if self.n_units == 0:
            return np.empty(0, int), np.empty(0, int)
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        weights, shape = np.ones(len(self.edges), bool), (self.n_units, self.n_units)
        graph = coo_array((weights, self.edges.T), shape=shape)
        n_components, component = connected_components(graph, directed=False)
        blocks = colour_graph(self.edges, self.n_units)
        colour = np.empty(self.n_units, int)
        for number, units in enumerate(blocks):
            colour[units] = number
        sizes = np.zeros((n_components, len(blocks)), int)
        np.add.at(sizes, (component, colour), 1)
        is_other = colour == sizes.argmax(axis=1)[component]
        return np.flatnonzero(~is_other), np.flatnonzero(is_other)

    def among(
        self, units: Int[np.ndarray, " some"]
    ) -> tuple["Graph", Int[np.ndarray, " inner_edges"]]:
        """The graph of some of the units, numbered anew in their order, and the numbers
        of its edges among ours."""
        place = np.full(self.n_units, -1)
        place[units] = np.arange(len(units))
        ends = place[self.edges]
        inside = (ends >= 0).all(axis=1)
        return Graph.of(ends[inside], len(units)), np.flatnonzero(inside)

    def fields(
        self,
        couplings: Float[Array, " n_edges"],
        x: Float[Array, "*batch n_units"],
        units: Int[Array, " some"],
    ) -> Float[Array, "*batch some"]:
        """`Σ_j J_ij x_j` over the neighbours `j` of some units `i`."""
        table = self.adjacency
        # States go along the last axis: what is gathered then are rows.
        rows = x.reshape(-1, x.shape[-1]).T
        weights = jnp.append(couplings, 0)[jnp.asarray(table.edge)[units]]
        neighbour = jnp.asarray(table.neighbour)[units]
        fields = weights[:, 0, None] * rows[neighbour[:, 0]]
        for k in range(1, weights.shape[1]):
            fields = fields + weights[:, k, None] * rows[neighbour[:, k]]
        if len(table.rest):
            unit, other, edge = table.rest.T
            more = couplings[edge][:, None] * rows[other]
            fields = fields + jnp.zeros_like(rows).at[unit].add(more)[units]
        return fields.T.reshape(*x.shape[:-1], units.shape[0])

    def conflict(self, colours: Int[np.ndarray, " n_units"]) -> tuple[int, int] | None:
        """The first edge between units of the same colour."""
        same = colours[self.edges[:, 0]] == colours[self.edges[:, 1]]
        if not same.any():
            return None
        first, second = self.edges[np.argmax(same)].tolist()
        return first, second


class Ends(NamedTuple):
    """Some edges, by number, with places of their ends among the units that are free or
    among those that are clamped."""

    edge: Int[np.ndarray, " some"]
    first: Int[np.ndarray, " some"]
    second: Int[np.ndarray, " some"]


class Without(NamedTuple):
    """A graph without some of its units."""

    free: Int[np.ndarray, " n_free"]
    """The units that are left."""
    graph: Graph
    """The edges between these, by their places among them."""
    inside: Int[np.ndarray, " some"]
    """The numbers of those edges."""
    across: Ends
    """The edges from a unit that is left, first, to one that is not."""
    outside: Ends
    """The edges between units that are not."""


@lru_cache(maxsize=64)  # a program asks for the same one in many places
def without(graph: Graph, units: tuple[int, ...]) -> Without:
    """A graph without some units, which are sorted."""
    clamped = np.zeros(graph.n_units, bool)
    clamped[list(units)] = True
    # Of every unit its place among those of its kind.
    place = np.where(clamped, np.cumsum(clamped), np.cumsum(~clamped)) - 1
    # The free end first, if there is one.
    edges = np.take_along_axis(
        graph.edges, np.argsort(clamped[graph.edges], axis=1, kind="stable"), axis=1
    )
    n_clamped = clamped[edges].sum(axis=1)

    def ends(k: int) -> Ends:
        edge = np.flatnonzero(n_clamped == k)
        return Ends(edge, *place[edges[edge]].T)

    inside, across, outside = map(ends, range(3))
    free = np.flatnonzero(~clamped)
    pairs = np.stack([inside.first, inside.second], axis=1)
    return Without(free, Graph.of(pairs, free.size), inside.edge, across, outside)


def colour_graph(edges: np.ndarray, n_units: int) -> tuple[np.ndarray, ...]:
    """Blocks of units without an edge inside a block.

    Greedy, in breadth-first order: two blocks if the graph is bipartite, and never more
    than the largest degree plus one.
    """
    # SciPy is imported where it is used: few programs need it, and it is slow to load.
    from scipy.sparse import coo_array

    weights = np.ones(len(edges), bool)
    graph = coo_array((weights, edges.T), shape=(n_units, n_units)).tocsr()
    graph = (graph + graph.T).tocsr()
    colours = np.full(n_units, -1)
    for unit in _breadth_first(graph, n_units):
        row = graph.indices[graph.indptr[unit] : graph.indptr[unit + 1]]
        taken = set(colours[row].tolist())
        colours[unit] = next(c for c in range(len(taken) + 1) if c not in taken)
    return tuple(np.flatnonzero(colours == c) for c in range(colours.max() + 1))


def _breadth_first(graph: "csr_array", n_units: int) -> np.ndarray:
    """The units of every component, breadth first."""
    from scipy.sparse import block_array, coo_array
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    # One more unit, joined to one unit of every component, is where the search starts.
    _, component = connected_components(graph, directed=False)
    roots = np.unique(component, return_index=True)[1]
    spoke = coo_array(
        (np.ones(len(roots), bool), (np.zeros_like(roots), roots)), shape=(1, n_units)
    )
    rooted = block_array([[graph, None], [spoke, coo_array((1, 1), dtype=bool)]])
    order, _ = breadth_first_order(rooted.tocsr(), n_units, directed=False)
    return order[1:]
