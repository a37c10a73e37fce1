"""The slowest mode alone is that of all modes, and is believed only if it is shown."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIRECT, KERNELS, assert_close, dense, rbm

import trainq as tq
from trainq.markov import _eigenpairs
from trainq.markov._eigenpairs import _by_inverse, dense_pairs, parts_of, slowest_pair


by_inverse, all_pairs = eqx.filter_jit(_by_inverse), eqx.filter_jit(dense_pairs)
slowest = eqx.filter_jit(slowest_pair)


def operators(name, model):
    chain = KERNELS[name].chain(model)
    return [part.operator for part in parts_of(chain, None)]


def residual(operator, pair):
    y = pair.vectors
    return jnp.linalg.norm(operator.generator.mv(y) - pair.values[0] * y)


def two_slow_ones(ratio):
    """Wells of free pairs of spins, of which each is as slow by itself."""
    pairs = jnp.array([4.5, 4.5 + jnp.log(ratio) / 2, 0.1, 0.2])
    edges = [(0, 1), (2, 3), (4, 5), (6, 7)]
    return tq.BoltzmannMachine(pairs, edges=edges)


def test_two_slow_modes_that_are_alike_are_left_to_all_of_them():
    for ratio, is_shown in ((1.5, False), (8.0, True)):
        odd = operators("gibbs", two_slow_ones(ratio))[1]
        others = all_pairs(odd)
        assert_close(others.values[1] / others.values[0], ratio, 0.01 * ratio)
        assert bool(by_inverse(odd).known) == is_shown
        assert_close(slowest(odd).values[0], others.values[0], 1e-12)


@pytest.mark.parametrize("name", ["gibbs", "metropolis"])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_it_is_that_of_a_dense_spectrum(name, scale):
    model = rbm(4, 4, scale=scale)
    pi, matrix = dense(name, model)
    root = np.sqrt(pi)
    symmetric = root[:, None] * matrix / root[None, :]
    flip = np.eye(256)[::-1]
    for sign, operator in zip((1, -1), operators(name, model), strict=True):
        fold = (np.eye(256) + sign * flip)[:128] / np.sqrt(2)
        values = np.sort(1 - np.linalg.eigvalsh(fold @ symmetric @ fold.T))
        expected = values[1] if sign > 0 else values[0]
        pair = by_inverse(operator)
        assert bool(pair.known)
        assert abs(pair.values[0] - expected) < DIRECT
        assert residual(operator, pair) < 1e-13


def test_slow_ones_have_all_their_digits():
    # Elimination without subtraction has them, of all modes; of one that is slower
    # still it is asked.
    for scale, is_shown in ((1.8, True), (2.5, True), (8.0, False)):
        model = rbm(4, 4, scale=scale)
        odd = operators("gibbs", model)[1]
        assert odd.generator.is_odd
        pair, others = by_inverse(odd), all_pairs(odd)
        assert bool(pair.known) == is_shown and bool(others.known)
        assert others.values[0] < 1e-4
        assert_close(slowest(odd).values[0], others.values[0], 1e-13)
        overlap = abs(slowest(odd).vectors[:, 0] @ others.vectors[:, 0])
        assert abs(overlap - 1) < 1e-12


def test_modes_that_are_alike_are_left_to_all_of_them():
    # All single flips relax alike, but for a coupling that hardly matters.
    nearly = rbm(4, 4, scale=1e-4)
    for operator in operators("gibbs", nearly):
        assert_close(slowest(operator).values[0], all_pairs(operator).values[0], DIRECT)
    assert not all(bool(by_inverse(one).known) for one in operators("gibbs", nearly))
    # Exactly alike, any of them will do.
    free = tq.BoltzmannMachine(jnp.zeros((8, 8)))
    for operator, gap in zip(operators("gibbs", free), (2 / 8, 1 / 8), strict=True):
        assert abs(slowest(operator).values[0] - gap) < DIRECT


def test_one_that_is_not_the_slowest_is_not_believed(monkeypatch):
    # Two halves that know nothing of each other, and leak at different rates: from a
    # start in the faster one, nothing ever comes into the slower.
    rates = np.random.default_rng(0).uniform(size=(80, 80)) / 800
    hops = np.kron(np.eye(2), np.triu(rates, 1) + np.triu(rates, 1).T)
    leak = np.repeat([0.02, 0.01], 80)
    generator = tq.solvers.DenseGenerator(
        diagonal=jnp.asarray(hops.sum(axis=1) + leak),
        hops=jnp.asarray(hops),
        log_law=jnp.full(160, -np.log(160)),
        leak=jnp.asarray(leak),
        is_self_adjoint=True,
    )
    operator = _eigenpairs.Operator(generator, None)
    lowest = by_inverse(operator)
    assert bool(lowest.known) and abs(lowest.values[0] - 0.01) < DIRECT

    class Unlucky:
        def normal(self, size):
            return np.where(np.arange(size) < 80, np.sin(np.arange(size)), 0)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Unlucky())
    found = _by_inverse(operator)
    assert residual(operator, found) < 1e-13 and abs(found.values[0] - 0.02) < DIRECT
    assert not bool(found.known)
    assert abs(slowest_pair(operator).values[0] - 0.01) < DIRECT


def test_a_chain_that_is_none_is_not_known():
    model = rbm(4, 4)
    (operator, *_) = operators("gibbs", model)
    generator = operator.generator
    assert isinstance(generator, tq.solvers.FlipGenerator)
    wrong = eqx.tree_at(
        lambda one: one.hops, generator, generator.hops.at[1, 3].multiply(2)
    )
    wrong = _eigenpairs.Operator(wrong, None)
    assert not bool(by_inverse(wrong).known) and not bool(slowest(wrong).known)


class Flipped(tq.markov.AbstractChain):
    """Gibbs and, now and then, the global flip, which is always accepted: not
    reversible in the law of a model with fields, though it says so."""

    gibbs: tq.markov.AbstractChain
    log_stationary: jax.Array
    is_reversible = True

    def apply(self, f):
        return 0.9 * self.gibbs.apply(f) + 0.1 * f[::-1]


def test_a_chain_of_another_law_has_no_gap():
    pairs = [(i, j) for i in range(8) for j in range(i)]
    couplings, field = jnp.full(len(pairs), 0.25), jnp.full(8, 0.05)
    gibbs = KERNELS["gibbs"].chain(tq.BoltzmannMachine(couplings, field, edges=pairs))
    chain = Flipped(gibbs, gibbs.log_stationary)
    (part,) = parts_of(chain, None)
    assert not bool(by_inverse(part.operator).known)
    with pytest.raises(eqx.EquinoxRuntimeError, match="gap is lost"):
        tq.markov.spectral_gap(chain)


def test_rates_that_do_not_sum_to_the_diagonal_are_noticed():
    # Of a chain that is killed in one state: its form is no sum over pairs alone.
    chain = KERNELS["gibbs"].chain(rbm(4, 4))
    operator = _eigenpairs.Operator(chain.killed_generator(jnp.arange(256) == 7), None)
    assert operator.has_rates and operator.generator.leak is not None
    assert not bool(by_inverse(operator).known)
    assert_close(slowest(operator).values, all_pairs(operator).values[:1], 1e-12)


def test_a_batch_and_single_precision():
    weights = jnp.stack([rbm(4, 4, seed=seed).weights for seed in range(3)])

    def gap(weights):
        return tq.markov.spectral_gap(KERNELS["gibbs"].chain(tq.RBM(weights)), "odd")

    each = jnp.stack([gap(w) for w in weights])
    assert_close(jax.vmap(gap)(weights), each, DIRECT)
    single = gap(weights[0].astype(jnp.float32))
    assert single.dtype == jnp.float32 and abs(float(single) - each[0]) < 1e-6


def test_few_functions_take_all_modes(monkeypatch):
    def never(_):
        raise AssertionError

    monkeypatch.setattr(_eigenpairs, "_by_inverse", never)
    operator = operators("gibbs", rbm(3, 3))[0]
    assert_close(slowest_pair(operator).values[0], all_pairs(operator).values[0], 0)
