"""Long sums against exact ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from helpers import assert_close

from trainq.sampling._sums import add_up


def test_small_terms_are_not_lost():
    # Half of the last digit of 2**21 is 0.125 in float32: a plain sum stands still.
    n, term = 10**5, np.float32(0.1)
    start = np.float32(2.0**21)

    def body(_, carry):
        total, rest, plain = carry
        return *add_up(total, rest, jnp.asarray(term)), plain + term

    zero = jnp.zeros((), jnp.float32)
    total, rest, plain = jax.jit(jax.lax.fori_loop, static_argnums=(2,))(
        0, n, body, (jnp.asarray(start), zero, jnp.asarray(start))
    )
    exact = math.fsum([float(start), *[float(term)] * n])
    assert total.dtype == rest.dtype == jnp.float32
    assert_close(float(total) + float(rest), exact, 1e-9)
    assert abs(float(plain) - exact) > 2000


def test_terms_of_any_size_and_sign():
    terms = np.random.default_rng(0).normal(size=2000) * 10 ** np.linspace(4, -4, 2000)
    terms = terms.astype(np.float32)
    total = rest = jnp.zeros((), jnp.float32)
    step = jax.jit(add_up)
    for term in terms:
        total, rest = step(total, rest, jnp.asarray(term))
    exact = math.fsum(map(float, terms))
    size = math.fsum(map(abs, map(float, terms)))
    assert abs(float(total) + float(rest) - exact) < 2 * 2**-24 * size
