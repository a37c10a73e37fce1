import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import IDENTITY, KERNELS, assert_close, random_law, rbm
from hypothesis import given, settings, strategies as st

import trainq as tq
from trainq.markov import modes, pool_modes


DATA = random_law(3)
GIBBS = KERNELS["gibbs"]


@eqx.filter_jit
def both(model, kernel=GIBBS, convention="resolvent", window=100):
    predictor = tq.QStruct(kernel, window, convention)
    found = modes(kernel.chain(model), tq.observables(model))
    return predictor(model, DATA), found


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6), beta=st.floats(0.3, 4.0))
def test_channels_add_up(seed, beta):
    model = rbm(3, 2, seed=seed)
    before, after = both(model), both(model.tempered(beta))
    found = tq.log_q_channels(before, after)
    assert abs(found.log_q - (after[0].log_q - before[0].log_q)) < 1e-10
    back = tq.log_q_channels(after, before)
    for name in ("signal", "mu", "gamma", "rest"):
        assert abs(getattr(found, name) + getattr(back, name)) < IDENTITY
    gammas = [one.cluster().gamma_eff for _, one in (before, after)]
    assert_close(found.g_gamma, gammas[0] / gammas[1], IDENTITY)
    mus = [one.cluster().mu for _, one in (before, after)]
    assert_close(found.g_mu, mus[1] / mus[0], IDENTITY)


def test_a_slower_chain_is_the_gamma_channel_alone():
    # A lazy chain has the same modes, at half the rate.
    model = rbm(3, 2)
    snr, found = both(model)
    lazy = eqx.tree_at(lambda m: m.gap, found, found.gap / 2)
    slow = eqx.tree_at(lambda s: s.parameter_t_o, snr, replace_fn=lambda t: 2 * t)
    split = tq.log_q_channels((snr, found), (slow, lazy))
    assert_close(split.gamma, -np.log(2), IDENTITY)
    assert_close(split.g_gamma, 2, IDENTITY)
    for part in (split.signal, split.mu, split.rest):
        assert abs(part) < IDENTITY
    assert "rate of the slow modes" in str(split)


def test_models_are_pooled():
    one, other = both(rbm(3, 2)), both(rbm(3, 2, seed=1))
    found = pool_modes([one[1], other[1]])
    snrs = [one[0], other[0]]
    pooled = tq.pool(eqx.filter_vmap(lambda i: i)(_stacked(snrs)))
    assert_close(found.t_o, pooled.t_o, 1e-10)
    assert_close(found.mu.sum(), one[1].mu.sum() + other[1].mu.sum(), IDENTITY)
    assert np.all(np.diff(found.gap) >= 0)
    split = tq.log_q_channels((pooled, found), (pooled, found))
    assert split.log_q == 0 and split.g_gamma == 1
    with pytest.raises(ValueError, match="no modes to pool"):
        pool_modes([])


def _stacked(snrs):
    arrays, static = eqx.partition(snrs[0], eqx.is_array)
    others = [eqx.filter(one, eqx.is_array) for one in snrs]
    import jax

    return eqx.combine(jax.tree.map(lambda *xs: jnp.stack(xs), *others), static)


def test_what_does_not_belong_together_is_refused():
    model = rbm(3, 2)
    snr, found = both(model)
    with pytest.raises(RuntimeError, match="give both the same"):
        tq.log_q_channels((snr, found), both(model, window=50))
    sokal = tq.QStruct(GIBBS, 100, "sokal")(model, DATA)
    with pytest.raises(eqx.EquinoxRuntimeError, match="Sokal convention"):
        tq.log_q_channels((snr, found), (sokal, found))
    actual = tq.QOperational(GIBBS, 100, start=tq.Stationary())(model, DATA)
    with pytest.raises(ValueError, match="error of an actual estimate"):
        tq.log_q_channels((actual, found), (snr, found))
