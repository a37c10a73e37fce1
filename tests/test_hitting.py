import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    DIFFERENCES,
    DIRECT,
    KERNELS,
    MODELS,
    ON_COLOURS,
    assert_close,
    central_difference,
    dense,
    flatten,
    kernel_of,
    rbm,
    slow_except,
)

import trainq as tq


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("name", "model"),
    [(k, "biased rbm 2x3") for k in KERNELS]
    + slow_except([(k, m) for m in ("rbm 3x2", "visible machine 4") for k in KERNELS])
    + ON_COLOURS,
)
def test_hitting_times_are_those_of_the_oracle(name, model):
    model = MODELS[model]
    pi, matrix = dense(name, model)
    chain = kernel_of(name, model).chain(model)
    rng = np.random.default_rng(0)
    for size in (1, len(pi) // 2, len(pi)):
        target = np.isin(np.arange(len(pi)), rng.choice(len(pi), size, replace=False))
        found = tq.markov.hitting_times(chain, jnp.asarray(target))
        assert_close(found, oracle.hitting_times(matrix, target), DIRECT)
        assert jnp.all(found[target] == 0) and jnp.all(found[~target] >= 1 - DIRECT)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", KERNELS)
def test_a_single_target_is_in_the_resolvent(name):
    # τ(x) = (R(z, z) - R(x, z)) / π(z), by Kac's lemma.
    chain = KERNELS[name].chain(rbm(2, 2))
    z = 5
    target = jnp.arange(16) == z
    column = tq.markov.resolvent(chain, target.astype(float))
    expected = (column[z] - column) / chain.stationary[z]
    assert_close(tq.markov.hitting_times(chain, target), expected, DIRECT)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["gibbs", "random"])
def test_hitting_time_gradient(name):
    flat, build = flatten(rbm(2, 2, biased=True))
    target = jnp.arange(16) == 5

    @jax.jit
    def fn(flat):
        return jnp.mean(
            tq.markov.hitting_times(KERNELS[name].chain(build(flat)), target)
        )

    direction = jr.normal(jr.key(0), flat.shape)
    slope = jax.grad(fn)(flat) @ direction
    assert_close(slope, central_difference(fn, flat, direction), DIFFERENCES)
