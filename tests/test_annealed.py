"""Annealed importance sampling: against enumeration, and in NumPy by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    IDENTITY,
    KERNELS,
    MODELS,
    SIGMAS,
    assert_close,
    neural,
    rbm,
    slow_except,
)

import trainq as tq
from trainq import sampling
from trainq._spins import spins
from trainq.sampling._annealed import _log_mean_error
from trainq.sampling._annealing_path import AnnealingPath


MODEL = rbm(4, 3, biased=True)
SAMPLES = np.random.default_rng(0).choice([-1.0, 1.0], (6, 4))
NAMES = ["biased rbm 2x3", "biased grid 4+2", "neural 3+2", "tempered neural 2+2"]


def exact_log_z(model):
    states = jnp.asarray(oracle.states(model.n_units))
    energies = np.asarray(jax.vmap(model.energy)(states))
    return np.log(np.exp(-energies).sum())


@pytest.mark.quick(1)
@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("name", slow_except(NAMES, "neural 3+2"))
def test_log_z_is_that_of_enumeration(name, based, key):
    model = MODELS[name]
    m = model.n_visible
    data = np.ones((3, m)) if based else None
    found = sampling.annealed_importance(
        key, model, betas=20, n_chains=2000, data=data, draws=tq.Stationary()
    )
    truth = exact_log_z(model)
    assert found.error < 0.1 and found.status == 0
    assert abs(found.log_partition - truth) < SIGMAS * found.error
    back = _log_mean_error(-found.reverse_log_weights)
    assert abs(found.upper - truth) < SIGMAS * back
    assert found.states.shape == (2000, model.n_units)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["gibbs", "alternating"])
def test_the_expectation_of_the_weights_is_exact(kernel):
    """Over all paths, by dense matrices: also of a kernel that is not reversible, whose
    adjoint goes back."""
    model, kernel = rbm(2, 2, biased=True), KERNELS[kernel]
    betas = np.array([0, 0.3, 0.7, 1.0])
    path = AnnealingPath.of(model, kernel, betas, jnp.asarray([[1.0, -1.0]]))
    states = jnp.asarray(oracle.states(4))
    f = [np.exp(-np.asarray(jax.vmap(path.at(b).energy)(states))) for b in path.betas]
    log_z = [np.log(each.sum()) for each in f]
    assert_close(path.log_base, log_z[0], IDENTITY)
    slope = np.asarray(path.slope(states))
    for k in range(3):
        ratio = np.exp((betas[k + 1] - betas[k]) * slope)
        assert_close(ratio, f[k + 1] / f[k], IDENTITY)
    moves = [np.asarray(kernel.chain(path.at(b)).matrix()) for b in path.betas]
    back = [np.asarray(kernel.adjoint().chain(path.at(b)).matrix()) for b in path.betas]
    law, reverse = f[0] / f[0].sum(), f[3] / f[3].sum()
    for k in range(3):
        law = (law * f[k + 1] / f[k]) @ moves[k + 1]
        reverse = (reverse * f[2 - k] / f[3 - k]) @ back[2 - k]
    assert_close(np.log(law.sum()), log_z[3] - log_z[0], IDENTITY)
    assert_close(np.log(reverse.sum()), log_z[0] - log_z[3], IDENTITY)
    # The sampled weights have these means.
    found = path.forward(jr.key(0), 20_000, False)[0]
    ratio = np.exp(found - (log_z[3] - log_z[0]))
    assert abs(ratio.mean() - 1) < SIGMAS * ratio.std() / np.sqrt(20_000)
    x = model.draw(jr.key(1), 20_000)
    ratio = np.exp(-path.backward(jr.key(2), x, False) + (log_z[3] - log_z[0]))
    assert abs(ratio.mean() - 1) < SIGMAS * ratio.std() / np.sqrt(20_000)


@pytest.mark.slow
def test_bounds_close_as_chains_are_annealed_more_slowly(key):
    model = rbm(12, 8, biased=True, scale=1.0)
    truth = tq.log_partition(model)
    gaps = []
    for betas in (1, 10, 300):
        found = sampling.annealed_importance(
            key, model, betas=betas, draws=tq.Stationary()
        )
        gaps.append(float(found.upper - found.log_partition))
        if betas == 1:
            # A negative control: plain importance sampling, which is no good.
            assert found.status == 3 and found.effective_chains < 8
            assert found.log_partition < truth - 1
            assert "Anneal more slowly" in sampling.ANNEALING_STATUS[3]
    assert gaps[0] > 5 * gaps[1] > 5 * gaps[2] and abs(gaps[2]) < 1
    assert found.status == 0 and "(bounded)" in str(found)
    assert abs(found.log_partition - truth) < SIGMAS * found.error
    alone = sampling.annealed_importance(key, model, betas=300)
    assert alone.status == 1 and alone.upper == np.inf and "one-sided" in str(alone)
    assert alone.log_partition == found.log_partition
    low, high = found.interval(0.5)
    wide = found.interval(0.99)
    assert wide[0] < low < found.log_partition < high < wide[1]


@pytest.mark.slow
def test_wells_that_chains_have_not_seen_show_in_the_bounds(key):
    # Draws are from both wells, and a field of the base leads all chains to one.
    model = tq.RBM(np.full((6, 6), 1.0), np.full(6, -0.1), np.zeros(6))
    truth = tq.log_partition(model)
    data = np.ones((2, 6))
    found = sampling.annealed_importance(
        key, model, betas=100, data=data, draws=tq.Stationary()
    )
    # Of the scatter alone nothing shows.
    assert found.interval()[1] < truth - 0.5
    assert found.upper > found.log_partition + 1 and found.status in (2, 3)


@pytest.mark.slow
def test_likelihoods_are_between_their_bounds(key):
    model, weights = MODEL, np.arange(6.0)
    truth = tq.log_likelihood(model, SAMPLES, weights)
    found = sampling.annealed_likelihood(
        key, model, SAMPLES, weights, betas=200, n_chains=2000, per_sample=500
    )
    assert abs(found.upper - truth) < SIGMAS * found.partition.error
    assert_close(found.lower, truth, 0.01)
    assert "between" in str(found)
    # One chain a sample is conservative, the more so the faster it goes.
    lows = [
        float(
            np.mean(
                [
                    sampling.annealed_likelihood(
                        k, model, SAMPLES, weights, betas=betas, n_chains=8
                    ).lower
                    for k in jr.split(key, 20)
                ]
            )
        )
        for betas in (2, 30)
    ]
    assert lows[0] < lows[1] < truth + 0.01 and lows[0] < truth - 0.1


@pytest.mark.slow
def test_data_make_a_better_base(key):
    visible = jnp.full(20, 2.0)
    model = tq.RBM(0.1 * jr.normal(key, (20, 5)), visible)
    data = model.draw(key, 200)[:, :20]
    plain, based = (
        sampling.annealed_importance(key, model, betas=5, data=d) for d in (None, data)
    )
    assert based.error < plain.error / 3
    assert based.effective_chains > 2 * plain.effective_chains
    law = tq.visible_distribution(MODEL)
    path = AnnealingPath.of(MODEL, None, 3, law)
    mean = law @ spins(4, jnp.float64)
    assert_close(jnp.tanh(path.fields[:4]), 0.95 * mean, IDENTITY)
    assert (path.fields[4:] == 0).all()


@pytest.mark.slow
def test_a_clamped_model_has_its_own_log_z(key):
    model = MODEL.clamp([0, 1], [1, -1])
    found = sampling.annealed_importance(key, model, betas=100, n_chains=1000)
    assert abs(found.log_partition - tq.log_partition(model)) < SIGMAS * found.error
    assert found.error < 0.05


@pytest.mark.slow
def test_it_is_compiled_and_mapped(key):
    @eqx.filter_jit
    def log_z(key, model, betas):
        return sampling.annealed_importance(key, model, betas=betas, n_chains=16)

    betas = jnp.linspace(0, 1, 6) ** 2
    one = log_z(key, MODEL, betas)
    same = sampling.annealed_importance(key, MODEL, betas=betas, n_chains=16)
    assert_close(one.log_partition, same.log_partition, IDENTITY)
    keys = jr.split(key, 2)
    two = eqx.filter_vmap(log_z, in_axes=(0, None, None))(keys, MODEL, betas)
    other = log_z(keys[1], MODEL, betas)
    assert_close(two.log_partition[1], other.log_partition, IDENTITY)
    assert "(2,)" in str(two)


def test_progress_changes_nothing(key, capsys):
    pytest.importorskip("tqdm")
    results = [
        sampling.annealed_importance(key, MODEL, betas=250, progress=p)
        for p in (False, True)
    ]
    # Chunks are compiled apart, and round apart.
    assert_close(results[0].log_weights, results[1].log_weights, IDENTITY)
    assert "steps" in capsys.readouterr().err


def test_errors_are_those_of_many_repetitions():
    """The error of the logarithm of a mean, of weights that are log-normal."""
    random = np.random.default_rng(0)
    for scale in (0.1, 1.0):
        weights = scale * random.normal(size=(400, 128))
        logs = np.log(np.exp(weights).mean(axis=1))
        said = np.array([float(_log_mean_error(jnp.asarray(w))) for w in weights[:40]])
        assert 0.8 < np.sqrt(np.mean(said**2)) / logs.std() < 1.5


MISTAKES = {
    "betas is a whole number of steps, at least 1, but 0": {"betas": 0},
    r"betas are inverse temperatures .* shape \(1,\)": {"betas": [0.0]},
    "betas are inverse temperatures .* other ones": {"betas": [0.0, 0.5, 0.5, 1.0]},
    "increase from 0, .* but other ones": {"betas": [0.1, 1.0]},
    "n_chains is a whole number, at least 8, but 4": {"n_chains": 4},
    r"\(n_draws, 7\), but \(7,\)": {"draws": np.ones(7)},
    "runs replicas, but annealing": {
        "kernel": tq.ParallelTempering(KERNELS["gibbs"], [1.0, 0.5])
    },
    "data is a law of shape": {"data": np.ones((3, 2))},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told(message, key, as_for_users):
    with pytest.raises(ValueError, match=message):
        sampling.annealed_importance(key, MODEL, **MISTAKES[message])


def test_faulty_values_are_told(key, as_for_users):
    with pytest.raises(eqx.EquinoxRuntimeError, match="RBM is not finite"):
        jax.block_until_ready(
            sampling.annealed_importance(key, tq.RBM(np.array([[np.nan]])))
        )
    with pytest.raises(ValueError, match="data are samples, of shape"):
        sampling.annealed_likelihood(key, MODEL, tq.visible_distribution(MODEL))
    with pytest.raises(TypeError, match="model is an energy model"):
        sampling.annealed_importance(key, SAMPLES)
    with pytest.raises(ValueError, match="confidence is between 0 and 1, but 95"):
        sampling.annealed_importance(key, MODEL, betas=3).interval(95)
    traced = eqx.filter_jit(
        lambda b: sampling.annealed_importance(key, MODEL, betas=b).log_partition
    )
    with pytest.raises(eqx.EquinoxRuntimeError, match="betas are inverse temp"):
        jax.block_until_ready(traced(jnp.array([0.0, 2.0, 1.0])))


def test_derivatives_raise(key):
    def log_z(model):
        return sampling.annealed_importance(key, model, betas=3).log_partition

    for model in (MODEL, neural(2, 2)):
        with pytest.raises(RuntimeError, match="weights of annealed chains leaves out"):
            eqx.filter_grad(log_z)(model)


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say():
    """Over 200 models; `benchmarks/annealing.py` does the same for longer ladders."""
    keys = jr.split(jr.key(0), 200)

    def of_one(key):
        first, second, third = jr.split(key, 3)
        scale = jr.uniform(first, minval=0.05, maxval=0.7)
        model = tq.RBM(scale * jr.normal(second, (8, 6)), 0.3 * jnp.ones(8))
        found = sampling.annealed_importance(
            third, model, betas=100, draws=tq.Stationary()
        )
        truth = model.log_partition()
        return *found.interval(), truth, found.log_partition, found.upper

    low, high, truth, below, above = map(np.asarray, eqx.filter_vmap(of_one)(keys))
    inside = np.mean((low <= truth) & (truth <= high))
    assert 0.95 - 0.05 < inside < 0.999
    # Of half the width it does not, and the bounds are bounds on average.
    centre, reach = (low + high) / 2, (high - low) / 4
    assert np.mean(abs(truth - centre) < reach) < 0.85
    for gap in (truth - below, above - truth):
        assert gap.mean() > -3 * gap.std() / np.sqrt(200)
