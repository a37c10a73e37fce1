"""What D-Wave's solver knows exactly, against enumeration in NumPy."""

import builtins
import subprocess
import sys

import equinox as eqx
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
    SIGMAS,
    assert_close,
    excess,
    neural,
    rbm,
)

import trainq as tq
from trainq import sampling
from trainq._spins import state_index
from trainq.interop.dimod import exact, to_bqm


class LowRank(tq.AbstractEnergyModel):
    """One with an equivalent, of fewer parameters."""

    left: jax.Array
    right: jax.Array
    n_visible: int = eqx.field(static=True)
    n_hidden: int = eqx.field(static=True)

    @property
    def equivalent(self):
        return tq.RBM(self.left @ self.right.T)

    def energy(self, x):
        return self.equivalent.energy(x)


def low_rank():
    left, right = jr.normal(jr.key(0), (4, 1)), jr.normal(jr.key(1), (3, 1))
    return LowRank(left, right, 4, 3)


def square(n, *, scale=0.5):
    """A grid of `n × n` units with random couplings and fields."""
    units = np.arange(n * n).reshape(n, n)
    right = np.stack([units[:, :-1], units[:, 1:]], axis=-1).reshape(-1, 2)
    down = np.stack([units[:-1], units[1:]], axis=-1).reshape(-1, 2)
    edges = np.concatenate([right, down])
    random = np.random.default_rng(n)
    couplings = scale * random.normal(size=len(edges))
    return tq.BoltzmannMachine.from_edges(edges, couplings, random.normal(size=n * n))


NAMES = ["rbm 3x2", "biased rbm 2x3", "biased machine 3+2", "ring 3+2"]
SMALL = {name: MODELS[name] for name in NAMES} | {
    "tempered": tq.models.Tempered(MODELS["biased grid 4+2"], 0.7),
    "low rank": low_rank(),
    # What is zero is there all the same.
    "zeros": tq.RBM(np.array([[0.0, 0.4], [0.0, -0.7]]), np.array([0.0, 0.3])),
    "alone": tq.BoltzmannMachine(
        np.zeros(1), np.array([0, 0.5, 0]), 2, [(0, 1)], n_units=3
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_law_is_that_of_enumeration(name, key):
    model = SMALL[name]
    states = oracle.states(model.n_units)
    energies = np.asarray(jax.vmap(model.energy)(jnp.asarray(states)))
    weights = np.exp(-energies)
    law = exact(model)
    assert_close(law.log_partition, np.log(weights.sum()), IDENTITY)
    p = weights / weights.sum()
    f = np.asarray(model.observables(jnp.asarray(states)))
    scale = np.abs(f).max()
    assert np.abs(law.mean_observables - p @ f).max() < IDENTITY * scale
    assert law.mean_observables.shape == (f.shape[1],)
    x = law.draw(key, 20_000)
    counts = np.bincount(np.asarray(state_index(x)), minlength=p.size)
    assert abs(excess(counts, p)) < SIGMAS
    # A negative control: the law of twice the energy is another one.
    if name != "alone":
        assert excess(counts, oracle.law(2 * energies)) > SIGMAS
    assert np.array_equal(x, law.draw(key, 20_000))
    assert not np.array_equal(x, law.draw(jr.key(1), 20_000))


@pytest.mark.parametrize("name", SMALL)
def test_energies_are_those_of_dimod(name):
    model = SMALL[name]
    x = oracle.states(model.n_units)
    bqm = to_bqm(model)
    assert bqm.vartype.name == "SPIN" and bqm.num_variables == model.n_units
    energies = bqm.energies((x.astype(np.int8), range(model.n_units)))
    expected = jax.vmap(model.energy)(jnp.asarray(x))
    assert_close(energies, expected, IDENTITY)


def test_a_grid_that_no_table_holds(key):
    model = square(8)
    law = exact(model)
    assert law.treewidth in (8, 9, 10, 11) and "64 units" in str(law)
    # A transfer matrix over the 2**8 states of a row, in NumPy.
    matrix, bias = np.asarray(model.coupling_matrix), np.asarray(model.bias)
    rows = oracle.states(8)
    log_sum = np.zeros(256)
    for i in range(8):
        units = np.arange(8 * i, 8 * i + 8)
        row = rows @ bias[units]
        for u in units[:-1]:
            row = row + matrix[u, u + 1] * rows[:, u - 8 * i] * rows[:, u - 8 * i + 1]
        if i:
            across = (rows * matrix[units - 8, units]) @ rows.T
            total = log_sum[:, None] + across
            top = total.max(axis=0)
            log_sum = top + np.log(np.exp(total - top).sum(axis=0))
        log_sum = log_sum + row
    log_z = log_sum.max() + np.log(np.exp(log_sum - log_sum.max()).sum())
    assert_close(law.log_partition, log_z, IDENTITY)
    # The means are the slope of log Z, by central differences along one direction.
    direction = np.random.default_rng(0).normal(size=law.mean_observables.size)

    def shifted(step):
        n = model.couplings.size
        couplings = model.couplings + step * direction[:n]
        moved = tq.BoltzmannMachine.from_edges(
            model.edges, couplings, model.bias + step * direction[n:]
        )
        return float(exact(moved).log_partition)

    slope = (shifted(1e-4) - shifted(-1e-4)) / 2e-4
    assert_close(-direction @ np.asarray(law.mean_observables), slope, 1e-6)
    f = np.asarray(model.observables(law.draw(key, 4000)))
    error = np.abs(f.mean(axis=0) - law.mean_observables) * np.sqrt(4000)
    assert (error / f.std(axis=0)).max() < SIGMAS


def test_q_of_a_large_graph_knows_its_bias(key):
    model, samples = square(8, scale=0.2), np.ones((5, 64))
    weights = np.arange(5.0)
    law = exact(model)
    likelihood = law.log_likelihood(samples, weights)
    energy = model.energy(jnp.ones(64))
    assert_close(likelihood, -energy - law.log_partition, DIRECT)
    gradient = law.kl_gradient(samples, weights)
    phase = model.observables(jnp.ones(64))
    assert_close(gradient, phase - law.mean_observables, DIRECT)
    kernel = tq.AlternatingBlockGibbs(model.colouring())
    snr = sampling.QSampled(kernel, 2, replicates=8)
    assert snr(key, model, samples, gradient=gradient).knows_bias
    state = sampling.ChainState.begin(law.draw(key, 8), key)
    assert tq.run(kernel, model, state, 4).moments.count == 4


def test_likelihoods_are_those_of_the_models_that_can_be_enumerated():
    model = rbm(4, 3, biased=True)
    samples = np.random.default_rng(0).choice([-1.0, 1.0], (6, 4))
    law = exact(model)
    likelihood = tq.log_likelihood(model, samples)
    assert_close(law.log_likelihood(samples), likelihood, IDENTITY)
    assert_close(law.kl_gradient(samples), tq.kl_gradient(model, samples), DIRECT)
    data = tq.visible_distribution(rbm(4, 2))
    assert_close(law.kl_gradient(data), tq.kl_gradient(model, data), DIRECT)


def test_mistakes_are_told(as_for_users, key):
    every = tq.BoltzmannMachine(np.ones((28, 28)) - np.eye(28))
    with pytest.raises(ValueError, match="treewidth of at most 25, but .* one of 27"):
        exact(every)
    for ask in (exact, to_bqm):
        with pytest.raises(ValueError, match="is pairwise: .* but a NeuralEnergy was"):
            ask(neural(2, 2))
        with pytest.raises(ValueError, match="a traced model was given"):
            eqx.filter_jit(lambda m, ask=ask: ask(m) and None)(rbm(2, 2))
        with pytest.raises(eqx.EquinoxRuntimeError, match="RBM is not finite"):
            ask(tq.RBM(np.array([[np.nan]])))
    with pytest.raises(ValueError, match="a traced key was given"):
        law = exact(rbm(2, 2))
        jax.jit(lambda key: law.draw(key, 3))(key)


def test_a_missing_package_is_told(monkeypatch):
    code = "import sys; sys.modules['dimod'] = None; import trainq.interop.dimod"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "needs dimod: pip install dimod" in done.stderr
    true_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("dwave"):
            raise ImportError(name)
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    to_bqm(rbm(2, 2))
    with pytest.raises(ImportError, match=r"dwave-samplers: pip install dwave"):
        exact(rbm(2, 2))


def test_kernels_agree_on_the_means(key):
    """A long run from exact draws stays at the exact means."""
    model = square(4)
    law = exact(model)
    state = sampling.ChainState.begin(law.draw(key, 512), key)
    found = tq.run(KERNELS["gibbs"], model, state, 64).moments.mean
    error = np.std(found, axis=0) / np.sqrt(512)
    assert (np.abs(found.mean(axis=0) - law.mean_observables) < SIGMAS * error).all()
    assert_close(law.mean_observables, tq.mean_observables(model), IDENTITY)
