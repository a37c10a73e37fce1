"""Laws that hold for every model and kernel, at every temperature."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DIRECT,
    IDENTITY,
    KERNELS,
    REVERSIBLE,
    assert_close,
    random_law,
    slow_except,
)
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

import trainq as tq


SHAPES = [(1, 1), (2, 1), (1, 3), (2, 2), (3, 2), (3, 3)]


def unit_arrays(shape):
    return arrays(np.float64, shape, elements=st.floats(-1, 1, width=32))


@st.composite
def rbms(draw, shapes=SHAPES, max_beta=100.0, biased=None):
    """RBMs from a free model up to so cold that most transitions underflow."""
    m, n = draw(st.sampled_from(shapes))
    model = tq.RBM(draw(unit_arrays((m, n))))
    if draw(st.booleans()) if biased is None else biased:
        a, b = draw(unit_arrays((m,))), draw(unit_arrays((n,)))
        model = tq.RBM(model.weights, a, b)
    log_beta = draw(st.floats(np.log(1e-3), np.log(max_beta)))
    return model.tempered(float(np.exp(log_beta)))


kernel_names = st.sampled_from(list(KERNELS))


@cache
def compiled(function, kernel):
    return eqx.filter_jit(lambda *args: function(KERNELS[kernel], *args))


def residuals(kernel, model):
    chain = kernel.chain(model)
    found = {
        "matrix": chain.matrix(),
        "law": chain.stationary,
        "rows": tq.markov.row_sum_residual(chain),
        "stationarity": tq.markov.stationarity_residual(chain),
        "balance": tq.markov.detailed_balance_residual(chain),
    }
    if kernel.is_reversible:
        found["cheeger"] = tq.markov.cheeger_margins(chain)
    return found


@given(kernel_names, rbms())
def test_every_chain_is_stochastic_stationary_and_as_reversible_as_it_says(name, model):
    found = compiled(residuals, name)(model)
    matrix, pi = np.asarray(found["matrix"]), np.asarray(found["law"])
    assert matrix.min() >= -IDENTITY
    assert np.max(np.abs(matrix.sum(axis=1) - 1)) <= IDENTITY
    assert np.max(np.abs(pi @ matrix - pi)) <= IDENTITY
    assert found["rows"] <= IDENTITY and found["stationarity"] <= IDENTITY
    flow = pi[:, None] * matrix
    assert abs(found["balance"] - np.max(np.abs(flow - flow.T))) <= IDENTITY
    if KERNELS[name].is_reversible:
        assert found["balance"] <= IDENTITY
        # Both sides of Cheeger's inequality, as far as an absolute error of 1e-16 in
        # the gap lets them be told: √(2γ) moves by 1e-8 there.
        cheeger = found["cheeger"]
        assert cheeger.lower >= -IDENTITY
        gap = max(float(cheeger.gap), 0) + IDENTITY
        assert np.sqrt(2 * gap) - cheeger.conductance >= 0
    if name in ("gibbs", "palindromic"):
        # Means and products of projections: no negative eigenvalue. In symmetric form,
        # √(P ∘ Pᵀ) for a reversible chain, without a division.
        symmetrised = np.sqrt(matrix * matrix.T)
        assert np.linalg.eigvalsh(symmetrised).min() >= -DIRECT


def predict(kernel, model, data):
    snr = tq.QStruct(kernel, 100)(model, data)
    return {"t_o": snr.t_o, "q": snr.q, "parameters": snr.parameter_mse}


def relabel_law(data, order):
    m = len(order)
    return np.asarray(data).reshape((2,) * m).transpose(order).reshape(-1)


WARM = {"shapes": [(3, 2)], "max_beta": 4.0, "biased": True}


@pytest.mark.slow
@given(kernel_names, rbms(**WARM), st.permutations(range(3)), st.permutations(range(2)))
def test_relabelling_units_changes_nothing(name, model, visible, hidden):
    v, h = np.array(visible), np.array(hidden)
    other = tq.RBM(model.weights[v][:, h], model.visible_bias[v], model.hidden_bias[h])
    data = random_law(3)
    fn = compiled(predict, name)
    expected, found = (
        fn(model, data),
        fn(other, jnp.asarray(relabel_law(data, visible))),
    )
    assert_close(found["t_o"], expected["t_o"], DIRECT)
    assert_close(found["q"], expected["q"], 1e-8)  # the signal may cancel


@pytest.mark.slow
@given(kernel_names, rbms(**WARM), arrays(np.bool_, 5))
def test_gauge_flips_change_nothing(name, model, flips):
    # x_i → -x_i for some units, together with their couplings and their place in the
    # law.
    sign = np.where(flips, -1.0, 1.0)
    v, h = sign[:3], sign[3:]
    weights = v[:, None] * model.weights * h[None, :]
    other = tq.RBM(weights, v * model.visible_bias, h * model.hidden_bias)
    data = np.asarray(random_law(3)).reshape(2, 2, 2)
    flipped = np.flip(data, axis=np.flatnonzero(flips[:3])).reshape(-1)
    fn = compiled(predict, name)
    expected, found = fn(model, random_law(3)), fn(other, jnp.asarray(flipped))
    assert_close(found["t_o"], expected["t_o"], DIRECT)
    assert_close(found["q"], expected["q"], 1e-8)  # the signal may cancel
    assert_close(found["parameters"], expected["parameters"], DIRECT)


def noise(kernel, model):
    chain, f = kernel.chain(model), tq.observables(model)
    return tq.markov.asymptotic_covariance(chain, f, convention="resolvent") / 2


@pytest.mark.slow
@given(rbms([(2, 2), (3, 2)], max_beta=4.0))
def test_peskun_metropolis_is_never_noisier_than_gibbs_nor_twice_as_good(model):
    gibbs, metropolis = (
        compiled(noise, "gibbs")(model),
        compiled(noise, "metropolis")(model),
    )
    # For every combination of the observables: an order of matrices.
    slack = DIRECT * np.trace(gibbs)
    assert np.linalg.eigvalsh(gibbs - metropolis).min() >= -slack
    assert np.linalg.eigvalsh(2 * metropolis - gibbs).min() >= -slack


@pytest.mark.slow
@given(rbms([(2, 2), (3, 2)], max_beta=4.0))
def test_noise_is_a_covariance(model):
    for name in REVERSIBLE:
        matrix = np.asarray(compiled(noise, name)(model))
        assert np.linalg.eigvalsh(matrix).min() >= -DIRECT * np.trace(matrix)


def free_noise(kernel, biases):
    m = 2
    model = tq.RBM(jnp.zeros((m, len(biases) - m)), biases[:m], biases[m:])
    chain = kernel.chain(model)
    singles = tq.observables(model)[:, -len(biases) :]
    return jax.vmap(tq.markov.resolvent_trace, (None, 1))(chain, singles)


@pytest.mark.slow
@given(unit_arrays((5,)), st.floats(0.01, 10))
def test_noise_of_free_spins_in_closed_form(biases, beta):
    biases = jnp.asarray(beta * biases)
    # A free spin is redrawn at a constant rate, which makes it an eigenfunction:
    # T_O = variance / rate.
    variance = 1 / jnp.cosh(biases) ** 2
    gibbs = compiled(free_noise, "gibbs")(biases)
    assert_close(gibbs, 5 * variance, DIRECT)
    # Metropolis flips at min(1, exp(Δ)) each way: the rate is the sum of both.
    rate = (1 + jnp.exp(-2 * jnp.abs(biases))) / 5
    metropolis = compiled(free_noise, "metropolis")(biases)
    assert_close(metropolis, variance / rate, DIRECT)
    assert_close(compiled(free_noise, "random")(biases), 2 * variance, DIRECT)
    assert_close(compiled(free_noise, "alternating")(biases), variance, DIRECT)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("window", slow_except([1, 2.5, 1e6], 2.5))
def test_q_is_linear_in_the_window(name, window):
    model = tq.RBM(np.array([[0.3, -0.5], [0.2, 0.7]]))
    one = tq.QStruct(KERNELS[name], 1.0)(model, random_law(2))
    found = tq.QStruct(KERNELS[name], window)(model, random_law(2))
    assert_close(found.q, window * one.q, IDENTITY)
    assert_close(found.t_o, one.t_o, IDENTITY)
