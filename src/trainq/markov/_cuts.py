"""Sums over all that crosses each of many cuts, without subtraction and in logarithms.

Flows across a bottleneck may be smaller than the rounding errors of those beside it. So
they are not found by adding what enters and subtracting what leaves, and a set of
states whose mass has underflowed is one like any other.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def log_sums_across(
    first: Int[Array, " edges"],
    last: Int[Array, " edges"],
    weight: Float[Array, " edges"],
    size: int,
) -> Float[Array, " size"]:
    """`log Σ exp(weight)` over the edges with `first <= i < last`, for each `i`.

    **Arguments:**

    - `first`, `last`: the ends of each edge, `0 <= first <= last < size`.
    - `weight`: the logarithms of the weights.
    - `size`: how many cuts there are, a power of two.
    """
    # Each interval is a union of at most 2 log₂(size) nodes of a binary tree, and what
    # a cut sees is the sum over the nodes above it. Node 1 is the root, and those of
    # the cuts come last.
    low, high = first + size, last + size
    nodes, weights = [], []
    for _ in range(size.bit_length()):
        inside = low < high
        for node, taken in ((low, low % 2 == 1), (high - 1, high % 2 == 1)):
            taken = taken & inside
            nodes.append(jnp.where(taken, node, 0))
            weights.append(jnp.where(taken, weight, -jnp.inf))
        low, high = (low + 1) >> 1, high >> 1
    node, weight = jnp.concatenate(nodes), jnp.concatenate(weights)
    most = jnp.full(2 * size, -jnp.inf, weight.dtype).at[node].max(weight)
    finite = jnp.where(jnp.isfinite(most), most, 0)
    sums = (
        jnp.zeros(2 * size, weight.dtype).at[node].add(jnp.exp(weight - finite[node]))
    )
    tree = jnp.log(sums) + finite
    above = tree[1:2]
    for level in range(1, size.bit_length()):
        own = tree[2**level : 2 ** (level + 1)]
        both = jnp.stack([jnp.repeat(above, 2), own])
        above = jax.nn.logsumexp(both, axis=0)
    return above
