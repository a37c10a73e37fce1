"""The exact signal-to-noise of an estimate, and what it tends to."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import (
    DIFFERENCES,
    DIRECT,
    IDENTITY,
    KERNELS,
    STARTS,
    assert_close,
    central_difference,
    dense,
    flatten,
    machine,
    neural,
    random_law,
    rbm,
    slow_except,
)
from test_windows import moments

import trainq as tq


def laws(model, data):
    """Every start, and its law by the oracle's order of states."""
    pi, _ = dense("gibbs", model)
    joint = pi.reshape(len(data), -1)
    given = joint / joint.sum(axis=1, keepdims=True)
    state = np.array([1, -1, 1, 1, -1])
    point = np.all(oracle.states(5) == state, axis=1).astype(float)
    return {
        "stationary": pi,
        "uniform": np.full(32, 1 / 32),
        "data": (np.asarray(data)[:, None] * given).reshape(-1),
        "law": np.asarray(random_law(5, seed=1)),
        "point": point,
    }


BLOCKS = ["random", "palindromic", "alternating"]
EVERY_START = ["stationary", "uniform", "data", "law", "point"]


def start_of(name, law):
    own = {
        "law": tq.Law(jnp.asarray(law)),
        "point": tq.At(jnp.array([1, -1, 1, 1, -1])),
    }
    return (STARTS | own)[name]


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("kernel", "start"),
    [
        *(("gibbs", start) for start in EVERY_START),
        *((kernel, "stationary") for kernel in BLOCKS),
        *(
            pytest.param(k, s, marks=pytest.mark.slow)
            for k in BLOCKS
            for s in EVERY_START[1:]
        ),
    ],
)
def test_the_error_in_all_its_parts(kernel, start):
    model, data = rbm(3, 2, biased=True), random_law(3)
    law = laws(model, data)[start]
    pi, matrix = dense(kernel, model)
    f = oracle.rbm_observables(3, 2, biased=True)
    bias, variance = moments(matrix, pi, f, 6, law, 2)
    q = tq.QOperational(
        KERNELS[kernel], 6, 2, start_of(start, law), n_chains=3, batch=10
    )
    snr = q(model, data)
    gradient = oracle.kl_gradient(pi, 3, np.asarray(data), f)
    given = pi.reshape(8, 4) / pi.reshape(8, 4).sum(axis=1, keepdims=True)
    means = np.einsum("vh,vha->va", given, f.reshape(8, 4, -1))
    spread = np.asarray(data) @ (means - np.asarray(data) @ means) ** 2
    assert np.max(np.abs(snr.parameter_bias + bias)) <= IDENTITY
    assert_close(snr.parameter_variance, variance / 3, DIRECT)
    assert_close(snr.parameter_data_variance, spread / 10, DIRECT)
    assert_close(snr.signal, gradient @ gradient, DIRECT)
    mse = np.sum(bias**2 + variance / 3 + spread / 10)
    assert_close(snr.mse, mse, DIRECT)
    assert_close(snr.q, gradient @ gradient / mse, DIRECT)
    assert_close(snr.log_q, np.log(gradient @ gradient / mse), DIRECT)
    # It is the error of an actual estimate, and no time of the chain.
    for one in (snr, tq.pool(snr)):
        with pytest.raises(AttributeError, match="no time of the chain.*QStruct"):
            _ = one.t_o
    assert (snr.window, snr.n_chains, snr.stats) == (6, 3, None)
    assert_close(tq.pool(snr).mse, mse, DIRECT)
    assert_close(snr.bias2 + snr.variance + snr.data_variance, mse, DIRECT)


@pytest.mark.quick(2)
@pytest.mark.parametrize("model", [machine(5, 3), neural(3, 2)], ids=["pairs", "net"])
@pytest.mark.parametrize("kernel", ["metropolis", "random"])
def test_any_model(kernel, model):
    pi, matrix = dense(kernel, model)
    f = np.asarray(tq.observables(model))
    q = tq.QOperational(KERNELS[kernel], 5, start=tq.Stationary())
    snr = q(model, random_law(3))
    _, variance = moments(matrix, pi, f, 5, pi, 0)
    assert_close(snr.parameter_mse, variance, DIRECT)


@pytest.mark.parametrize("kernel", slow_except(KERNELS, "alternating"))
def test_the_sokal_convention_is_its_limit(kernel):
    model, data = rbm(3, 3), random_law(3)
    gaps = []
    for window in (2000, 4000, 8000):
        exact = tq.QOperational(KERNELS[kernel], window, start=tq.Stationary())
        exact = exact(model, data)
        limit = tq.QStruct(KERNELS[kernel], window, "sokal")(model, data)
        gaps.append(float(1 - exact.mse / limit.mse))
    # The relative error is c/K with c > 0, up to what is exponentially small.
    assert 0 < gaps[0] < 0.1
    assert_close(gaps[0] / gaps[1], 2.0, 1e-6)
    assert_close(gaps[1] / gaps[2], 2.0, 1e-6)


@pytest.mark.slow
def test_the_resolvent_convention_keeps_its_factor():
    model, data, kernel = rbm(2, 2), random_law(2), KERNELS["palindromic"]
    window = 10**6
    snr = tq.QOperational(kernel, window, start=tq.Stationary())(model, data)
    chain, f = kernel.chain(model), tq.observables(model)
    t_o = tq.markov.resolvent_trace(chain, f)
    variance = jnp.sum(chain.stationary @ chain.centre(f) ** 2)
    predicted = tq.QStruct(kernel, window)(model, data)
    assert_close(snr.q / predicted.q, 2 * t_o / (2 * t_o - variance), 1e-5)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("kernel", "start"),
    [
        ("gibbs", "stationary"),
        ("gibbs", "uniform"),
        ("random", "stationary"),
        ("alternating", "stationary"),
        *(pytest.param(k, "data", marks=pytest.mark.slow) for k in KERNELS),
    ],
)
def test_gradients(kernel, start):
    model, data = rbm(2, 2, biased=True), random_law(2)
    q = tq.QOperational(KERNELS[kernel], 13, 3, STARTS[start], n_chains=4, batch=20)
    flat, back = flatten(model)

    def loss(flat):
        return q(back(flat), data).log_q

    direction = jnp.cos(jnp.arange(flat.size))
    slope = jax.grad(loss)(flat) @ direction
    assert_close(slope, central_difference(loss, flat, direction), DIFFERENCES)


def test_batches_of_models_and_pooling():
    q = tq.QOperational(KERNELS["gibbs"], 20, 3, batch=9)
    models = [rbm(2, 2, seed=seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *models)
    data = random_law(2)
    snr = eqx.filter_vmap(lambda model: q(model, data))(stacked)
    singles = [q(model, data) for model in models]
    assert_close(snr.q, np.array([one.q for one in singles]), IDENTITY)
    pooled = tq.pool(snr)
    expected = sum(one.signal for one in singles) / sum(one.mse for one in singles)
    assert_close(pooled.q, expected, IDENTITY)
    for part in ("bias2", "variance", "data_variance"):
        expected = sum(getattr(one, part) for one in singles)
        assert_close(getattr(pooled, part), expected, IDENTITY)


def test_a_long_burn_in_is_the_stationary_start():
    model, data = rbm(2, 2), random_law(2)
    for name in ("gibbs", "alternating"):
        kernel = KERNELS[name]
        late = tq.QOperational(kernel, 30, burn_in=2000)(model, data)
        exact = tq.QOperational(kernel, 30, start=tq.Stationary())(model, data)
        assert_close(late.q, exact.q, DIRECT)
        assert late.bias2 <= IDENTITY


def test_more_chains_divide_the_variance_and_never_the_bias():
    model, data = rbm(2, 2), random_law(2)
    one = tq.QOperational(KERNELS["gibbs"], 5)(model, data)
    many = tq.QOperational(KERNELS["gibbs"], 5, n_chains=9)(model, data)
    assert_close(many.variance * 9, one.variance, IDENTITY)
    assert many.bias2 == one.bias2 > 0


def test_float32():
    model, data = rbm(3, 3), random_law(3)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), model)
    for start in ("stationary", "uniform"):
        q = tq.QOperational(KERNELS["gibbs"], 100, start=STARTS[start])
        found = q(single, data)
        assert found.q.dtype == jnp.float32
        assert_close(found.q, q(model, data).q, 1e-4)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.int64])
def test_numpy_integers_do_not_wrap_round(kind):
    # 100² does not fit into the smallest of them.
    model, data = rbm(2, 2), random_law(2)
    numbers = tq.QOperational(KERNELS["gibbs"], kind(100), kind(7), n_chains=kind(3))
    assert type(numbers.n_chains) is int
    plain = tq.QOperational(KERNELS["gibbs"], 100, 7, n_chains=3)
    assert numbers == plain and hash(numbers) == hash(plain)
    assert numbers(model, data).mse == plain(model, data).mse
    chain, f = KERNELS["gibbs"].chain(model), tq.observables(model)
    found = tq.markov.window_moments(chain, f, kind(100), burn_in=kind(2))
    expected = tq.markov.window_moments(chain, f, 100)
    assert_close(found.variance, expected.variance, IDENTITY)
