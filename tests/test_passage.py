import json
import re
from pathlib import Path

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
    assert_close,
    central_difference,
    dense,
    flatten,
    machine,
    rbm,
)

import trainq as tq
from trainq.markov import DenseChain, hitting_error, hitting_times, passage_times


CASES = json.loads((Path(__file__).parent / "data" / "cold.json").read_text())


COLD = [case for case in CASES if max(case["hitting_times"]) > 1e18][:5]


def two_sets(n_states, seed=0):
    parts = np.random.default_rng(seed).integers(0, 3, n_states)
    return parts == 0, parts == 1


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", KERNELS)
def test_passage_times_are_those_of_dense_solves(name):
    pi, matrix = dense(name, MODELS["biased rbm 2x3"])
    one, other = two_sets(32)
    found = passage_times(
        KERNELS[name].chain(MODELS["biased rbm 2x3"]),
        jnp.asarray(one),
        jnp.asarray(other),
    )
    for time, error, start, end in (
        (found.forth, found.forth_error, one, other),
        (found.back, found.back_error, other, one),
    ):
        times = oracle.hitting_times(matrix, end)
        expected = pi[start] @ times[start] / pi[start].sum()
        assert_close(time, expected, DIRECT)
        assert abs(time / expected - 1) <= error + 1e-13 and error < 1e-11


def test_deeptime_finds_the_same_times():
    analysis = pytest.importorskip("deeptime.markov.tools.analysis")
    pi, matrix = dense("gibbs", MODELS["biased rbm 2x3"])
    chain = KERNELS["gibbs"].chain(MODELS["biased rbm 2x3"])
    one, other = two_sets(32)
    found = passage_times(chain, jnp.asarray(one), jnp.asarray(other))
    one, other = np.flatnonzero(one), np.flatnonzero(other)
    theirs = analysis.mfpt(matrix, other, one, mu=pi)
    assert_close(found.forth, theirs, DIRECT)
    assert_close(found.back, analysis.mfpt(matrix, one, other, mu=pi), DIRECT)


@pytest.mark.slow
def test_the_program_of_the_page_for_deeptime_runs():
    pytest.importorskip("deeptime")
    page = Path(__file__).parents[1] / "docs" / "bottlenecks.md"
    (program,) = re.findall(r"^```py\n(.*?)^```", page.read_text(), re.M | re.S)
    assert max(map(len, program.splitlines())) <= 72
    exec(compile(program, page.name, "exec"), {"__name__": "page"})


@pytest.mark.slow
def test_two_states():
    up, down = 0.03, 0.2
    chain = DenseChain(np.array([[1 - up, up], [down, 1 - down]]))
    ends = jnp.array([True, False]), jnp.array([False, True])
    found = passage_times(chain, *ends)
    assert_close(found.forth, 1 / up, IDENTITY)
    assert_close(found.back, 1 / down, IDENTITY)


@pytest.mark.slow
def test_the_walk_on_the_cube():
    # From a corner to the opposite one, by the distance that is left: with h(k) the
    # time from k to k - 1 wrong units, h(N) = 1 / p and h(k) p k/N = 1 + p (1 - k/N)
    # h(k + 1), p = ½ the chance that the chosen unit flips.
    n = 6
    h = np.zeros(n + 2)
    for k in range(n, 0, -1):
        h[k] = (2 + (1 - k / n) * h[k + 1]) / (k / n)
    chain = KERNELS["gibbs"].chain(tq.RBM(jnp.zeros((3, 3))))
    ends = jnp.arange(64) == 0, jnp.arange(64) == 63
    found = passage_times(chain, *ends)
    assert_close(found.forth, h.sum(), DIRECT)
    assert_close(found.back, h.sum(), DIRECT)


def birth_and_death(n, j):
    """Curie and Weiss: how many units are up, under single flips by heat bath."""
    up = np.arange(n + 1)
    logs = [np.log(np.arange(1, k + 1)).sum() for k in range(n + 1)]
    log_law = logs[n] - logs - np.array(logs)[::-1] + j / (2 * n) * (2 * up - n) ** 2
    matrix = np.zeros((n + 1, n + 1))
    for k in range(n):
        change = 2 * j / n * (2 * k + 1 - n)  # of log π, for one unit more
        matrix[k, k + 1] = (n - k) / n / (1 + np.exp(-change))
        matrix[k + 1, k] = (k + 1) / n / (1 + np.exp(change))
    matrix += np.diag(1 - matrix.sum(axis=1))
    law = np.exp(log_law - log_law.max())
    return matrix, law / law.sum()


@pytest.mark.slow
@pytest.mark.parametrize("j", [0.0, 1.5])  # the Ehrenfest urn, and two wells
def test_lumped_chains(j):
    n = 8
    matrix, law = birth_and_death(n, j)
    couplings = j / n * (jnp.ones((n, n)) - jnp.eye(n))
    chain = KERNELS["gibbs"].chain(tq.BoltzmannMachine(couplings))
    up = (oracle.states(n).sum(axis=1) + n) / 2
    found = passage_times(chain, jnp.asarray(up <= 2), jnp.asarray(up >= n - 1))
    # Up, step by step: the flow over each bond is the mass below it.
    below = np.cumsum(law)
    steps = below[:-1] / (law[:-1] * np.diag(matrix, 1))
    times = [steps[k : n - 1].sum() for k in range(3)]
    assert_close(found.forth, law[:3] @ times / law[:3].sum(), DIRECT)
    lumped = passage_times(
        DenseChain(matrix), jnp.arange(n + 1) <= 2, jnp.arange(n + 1) >= n - 1
    )
    assert_close(found.forth, lumped.forth, DIRECT)
    assert_close(found.back, lumped.back, DIRECT)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["metropolis", "alternating"])
def test_returns_take_one_over_the_mass(name):
    # Kac: π(B) E[return to B] = 1, a return being one step and then a passage.
    chain = KERNELS[name].chain(rbm(2, 3))
    target = jnp.asarray(two_sets(32)[0])
    after = chain.apply(hitting_times(chain, target))
    assert_close(
        jnp.sum(jnp.where(target, chain.stationary * (1 + after), 0)), 1, DIRECT
    )


@pytest.mark.quick(1)
@pytest.mark.parametrize("case", COLD, ids=lambda c: c["kernel"])
def test_the_bound_holds_for_times_of_1e20_steps(case):
    leaves = (case["weights"], case["visible_bias"], case["hidden_bias"])
    model = tq.RBM(*(x if x is None else jnp.asarray(x) for x in leaves))
    chain = KERNELS[case["kernel"]].chain(model)
    exact = np.array(case["hitting_times"])
    target = jnp.arange(16) == case["target"]
    times = hitting_times(chain, target)
    error = np.abs(np.asarray(times) / np.where(exact > 0, exact, 1) - (exact > 0))
    bound = hitting_error(chain, target, times)
    assert error.max() <= bound < 1e-7
    # Negative controls: times that are wrong by a thousandth are told.
    assert 1e-3 <= hitting_error(chain, target, 1.001 * times) < 2e-3
    assert hitting_error(chain, target, -times) == jnp.inf
    assert hitting_error(chain, target, times + 1) == jnp.inf
    assert hitting_error(chain, target, 3 * times) >= 2


@pytest.mark.slow
def test_derivatives():
    flat, build = flatten(rbm(2, 2, biased=True))
    one, other = map(jnp.asarray, two_sets(16))

    @jax.jit
    def fn(flat):
        return passage_times(KERNELS["gibbs"].chain(build(flat)), one, other).forth

    direction = jr.normal(jr.key(0), flat.shape)
    slope = jax.grad(fn)(flat) @ direction
    assert_close(slope, central_difference(fn, flat, direction), DIFFERENCES)


@pytest.mark.slow
@pytest.mark.parametrize("n", [14, pytest.param(16, marks=pytest.mark.slow)])
def test_without_a_matrix(n):
    chain = KERNELS["gibbs"].chain(machine(n, scale=1.2 / np.sqrt(n)))
    found = tq.markov.basins(chain, least=0.5)
    assert found.mirror[0] == 1
    one, other = (jnp.asarray(found.label == k) for k in range(2))
    times = passage_times(chain, one, other)
    # Mirror images; and each is certified.
    assert_close(times.forth, times.back, DIRECT)
    assert times.forth > 50 and max(times.forth_error, times.back_error) < 1e-9


@pytest.mark.slow
def test_sets_that_are_none_say_so():
    chain = KERNELS["gibbs"].chain(rbm(2, 2))
    some, none = jnp.arange(16) < 3, jnp.zeros(16, bool)
    for sets, message in (
        ((some, some), "have a state in common"),
        ((none, some), "The first set has no state in it"),
        ((some, none), "The second set has no state in it"),
    ):
        with pytest.raises(RuntimeError, match=message):
            passage_times(chain, *sets)
    with pytest.raises(RuntimeError, match="The target has no state in it"):
        hitting_error(chain, none, jnp.ones(16))
