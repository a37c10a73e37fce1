"""Loops of a number of steps that is data."""

import jax
import jax.numpy as jnp
import pytest
from helpers import IDENTITY, assert_close

from trainq._loops import Steps, repeat


NUMBERS = [0, 1, 3, 31, 32, 33, 100, 1023]


@pytest.mark.quick(13)
@pytest.mark.parametrize("as_data", [False, True])
@pytest.mark.parametrize("number", [*NUMBERS, 1024, 5000])
def test_loops_apply_their_body_that_often(number, as_data):
    steps = Steps.of(number) if as_data else number
    assert repeat(lambda n: n + 1, jnp.array(0), steps) == number


@pytest.mark.quick(2)
@pytest.mark.parametrize("as_data", [False, True])
@pytest.mark.parametrize("number", [0, 1, 3, 40])
def test_loops_have_derivatives(number, as_data):
    def power(x):
        steps = Steps.of(number) if as_data else number
        return repeat(lambda y: y * x, jnp.array(1.0), steps)

    x, n = jnp.array(1.1), number
    assert_close(jax.grad(power)(x), n * 1.1 ** (n - 1), IDENTITY)
    second = n * (n - 1) * 1.1 ** (n - 2)
    assert_close(jax.grad(jax.grad(power))(x), second, IDENTITY)
    assert_close(jax.jvp(power, (x,), (x,))[1], n * 1.1**n, IDENTITY)


def test_another_number_is_the_same_program():
    traced = []

    @jax.jit
    def count(steps):
        traced.append(1)
        return repeat(lambda n: n + 1, jnp.array(0), steps)

    assert [int(count(Steps.of(n))) for n in NUMBERS] == NUMBERS
    assert len(traced) == 1
    assert int(count(Steps.of(1024))) == 1024 and len(traced) == 2


def test_numbers_are_mapped_over():
    steps = jax.tree.map(lambda *n: jnp.stack(n), *map(Steps.of, NUMBERS))
    found = jax.vmap(lambda s: repeat(lambda n: n + 1, jnp.array(0), s))(steps)
    assert found.tolist() == NUMBERS


def test_no_step_is_taken_that_none_of_many_numbers_needs():
    calls = []

    def body(n):
        jax.debug.callback(lambda: calls.append(1))
        return n + 1

    def count(number):
        return repeat(body, jnp.array(0), Steps.of(number, 1023))

    assert jax.vmap(count)(jnp.array([3, 33, 70])).tolist() == [3, 33, 70]
    jax.effects_barrier()
    # Two times 32, and 6: the largest of each digit.
    assert len(calls) == 70


def test_the_backward_pass_keeps_few_states():
    # Of 1000 steps 31 large and 8 small ones, and 32 inside a large one.
    x = jnp.ones(10_000)
    for steps in (1000, Steps.of(1000)):

        def last(x, steps=steps):
            return jnp.sum(repeat(jnp.sin, x, steps))

        memory = jax.jit(jax.grad(last)).lower(x).compile().memory_analysis()
        assert memory is not None
        assert 40 * x.nbytes < memory.temp_size_in_bytes < 110 * x.nbytes
