import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import DIRECT, KERNELS, assert_close, dense, machine, rbm, slow_except

import trainq as tq


SCANS = ("random", "palindromic", "alternating")


@pytest.mark.quick(1)
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize(
    ("shape", "biased"),
    slow_except(
        [(s, b) for s in ((2, 4), (4, 2), (3, 3)) for b in (False, True)],
        ((2, 4), True),
        ((4, 2), False),
        ((3, 3), False),
    ),
)
def test_the_smaller_layer_gives_the_joint_answer(scan, shape, biased):
    model = rbm(*shape, biased=biased, scale=1.0)
    pi, matrix = dense(scan, model)
    chain = KERNELS[scan].chain(model)
    f = jr.normal(jr.key(0), (len(pi), 2))
    expected = oracle.noise_matrix(matrix, pi, np.asarray(f))
    found = tq.markov.asymptotic_covariance(chain, f, convention="resolvent")
    assert_close(found, expected + expected.T, DIRECT)
    layer = chain.reductions()[0].generator
    assert layer.n_states == 2 ** min(shape) // (1 if biased else 2)


@pytest.mark.quick(1)
@pytest.mark.parametrize("scan", SCANS)
def test_without_hidden_units_a_step_is_a_perfect_sample(scan):
    model = machine(3)
    chain = KERNELS[scan].chain(model)
    f = jr.normal(jr.key(0), (8, 2))
    variance = jnp.sum(chain.stationary[:, None] * chain.centre(f) ** 2)
    # The random scan does nothing every other step.
    factor = 2 if scan == "random" else 1
    assert_close(tq.markov.resolvent_trace(chain, f), factor * variance, DIRECT)
    if scan != "alternating":
        assert_close(tq.markov.spectral_gap(chain), 1 / factor, DIRECT)


def test_gaps_follow_from_the_canonical_correlation():
    model = rbm(3, 2)
    pi = oracle.law(oracle.rbm_energies(np.asarray(model.weights))).reshape(8, 4)
    overlap = pi / np.sqrt(pi.sum(1)[:, None] * pi.sum(0)[None, :])
    sigma = np.linalg.svd(overlap, compute_uv=False)[1]
    gap = tq.markov.spectral_gap
    assert_close(gap(KERNELS["random"].chain(model)), (1 - sigma) / 2, DIRECT)
    assert_close(gap(KERNELS["palindromic"].chain(model)), 1 - sigma**2, DIRECT)


@pytest.mark.quick(1)
@pytest.mark.parametrize("scale", [1e-2, 1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize("scan", SCANS)
def test_layers_that_hardly_interact(scan, scale):
    # All is variance: what reduces to a layer is smaller than rounding leaves of it.
    model = tq.RBM(scale * jnp.array([[0.0, 1.0, 0.3], [2.0, 2.0, 0.0]]))
    pi, matrix = dense(scan, model)
    f = -np.einsum("si,sj->sij", oracle.states(5)[:, :2], oracle.states(5)[:, 2:])
    expected = oracle.noise_matrix(matrix, pi, f.reshape(32, 6))
    snr = tq.QStruct(KERNELS[scan], 2)(model, jnp.full(4, 0.25))
    assert_close(snr.parameter_mse, np.diag(expected), DIRECT)
    chain = KERNELS[scan].chain(model)
    found = tq.markov.asymptotic_covariance(
        chain, tq.observables(model), convention="resolvent"
    )
    assert_close(found, expected + expected.T, DIRECT)
    x = tq.markov.resolvent(chain, tq.observables(model))
    assert_close(x - chain.apply(x), chain.centre(tq.observables(model)), DIRECT)
