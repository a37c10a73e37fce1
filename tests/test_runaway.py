"""The example of a loss without a minimum: its bounds, its students, its report."""

import json
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import runaway
from helpers import IDENTITY, assert_close
from hypothesis import given, settings, strategies as st

import trainq as tq


def laws(m, seed):
    """Of visible states, and symmetric."""
    weights = np.random.default_rng(seed).gamma(0.3, size=2**m)
    weights = weights + weights[::-1]
    return weights / weights.sum()


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_bounds_are_those_of_a_count_by_hand(m):
    law = laws(m, m)
    found = runaway.bounds(law)
    states = oracle.states(m)
    pairs = {tuple(v): law[i] + law[-1 - i] for i, v in enumerate(states)}
    best = max(pairs, key=lambda v: pairs[v])
    assert found.state in (best, tuple(-x for x in best))
    assert_close(found.lower, 1 - pairs[best], IDENTITY)
    least = np.inf
    for order in permutations(range(m)):
        mean = 0.0
        for probability, v in zip(law, states, strict=True):
            around = [v[i] * best[i] for i in order]
            walls = sum(around[i] != around[i - 1] for i in range(m))
            mean += probability * walls / 2
        least = min(least, mean)
    assert_close(found.upper, least, IDENTITY)
    assert found.lower <= found.upper + IDENTITY
    # On a circle of three every state is one arc.
    if m <= 3:
        assert_close(found.lower, found.upper, IDENTITY)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_frozen_student_has_the_slope_that_is_derived(seed):
    law = jnp.asarray(laws(4, seed))
    found = runaway.bounds(law)
    slope = runaway.slope(runaway.on_the_circle(found), law)[2]
    # What is left falls as exp(-4 t), t = 8, times how many excitations there are.
    assert_close(slope, found.upper, 1e-6)
    assert runaway.slope(runaway.aligned(found), law)[2] > found.lower


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 12.0), st.booleans())
def test_no_student_is_below_the_lower_bound(seed, scale, is_frozen):
    """log Q ≤ log(K m / ε) and KL ≥ (1 - p*) log(1/ε) - log 2, for any weights."""
    m, random = 3, np.random.default_rng(seed)
    law = jnp.asarray(laws(m, seed))
    found = runaway.bounds(law)
    weights = scale * random.standard_normal((m, m)) / m
    if is_frozen:
        weights = 0.01 * weights + scale * np.asarray(runaway.on_the_circle(found))
    model = tq.RBM(jnp.asarray(weights))
    # Of the least likely states alone: 1 less the pair would lose the digits.
    pairs = np.sort(np.asarray(tq.visible_distribution(model)).reshape(-1))[:-2]
    rest = np.log(1 / pairs.sum())
    window = runaway.KERNEL.steps(model, sweeps=runaway.WINDOW_SWEEPS)
    kl, log_q = BOTH(model, law)
    assert log_q <= np.log(window * m) + rest
    assert kl >= found.lower * rest - np.log(2) - IDENTITY


BOTH = jax.jit(runaway.both)


@pytest.mark.slow
def test_the_script_writes_what_it_shows(tmp_path, monkeypatch, capsys):
    # Optax does not pass the strict settings of `conftest.py`.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        check_script(tmp_path, monkeypatch, capsys)


def check_script(tmp_path, monkeypatch, capsys):
    few = runaway.Constants(multiples=(2.0,), starts=1, trained=(4, 2))
    monkeypatch.setattr(runaway, "CONSTANTS", few)
    monkeypatch.setattr(runaway.exp9, "PROTOCOL", SMALL)
    runaway.main(["--steps", "4", "--seeds", "1", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "summary.json").read_text())
    assert len(record["training"]) == 2 and len(record["rays"]) == SMALL.teachers
    assert (tmp_path / "runaway.svg").stat().st_size > 1000
    counts = record["ladder"]["two-layer"]["counts"]
    assert counts["3.0"]["no minimum"] == 1 and counts["0.01"]["bounded"] == 1
    assert "has no minimum" in capsys.readouterr().out


SMALL = runaway.exp9.Constants(cells=((4, 2),))
