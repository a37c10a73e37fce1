"""Random words, and the spins that are drawn by them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt


def split(key: Key[Array, ""], n: int = 2) -> Key[Array, " n"]:
    """`jax.random.split`, to the same keys, in a fraction of the time."""
    config: Any = jax.config
    if jr.key_impl(key) != "threefry2x32" or not config.jax_threefry_partitionable:
        return jr.split(key, n)
    count = jnp.arange(n, dtype=jnp.uint32)
    data = jnp.stack(threefry(jr.key_data(key), jnp.zeros_like(count), count), axis=1)
    return jr.wrap_key_data(data, impl="threefry2x32")


def happens(
    key: Key[Array, ""], probability: Float[Array, "*shape"], axis: int = -1
) -> Bool[Array, "*shape"]:
    """Independent events of the given probabilities.

    These are resolved to `2**-32`, in float32 to `2**-24`, and what is certain happens.
    Events of two indices of `axis` share a hash: chains have an axis of their own, and
    may be on several devices.
    """
    n, shape = probability.shape[axis], list(probability.shape)
    shape[axis] = -(-n // 2)
    words = jnp.concatenate(two_words(key, tuple(shape)), axis)
    words = jax.lax.slice_in_dim(words, 0, n, axis=axis)
    return uniform(words, probability.dtype) < probability


def uniform(words: UInt[Array, "*shape"], dtype) -> Float[Array, "*shape"]:
    """Numbers in [0, 1), from random 32-bit words."""
    n_bits = min(32, jnp.finfo(dtype).nmant + 1)
    return (words >> (32 - n_bits)).astype(dtype) * 2.0**-n_bits


def two_words(
    key: Key[Array, ""], shape: tuple[int, ...]
) -> tuple[UInt[Array, "*shape"], UInt[Array, "*shape"]]:
    """Two random 32-bit words for each entry of an array.

    They take most of the time of sampling. Threefry hashes a counter to two words:
    `jax.random.bits` folds them into one, and here both are used. What an entry gets
    depends on its own index alone, so that an array that is spread over devices is
    drawn where it is.
    """
    if jr.key_impl(key) != "threefry2x32" or math.prod(shape) >= 2**32:
        first, second = jr.bits(key, (2, *shape), jnp.uint32)
        return first, second
    # A sum over axes, and no reshaped range: that would be there as a whole wherever
    # the last axis is spread.
    strides = np.cumprod([1, *shape[:0:-1]])[::-1].astype(np.uint32)
    count = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        count = count + index * strides[axis]
    return threefry(jr.key_data(key), jnp.zeros_like(count), count)


_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)


def threefry(
    key: UInt[Array, "2"], high: UInt[Array, "*shape"], low: UInt[Array, "*shape"]
) -> tuple[UInt[Array, "*shape"], UInt[Array, "*shape"]]:
    """The hash of counters of two words, Threefry-2x32 of 20 rounds: the bits of JAX's.

    JAX's own is a loop over rounds on a CPU, which compiles to as many passes over the
    counters; this is one, and 4 to 15 times as fast.

    ??? cite "Source"

        Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3*,
        SC 2011.
    """
    keys = key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)
    high, low = high + keys[0], low + keys[1]
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            high = high + low
            low = high ^ (low << rotation | low >> 32 - rotation)
        high = high + keys[(i + 1) % 3]
        low = low + keys[(i + 2) % 3] + np.uint32(i + 1)
    return high, low


def draw_spins(
    key: Key[Array, ""], field: Float[Array, "*shape"], axis: int = -1
) -> Float[Array, "*shape"]:
    """Independent spins in their fields: up with probability `σ(2 field)`. Their units
    are along `axis`."""
    up = happens(key, jax.nn.sigmoid(2 * field), axis)
    one = jnp.ones((), field.dtype)
    return jnp.where(up, one, -one)
