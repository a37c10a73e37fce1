import numpy as np
import oracle
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    MODELS,
    assert_close,
    dense,
    random_law,
    rbm,
)

import trainq as tq


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("model", ["rbm 3x2", "biased rbm 2x3", "neural 3+2"])
def test_signal_and_noise_of_every_parameter(name, model):
    model, window = MODELS[model], 73
    pi, matrix = dense(name, model)
    f = np.asarray(tq.observables(model))
    data = random_law(model.n_visible)
    gradient = oracle.kl_gradient(pi, model.n_visible, np.asarray(data), f)
    noise = 2 * np.diag(oracle.noise_matrix(matrix, pi, f))
    variance = pi @ (f - pi @ f) ** 2
    resolvent = tq.QStruct(KERNELS[name], window)(model, data)
    assert_close(resolvent.parameter_signal, gradient**2, DIRECT)
    assert_close(resolvent.parameter_mse, noise / window, DIRECT)
    assert_close(resolvent.q, gradient @ gradient * window / noise.sum(), DIRECT)
    assert_close(resolvent.t_o, noise.sum() / 2, DIRECT)
    sokal = tq.QStruct(KERNELS[name], window, convention="sokal")(model, data)
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
