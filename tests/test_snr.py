import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import IDENTITY, KERNELS, assert_close, random_law, rbm

import trainq as tq


def snr(signal, mse, window=10):
    """A structural result, for signals and errors of parameters."""
    signal, mse = jnp.array(signal), jnp.array(mse)
    return tq.GradientSNR(
        parameter_signal=signal,
        parameter_bias=jnp.zeros_like(mse),
        parameter_variance=mse,
        parameter_data_variance=jnp.zeros_like(mse),
        window=window,
        n_chains=1,
        parameter_t_o=window * mse / 2,
    )


def test_everything_follows_from_the_contributions_of_the_parameters():
    found = snr([[1.0, 4.0], [0.0, 9.0]], [[0.5, 2.0], [1.0, 3.0]])
    assert found.signal.tolist() == [5, 9]
    assert found.mse.tolist() == [2.5, 4]
    assert_close(found.q, [2, 2.25], IDENTITY)
    assert_close(found.log_q, np.log([2, 2.25]), IDENTITY)
    assert_close(found.t_o, [12.5, 20], IDENTITY)
    assert_close(found.parameter_q, [[2, 2], [0, 3]], IDENTITY)


def test_pool_sums_signals_and_errors():
    pooled = tq.pool(snr([[1.0, 4.0], [0.0, 9.0]], [[0.5, 2.0], [1.0, 3.0]]))
    assert pooled.signal == 14 and pooled.mse == 6.5 and pooled.window == 10
    assert_close(pooled.parameter_signal, [1, 13], IDENTITY)
    alone = snr([1.0, 4.0], [0.5, 2.0])
    assert tq.pool(alone).q == alone.q
    twice = snr([[[1.0, 4.0]], [[1.0, 4.0]]], [[[0.5, 2.0]], [[0.5, 2.0]]])
    assert tq.pool(twice).q == alone.q


@eqx.filter_jit
def exact_results(model, data):
    kernel = KERNELS["gibbs"]
    return {
        "structural": tq.QStruct(kernel, 50)(model, data),
        "sokal": tq.QStruct(kernel, 50, "sokal")(model, data),
        "textbook": tq.SingleGap(kernel, 50)(model, data),
        "relevant": tq.SingleGap(kernel, 50, noise="relevant gap")(model, data),
        "operational": tq.QOperational(kernel, 50, 2, n_chains=3, batch=4)(model, data),
    }


@pytest.mark.slow
def test_every_exact_predictor_returns_one_class_in_parts():
    found = exact_results(rbm(2, 2, biased=True), random_law(2))
    for name, one in found.items():
        assert type(one) is tq.GradientSNR and one.window == 50
        assert_close(one.mse, one.bias2 + one.variance + one.data_variance, IDENTITY)
        pooled = tq.pool(one)
        assert type(pooled) is tq.GradientSNR and pooled.n_chains == one.n_chains
        for part in ("bias2", "variance", "data_variance", "signal"):
            assert_close(getattr(pooled, part), getattr(one, part), IDENTITY)
        if name == "operational":
            assert one.n_chains == 3 and one.bias2 > 0 and one.data_variance > 0
            assert not hasattr(one, "t_o") and not hasattr(pooled, "t_o")
        else:
            assert one.n_chains == 1 and one.bias2 == one.data_variance == 0
            assert_close(one.t_o, 50 * one.mse / 2, IDENTITY)
            assert_close(pooled.t_o, one.t_o, IDENTITY)
    assert found["structural"].stats.ok and found["operational"].stats is None


def test_the_pooled_bias_is_the_length_of_all_and_has_a_derivative_where_it_is_zero():
    def pooled(bias):
        zero = jnp.zeros_like(bias)
        one = zero + 1
        return tq.pool(tq.GradientSNR(one, bias, one, zero, 10, 1))

    bias = jnp.array([[3.0, 0.0], [-4.0, 0.0]])
    assert pooled(bias).parameter_bias.tolist() == [5, 0] and pooled(bias).bias2 == 25
    slope = jax.grad(lambda bias: pooled(bias).mse)(bias)
    assert_close(slope, [[6, 0], [-8, 0]], IDENTITY)


def test_zero_signal_and_zero_noise_are_announced_by_infinities():
    assert snr([0.0], [1.0]).log_q == -jnp.inf
    assert snr([0.0], [1.0]).q == 0
    assert snr([1.0], [0.0]).q == jnp.inf == snr([1.0], [0.0]).log_q
    nothing = snr([0.0], [0.0])
    assert nothing.q == 0 and nothing.log_q == -jnp.inf
    assert snr([0.0, 1.0], [0.0, 1.0]).parameter_q.tolist() == [0, 1]
    slope = jax.grad(lambda s: snr(s, jnp.ones(1)).log_q)(jnp.zeros(1))
    assert slope == 0


def test_a_batch_of_models_pools():
    models = eqx.filter_vmap(tq.RBM)(
        jnp.stack([rbm(2, 2, seed=s).weights for s in (0, 1)])
    )
    data = jnp.stack([random_law(2, s) for s in (0, 1)])
    predictor = tq.QStruct(KERNELS["gibbs"], 100)
    batch = eqx.filter_vmap(predictor)(models, data)
    one_by_one = [predictor(rbm(2, 2, seed=s), data[s]) for s in (0, 1)]
    assert_close(batch.q, [one.q for one in one_by_one], IDENTITY)
    expected = sum(one.signal for one in one_by_one) / sum(
        one.mse for one in one_by_one
    )
    assert_close(tq.pool(batch).q, expected, IDENTITY)


def test_print_tells_q_and_what_it_is_made_of():
    assert str(snr([1.0, 4.0], [0.5, 2.0])) == (
        "Q = 2: signal 5 over noise 2.5, window of 10 steps"
    )
    batch = str(snr([[1.0, 4.0], [0.0, 9.0]], [[0.5, 2.0], [1.0, 3.0]]))
    assert "Q = 2 to 2.25" in batch and "signal 5 to 9" in batch
    model, data = rbm(2, 2), random_law(2)
    exact = tq.QOperational(KERNELS["gibbs"], 5, 1, n_chains=3, batch=7)(model, data)
    for part in (exact.q, exact.bias2, exact.variance, exact.data_variance):
        assert f"{part:.4g}" in str(exact)
    assert "3 chains" in str(exact)
    found = tq.sampling.QSampled(KERNELS["gibbs"], 5)(jax.random.key(0), model, data)
    low, high = found.interval()
    assert f"{low:.4g} to {high:.4g} with 95 % confidence" in str(found)
    solver = tq.ConjugateGradient(max_steps=1, throw=False)
    unsolved = tq.QStruct(KERNELS["gibbs"], 5, solver=solver)(rbm(4, 4), random_law(4))
    assert "NOT SOLVED" in str(unsolved)
    seen = []
    jax.jit(lambda x: seen.append(str(snr(x, x))))(jnp.ones(2))
    assert "GradientSNR(" in seen[0]


@pytest.mark.parametrize("signal", [0.0, 1.0, jnp.nan])
@pytest.mark.parametrize("noise", [0.0, 1.0, jnp.nan])
def test_what_is_no_number_stays_none(signal, noise):
    one, zero = jnp.ones(1), jnp.zeros(1)
    found = tq.GradientSNR(
        parameter_signal=signal * one,
        parameter_bias=zero,
        parameter_variance=noise * one,
        parameter_data_variance=zero,
        window=1,
        n_chains=1,
    )
    known = {(0, 0): 0, (0, 1): 0, (1, 0): jnp.inf, (1, 1): 1}
    expected = known.get((signal, noise), jnp.nan)
    np.testing.assert_equal(np.asarray(found.q), expected)
    np.testing.assert_equal(np.asarray(found.parameter_q), [expected])
    # Of no signal the logarithm is -inf, whatever the noise is.
    np.testing.assert_equal(np.exp(found.log_q), expected if signal else 0)
