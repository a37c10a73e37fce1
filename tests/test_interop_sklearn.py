"""The restricted Boltzmann machine of scikit-learn, against its own numbers."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import IDENTITY, assert_close, rbm
from sklearn.exceptions import NotFittedError
from sklearn.neural_network import BernoulliRBM

import trainq as tq
from trainq.interop.sklearn import from_sklearn, to_sklearn


BITS = np.random.default_rng(0).integers(0, 2, (40, 5)).astype(float)


def fitted(**options):
    options = {"n_components": 3, "n_iter": 20, "random_state": 0} | options
    estimator = BernoulliRBM(learning_rate=0.3, **options).fit(BITS)
    # What it learns of so little is all but zero: it makes a weak test.
    random = np.random.default_rng(1)
    estimator.components_ = estimator.components_ + random.normal(size=(3, 5))
    return estimator


def spins(bits):
    return jnp.asarray(2 * bits - 1)


@pytest.mark.parametrize("way", ["from", "to"])
def test_free_energies_features_and_scores_are_theirs(way):
    if way == "from":
        estimator = fitted()
        model = from_sklearn(estimator)
    else:
        model = rbm(5, 3, biased=True)
        estimator = to_sklearn(model).set_params(random_state=0)
    theirs = estimator._free_energy(BITS)
    free = np.asarray(model.free_energy(spins(BITS)))
    # Up to one constant: the energy of all units down.
    down = float(model.energy(-jnp.ones(8)))
    assert_close(free - down, theirs, IDENTITY)
    # ... which no likelihood feels.
    all_bits = (1 + oracle.states(5)) / 2
    every = -estimator._free_energy(all_bits)
    log_z = np.log(np.exp(every - every.max()).sum()) + every.max()
    expected = np.mean(-theirs - log_z)
    assert_close(tq.log_likelihood(model, spins(BITS)), expected, IDENTITY)
    # A bit is up with the probability of a spin in twice its field.
    field = np.asarray(model.hidden_field(spins(BITS)))
    assert_close(1 / (1 + np.exp(-2 * field)), estimator.transform(BITS), IDENTITY)
    # The pseudo-likelihood of one bit of each sample, drawn as scikit-learn does.
    flipped = np.random.RandomState(0).randint(0, 5, 40)
    other = BITS.copy()
    other[np.arange(40), flipped] = 1 - other[np.arange(40), flipped]
    change = np.asarray(model.free_energy(spins(other))) - free
    assert_close(
        -5 * np.log1p(np.exp(-change)), estimator.score_samples(BITS), IDENTITY
    )


def test_there_and_back():
    estimator = fitted()
    back = to_sklearn(from_sklearn(estimator))
    for name in ("components_", "intercept_hidden_", "intercept_visible_"):
        assert_close(getattr(back, name), getattr(estimator, name), IDENTITY)
    assert back.get_params()["n_components"] == 3
    names = back.get_feature_names_out().tolist()
    assert names == estimator.get_feature_names_out().tolist()
    model = rbm(4, 2)
    again = from_sklearn(to_sklearn(model))
    assert_close(again.weights, model.weights, IDENTITY)
    assert np.abs(again.visible_bias).max() < IDENTITY


def test_it_goes_on_learning():
    model = rbm(5, 3, biased=True)
    before = np.array(model.weights)
    estimator = to_sklearn(model).set_params(random_state=0, learning_rate=0.1)
    weights = estimator.components_.copy()
    estimator.partial_fit(BITS)
    assert np.abs(estimator.components_ - weights).max() > 1e-3
    assert np.array_equal(model.weights, before)
    assert estimator.gibbs(BITS).shape == (40, 5)


def test_the_precision_stays():
    estimator = BernoulliRBM(2, random_state=0, n_iter=1).fit(BITS.astype(np.float32))
    assert from_sklearn(estimator).weights.dtype == jnp.float32


def test_mistakes_are_told(as_for_users):
    with pytest.raises(NotFittedError):
        from_sklearn(BernoulliRBM())
    with pytest.raises(ValueError, match="estimator is a .*BernoulliRBM`, but a RBM"):
        from_sklearn(rbm(2, 2))
    with pytest.raises(ValueError, match="an `RBM` is needed, but a BoltzmannMachine"):
        to_sklearn(tq.curie_weiss(3, 0.1))
    with pytest.raises(ValueError, match="a traced model was given"):
        eqx.filter_jit(lambda m: to_sklearn(m) and None)(rbm(2, 2))
    with pytest.raises(eqx.EquinoxRuntimeError, match="RBM is not finite"):
        to_sklearn(tq.RBM(np.array([[np.nan]])))
