"""The Boltzmann machine on any graph."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, Num

from .._checks import whole_number
from .._spins import (
    MAX_BLOCK,
    MAX_TABLE,
    MAX_UNITS,
    as_spins,
    check_enumerable,
    map_blocks,
    merge,
    spins,
)
from ._base import (
    CLAMPED_INSTEAD,
    COLOURS_INSTEAD,
    AbstractEnergyModel,
    Block,
    check_drawn,
    made,
)
from ._graph import Graph, colour_graph, without
from ._rbm import as_parameter, shift
from ._summed import Summed
from ._tempered import inverse_temperature


class BoltzmannMachine(AbstractEnergyModel):
    """Spins with pairwise couplings on any graph, visible and hidden:
    `E(x) = -Σ_{edges ij} J_ij x_i x_j - Σ_i b_i x_i`.

    Each edge has one parameter. Its observables are `-x_i x_j` in the order of `edges`,
    then `-x_i` if it has biases. Without biases it is symmetric under the global flip.

    ??? cite "Source"

        Ackley, Hinton and Sejnowski, *A learning algorithm for Boltzmann machines*,
        Cognitive Science 9, 147, 1985.
    """

    couplings: Float[Array, " edges"]
    bias: Float[Array, " n_units"] | None
    graph: Graph = eqx.field(static=True, repr=False)
    n_visible: int = eqx.field(static=True)
    n_hidden: int = eqx.field(static=True)

    def __init__(
        self,
        couplings: Any,
        bias: Any = None,
        n_visible: int | None = None,
        edges: Any = None,
        *,
        n_units: int | None = None,
    ):
        """As `from_matrix`, or, for one value an edge, as `from_edges`.

        **Arguments:**

        - `couplings`: a symmetric `(n_units, n_units)` matrix with zero diagonal, or
            `(n_edges,)`, one value for each of the `edges`.
        - `bias`: `(n_units,)` fields, or None for a model without them.
        - `n_visible`: number of visible units, which come first. All, by default.
        - `edges`: `(n_edges, 2)` pairs of units, each pair once. All pairs of a matrix,
            by default.
        - `n_units`: number of units. As many as the matrix has rows; or as there are
            biases; or else as the edges and `n_visible` need.

        **Raises:** `ValueError` if the shapes, the matrix, or the edges do not fit; a
        run-time error if a traced matrix is not symmetric with zero diagonal.
        """
        couplings = as_parameter("couplings", couplings)
        self.bias = None if bias is None else as_parameter("bias", bias)
        if n_visible is not None:
            n_visible = whole_number("n_visible", n_visible, 1, "units")
        if n_units is not None:
            n_units = whole_number("n_units", n_units, 1, "units")
        pairs = None if edges is None else _checked_pairs(edges)
        if couplings.ndim == 2:
            self.graph = _graph_of_matrix(couplings, pairs, n_units)
            self.couplings = _entries(couplings, self.edges)
        elif couplings.ndim == 1 and pairs is not None:
            self.graph = _graph_of_edges(pairs, n_units, self.bias, n_visible)
            self.couplings = _one_each(couplings, self.edges)
        else:
            raise ValueError(
                "couplings is a symmetric (n_units, n_units) matrix, or (n_edges,) "
                "values together with `edges`, but an array of shape "
                f"{couplings.shape} was given "
                f"{'without' if pairs is None else 'with'} edges."
            )
        n_units = self.graph.n_units
        if self.bias is not None and self.bias.shape != (n_units,):
            raise ValueError(
                f"bias has shape ({n_units},), one field for each unit, but "
                f"{self.bias.shape} was given. Leave it out for a model without biases."
            )
        self.n_visible = n_units if n_visible is None else n_visible
        self.n_hidden = n_units - self.n_visible
        if self.n_hidden < 0:
            raise ValueError(
                f"n_visible is between 1 and the {n_units} units, but {n_visible} was "
                "given."
            )

    @classmethod
    def from_matrix(
        cls,
        couplings: Any,
        bias: Any = None,
        n_visible: int | None = None,
        *,
        edges: Any = None,
    ) -> "BoltzmannMachine":
        """The machine of a matrix of couplings.

        **Arguments:**

        - `couplings`: a symmetric `(n_units, n_units)` matrix with zero diagonal. Each
            pair `i < j` becomes a parameter, unless `edges` says which.
        - `bias`, `n_visible`: as for the class.
        - `edges`: `(n_edges, 2)` pairs of units, outside of which the matrix is zero.

        **Returns:** a machine.

        **Raises:** as the class does.
        """
        couplings = as_parameter("couplings", couplings)
        if couplings.ndim != 2:
            raise ValueError(
                "couplings is a symmetric (n_units, n_units) matrix, but an array of "
                f"shape {couplings.shape} was given. For one value an edge, use "
                "`BoltzmannMachine.from_edges`."
            )
        return cls(couplings, bias, n_visible, edges=edges)

    @classmethod
    def from_edges(
        cls,
        edges: Any,
        couplings: Any,
        bias: Any = None,
        n_visible: int | None = None,
        *,
        n_units: int | None = None,
    ) -> "BoltzmannMachine":
        """The machine of a sparse graph.

        **Arguments:**

        - `edges`: `(n_edges, 2)` pairs of units, each pair once.
        - `couplings`: `(n_edges,)`, one value for each of the `edges`.
        - `bias`, `n_visible`, `n_units`: as for the class. Units that no edge names are
            free.

        **Returns:** a machine.

        **Raises:** as the class does.
        """
        couplings = as_parameter("couplings", couplings)
        if couplings.ndim != 1:
            raise ValueError(
                "couplings is (n_edges,), one value for each of the edges, but an "
                f"array of shape {couplings.shape} was given. For a matrix, use "
                "`BoltzmannMachine.from_matrix`."
            )
        return cls(couplings, bias, n_visible, edges=edges, n_units=n_units)

    @classmethod
    def from_bits(
        cls,
        couplings: Any,
        bias: Any = None,
        n_visible: int | None = None,
        edges: Any = None,
        *,
        n_units: int | None = None,
    ) -> "BoltzmannMachine":
        """The machine with the law of another one whose units are 0 and 1, and whose
        energy is `-Σ_{edges ij} W_ij b_i b_j - Σ_i a_i b_i` in these.

        A bit is `(1 + x) / 2` of its spin `x`: couplings become `W_ij / 4`, and fields
        `a_i / 2 + Σ_j W_ij / 4`. What is left is a constant, on which no law depends:
        the energy in bits is `E(x)` less that of all spins down. Gradients, and Q, are
        those of the parameters of the spins, as for `RBM.from_bits`.

        **Arguments:**

        - `couplings`, `bias`, `n_visible`, `edges`, `n_units`: as for the class, of
            bits.

        **Returns:** a machine with biases, differentiable by couplings and biases.

        **Raises:** as the class does.

        !!! example

            ```python
            model = tq.BoltzmannMachine.from_bits(
                jnp.array([2.0, 1.0]), edges=[(0, 1), (1, 2)]
            )
            down = model.energy(-jnp.ones(3))
            energy = model.energy(jnp.array([1, 1, -1])) - down
            assert jnp.isclose(energy, -2.0)
            ```
        """
        bits = cls(couplings, bias, n_visible, edges, n_units=n_units)
        fields = bits._sums / 4
        return made(
            BoltzmannMachine,
            couplings=bits.couplings / 4,
            bias=fields if bits.bias is None else fields + bits.bias / 2,
            graph=bits.graph,
            n_visible=bits.n_visible,
            n_hidden=bits.n_hidden,
        )

    def to_bits(self) -> tuple[Float[Array, " edges"], Float[Array, " n_units"]]:
        """The parameters of the machine with this law whose units are 0 and 1: the
        inverse of `from_bits`, which has the constant between the energies.

        **Returns:** its couplings `4 J`, one for each of the `edges`, and its biases
        `2 b_i - 2 Σ_j J_ij`: these are there also where the machine has none.
        """
        fields = -2 * self._sums
        bias = fields if self.bias is None else fields + 2 * self.bias
        return 4 * self.couplings, bias

    @property
    def _sums(self) -> Float[Array, " n_units"]:
        """The sum of the couplings of each unit."""
        ones = jnp.ones(self.n_units, self.couplings.dtype)
        return self.graph.fields(self.couplings, ones, jnp.arange(self.n_units))

    @property
    def edges(self) -> Int[np.ndarray, "n_edges 2"]:
        """The pairs of units that interact, the smaller one first, in the order of
        `couplings`. They are fixed, and no parameters: for other edges, make another
        machine."""
        return self.graph.edges

    @property
    def is_symmetric(self) -> bool:
        return self.bias is None

    @property
    def is_linear(self) -> bool:
        return True

    @property
    def coupling_matrix(self) -> Float[Array, "n_units n_units"]:
        """The symmetric matrix of couplings, zero where there is no edge."""
        zeros = jnp.zeros((self.n_units, self.n_units), self.dtype)
        first, second = self.edges[:, 0], self.edges[:, 1]
        upper = zeros.at[first, second].add(self.couplings)
        return upper + upper.T

    def _spins(self, x: Num[Array, "*batch n_units"]) -> Array:
        return as_spins(x, self.n_units, self.dtype)

    def energy(self, x: Num[Array, "*batch n_units"]) -> Float[Array, "*batch"]:
        """`-Σ_edges J_ij x_i x_j - Σ_i b_i x_i` for states of any leading shape."""
        x = self._spins(x)
        energy = -(x[..., self.edges[:, 0]] * x[..., self.edges[:, 1]]) @ self.couplings
        return energy if self.bias is None else energy - x @ self.bias

    def energies(self) -> Float[Array, " states"]:
        # Split the units in two halves: the energy is a term of each, and one matrix
        # product over pairs of half states.
        check_enumerable(self.n_units)
        k = self.n_units // 2
        high, low = spins(k, self.dtype), spins(self.n_units - k, self.dtype)
        return self._energy_table(high, low).reshape(-1)

    def energy_table(
        self, v: Num[Array, "some n_visible"], h: Num[Array, "others n_hidden"]
    ) -> Float[Array, "some others"]:
        return self._energy_table(v, h)

    def _energy_table(
        self, high: Num[Array, "some k"], low: Num[Array, "others rest"]
    ) -> Float[Array, "some others"]:
        matrix, k = self.coupling_matrix, high.shape[1]

        def inner(s, block, bias):
            energy = -jnp.sum((s @ block) * s, axis=-1) / 2
            return energy if bias is None else energy - s @ bias

        bias = (None, None) if self.bias is None else (self.bias[:k], self.bias[k:])
        table = inner(high, matrix[:k, :k], bias[0])[:, None] - (
            high @ matrix[:k, k:] @ low.T
        )
        return table + inner(low, matrix[k:, k:], bias[1])[None, :]

    @property
    def n_enumerated(self) -> int:
        """The size of a vertex cover: units that leave no edge between the others,
        which then sum out, as the smaller side of a bipartite graph does."""
        return len(self.graph.cover[0])

    def log_partition(self) -> Float[Array, ""]:
        return self._summed.log_partition()

    def draw(
        self, key: Key[Array, ""], n_states: int
    ) -> Num[Array, "n_states n_units"]:
        """Independent states, exactly: of the enumerated units, and of the others given
        these."""
        check_drawn(self)
        return self._summed.draw(key, n_states)

    @property
    def _summed(self) -> Summed:
        zeros = jnp.zeros(self.n_units, self.dtype)
        fields = zeros if self.bias is None else self.bias
        return Summed.of(self.graph, self.couplings, fields)

    def free_energy(self, v: Num[Array, "*batch n_visible"]) -> Float[Array, "*batch"]:
        """`-log Σ_h exp(-E(v, h))` of some visible states, nats: hidden units that do
        not interact sum out, and of others a vertex cover is enumerated."""
        v = as_spins(v, self.n_visible, self.dtype)
        n_cover = len(self.graph.among(self._layer("hidden"))[0].cover[0])
        what = "vertex cover of the interacting hidden units"
        check_enumerable(n_cover, MAX_BLOCK, what, CLAMPED_INSTEAD)
        # With the hidden units at 0, what remains is the energy of the visible ones.
        x = jnp.pad(v, (*[(0, 0)] * (v.ndim - 1), (0, self.n_hidden)))
        log_sums = self._given_others(
            x, "hidden", lambda hidden: hidden.log_partition()
        )
        return self.energy(x) - log_sums

    def free_energies(self) -> Float[Array, " visible_states"]:
        if self.n_units <= MAX_UNITS:  # by a matrix product
            return super().free_energies()
        width = max(self.n_units, len(self.edges))
        return map_blocks(self.free_energy, self.n_visible, self.dtype, width)

    def sample_block(
        self, key: Key[Array, ""], x: Num[Array, "*batch n_units"], block: Block
    ) -> Num[Array, "*batch n_units"]:
        """Draw a layer given the other one: a vertex cover of it by enumeration, and
        the units that do not interact independently."""
        x = as_spins(x, self.n_units)
        units = self._layer(block)
        others = x.astype(self.dtype).at[..., units].set(0)
        keys = jr.split(key, x.shape[:-1])
        new = self._given_others(others, block, lambda s, k: s.draw(k, 1)[0], keys)
        return x.at[..., units].set(new.astype(x.dtype))

    def _layer(self, block: Block) -> Int[np.ndarray, " layer"]:
        visible, hidden = np.split(np.arange(self.n_units), [self.n_visible])
        return visible if block == "visible" else hidden

    def _given_others(
        self, x: Array, block: Block, ask: Callable[..., Array], *each: Array
    ) -> Array:
        """What `ask` says of the units of a block in the fields of all others, for each
        of the states `x`, where the block itself is 0."""
        units = self._layer(block)
        graph, edges = self.graph.among(units)
        n_cover = len(graph.cover[0])
        what = f"vertex cover of the {block} block"
        check_enumerable(n_cover, MAX_BLOCK, what, COLOURS_INSTEAD)
        batch = x.shape[:-1]
        fields = self.local_fields(x, jnp.asarray(units))
        fields = fields.reshape(math.prod(batch), units.size)
        each = tuple(a.reshape(len(fields), *a.shape[len(batch) :]) for a in each)

        @jax.checkpoint
        def one(given):
            fields, *each = given
            return ask(Summed.of(graph, self.couplings[edges], fields), *each)

        size = max(1, MAX_TABLE // (2**n_cover * max(1, units.size)))
        values = jax.lax.map(one, (fields, *each), batch_size=size)
        return values.reshape(*batch, *values.shape[1:])

    def observables(
        self, x: Num[Array, "*batch n_units"]
    ) -> Float[Array, "*batch n_parameters"]:
        x = self._spins(x)
        parts = [x[..., self.edges[:, 0]] * x[..., self.edges[:, 1]]]
        parts += [] if self.bias is None else [x]
        return -merge(parts, self.dtype)

    def local_fields(
        self, x: Num[Array, "*batch n_units"], units: Int[Array, " some"]
    ) -> Float[Array, "*batch some"]:
        x = self._spins(x)
        fields = self.graph.fields(self.couplings, x, units)
        return shift(fields, None if self.bias is None else self.bias[units])

    def colouring(self) -> tuple[np.ndarray, ...]:
        """Two blocks if the graph is bipartite, as a grid is; otherwise the blocks of a
        greedy colouring, at most one more than the largest degree."""
        return colour_graph(self.edges, self.n_units)

    def conflict(self, colours: Int[np.ndarray, " n_units"]) -> tuple[int, int] | None:
        return self.graph.conflict(colours)

    @property
    def is_batch(self) -> bool:
        return self.couplings.ndim > 1

    def tempered(self, beta: int | float | Float[Array, ""]) -> "BoltzmannMachine":
        """The machine at inverse temperature `beta`: every parameter times `beta`."""
        beta = inverse_temperature(beta)
        return jax.tree.map(lambda p: p * beta.astype(p.dtype), self)

    def given(
        self, units: Int[np.ndarray, " some"], values: Float[Array, " some"]
    ) -> "tuple[BoltzmannMachine, Float[Array, '']]":
        free, graph, inside, across, outside = without(
            self.graph, tuple(units.tolist())
        )
        bias = None if self.bias is None else self.bias[free]
        if across.edge.size:
            # Only then do clamped units make fields, and break the symmetry.
            bias = jnp.zeros(free.size, self.dtype) if bias is None else bias
            fields = self.couplings[across.edge] * values[across.second]
            bias = bias.at[across.first].add(fields)
        pairs = values[outside.first] * values[outside.second]
        offset = -pairs @ self.couplings[outside.edge]
        if self.bias is not None:
            offset = offset - values @ self.bias[units]
        n_visible = int(np.sum(free < self.n_visible))
        rest = made(
            BoltzmannMachine,
            couplings=self.couplings[inside],
            bias=bias,
            graph=graph,
            n_visible=n_visible,
            n_hidden=free.size - n_visible,
        )
        return rest, offset


def _checked_pairs(edges: Any) -> Int[np.ndarray, "n_edges 2"]:
    """The pairs, the smaller unit first."""
    pairs = np.asarray(edges)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(
            "edges is an integer array of shape (n_edges, 2), but an array of shape "
            f"{pairs.shape} and dtype {pairs.dtype} was given."
        )
    ordered = np.sort(pairs, axis=1)
    if (pairs < 0).any() or (ordered[:, 0] == ordered[:, 1]).any():
        raise ValueError("Each edge joins two different units, numbered from 0.")
    if len(np.unique(ordered, axis=0)) != len(ordered):
        raise ValueError(
            "Each edge is given once, but some pair stands in edges twice."
        )
    return ordered


def _graph_of_matrix(
    matrix: Array, pairs: np.ndarray | None, n_units: int | None
) -> Graph:
    rows, columns = matrix.shape
    if rows != columns or n_units not in (None, rows):
        expected = "n_units, n_units" if n_units is None else f"{n_units}, {n_units}"
        raise ValueError(
            f"couplings is a symmetric ({expected}) matrix, but an array of shape "
            f"{matrix.shape} was given."
        )
    if pairs is None:
        pairs = np.stack(np.triu_indices(rows, 1), axis=-1)
    return _graph(pairs, rows, "rows of couplings")


def _graph_of_edges(
    pairs: np.ndarray, n_units: int | None, bias: Array | None, n_visible: int | None
) -> Graph:
    if n_units is not None:
        return _graph(pairs, n_units, "the given n_units")
    if bias is not None:
        return _graph(pairs, bias.size, "values of bias")
    return _graph(pairs, max(int(pairs.max(initial=-1)) + 1, n_visible or 0))


def _graph(pairs: np.ndarray, n_units: int, counted_as: str = "") -> Graph:
    if n_units == 0:
        raise ValueError(
            "A Boltzmann machine has at least one unit, but none was given. Edges that "
            "name none need `n_units`."
        )
    if pairs.max(initial=0) >= n_units:
        raise ValueError(
            f"The edges name unit {pairs.max()}, but there are {n_units} units: "
            f"{counted_as}."
        )
    return Graph.of(pairs, n_units)


def _one_each(values: Array, pairs: np.ndarray) -> Array:
    if values.shape != (len(pairs),):
        raise ValueError(
            f"couplings has one value for each of the {len(pairs)} edges, but "
            f"{values.shape[0]} were given."
        )
    return values


def _entries(matrix: Array, pairs: np.ndarray) -> Array:
    # A matrix entry that no edge reads would be dropped in silence.
    n = matrix.shape[0]
    missing = np.ones((n, n), bool)
    missing[pairs[:, 0], pairs[:, 1]] = missing[pairs[:, 1], pairs[:, 0]] = False
    message = (
        "couplings is a symmetric matrix, with zeros on its diagonal and wherever "
        "`edges` has no edge, but another matrix was given. For a strictly upper "
        "triangle J, give `J + J.T`."
    )
    bad = jnp.any(matrix != matrix.T) | jnp.any(jnp.where(missing, matrix, 0) != 0)
    bad &= jnp.all(jnp.isfinite(matrix))  # another error, and not ours to find
    values = matrix[pairs[:, 0], pairs[:, 1]]
    if isinstance(bad, Tracer):
        return eqx.error_if(values, bad, message)
    if bad:
        raise ValueError(message)
    return values
