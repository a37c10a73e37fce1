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
    partners: Int[Array, "matchings size"], weights: Float[Array, "matchings size"]
) -> Float[Array, " size"]:
    """`log Σ exp(weight)` over the edges between a place `<= i` and one `> i`, for each
    place `i` on a line.

    **Arguments:**

    - `partners`: at the other end of the edge of each place, in each of some matchings.
    - `weights`: the logarithms of the weights, the same at both ends of an edge.

    The number of places is a power of two.
    """
    # Let `k` be the highest bit in which the ends of an edge differ: they lie in the
    # two halves of one block of 2**(k+1) places. So the edges at level k that cross a
    # cut in the left half of a block are those that begin before it, a sum from the
    # left; and those that cross one in the right half are those that end after it.
    size = partners.shape[1]
    n_levels = (size - 1).bit_length()
    place = jnp.arange(size)

    def add(sums, matching):
        partner, weight = matching
        highest = 31 - lax.clz((place ^ partner).astype(jnp.int32))
        here = (jnp.maximum(highest, 0), place)
        weight = jnp.where(highest >= 0, weight, -jnp.inf)
        return sums.at[here].set(jnp.logaddexp(sums[here], weight)), None

    empty = jnp.full((max(n_levels, 1), size), -jnp.inf, weights.dtype)
    sums, _ = lax.scan(add, empty, (partners, weights))

    # Right halves are turned round, so that all sums are from the left. One loop over
    # the places has a sum for each level: few operations, which are compiled fast.
    levels = jnp.arange(len(sums))[:, None]
    last, place = (1 << levels) - 1, place[None]
    is_right = (place >> levels) & 1 == 1
    turned = jnp.where(is_right, place ^ last, place)
    begins = place & last == 0

    def go(until, here):
        begins, part = here
        until = jnp.where(begins, part, jnp.logaddexp(until, part))
        return until, until

    parts = jnp.take_along_axis(sums, turned, axis=1)
    _, until = lax.scan(go, jnp.full_like(parts[:, 0], -jnp.inf), (begins.T, parts.T))
    until = until.T
    before = jnp.where(begins, -jnp.inf, jnp.roll(until, 1, axis=1))
    found = jnp.take_along_axis(jnp.where(is_right, before, until), turned, axis=1)
    return jax.nn.logsumexp(found, axis=0)


def log_where(holds: Array, x: Array) -> Array:
    """`log x` where that is asked for and `x` is positive; elsewhere minus infinity,
    with a derivative of zero."""
    some = holds & (x > 0)
    return jnp.where(some, jnp.log(jnp.where(some, x, 1)), -jnp.inf)


def log_total(x: Float[Array, "..."]) -> Float[Array, ""]:
    """`log Σ exp(x)`, differentiable where some, or all, are minus infinity."""
    most = lax.stop_gradient(jnp.max(x, initial=-jnp.inf))
    finite = jnp.where(jnp.isfinite(most), most, 0)
    sums = jnp.sum(jnp.exp(jnp.where(jnp.isneginf(x), -jnp.inf, x - finite)))
    return log_where(jnp.isfinite(most), sums) + finite
