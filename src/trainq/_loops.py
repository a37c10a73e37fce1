"""Loops whose number of steps is no part of the program, and that have derivatives."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int


_BASE = 32


class Steps(eqx.Module):
    """A number of steps, as data: another one compiles nothing anew unless it has more
    digits in base 32, of which there are at least two."""

    number: Int[Array, ""]
    n_digits: int = eqx.field(static=True)

    @classmethod
    def of(cls, number: int | np.integer | Array, at_most: int = 0) -> "Steps":
        """**Arguments:**

        - `number`: the number, at most `at_most` if it is an array.
        - `at_most`: one that the same program takes.
        """
        if isinstance(number, int):
            at_most = max(number, at_most)
        return cls(jnp.asarray(number), max(_digits(at_most), 2))

    @property
    def at_most(self) -> int:
        """The largest number that is no other program."""
        return _BASE**self.n_digits - 1


def repeat(body: Callable[[Any], Any], carry: Any, steps: int | Steps) -> Any:
    """`body` applied `steps` times, differentiable to any order.

    A number of `n` digits in base 32 is a sum of powers, and 32 steps of one power are
    a step of the next. The backward pass keeps what came before each step of the
    largest one, computes what is inside anew, and so on: fewer than `32 n` states in
    all, and what one step leaves, at the price of `n + 1` forward passes.

    Mapped over, it takes as many steps as the largest of each digit says.
    """
    n_digits = _digits(steps) if isinstance(steps, int) else steps.n_digits
    number = steps if isinstance(steps, int) else steps.number
    powers = [body]
    for _ in range(n_digits - 1):
        powers.append(_block(powers[-1]))
    for place in reversed(range(n_digits)):
        carry = _times(powers[place], carry, number // _BASE**place % _BASE)
    return carry


def _digits(number: int) -> int:
    return -(-number.bit_length() // 5)


def _block(body: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return jax.checkpoint(lambda carry: _times(body, carry, _BASE), prevent_cse=False)


def _times(body: Callable[[Any], Any], carry: Any, digit: int | Array) -> Any:
    if isinstance(digit, int):
        if digit < 2:
            return body(carry) if digit else carry
        return _scan(lambda x, _: (body(x), None), carry, None, digit)

    def unless_done(carry, i):
        return lax.cond(i < digit, body, _same, carry)

    # A condition that is mapped over computes both of its branches. The outer one is
    # not: beyond the last step of all nothing is computed.
    most = largest(digit)

    def step(carry, i):
        return lax.cond(i < most, unless_done, lambda x, _: x, carry, i), None

    return _scan(step, carry, jnp.arange(_BASE - 1))


def _scan(step: Any, carry: Any, numbers: Any, length: int | None = None) -> Any:
    # Around the conditions, and not in them: what a condition leaves is kept for every
    # step, though it be the same for all, as the tables of a kernel.
    step = jax.checkpoint(step, prevent_cse=False)
    return lax.scan(step, carry, numbers, length=length)[0]


def _same(x: Any) -> Any:
    return x


@jax.custom_batching.custom_vmap
def largest(number: Array) -> Array:
    """A number, or under `jax.vmap` the largest of all that are mapped over."""
    return number


@largest.def_vmap
def _(size, mapped, number):
    return largest(jnp.max(number)), False
