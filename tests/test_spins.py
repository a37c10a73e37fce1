"""The conventions, against `itertools.product` and strings of bits."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import IDENTITY, assert_close

from trainq._spins import (
    as_spins,
    check_spins,
    ends,
    fold,
    global_flip,
    map_states,
    merge,
    parity,
    require_spins,
    spins,
    state_index,
    state_spins,
    unfold,
    unit_mask,
    xor,
)


N_UNITS = 5
STATES = [tuple(x) for x in oracle.states(N_UNITS)]


@pytest.mark.parametrize("n_units", [0, 1, 2, 5])
def test_states_are_in_the_order_of_itertools_product(n_units):
    expected = list(itertools.product((-1, 1), repeat=n_units))
    actual = spins(n_units)
    assert actual.shape == (2**n_units, n_units)
    assert [tuple(x) for x in actual.tolist()] == expected


def test_unit_0_is_the_most_significant_bit():
    index = jnp.asarray(0b10010)
    assert state_spins(index, N_UNITS, int).tolist() == [1, -1, -1, 1, -1]


def test_unit_i_is_axis_i_and_index_1_is_up():
    cube = np.asarray(spins(N_UNITS)).reshape((2,) * N_UNITS + (N_UNITS,))
    for unit in range(N_UNITS):
        assert (cube.take(0, axis=unit)[..., unit] == -1).all()
        assert (cube.take(1, axis=unit)[..., unit] == 1).all()


def test_spins_are_float64_by_default_and_have_any_dtype():
    assert spins(2).dtype == jnp.float64
    for dtype in (jnp.float32, jnp.int8):
        assert spins(2, dtype).dtype == dtype
        assert spins(2, dtype).tolist() == spins(2).tolist()


@pytest.mark.parametrize("dtype", [float, int])
def test_the_index_of_a_state_is_read_in_binary(dtype):
    expected = [int("".join("1" if s > 0 else "0" for s in x), 2) for x in STATES]
    actual = state_index(jnp.asarray(STATES).astype(dtype))
    assert actual.tolist() == expected == list(range(2**N_UNITS))


def test_index_and_spins_are_inverse_on_any_leading_shape():
    index = jr.randint(jr.key(0), (2, 3), 0, 2**N_UNITS)
    x = state_spins(index, N_UNITS, float)
    assert x.shape == (2, 3, N_UNITS)
    assert state_index(x).tolist() == index.tolist()
    assert state_index(x[1, 2]) == index[1, 2]


def test_the_mask_of_a_unit_flips_it():
    for (s, x), unit in itertools.product(enumerate(STATES), range(N_UNITS)):
        flipped = x[:unit] + (-x[unit],) + x[unit + 1 :]
        assert STATES[s ^ unit_mask(unit, N_UNITS)] == flipped


def contiguous_masks(n_bits):
    pairs = itertools.combinations(range(n_bits + 1), 2)
    return [0] + [(1 << high) - (1 << low) for low, high in pairs]


def test_xor_is_a_gather_for_every_contiguous_mask():
    f = jr.normal(jr.key(0), (2**N_UNITS, 2, 3))
    masks = contiguous_masks(N_UNITS)
    found = jax.jit(lambda f: [xor(f, mask) for mask in masks])
    index = np.arange(2**N_UNITS)
    for g in (f, f[:, 0, 0]):
        for mask, actual in zip(masks, found(g), strict=True):
            np.testing.assert_array_equal(actual, np.asarray(g)[index ^ mask])


def test_the_global_flip_is_that_of_the_spins():
    f = jr.normal(jr.key(0), (2**N_UNITS, 2))
    opposite = np.array([STATES.index(tuple(-s for s in x)) for x in STATES])
    np.testing.assert_array_equal(global_flip(f), f[opposite])
    np.testing.assert_array_equal(xor(f, 2**N_UNITS - 1), f[opposite])


def sector_basis(sign):
    """`(δ_x + sign δ_{-x}) / √2` as columns, for the states with unit 0 down."""
    half = [x for x in STATES if x[0] == -1]
    basis = np.zeros((2**N_UNITS, len(half)))
    for column, x in enumerate(half):
        basis[STATES.index(x), column] += 1 / np.sqrt(2)
        basis[STATES.index(tuple(-s for s in x)), column] += sign / np.sqrt(2)
    return basis


@pytest.mark.parametrize("sign", [1, -1])
def test_fold_and_unfold_are_coordinates_in_a_sector(sign):
    basis = sector_basis(sign)
    f = np.random.default_rng(0).normal(size=(2**N_UNITS, 3))
    g = f[: 2 ** (N_UNITS - 1)]
    assert_close(fold(jnp.asarray(f), sign), basis.T @ f, IDENTITY)
    assert_close(fold(jnp.asarray(f[:, 0]), sign), basis.T @ f[:, 0], IDENTITY)
    assert_close(unfold(jnp.asarray(g), sign), basis @ g, IDENTITY)
    assert_close(unfold(jnp.asarray(g[:, 0]), sign), basis @ g[:, 0], IDENTITY)


def test_the_two_sectors_make_up_every_function():
    f = jr.normal(jr.key(0), (2**N_UNITS, 3))
    even, odd = (unfold(fold(f, sign), sign) for sign in (1, -1))
    assert_close(even + odd, f, IDENTITY)
    for sign, part in ((1, even), (-1, odd)):
        assert_close(global_flip(part), sign * part, IDENTITY)
        assert_close(unfold(fold(part, sign), sign), part, IDENTITY)
        assert np.abs(fold(part, -sign)).max() < IDENTITY


@pytest.mark.parametrize("n_bits", [0, 1, 4])
def test_parity_counts_ones(n_bits):
    odd = parity(n_bits)
    assert odd.dtype == bool
    assert odd.tolist() == [bin(s).count("1") % 2 == 1 for s in range(2**n_bits)]


def test_check_spins_returns_what_it_is_given():
    for x in (spins(3), spins(3, jnp.int8).reshape(2, 4, 3), spins(3)[0]):
        for checked in (check_spins(x, 3), check_spins(x, None)):
            assert checked.dtype == x.dtype
            np.testing.assert_array_equal(checked, x)


@pytest.mark.parametrize("dtype", [bool, jnp.uint8, jnp.uint32, complex])
def test_spins_have_a_sign(dtype):
    x = jnp.ones((2, 3), dtype)
    message = f"array of {x.dtype} was given. Use floats or signed integers"
    with pytest.raises(ValueError, match=message):
        check_spins(x, 3)
    with pytest.raises(ValueError, match=message):
        as_spins(x, 3, float)


def test_numbers_that_are_no_spins_are_named_and_others_left_alone():
    for x in (np.ones((2, 3)), jnp.ones(3, int), np.ones(2, bool), [0, 1], None):
        require_spins(x)
    for bad in (0, 0.5, 2, np.nan):
        x = np.ones((2, 3))
        x[1, 2] = bad
        for given in (x, jnp.asarray(x), jnp.asarray(x, jnp.bfloat16)):
            message = rf"the entry \[1, 2\] is {bad:g}\. Convert bits"
            with pytest.raises(ValueError, match=message):
                require_spins(given)


def test_merge_broadcasts_leading_axes_and_casts():
    a, b = spins(2, jnp.int32), spins(3)[5]
    merged = merge((a, b), jnp.float32)
    assert merged.dtype == jnp.float32
    expected = [[*row, *b.tolist()] for row in a.tolist()]
    assert merged.tolist() == expected
    assert merge((b, a), float).tolist() == [x[2:] + x[:2] for x in expected]


WEIGHTS = np.random.default_rng(1).normal(size=(64, N_UNITS))


@pytest.mark.quick(2)
@pytest.mark.parametrize("chunk", [1, 5, 32, 100])
def test_streaming_in_chunks_changes_neither_values_nor_gradients(chunk):
    # Five does not divide the number of states, and a hundred is above it.
    def table(weights):
        def fn(x):
            field = weights @ x
            return {"sum": jnp.sum(jnp.tanh(field)), "pair": field[:2]}

        return map_states(fn, N_UNITS, float, chunk)

    values = table(WEIGHTS[:7])
    field = np.array(STATES) @ WEIGHTS[:7].T
    assert_close(values["sum"], np.tanh(field).sum(axis=1), IDENTITY)
    assert_close(values["pair"], field[:, :2], IDENTITY)

    mix = np.random.default_rng(2).normal(size=2**N_UNITS)
    gradient = jax.grad(lambda weights: table(weights)["sum"] @ mix)(WEIGHTS[:7])
    slope = mix[:, None] / np.cosh(field) ** 2
    assert_close(gradient, slope.T @ np.array(STATES), IDENTITY)


def test_streaming_holds_no_more_than_a_chunk_also_in_the_backward_pass():
    n_units, width = 10, 256
    weights = np.random.default_rng(3).normal(size=(width, n_units))

    def temporary_bytes(chunk):
        def total(weights):
            def fn(x):
                return jnp.sum(jnp.tanh(jnp.tanh(weights @ x)))

            return jnp.sum(map_states(fn, n_units, float, chunk))

        compiled = jax.jit(jax.grad(total)).lower(weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    every_value = 8 * width * 2**n_units
    assert temporary_bytes(2**n_units) >= every_value
    assert temporary_bytes(16) < every_value / 8


@pytest.mark.parametrize("mask", [1, 2, 4, 8, 6, 7, 15])
def test_ends_are_each_pair_once(mask):
    first, second = ends(jnp.arange(16), mask)
    assert jnp.array_equal(second, first ^ mask)
    assert sorted(jnp.concatenate([first, second]).tolist()) == list(range(16))
