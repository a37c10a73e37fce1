"""Spins with pairwise couplings, most of which sum out in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key, Num

from .._random import draw_spins
from .._spins import draw_states, map_blocks, merge, state_spins
from ._graph import Graph
from ._rbm import log_2cosh


class Summed(NamedTuple):
    """The units of a graph, seen as a vertex cover `s`, whose states are enumerated,
    and the others, `t`, which do not interact with each other:

        -E(s, t) = sᵀ K s + aᵀ s + (Cᵀ s + b)ᵀ t,

    so that `log Σ_t exp(-E(s, t)) = sᵀ K s + aᵀ s + Σ log 2cosh(Cᵀ s + b)`, and that
    the spins of `t` are independent given `s`."""

    within: Float[Array, "cover cover"]
    across: Float[Array, "cover others"]
    fields: Float[Array, " cover"]
    other_fields: Float[Array, " others"]
    graph: Graph

    @classmethod
    def of(
        cls,
        graph: Graph,
        couplings: Float[Array, " n_edges"],
        fields: Float[Array, " n_units"],
    ) -> "Summed":
        """That of a graph, with a coupling for each edge and a field on each unit."""
        cover, others = graph.cover
        place = np.argsort(np.concatenate([cover, others]))  # cover first
        ends = np.sort(place[graph.edges], axis=1)
        zeros = jnp.zeros((cover.size, graph.n_units), couplings.dtype)
        matrix = zeros.at[ends[:, 0], ends[:, 1]].add(couplings)
        return cls(
            matrix[:, : cover.size],
            matrix[:, cover.size :],
            fields[cover],
            fields[others],
            graph,
        )

    def _other_fields(self, s: Float[Array, "some cover"]) -> Array:
        return s @ self.across + self.other_fields[None]

    def log_weights(self) -> Float[Array, " states"]:
        """`log Σ_t exp(-E(s, t))` for every `s`, in order."""

        def of(s):
            inner = jnp.sum((s @ self.within + self.fields[None]) * s, axis=1)
            return inner + jnp.sum(log_2cosh(self._other_fields(s)), axis=1)

        n, width = self.fields.size, self.graph.n_units
        return map_blocks(of, n, self.fields.dtype, width)

    def log_partition(self) -> Float[Array, ""]:
        """`log Σ exp(-E)`, nats."""
        return jax.nn.logsumexp(self.log_weights())

    def draw(
        self, key: Key[Array, ""], n_states: int
    ) -> Num[Array, "n_states n_units"]:
        """Independent states, exactly: of the cover, and of the others given that."""
        first, second = jr.split(key)
        index = draw_states(first, self.log_weights(), n_states)
        s = state_spins(index, self.fields.size, self.fields.dtype)
        x = merge((s, draw_spins(second, self._other_fields(s))), s.dtype)
        return x[:, np.argsort(np.concatenate(self.graph.cover))]
