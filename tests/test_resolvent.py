import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, KERNELS, assert_close, rbm

import trainq as tq


@pytest.fixture(params=KERNELS)
def chain(request):
    return KERNELS[request.param].chain(rbm(2, 3))


@pytest.mark.quick(1)
def test_resolvent_solves_its_equation(chain):
    f = jr.normal(jr.key(0), (32, 2))
    x = tq.markov.resolvent(chain, f)
    assert_close(x - chain.apply(x), chain.centre(f), DIRECT)
    assert jnp.max(jnp.abs(chain.stationary @ x)) < DIRECT
    one = tq.markov.resolvent(chain, f[:, 0])
    assert one.shape == (32,)
    assert_close(one, x[:, 0], DIRECT)


def test_resolvent_is_the_sum_of_all_powers(chain):
    f = jr.normal(jr.key(0), (32,))
    # (I + P)(I + P²)(I + P⁴)… = I + P + P² + …
    total, power = np.asarray(chain.centre(f)), np.asarray(chain.matrix())
    for _ in range(20):
        total, power = total + power @ total, power @ power
    assert_close(tq.markov.resolvent(chain, f), total, 1e-8)  # a million terms


@pytest.mark.quick(1)
def test_even_observables_need_the_even_sector_only(chain):
    f = tq.observables(rbm(2, 3))
    both = tq.markov.resolvent_trace(chain, f)
    assert_close(tq.markov.resolvent_trace(chain, f, sector="even"), both, DIRECT)
    odd = jnp.sum(f, axis=1) * jnp.where(jnp.arange(32) < 16, 1, -1)
    both = tq.markov.resolvent_trace(chain, odd)
    assert_close(tq.markov.resolvent_trace(chain, odd, sector="odd"), both, DIRECT)


@pytest.mark.quick(1)
def test_covariance_conventions_differ_by_the_covariance_of_the_law(chain):
    f = tq.observables(rbm(2, 3))
    resolvent = tq.markov.asymptotic_covariance(chain, f, convention="resolvent")
    sokal = tq.markov.asymptotic_covariance(chain, f)
    centred = chain.centre(f)
    assert_close(
        resolvent - sokal, centred.T @ (chain.stationary[:, None] * centred), DIRECT
    )
    trace = tq.markov.resolvent_trace(chain, f)
    assert_close(jnp.trace(resolvent), 2 * trace, DIRECT)
    assert_close(sokal, sokal.T, DIRECT)
    assert jnp.linalg.eigvalsh(sokal)[0] > -DIRECT
