import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DIRECT,
    KERNELS,
    REVERSIBLE,
    assert_close,
    dense,
    random_law,
    rbm,
    slow_except,
)

import trainq as tq


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", slow_except(REVERSIBLE, "gibbs", "palindromic"))
def test_noise_is_that_of_the_slowest_mode_alone(name):
    model, data = rbm(2, 3, biased=True), random_law(2)
    pi, matrix = dense(name, model)
    root = np.sqrt(pi)
    values, vectors = np.linalg.eigh(root[:, None] * matrix / root[None, :])
    f = np.asarray(tq.observables(model))
    overlap = (root * vectors[:, -2]) @ f
    snr = tq.SingleGap(KERNELS[name], 100)(model, data)
    expected = 2 / 100 * overlap**2 / (1 - values[-2])
    assert_close(
        snr.parameter_mse, expected, 1e-8
    )  # the mode is only as good as its gap
    full = tq.QStruct(KERNELS[name], 100)(model, data)
    assert_close(snr.parameter_signal, full.parameter_signal, DIRECT)
    # What it drops is never negative.
    assert jnp.all(snr.parameter_mse <= full.parameter_mse * (1 + DIRECT))
    assert snr.q >= full.q


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", slow_except(REVERSIBLE, "gibbs", "palindromic"))
def test_with_spin_flip_symmetry_it_over_predicts_by_many_orders_of_magnitude(name):
    model, data = rbm(3, 3), tq.visible_distribution(rbm(3, 2, seed=1))
    textbook = tq.SingleGap(KERNELS[name], 1000)(model, data)
    exact = tq.QStruct(KERNELS[name], 1000)(model, data)
    assert textbook.q > 1e12 * exact.q
    assert tq.markov.slowest_mode(KERNELS[name].chain(model)).is_odd


@pytest.mark.quick(1)
@pytest.mark.parametrize("biased", [False, True])
def test_the_relevant_gap_bounds_the_noise_from_above(biased):
    model, data = rbm(2, 3, biased=biased), random_law(2)
    pi, matrix = dense("gibbs", model)
    root = np.sqrt(pi)
    values, vectors = np.linalg.eigh(root[:, None] * matrix / root[None, :])
    # Even functions, if there is the symmetry: the mode is the same from both ends.
    parity = np.einsum("ij,ij->j", vectors, vectors[::-1])
    feels = parity > 0 if not biased else np.ones(len(pi), bool)
    gap = 1 - np.sort(values[feels])[-2]
    f = np.asarray(tq.observables(model))
    variance = pi @ (f - pi @ f) ** 2
    snr = tq.SingleGap(KERNELS["gibbs"], 100, "relevant gap")(model, data)
    assert_close(snr.parameter_mse, 2 / 100 * variance / gap, DIRECT)
    full = tq.QStruct(KERNELS["gibbs"], 100)(model, data)
    assert jnp.all(snr.parameter_mse >= full.parameter_mse * (1 - DIRECT))


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["gibbs", "palindromic"])
def test_the_relevant_mode_is_alone(name):
    # The slowest even mode, of which a rank-deficient model has two of one gap.
    model, data = rbm(3, 2), random_law(3)
    pi, matrix = dense(name, model)
    root = np.sqrt(pi)
    values, vectors = np.linalg.eigh(root[:, None] * matrix / root[None, :])
    f = np.asarray(tq.observables(model))
    centred = root[:, None] * (f - pi @ f)
    weight = (vectors.T @ centred) ** 2
    share = weight.sum(axis=1) / weight.sum()
    slowest = np.flatnonzero(share > 1e-6)[-1]
    snr = tq.SingleGap(KERNELS[name], 100, "relevant mode")(model, data)
    expected = 2 / 100 * weight[slowest] / (1 - values[slowest])
    assert_close(snr.parameter_mse, expected, 1e-8)
    full = tq.QStruct(KERNELS[name], 100)(model, data)
    assert jnp.all(snr.parameter_mse <= full.parameter_mse * (1 + DIRECT))
    assert snr.q < 10 * full.q < tq.SingleGap(KERNELS[name], 100)(model, data).q


@pytest.mark.slow
def test_a_degenerate_mode_is_taken_whole():
    # Free spins: all pairs decay alike, and a choice of one would be arbitrary.
    model, data = tq.RBM(jnp.zeros((2, 2))), random_law(2)
    snr = tq.SingleGap(KERNELS["gibbs"], 100, "relevant mode")(model, data)
    full = tq.QStruct(KERNELS["gibbs"], 100)(model, data)
    assert_close(snr.parameter_mse, full.parameter_mse, DIRECT)
    # One step of a block kernel forgets them, and there is no mode of their own.
    for name in ("random", "palindromic"):
        for noise in ("relevant mode", "relevant gap"):
            snr = tq.SingleGap(KERNELS[name], 100, noise)(model, data)
            full = tq.QStruct(KERNELS[name], 100)(model, data)
            assert_close(snr.parameter_mse, full.parameter_mse, DIRECT)


def test_another_noise_is_refused(as_for_users):
    with pytest.raises(ValueError, match='noise is "slowest mode", "relevant mode"'):
        tq.SingleGap(KERNELS["gibbs"], 100, "relevant")
