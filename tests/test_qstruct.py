import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    MODELS,
    ON_COLOURS,
    SIGMAS,
    assert_close,
    dense,
    kernel_of,
    random_law,
    rbm,
    slow_except,
)

import trainq as tq


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "model"),
    slow_except(
        [(k, m) for m in ("rbm 3x2", "biased rbm 2x3", "neural 3+2") for k in KERNELS],
        *((k, "biased rbm 2x3") for k in KERNELS),
        ("gibbs", "rbm 3x2"),
        ("random", "neural 3+2"),
    )
    + ON_COLOURS,
)
def test_signal_and_noise_of_every_parameter(name, model):
    model, window = MODELS[model], 73
    pi, matrix = dense(name, model)
    kernel = kernel_of(name, model)
    f = np.asarray(tq.observables(model))
    data = random_law(model.n_visible)
    gradient = oracle.kl_gradient(pi, model.n_visible, np.asarray(data), f)
    noise = 2 * np.diag(oracle.noise_matrix(matrix, pi, f))
    variance = pi @ (f - pi @ f) ** 2
    resolvent = tq.QStruct(kernel, window)(model, data)
    assert_close(resolvent.parameter_signal, gradient**2, DIRECT)
    assert_close(resolvent.parameter_mse, noise / window, DIRECT)
    assert_close(resolvent.q, gradient @ gradient * window / noise.sum(), DIRECT)
    assert_close(resolvent.t_o, noise.sum() / 2, DIRECT)
    sokal = tq.QStruct(kernel, window, convention="sokal")(model, data)
    assert_close(sokal.parameter_mse, (noise - variance) / window, DIRECT)


def test_sokal_is_the_limit_of_the_exact_window():
    # E‖ĝ - g‖² of a window of K steps from the law itself, lag by lag.
    model = rbm(2, 2, biased=True)
    pi, matrix = dense("gibbs", model)
    f = np.asarray(tq.observables(model))
    centred = f - pi @ f
    errors = []
    for window in (200, 400):
        lags, moved = [], centred
        for _ in range(window):
            lags.append(np.sum(pi[:, None] * centred * moved))
            moved = matrix @ moved
        weights = 2 * (window - np.arange(window))
        weights[0] = window
        exact = weights @ lags / window**2
        sokal = tq.QStruct(KERNELS["gibbs"], window, "sokal")(model, random_law(2)).mse
        errors.append(abs(sokal / exact - 1))
    assert errors[0] < 0.1
    assert abs(errors[0] / errors[1] - 2) < 0.1  # vanishes as 1/K


def test_deterministic_flips_have_no_noise_in_the_sokal_convention():
    # Metropolis flips a free spin at every step: the mean is exact after two.
    model = tq.BoltzmannMachine(np.zeros((1, 1)), np.zeros(1))
    data = np.array([0.2, 0.8])
    snr = tq.QStruct(KERNELS["metropolis"], 10, "sokal")(model, data)
    assert snr.mse <= IDENTITY


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["gibbs", "alternating"])
def test_projections_on_directions(name):
    model, window, data = MODELS["biased rbm 2x3"], 73, random_law(2)
    pi, matrix = dense(name, model)
    f = np.asarray(tq.observables(model))
    gradient = oracle.kl_gradient(pi, 2, np.asarray(data), f)
    noise = oracle.noise_matrix(matrix, pi, f)
    predictor = tq.QStruct(KERNELS[name], window)
    directions = np.random.default_rng(0).normal(size=(3, f.shape[1]))
    found = predictor.along(model, data, directions)
    assert_close(found.parameter_signal, (directions @ gradient) ** 2, DIRECT)
    expected = 2 * np.einsum("da,ab,db->d", directions, noise, directions) / window
    assert_close(found.parameter_mse, expected, DIRECT)
    # By default the direction of the gradient: all of the signal, some of the noise.
    alone = predictor.along(model, data)
    assert_close(alone.signal, gradient @ gradient, DIRECT)
    expected = 2 * gradient @ noise @ gradient / (gradient @ gradient) / window
    assert_close(alone.mse, expected, DIRECT)


@pytest.mark.quick(1)
@pytest.mark.parametrize("convention", ["resolvent", "sokal"])
def test_random_probes_estimate_the_noise(convention):
    model, data = rbm(3, 3), random_law(3)
    predictor = tq.QStruct(KERNELS["gibbs"], 100, convention)
    exact = predictor(model, data)
    keys = jr.split(jr.key(0), 400)
    found = jax.vmap(lambda key: predictor.randomised(key, model, data, 8))(keys)
    assert_close(found.signal[0], exact.signal, DIRECT)
    # Unbiased, and the standard errors are those of the scatter.
    deviation = (found.mse - exact.mse) / jnp.std(found.mse)
    assert abs(jnp.mean(deviation)) * np.sqrt(400) <= SIGMAS
    ratio = jnp.sqrt(jnp.mean(found.mse_error**2)) / jnp.std(found.mse)
    assert 0.8 <= ratio <= 1.25
    # Within the promised bound, as the matrix of the noise is positive.
    assert jnp.std(found.mse) / exact.mse <= np.sqrt(2 / 8)
    assert_close(found.t_o_error, 50 * found.mse_error, IDENTITY)
    assert_close(jnp.exp(found.log_q), found.q, DIRECT)
    assert_close(found.q, found.signal / (2 * found.t_o / 100), DIRECT)


def test_two_probes_are_enough_for_an_error():
    found = tq.QStruct(KERNELS["gibbs"], 100).randomised(
        jr.key(0), rbm(2, 2), random_law(2), 2
    )
    assert found.probe_mse.shape == (2,) and found.mse_error > 0
    spread = abs(found.probe_mse[0] - found.probe_mse[1]) / 2
    assert_close(found.mse_error, spread, DIRECT)


@pytest.mark.slow
def test_the_derivative_of_random_probes_is_unbiased():
    model, data = rbm(2, 2), random_law(2)
    predictor = tq.QStruct(KERNELS["gibbs"], 100)
    expected = jax.grad(lambda w: predictor(tq.RBM(w), data).mse)(model.weights)

    def slope(key):
        def mse(weights):
            return predictor.randomised(key, tq.RBM(weights), data, 4).mse

        return jax.grad(mse)(model.weights)

    slopes = jax.jit(jax.vmap(slope))(jr.split(jr.key(0), 400))
    error = jnp.std(slopes, axis=0) / np.sqrt(400)
    assert jnp.all(jnp.abs(jnp.mean(slopes, axis=0) - expected) <= SIGMAS * error)
