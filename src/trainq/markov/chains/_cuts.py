"""Sums over all that crosses each of many cuts, without subtraction and in logarithms.

Flows across a bottleneck may be smaller than the rounding errors of those beside it. So
they are not found by adding what enters and subtracting what leaves, and a set of
states whose mass has underflowed is one like any other.
"""

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

    def join(one, other):
        (_, left), (begins, right) = one, other
        both = jnp.where(begins, right, jnp.logaddexp(left, right))
        return one[0] | begins, both

    def across(total, level):
        k, parts = level
        is_right = (place >> k) & 1 == 1
        last = (1 << k) - 1
        # Right halves are turned round, so that all sums are from the left.
        turned = jnp.where(is_right, place ^ last, place)
        begins = place & last == 0
        _, until = lax.associative_scan(join, (begins, parts[turned]))
        before = jnp.where(begins, -jnp.inf, jnp.roll(until, 1))
        found = jnp.where(is_right, before, until)[turned]
        return jnp.logaddexp(total, found), None

    levels = (jnp.arange(len(sums)), sums)
    return lax.scan(across, jnp.full(size, -jnp.inf, weights.dtype), levels)[0]


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
