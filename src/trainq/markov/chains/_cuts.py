"""Sums over all that crosses each of many cuts, without subtraction and in logarithms.

Flows across a bottleneck may be smaller than the rounding errors of those beside it. So
they are not found by adding what enters and subtracting what leaves, and a set of
states whose mass has underflowed is one like any other.
"""

import jax
import jax.numpy as jnp
from jax import lax
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
    n_levels = size.bit_length()

    def level(interval, _):
        low, high = interval
        parts = []
        for node, taken in ((low, low & 1 == 1), (high - 1, high & 1 == 1)):
            taken = taken & (low < high)
            some = jnp.where(taken, weight, -jnp.inf)
            parts.append((jnp.where(taken, node, 0), some))
        return ((low + 1) >> 1, high >> 1), parts

    _, parts = lax.scan(level, (first + size, last + size), length=n_levels)
    node, weight = (jnp.concatenate(part) for part in zip(*parts, strict=True))
    most = jnp.full(2 * size, -jnp.inf, weight.dtype).at[node].max(weight)
    finite = jnp.where(jnp.isfinite(most), most, 0)
    sums = jnp.zeros(2 * size, weight.dtype)
    sums = sums.at[node].add(jnp.exp(weight - finite[node]))
    above = (size + jnp.arange(size))[None, :] >> jnp.arange(n_levels)[:, None]
    return jax.nn.logsumexp((jnp.log(sums) + finite)[above], axis=0)
