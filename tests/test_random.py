"""Random words, against those of JAX."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.extend.core.primitives import threefry2x32_p

from trainq._random import happens, split, threefry, two_words


def test_hashes_are_those_of_jax():
    random = np.random.default_rng(0)
    words = jnp.asarray(random.integers(0, 2**32, (2, 7, 30), np.uint32))
    for data in random.integers(0, 2**32, (5, 2), np.uint32):
        key = jnp.asarray(data)
        found = threefry(key, *words)
        for one, other in zip(found, threefry2x32_p.bind(*key, *words), strict=True):
            assert one.dtype == jnp.uint32
            assert np.array_equal(one, other)


def test_hashes_are_the_known_answers():
    # Of the authors' Random123, kat_vectors: threefry2x32 of 20 rounds.
    for word, expected in {
        0: (0x6B200159, 0x99BA4EFE),
        2**32 - 1: (0x1CB996FC, 0xBB002BE7),
    }.items():
        words = jnp.full(2, word, jnp.uint32)
        found = threefry(words, words[:1], words[:1])
        assert tuple(int(x[0]) for x in found) == expected


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_are_split_as_by_jax(impl, n):
    key = jr.key(3, impl=impl)
    found = split(key, n)
    assert found.dtype == key.dtype
    assert np.array_equal(jr.key_data(found), jr.key_data(jr.split(key, n)))
    with jax.threefry_partitionable(False):
        assert np.array_equal(jr.key_data(split(key, n)), jr.key_data(jr.split(key, n)))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_words_are_random(impl):
    key = jr.key(0, impl=impl)
    words = np.stack(two_words(key, (4, 1000))).reshape(-1)
    assert len(np.unique(words)) > 7990
    bits = words[:, None] >> np.arange(32, dtype=np.uint32) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(8000)


def test_what_is_certain_happens():
    for axis in 0, -1:
        up = happens(jr.key(0), jnp.tile(jnp.array([0.0, 1.0]), (999, 1)), axis)
        assert np.array_equal(up, np.tile([False, True], (999, 1)))
