"""Polynomials of a chain, against powers of its matrix."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import (
    AUTODIFF,
    DIRECT,
    IDENTITY,
    assert_close,
    central_difference,
    slow_except,
)

from trainq._loops import Steps
from trainq.solvers import DenseOverlap
from trainq.solvers._generators import DenseGenerator
from trainq.solvers._polynomials import (
    Contraction,
    Exchange,
    polynomial_form,
    window_series,
)


def window_mean(matrix, window):
    """`(1/K²) Σ_{s,t} P^|s-t|`, power by power."""
    total, power = window * np.eye(len(matrix)), np.eye(len(matrix))
    for lag in range(1, window):
        power = power @ matrix
        total += 2 * (window - lag) * power
    return total / window**2


def symmetric(n, lowest, seed=0):
    """A symmetric matrix with a spectrum that fills `[lowest, 1]`."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return q @ np.diag(np.linspace(lowest, 1, n)) @ q.T


def contraction(matrix, lowest):
    generator = DenseGenerator(
        diagonal=1 - jnp.diag(matrix),
        hops=matrix - jnp.diag(jnp.diag(matrix)),
        log_law=jnp.zeros(len(matrix)),
        leak=None,
        is_self_adjoint=True,
    )
    return Contraction(generator=generator, lowest=lowest)


@pytest.mark.quick(2)
@pytest.mark.parametrize("lowest", [0, -1])
@pytest.mark.parametrize("window", [1, 2, 3, 17, 400, 4001])
def test_forms_are_those_of_powers(window, lowest):
    matrix = symmetric(6, lowest)
    u, w = jr.normal(jr.key(1), (2, 6, 3))
    expected = window_mean(matrix, window)
    operator = contraction(jnp.asarray(matrix), lowest)
    series = functools.partial(window_series, Steps.of(window), float)
    whole = polynomial_form(operator, series(lowest), u)
    assert_close(whole, jnp.diag(u.T @ expected @ u), IDENTITY)
    mixed = polynomial_form(operator, series(lowest), u, w)
    assert_close(mixed, jnp.diag(u.T @ expected @ w), DIRECT)
    constant = jnp.sum(u * w, axis=0) / window
    divided = polynomial_form(operator, series(lowest, divided=True), u, matrix @ w)
    assert_close(constant + divided, mixed, DIRECT)


def test_an_exchange_stands_for_both_layers():
    overlap = jr.uniform(jr.key(2), (4, 2)) / 4
    both = np.block([[np.zeros((4, 4)), overlap], [overlap.T, np.zeros((2, 2))]])
    u = jr.normal(jr.key(3), (6, 2))
    found = polynomial_form(
        Exchange(DenseOverlap(overlap)), window_series(Steps.of(30), float, 0), u
    )
    expected = window_mean((np.eye(6) + both) / 2, 30)
    assert_close(found, jnp.diag(u.T @ expected @ u), IDENTITY)


def test_a_long_window_takes_few_products():
    # Two for one: a series of n terms takes n / 2 products.
    calls = []

    class Counting(Exchange):
        def mv(self, y):
            jax.debug.callback(lambda: calls.append(1))
            return super().mv(y)

    series = window_series(Steps.of(10_000), float, 0)
    polynomial_form(Counting(DenseOverlap(jnp.eye(2) / 2)), series, jnp.ones((4, 1)))
    jax.effects_barrier()
    assert 300 < len(calls) < 400


@pytest.mark.slow
@pytest.mark.parametrize("lowest", slow_except([0, -1], -1))
def test_derivatives(lowest):
    matrix = jnp.asarray(symmetric(5, lowest)) * 0.9
    u = jr.normal(jr.key(4), (5, 2))
    slope = jr.normal(jr.key(5), (5, 5))
    slope = (slope + slope.T) / 20

    def form(t, u):
        moved = contraction(matrix + t * slope, lowest)
        return jnp.sum(
            polynomial_form(moved, window_series(Steps.of(50), float, lowest), u) ** 2
        )

    def plain(t, u):
        total, power, p = 50 * u, u, matrix + t * slope
        for lag in range(1, 50):
            power = p @ power
            total = total + 2 * (50 - lag) * power
        return jnp.sum(jnp.sum(u * total, axis=0) ** 2) / 50**4

    point = (jnp.array(0.0), u)
    found = jax.grad(form, argnums=(0, 1))(*point)
    expected = jax.grad(plain, argnums=(0, 1))(*point)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, AUTODIFF)
    second = jax.grad(jax.grad(form))(*point)
    assert_close(second, jax.grad(jax.grad(plain))(*point), AUTODIFF)
    difference = central_difference(lambda t: form(t, u), 0.0, 1.0)
    assert_close(found[0], difference, 1e-8)
