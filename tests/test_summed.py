"""Exact answers by what has to be enumerated, not by the number of units."""

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
    MODELS,
    SIGMAS,
    assert_close,
    central_difference,
    energies,
    excess,
    flatten,
    rbm,
    slow_except,
)
from jax.flatten_util import ravel_pytree

import trainq as tq
from trainq import _spins, sampling
from trainq._spins import state_index


def edges_of(pairs, n_units, *, biased=True, n_visible=None, seed=0):
    """A machine with random parameters."""
    couplings, bias = np.random.default_rng(seed).normal(size=(2, 60))
    return tq.BoltzmannMachine.from_edges(
        np.array(pairs, int).reshape(-1, 2),
        0.6 * couplings[: len(pairs)],
        0.5 * bias[:n_units] if biased else None,
        n_visible,
        n_units=n_units,
    )


GRID = [(4 * i + j, 4 * i + j + 1) for i in range(2) for j in range(3)] + [
    (4 * i + j, 4 * i + 4 + j) for i in range(1) for j in range(4)
]
# A star and another one the other way round, a triangle, and a unit alone.
APART = [(0, 1), (0, 2), (3, 5), (4, 5), (6, 7), (7, 8), (6, 8)]
MACHINES = {
    "grid": (edges_of(GRID, 8), 4),
    "grid without biases": (edges_of(GRID, 8, biased=False), 4),
    "apart": (edges_of(APART, 10), 4),
    "layers": (edges_of([(0, 3), (1, 4), (2, 3), (3, 5)], 7, n_visible=3), 2),
    "all pairs": (edges_of([(i, j) for i in range(5) for j in range(i)], 5), 4),
    "no edges": (edges_of([], 3), 0),
}
# An RBM that no layer's list of joint states holds, and the same as a machine.
LARGE = rbm(26, 4, biased=True, scale=0.3)
PAIRS = [(i, 26 + j) for i in range(26) for j in range(4)]
AS_MACHINE = tq.BoltzmannMachine.from_edges(
    PAIRS,
    LARGE.weights.reshape(-1),
    jnp.concatenate([LARGE.visible_bias, LARGE.hidden_bias]),
    26,
)
# The other way round, and at another temperature.
FORMS = {
    "rbm": LARGE,
    "swapped": tq.RBM(LARGE.weights.T, LARGE.hidden_bias, LARGE.visible_bias),
    "machine": AS_MACHINE,
    "tempered": tq.models.Tempered(
        jax.tree.map(lambda p: p / 1.7, AS_MACHINE), jnp.array(1.7)
    ),
}
SAMPLES = np.random.default_rng(1).choice([-1.0, 1.0], size=(9, 26))


def large_by_hand():
    """`log Z`, and the means of `v_i h_j`, `v_i` and `h_j`, in NumPy: a sum over the
    hidden states."""
    w, a, b = map(np.asarray, (LARGE.weights, LARGE.visible_bias, LARGE.hidden_bias))
    h = oracle.states(4)
    field = h @ w.T + a
    log_weights = h @ b + np.log(2 * np.cosh(field)).sum(axis=1)
    law = np.exp(log_weights - log_weights.max())
    log_z = np.log(law.sum()) + log_weights.max()
    law /= law.sum()
    v = np.tanh(field)
    return log_z, np.einsum("s,si,sj->ij", law, v, h), law @ v, law @ h


LOG_Z, VH, V, H = large_by_hand()


def free_energy_by_hand(v):
    w, a, b = map(np.asarray, (LARGE.weights, LARGE.visible_bias, LARGE.hidden_bias))
    return -v @ a - np.log(2 * np.cosh(v @ w + b)).sum(axis=1)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MACHINES)
def test_machines_are_those_of_the_oracle(name, key):
    model, n_enumerated = MACHINES[name]
    assert model.n_enumerated == n_enumerated
    bias = None if model.bias is None else np.asarray(model.bias)
    energies = oracle.pair_energies(np.asarray(model.coupling_matrix), bias)
    law = oracle.law(energies)
    assert_close(tq.log_partition(model), np.log(np.exp(-energies).sum()), IDENTITY)
    f = model.observables(jnp.asarray(oracle.states(model.n_units)))
    assert_close(tq.mean_observables(model), law @ f, DIRECT)
    draws = eqx.filter_jit(lambda m: m.draw(key, 40_000))(model)
    counts = np.bincount(np.asarray(state_index(draws)), minlength=law.size)
    assert abs(excess(counts, law)) < SIGMAS
    # A negative control: a fifth more of every parameter is another law.
    other = oracle.law(1.2 * energies)
    assert excess(counts, other) > SIGMAS


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", slow_except(MODELS, "biased grid 4+2", "machine 4+2"))
def test_blocks_are_drawn_and_summed_given_the_others(name, key):
    model = MODELS[name]
    m, law = model.n_visible, oracle.law(energies(model))
    table = np.exp(-energies(model)).reshape(2**m, -1)
    free = eqx.filter_jit(lambda m, v: m.free_energy(v))
    v = oracle.states(m).reshape(2, -1, m)
    assert_close(free(model, v), -np.log(table.sum(axis=1)).reshape(2, -1), IDENTITY)
    start = jnp.asarray(oracle.states(model.n_units)[1])
    at = int(state_index(start))
    for block, inside in (("visible", range(m)), ("hidden", range(m, model.n_units))):
        x = jnp.broadcast_to(start, (2, 10_000, model.n_units))
        drawn = eqx.filter_jit(lambda m, x, b=block: m.sample_block(key, x, b))(
            model, x
        )
        counts = np.bincount(np.asarray(state_index(drawn)).ravel(), minlength=law.size)
        assert abs(excess(counts, oracle.redraw(law, inside)[at])) < SIGMAS


def test_a_cover_leaves_no_edge():
    random = np.random.default_rng(3)
    for seed in range(20):
        n = int(random.integers(1, 30))
        pairs = {
            tuple(sorted(p)) for p in random.integers(0, n, (n, 2)) if p[0] != p[1]
        }
        model = edges_of(sorted(pairs), n, biased=False, seed=seed)
        cover, others = model.graph.cover
        assert sorted([*cover, *others]) == list(range(n))
        assert np.isin(model.edges, cover).any(axis=1).all()
        assert len(cover) == model.n_enumerated <= n - 1


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", FORMS)
def test_a_large_machine_is_that_of_a_sum_over_its_smaller_side(name, key):
    model = FORMS[name]
    assert model.n_units == 30 and model.n_enumerated == 4
    assert_close(tq.log_partition(model), LOG_Z, IDENTITY)
    vh, v, h = VH, V, H
    if name == "swapped":
        vh, v, h = VH.T, H, V
    scale = 1.7 if name == "tempered" else 1
    expected = -scale * np.concatenate([vh.reshape(-1), v, h])
    assert_close(tq.mean_observables(model), expected, DIRECT)
    x = tq.start_chains(key, model, 4000, tq.Stationary()).x
    f = np.asarray(model.observables(x))
    error = np.abs(f.mean(axis=0) - expected) / (f.std(axis=0) / np.sqrt(4000))
    assert error.max() < SIGMAS
    # A negative control: independent units are not drawn from this law.
    f = np.asarray(model.observables(tq.start_chains(key, model, 4000).x))
    assert (np.abs(f.mean(axis=0) - expected) / (scale / np.sqrt(4000))).max() > 50


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["rbm", "machine", "tempered"])
def test_likelihoods_and_gradients_from_samples(name):
    model, weights = FORMS[name], np.array([0, 1, 2, 0, 3, 1, 1, 5, 1])
    likelihood = -free_energy_by_hand(SAMPLES) - LOG_Z
    assert_close(tq.log_likelihood(model, SAMPLES), likelihood.mean(), IDENTITY)
    mean = np.average(likelihood, weights=weights)
    assert_close(tq.log_likelihood(model, SAMPLES, weights), mean, IDENTITY)
    assert abs(mean - likelihood.mean()) > 0.1
    repeated = np.repeat(SAMPLES, weights, axis=0)
    assert_close(tq.log_likelihood(model, repeated), mean, IDENTITY)
    h = np.tanh(SAMPLES @ np.asarray(LARGE.weights) + np.asarray(LARGE.hidden_bias))
    share = weights / weights.sum()
    phase = np.einsum("s,si,sj->ij", share, SAMPLES, h).reshape(-1)
    data = np.concatenate([phase, share @ SAMPLES, share @ h])
    scale = 1.7 if name == "tempered" else 1
    expected = scale * (np.concatenate([VH.reshape(-1), V, H]) - data)
    assert_close(tq.kl_gradient(model, SAMPLES, weights), expected, DIRECT)
    assert_close(tq.kl_gradient(model, repeated), expected, DIRECT)


@pytest.mark.slow
def test_the_gradient_is_the_derivative_of_the_likelihood():
    model = rbm(5, 3, biased=True)
    samples, weights = SAMPLES[:, :5], np.arange(9.0)
    flat, rebuild = flatten(model)

    def likelihood(p):
        return tq.log_likelihood(rebuild(p), samples, weights)

    gradient = tq.kl_gradient(model, samples, weights)
    assert_close(gradient, -jax.grad(likelihood)(flat), IDENTITY)
    direction = np.random.default_rng(0).normal(size=flat.size)
    slope = central_difference(likelihood, flat, direction)
    assert_close(-gradient @ direction, slope, DIFFERENCES)
    law = tq.empirical_distribution(np.repeat(samples, np.arange(9), axis=0))
    assert_close(tq.log_likelihood(model, law), likelihood(flat), IDENTITY)
    assert_close(tq.kl_gradient(model, law), gradient, DIRECT)
    entropy = -np.sum(law[law > 0] * np.log(law[law > 0]))
    assert_close(
        -tq.log_likelihood(model, law) - entropy, tq.kl_divergence(model, law), DIRECT
    )


def test_wrong_weights_are_told():
    model = rbm(2, 2)
    for wrong in ([-1.0, 2.0], [0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0]):
        with pytest.raises(eqx.EquinoxRuntimeError, match="weights of samples are"):
            jax.block_until_ready(tq.log_likelihood(model, np.ones((2, 2)), wrong))


def test_blocks_of_states_are_the_same_as_all_at_once(monkeypatch):
    model = rbm(7, 9, biased=True)
    direction = flatten(model)[0]

    def everything(p):
        rebuild = flatten(model)[1]

        def log_z(p):
            return rebuild(p).log_partition()

        hvp = jax.jvp(jax.grad(log_z), (p,), (direction,))[1]
        return log_z(p), jax.grad(log_z)(p), hvp, rebuild(p).hidden_free_energies()

    flat, _ = flatten(model)
    whole = jax.jit(lambda p: everything(p))(flat)
    monkeypatch.setattr(_spins, "MAX_TABLE", 64)
    lowered = jax.jit(lambda p: everything(p)).lower(flat)
    assert "while" in lowered.as_text()
    for part, expected in zip(lowered.compile()(flat), whole, strict=True):
        assert_close(part, expected, IDENTITY)


def test_memory_does_not_grow_with_the_table_of_states():
    model = rbm(784, 16, scale=0.05)

    def gradient(model):
        return eqx.filter_grad(lambda m: m.log_partition())(model)

    compiled = jax.jit(gradient).lower(model).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    assert memory < 100 * 2**20 < 2**16 * 800 * 8


@pytest.mark.slow
def test_models_are_mapped_over(key):
    models = eqx.filter_vmap(lambda s: tq.RBM(s * LARGE.weights))(jnp.array([0.5, 1.0]))
    both = eqx.filter_vmap(lambda m: (tq.log_partition(m), m.draw(key, 5)))(models)
    one = tq.RBM(LARGE.weights)
    assert_close(both[0][1], tq.log_partition(one), IDENTITY)
    assert np.array_equal(both[1][1], one.draw(key, 5))


@pytest.mark.slow
def test_q_of_a_large_model_knows_its_bias(key):
    model = tq.RBM(3 * LARGE.weights, LARGE.visible_bias, LARGE.hidden_bias)
    kernel, truth = KERNELS["alternating"], tq.kl_gradient(model, SAMPLES)
    q = sampling.QSampled(kernel, 3, replicates=64)
    known = q(key, model, SAMPLES)
    assert known.knows_bias
    assert_close(known.signal, np.sum(truth**2), DIRECT)
    unknown = q(key, model, SAMPLES, gradient="sampled")
    assert not unknown.knows_bias
    assert known.mse > unknown.mse + SIGMAS * unknown.mse_error
    # From the stationary law there is none, and both are the same.
    q = sampling.QSampled(kernel, 3, start=tq.Stationary(), replicates=64)
    known, unknown = (q(key, model, SAMPLES, gradient=g) for g in (None, "sampled"))
    assert abs(known.mse - unknown.mse) < SIGMAS * unknown.mse_error


@pytest.mark.slow
def test_a_start_from_data_takes_many_hidden_units_that_do_not_interact(key):
    model = FORMS["swapped"]
    pairs = [(j, 4 + i) for i in range(26) for j in range(4)]
    weights = model.weights.T.reshape(-1)
    machine = tq.BoltzmannMachine.from_edges(pairs, weights, None, 4)
    v = np.ones((1, 4))
    x = tq.start_chains(key, machine, 4000, tq.FromData(), v).x
    field = v @ np.asarray(model.weights)
    error = np.abs(x[:, 4:].mean(axis=0) - np.tanh(field[0])) * np.sqrt(4000)
    assert error.max() < SIGMAS and (x[:, :4] == 1).all()
    phase = tq.models.data_phase(machine, jnp.asarray(v))
    expected = -np.tanh(np.repeat(field[0], 4))
    assert_close(phase, expected, DIRECT)


def test_trees_go_through(key):
    _, unravel = ravel_pytree(eqx.filter(AS_MACHINE, eqx.is_inexact_array))
    gradient = unravel(tq.kl_gradient(AS_MACHINE, SAMPLES))
    assert gradient.couplings.shape == (104,)
