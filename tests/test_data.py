"""Data as a law and as samples are the same, wherever they are asked."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    MODELS,
    SIGMAS,
    assert_close,
    excess,
    random_law,
    rbm,
    slow_except,
)

import trainq as tq
from trainq._spins import spins, state_index
from trainq.models import (
    check_data,
    data_phase,
    data_variance,
    draw_visible,
    gradient_of_kl,
)


NAMES = slow_except(MODELS, "biased rbm 2x3", "neural 3+2", "visible machine 4")


@eqx.filter_jit
def phases(model, data):
    return (
        data_phase(model, data),
        data_variance(model, data),
        gradient_of_kl(model, data),
    )


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_their_law(name):
    model = MODELS[name]
    n = model.n_visible
    v = spins(n, jnp.float64)[jr.randint(jr.key(0), (9,), 0, 2**n)]
    law = tq.empirical_distribution(v)
    for of_samples, of_law in zip(phases(model, v), phases(model, law), strict=True):
        assert_close(of_samples, of_law, DIRECT)


def test_the_phase_is_an_average_over_the_hidden_units():
    model, data = rbm(3, 2, biased=True), np.asarray(random_law(3))
    joint = np.exp(np.asarray(tq.log_stationary(model))).reshape(8, 4)
    given = joint / joint.sum(axis=1, keepdims=True)
    f = np.asarray(tq.observables(model)).reshape(8, 4, -1)
    means = np.einsum("vh,vha->va", given, f)
    phase, variance, gradient = phases(model, jnp.asarray(data))
    assert_close(phase, data @ means, DIRECT)
    assert_close(variance, data @ (means - data @ means) ** 2, DIRECT)
    assert_close(gradient, data @ means - tq.mean_observables(model), DIRECT)
    assert_close(gradient, tq.kl_gradient(model, data), IDENTITY)


@pytest.mark.parametrize("kind", ["law", "samples"])
def test_draws_follow_the_data(kind):
    model, law = rbm(3, 2), random_law(3)
    data = law
    if kind == "samples":
        data = spins(3, jnp.float64)[jnp.array([0, 5, 5, 7])]
        law = tq.empirical_distribution(data)
    v = draw_visible(jr.key(0), model, data, (100, 200))
    assert v.shape == (100, 200, 3)
    counts = np.bincount(np.asarray(state_index(v)).ravel(), minlength=8)
    assert abs(excess(counts, np.asarray(law))) < SIGMAS


def test_data_are_checked():
    model = rbm(3, 2)
    single = check_data(random_law(3).astype(jnp.float32), model)
    assert single.dtype == jnp.float64
    assert check_data(jnp.ones((4, 3), jnp.int8), model).dtype == jnp.float64
    for wrong in (jnp.ones(3), jnp.ones((4, 2)), jnp.ones((0, 3)), jnp.ones((2, 2, 3))):
        with pytest.raises(ValueError, match=r"data is a law of shape \(2\*\*3,\), or"):
            check_data(wrong, model)
    with pytest.raises(ValueError, match=r"data is a law .* but \(4,\) was given"):
        check_data(jnp.ones(4) / 4, model)
    with pytest.raises(eqx.EquinoxRuntimeError, match="data is not a law"):
        check_data(jnp.ones(8), model)
    with pytest.raises(ValueError, match=r"Spins are -1 or \+1"):
        check_data(jnp.zeros((4, 3)), model)
