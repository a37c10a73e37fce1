"""Cuts that are given, swept and searched; see test_conductance for the sweep of the
slowest mode of the whole chain."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    DIFFERENCES,
    DIRECT,
    IDENTITY,
    KERNELS,
    MODELS,
    REVERSIBLE,
    assert_close,
    central_difference,
    dense,
    flatten,
    machine,
    rbm,
    slow_except,
)
from hypothesis import given, settings, strategies as st

import trainq as tq
from trainq.markov import best_cut, best_sweep_cut, cut, sweep_conductance


def sets(n_states, sector=None):
    """All sets, or those of one sector, by hand."""
    if sector == "even":
        for half in sets(n_states // 2):
            yield np.concatenate([half, half[::-1]])
        return
    for k in range(1, 2**n_states - 1):
        members = (k >> np.arange(n_states)) & 1 == 1
        if sector is None or not (members & members[::-1]).any():
            yield members


@pytest.mark.parametrize("name", KERNELS)
def test_a_given_set_has_the_flow_of_the_matrix(name):
    model = MODELS["biased rbm 2x3"]
    pi, matrix = dense(name, model)
    chain = KERNELS[name].chain(model)
    for seed in range(3):
        members = np.random.default_rng(seed).random(32) < 0.3
        found = cut(chain, jnp.asarray(members))
        flow = (pi[:, None] * matrix)[np.ix_(members, ~members)].sum()
        assert_close(found.flow, flow, IDENTITY)
        assert_close(found.mass, pi[members].sum(), IDENTITY)
        expected = oracle.conductance(matrix, pi, members)
        assert_close(found.conductance, expected, IDENTITY)
        rest = cut(chain, jnp.asarray(~members))
        assert_close(rest.flow, flow, IDENTITY)
        assert_close(rest.conductance, expected, IDENTITY)
        assert_close(rest.log_mass, found.log_rest, IDENTITY)


def test_flows_and_masses_may_be_smaller_than_any_number():
    # Two units in fields of 400: the state against both has a mass of exp(-1600).
    model = tq.BoltzmannMachine(jnp.zeros((2, 2)), jnp.array([400.0, 400.0]))
    for name, log_rate in (("gibbs", 0.0), ("metropolis", 0.0)):
        found = cut(KERNELS[name].chain(model), jnp.arange(4) == 0)
        # It is left at a rate of one, and hardly ever entered.
        assert_close(found.log_mass, -1600.0, IDENTITY)
        assert_close(found.log_flow, -1600.0 + log_rate, IDENTITY)
        assert_close(found.conductance, 1.0, DIRECT)
        assert found.mass == 0 == found.flow


@pytest.mark.quick(1)
@pytest.mark.parametrize("sector", [None, "even", "odd"])
@pytest.mark.parametrize("name", slow_except(REVERSIBLE, "gibbs", "palindromic"))
def test_cheeger_and_the_best_of_all_cuts_in_every_sector(name, sector):
    # On one unit, a layer has no even mode.
    model = rbm(2, 2) if sector == "even" else rbm(1, 2, scale=1.2)
    n = 2**model.n_units
    pi, matrix = dense(name, model)
    chain = KERNELS[name].chain(model)
    best = min(oracle.conductance(matrix, pi, s) for s in sets(n, sector))
    found = best_cut(chain, sector)
    assert_close(found.conductance, best, IDENTITY)
    assert_close(
        oracle.conductance(matrix, pi, np.asarray(found.members)), best, IDENTITY
    )
    # γ/2 ≤ Φ ≤ Φ of the sweep ≤ √(2γ), with the gap from a dense matrix.
    half, root = np.eye(n)[: n // 2], np.sqrt(pi)
    sign = {"even": 1, "odd": -1}.get(sector)
    basis = (half + sign * half[:, ::-1]) / np.sqrt(2) if sign else np.eye(n)
    symmetrised = root[:, None] * matrix / root[None]
    values = np.linalg.eigvalsh(basis @ symmetrised @ basis.T)
    gap = 1 - values[-1 if sector == "odd" else -2]
    swept = sweep_conductance(chain, sector=sector)
    assert gap / 2 - IDENTITY <= best <= swept + IDENTITY
    assert swept <= np.sqrt(2 * gap) + IDENTITY
    margins = tq.markov.cheeger_margins(chain, sector)
    assert_close(margins.gap, gap, DIRECT)
    assert margins.violation <= IDENTITY
    assert tq.markov.cheeger_margin(chain, sector) >= -IDENTITY


@pytest.mark.slow
@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from([None, "even", "odd"]))
def test_no_set_is_better_than_the_best(seed, sector):
    # All 16 states: random sets of the sector, and sweeps of random functions of it.
    weights = jr.normal(jr.key(seed), (2, 2))
    chain = KERNELS["metropolis"].chain(tq.RBM(weights))
    rng = np.random.default_rng(seed)
    found, gap = best_cut(chain, sector), tq.markov.spectral_gap(chain, sector)
    assert gap / 2 <= found.conductance + IDENTITY
    assert found.conductance <= jnp.sqrt(2 * gap) + IDENTITY
    f = rng.normal(size=16)
    f = {None: f, "even": f + f[::-1], "odd": f - f[::-1]}[sector]
    swept = best_sweep_cut(chain, jnp.asarray(f), sector)
    assert found.conductance <= swept.conductance + IDENTITY
    level = f[np.asarray(swept.members)].max()
    assert (np.asarray(swept.members) == (f <= level + 1e-12)).all()
    members = np.asarray(swept.members)
    if sector == "even":
        assert (members == members[::-1]).all()
    if sector == "odd":
        inside = members if not (members & members[::-1]).any() else ~members
        assert not (inside & inside[::-1]).any()


@pytest.mark.parametrize("name", slow_except(REVERSIBLE, "gibbs"))
def test_a_sweep_over_a_function_takes_the_best_of_its_levels(name):
    model = MODELS["biased rbm 2x3"]
    pi, matrix = dense(name, model)
    chain = KERNELS[name].chain(model)
    f = oracle.states(5).sum(axis=1)  # many ties
    levels = np.unique(f)[:-1]
    best = min(oracle.conductance(matrix, pi, f <= level) for level in levels)
    for values in (jnp.asarray(f), jnp.asarray(f, int), jnp.asarray(3 * f)):
        assert_close(sweep_conductance(chain, values), best, IDENTITY)
    found = best_sweep_cut(chain, jnp.asarray(-f))
    assert_close(found.conductance, best, IDENTITY)
    # The slowest mode, given as a function, is the default.
    mode = tq.markov.slowest_mode(chain).mode
    swept = sweep_conductance(chain, mode)
    assert_close(swept, sweep_conductance(chain), IDENTITY)


@pytest.mark.slow
def test_the_slowest_mode_says_nothing_of_the_even_bottleneck():
    # Two pairs of wells: the sweep of the odd mode cuts between x and -x.
    model = tq.RBM(jnp.array([[2.0, 1.0], [1.0, -0.6]]))
    chain = KERNELS["gibbs"].chain(model)
    gap = tq.markov.spectral_gap(chain, "even")
    assert sweep_conductance(chain) < gap / 2 < sweep_conductance(chain, sector="even")


@pytest.mark.slow
def test_derivatives_are_those_of_the_set_held_fixed():
    flat, build = flatten(rbm(2, 2, biased=True))
    members = jnp.arange(16) % 3 == 0
    direction = jr.normal(jr.key(0), flat.shape)
    for name in ("gibbs", "palindromic"):

        @jax.jit
        def fn(flat, name=name):
            return cut(KERNELS[name].chain(build(flat)), members).log_conductance

        @jax.jit
        def swept(flat, name=name):
            return sweep_conductance(KERNELS[name].chain(build(flat)))

        for of in (fn, swept):
            slope = jax.grad(of)(flat) @ direction
            assert_close(slope, central_difference(of, flat, direction), DIFFERENCES)


def test_a_function_that_selects_nothing_has_no_cut():
    chain = KERNELS["gibbs"].chain(rbm(2, 2))
    assert sweep_conductance(chain, jnp.ones(16)) == jnp.inf
    with pytest.raises(RuntimeError, match="same value in all states"):
        best_sweep_cut(chain, jnp.ones(16))
    with pytest.raises(RuntimeError, match="not even under the global flip"):
        best_sweep_cut(chain, jnp.arange(16.0), "even")
    with pytest.raises(RuntimeError, match="The function is not finite"):
        best_sweep_cut(chain, jnp.full(16, jnp.nan))
    with pytest.raises(RuntimeError, match="no state in it"):
        cut(chain, jnp.zeros(16, bool))
    with pytest.raises(RuntimeError, match="has all states"):
        cut(chain, jnp.ones(16, bool))


@pytest.mark.usefixtures("as_for_users")
def test_what_is_no_cut_says_so():
    chain = KERNELS["gibbs"].chain(rbm(2, 2))
    with pytest.raises(ValueError, match=r"but \(16, 2\) was given"):
        best_sweep_cut(chain, jnp.ones((16, 2)))
    with pytest.raises(ValueError, match="shape .8,. and dtype bool"):
        cut(chain, jnp.ones(8, bool))
    with pytest.raises(ValueError, match="a chain of 32 states was given"):
        best_cut(KERNELS["gibbs"].chain(rbm(2, 3)))
    best_cut(KERNELS["gibbs"].chain(rbm(2, 3)), "even")
    biased = KERNELS["gibbs"].chain(rbm(1, 1, biased=True))
    for ask in (best_cut, lambda c, s: best_sweep_cut(c, None, s)):
        with pytest.raises(ValueError, match="even sector was asked for"):
            ask(biased, "even")
    with pytest.raises(ValueError, match="needs a reversible chain"):
        best_sweep_cut(KERNELS["alternating"].chain(rbm(2, 2)), jnp.arange(16.0))


def test_it_shows_what_is_cut():
    found = cut(KERNELS["gibbs"].chain(rbm(2, 2)), jnp.arange(16) < 4)
    assert str(found).startswith("Cut between 4 states and 12")
    assert f"{float(found.conductance):.4g} per step" in str(found)


@pytest.mark.slow
def test_sweeps_of_many_units_agree_with_given_sets():
    chain = KERNELS["gibbs"].chain(machine(16, scale=0.3))
    f = jr.normal(jr.key(1), (2**16,))
    order = jnp.argsort(f)
    flows = chain.log_cut_flows(order)
    rank = jnp.argsort(order)
    for k in (1, 77, 2**15, 2**16 - 1):
        assert_close(flows[k - 1], chain.log_cut_flow(rank < k), IDENTITY)
