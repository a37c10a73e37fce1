"""The exp9 example: its constants, its judge, its training loop, its command line."""

import dataclasses
import io
import json
import math
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from functools import partial

import equinox as eqx
import exp9
import exp9_oracle
import exp9_report as report
import exp9_support as support
import exp9_verdict as verdict
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import DIRECT, IDENTITY, assert_close
from rich.console import Console

import trainq as tq


ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = json.loads((ROOT / "tests/data/golden.json").read_text())
PROTOCOL = exp9.PROTOCOL
PAIRS = [(cell, name) for cell in PROTOCOL.cells for name in ("c50", "c25")]
CHECKS = ("row_sums", "stationarity", "detailed_balance", "symmetry", "cheeger")


@pytest.fixture(autouse=True)
def relaxed():
    """Optax itself does not pass the strict settings of `conftest.py`."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def lab():
    """What one test has compiled serves the next."""
    return support.Lab()


# ---------------------------------------------------------------------------- constants


def test_constants_are_those_of_the_protocol():
    expected = {
        "cells": ((4, 2), (4, 3), (5, 2), (5, 3)),
        "teachers": 4,
        "teacher_beta": 3.0,
        "network_width": 16,
        "network_depth": 1,
        "weight_scale": 0.1,
        "lambdas": (0.0, 0.1, 0.01),
        "window_sweeps": 250,
        "steps": 2000,
        "learning_rate": 1e-3,
        "crossings": (0.5, 0.25),
        "steering_bar": 1.5,
        "pairs_above_one": 6,
        "value_tolerance": 1e-10,
        "difference_tolerance": 1e-4,
        "directions": 5,
    }
    found = dataclasses.asdict(PROTOCOL)
    assert {name: found[name] for name in expected} == expected
    assert PROTOCOL.checkpoints == ("init", "c50", "c25", "final")
    assert PROTOCOL.seeds[0] == 0 and len(set(PROTOCOL.seeds)) >= 5
    assert exp9.KERNEL == tq.RandomScanGibbs()


def test_published_numbers_are_those_of_the_protocol():
    expected = {
        "outcome": 3,
        "value_agreement": 2.26e-14,
        "median": 1.125,
        "above_one": 7,
        "secondary_median": 1.0002,
        "secondary_above_one": 4,
        "detailed_balance": 4.16e-17,
        "cheeger_margin": 3.68e-3,
        "signal_ratios": (0.96, 2.05),
        "noise_ratios": (0.87, 1.04),
        "evaluations": 16_000,
        "wall_seconds": 1913.0,
    }
    assert verdict.PUBLISHED.items() >= expected.items()
    differences = verdict.PUBLISHED["differences"]
    assert list(differences.values()) == [2.51e-9, 2.53e-9, 1.07e-9, 1.96e-9]
    assert list(differences) == [verdict.cell_name(cell) for cell in PROTOCOL.cells]


def test_constants_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError, match="steps"):
        PROTOCOL.steps = 3


@pytest.mark.parametrize("field", dataclasses.asdict(PROTOCOL))
def test_hash_depends_on_every_constant(field):
    value = getattr(PROTOCOL, field)
    if isinstance(value, tuple | str):
        other = value[:-1]
    else:
        other = value + 1
    changed = dataclasses.replace(PROTOCOL, **{field: other})
    assert changed.sha256 != PROTOCOL.sha256
    assert exp9.Constants().sha256 == PROTOCOL.sha256


@pytest.mark.parametrize("m, s", [(4, 2), (5, 3)])
def test_task_is_that_of_the_protocol(m, s):
    task, network = exp9.make_task(0, m, s)
    assert_close(task.codes, np.eye(4), IDENTITY)
    assert task.laws.shape == (4, 2**m)
    assert not np.allclose(task.laws[0], task.laws[1])
    # A sweep of single-site updates visits each of the 2m units once.
    assert task.predictor == tq.QStruct(tq.RandomScanGibbs(), 250 * 2 * m)
    student = network(task.codes[0])
    assert student.weights.shape == (m, m) and student.is_symmetric
    assert 0.01 < jnp.std(student.weights) < 1


# ---------------------------------------------------------------- the NumPy yardstick


@pytest.mark.parametrize(
    "cell", [c for c in GOLDEN if c["kernel"] == "gibbs" and not c["biased"]]
)
def test_oracle_agrees_with_stored_values_and_with_trainq(cell):
    weights, data = np.array(cell["weights"]), np.array(cell["data"])
    signal, noise = exp9_oracle.structural_q(weights, data, cell["window"])
    assert_close(signal, cell["signal"], DIRECT)
    assert_close(noise * cell["window"] / 2, cell["t_o"], DIRECT)
    assert_close(signal / noise, cell["q_struct"], DIRECT)
    predictor = eqx.filter_jit(tq.QStruct(tq.RandomScanGibbs(), cell["window"]))
    ours = predictor(tq.RBM(jnp.asarray(weights)), jnp.asarray(data))
    assert_close(ours.q, signal / noise, DIRECT)


def test_pooled_q_is_that_of_the_oracle(lab):
    task, network = exp9.make_task(0, 2, 2)
    found, _ = lab("evaluate", exp9.evaluate, network, task, jnp.asarray(0.0))
    laws, window = np.asarray(task.laws), task.predictor.window
    weights = np.asarray(found["weights"])
    signal, noise = sum(
        np.array(exp9_oracle.structural_q(w, law, window))
        for w, law in zip(weights, laws, strict=True)
    )
    assert_close(found["signal"], signal, DIRECT)
    assert_close(found["noise"], noise, DIRECT)
    assert_close(found["q"], signal / noise, DIRECT)
    pooled = exp9_oracle.pooled_structural_q(weights, laws, window)
    assert_close(found["q"], pooled, DIRECT)


# ----------------------------------------------------------------------------- training


def plain_loop(task, network, weight, steps):
    """Adam, step by step, and the networks and KL before each step."""
    optimiser = optax.adam(1e-3)
    state = optimiser.init(eqx.filter(network, eqx.is_inexact_array))

    def loss(network):
        kl, signal, mse = 0.0, 0.0, 0.0
        for code, law in zip(task.codes, task.laws, strict=True):
            snr = task.predictor(network(code), law)
            kl += tq.kl_divergence(network(code), law) / len(task.codes)
            signal, mse = signal + snr.signal, mse + snr.mse
        return kl - weight * jnp.log(signal / mse), kl

    @eqx.filter_jit
    def step(network, state):
        (_, kl), grads = eqx.filter_value_and_grad(loss, has_aux=True)(network)
        updates, state = optimiser.update(grads, state)
        return eqx.apply_updates(network, updates), state, kl

    networks, curve = [network], []
    for _ in range(steps):
        network, state, kl = step(network, state)
        networks.append(network)
        curve.append(float(kl))
    return networks, np.array(curve)


def assert_same_network(ours, plain):
    arrays = [eqx.filter(network, eqx.is_inexact_array) for network in (ours, plain)]
    for a, b in zip(*map(jax.tree.leaves, arrays), strict=True):
        assert_close(a, b, DIRECT)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_snapshots_are_the_networks_at_the_first_step_below_the_level(lab, weight):
    task, network = exp9.make_task(0, 2, 2)
    steps = 150
    networks, curve = plain_loop(task, network, weight, steps)
    state, curves, stopped = exp9.train(lab, task, network, weight, steps, str)
    assert stopped is None
    assert_close(curves["kl"], curve, DIRECT)
    assert_same_network(state.network, networks[steps])
    for index, level in enumerate((0.5, 0.25)):
        below = [step for step, kl in enumerate(curve) if kl <= level * curve[0]]
        # The augmented arm is not down to one quarter by then.
        assert bool(below) == (weight == 0 or level == 0.5)
        assert state.crossed[index] == (below[0] if below else -1)
        if below:
            snapshot = jax.tree.map(lambda x, i=index: x[i], state.snapshots)
            assert_same_network(snapshot, networks[below[0]])


def test_the_baseline_does_not_evaluate_q_in_its_loop(lab, monkeypatch):
    def refuse(*_):
        raise AssertionError("Q was evaluated")

    objectives = []

    def spy(activity, function, *args):
        if activity == "train":
            objectives.append(args[3])
        return lab(activity, function, *args)

    task, network = exp9.make_task(0, 2, 2)
    for weight in (0.0, 0.1):
        exp9.train(spy, task, network, weight, 10, str)
    assert objectives == [exp9.plain_loss, exp9.augmented_loss]
    monkeypatch.setattr(exp9, "pooled_snr", refuse)
    args = network, task, jnp.asarray(0.0)
    _, record = eqx.filter_eval_shape(exp9.plain_loss, *args)
    assert set(record) == {"kl"}


def test_training_that_diverges_says_at_which_step_and_why(lab):
    task, network = exp9.make_task(0, 2, 2)
    broken = jax.tree.map(
        lambda x: x * jnp.nan if eqx.is_inexact_array(x) else x, network
    )
    _, curves, stopped = exp9.train(lab, task, broken, 0.1, 10, str)
    assert stopped.startswith("step 0 to 10: A parameter of this RBM is not finite")
    assert "kl" not in curves


def test_differences_are_small_and_a_wrong_gradient_is_seen(monkeypatch, lab):
    task, network = exp9.make_task(0, 2, 2)

    def evaluated(network):
        return lab("differences", evaluate, network, task, jnp.asarray(0.1))

    evaluate = exp9.evaluate
    errors = exp9.difference_errors(evaluated, network, jax.random.key(0))
    assert errors.shape == (len(PROTOCOL.difference_steps), PROTOCOL.directions)
    assert errors.min(axis=0).max() < 1e-6

    right = exp9.augmented_loss

    def wrong(network, task, weight):
        loss, record = right(network, task, weight)
        extra = 1e-2 * jnp.sum(network.mlp.layers[0].weight)
        return loss + extra - jax.lax.stop_gradient(extra), record

    monkeypatch.setattr(exp9, "augmented_loss", wrong)
    evaluate = partial(exp9.evaluate)  # compiled anew
    errors = exp9.difference_errors(evaluated, network, jax.random.key(0))
    assert errors.min(axis=0).max() > PROTOCOL.difference_tolerance


# ---------------------------------------------------------------------------- the judge


def certificate(without=()):
    return {
        "applicable": {name: name not in without for name in CHECKS},
        "residuals": {name: 1e-17 for name in CHECKS if name not in without},
        "gap": 0.02,
        "conductance": 0.05,
        "cheeger_lower": 0.04,
        "cheeger_upper": 0.15,
    }


def point(ratio=1.0, *, step=60, error=0.0):
    """A checkpoint with `ratio` times the Q of the default."""
    signal, noise = 8 * ratio, 4.0
    q = signal / noise
    return verdict.Checkpoint(
        step=step,
        kl=0.5,
        q=q,
        signal=signal,
        noise=noise,
        q_numpy=q / (1 + error),
        certificates=[certificate() for _ in range(4)],
    )


def make_runs(primary=(1.1,) * 8, secondary=(1.0,) * 8):
    """Twelve runs that pass P1, P3 and P4, with the given ratios at the eight pairs."""
    runs = []
    for index, cell in enumerate(PROTOCOL.cells):
        for weight, ratios in ((0.0, (1.0,) * 8), (0.1, primary), (0.01, secondary)):
            early, late = ratios[2 * index : 2 * index + 2]
            final = dataclasses.replace(point(1e7 if weight else 1.0), q_numpy=None)
            checkpoints = {
                "init": dataclasses.replace(point(), q_numpy=None),
                "c50": point(early),
                "c25": point(late, step=90),
                "final": final,
            }
            run = verdict.Run(
                seed=0,
                cell=cell,
                weight=weight,
                evaluations=2000 if weight else 0,
                stopped=None,
                seconds=1.0,
                checkpoints=checkpoints,
                differences=[1e-9] * 5 if weight == 0.1 else None,
                curves={"kl": np.ones(3)},
            )
            runs.append(run)
    return runs


def find(runs, cell, weight):
    return next(run for run in runs if run.cell == cell and run.weight == weight)


def judge(runs, halt=None):
    return verdict.judge(runs, PROTOCOL, halt)


@pytest.mark.parametrize(
    "ratios, median, above_one, outcome",
    [
        ((2.0,) * 6 + (0.5,) * 2, 2.0, 6, 2),
        ((1.5,) * 8, 1.5, 8, 2),
        ((1.6,) * 5 + (0.9,) * 3, 1.6, 5, 3),
        ((1.2,) * 8, 1.2, 8, 3),
        ((1.4, 1.4, 1.4, 1.4, 1.5, 9.0, 9.0, 9.0), 1.45, 8, 3),
        ((1.0,) * 8, 1.0, 0, 3),
        ((0.5,) * 4 + (4.0,) * 4, 2.25, 4, 3),
    ],
)
def test_steering_needs_the_median_and_the_count(ratios, median, above_one, outcome):
    found = judge(make_runs(ratios))
    p2 = found["p2"]
    assert p2["median"] == pytest.approx(median, rel=IDENTITY)
    assert (p2["above_one"], p2["present"], p2["expected"]) == (above_one, 8, 8)
    assert p2["pass"] == (outcome == 2)
    assert found["outcome"] == outcome
    assert all(found[gate]["pass"] for gate in ("p1", "p3", "p4"))


def test_all_there_is_to_count_is_counted():
    found = judge(make_runs())
    assert found["p1"]["values"]["compared"] == found["p1"]["values"]["expected"] == 24
    assert found["p3"]["crossed"] == found["p3"]["expected"] == 12
    assert found["p4"]["certified"] == found["p4"]["expected"] == 192
    assert found["evaluations"] == 16_000
    assert found["verdict"] == "Outcome 3: feasible, does not steer"


@pytest.mark.parametrize(
    "weight, missing", [(0.1, "arm"), (0.0, "baseline"), (None, "arm and baseline")]
)
def test_a_missing_pair_is_reported_and_not_replaced(weight, missing):
    runs = make_runs((1.1, 1.2, 1.3, 1.4, 1.5, 9.9, 1.6, 1.7))
    for run in runs:
        if run.cell == (5, 2) and weight in (run.weight, None):
            run.checkpoints["c25"] = None
    found = judge(runs)
    p2 = found["p2"]
    gap = [pair for pair in p2["pairs"] if pair["ratio"] is None]
    assert [(p["cell"], p["checkpoint"], p["missing"]) for p in gap] == [
        ((5, 2), "c25", missing)
    ]
    assert p2["median"] == pytest.approx(1.4, rel=IDENTITY)
    assert (p2["present"], p2["expected"], p2["above_one"]) == (7, 8, 7)
    assert found["decomposition"]["largest"]["ratio"] == pytest.approx(1.7)
    assert found["outcome"] == 4


@pytest.mark.parametrize("weight", PROTOCOL.lambdas)
def test_every_arm_must_cross_even_where_the_verdict_arm_steers(weight):
    runs = make_runs((2.0,) * 8)
    find(runs, (4, 3), weight).checkpoints["c25"] = None
    found = judge(runs)
    assert found["p2"]["pass"] and found["p1"]["pass"]
    assert not found["p3"]["pass"]
    assert found["p3"]["missing"] == [f"m4_s3_lambda{weight:g}"]
    assert found["p3"]["primary_crossed"] == (3 if weight == 0.1 else 4)
    assert found["outcome"] == 4


def spoil_value(runs):
    find(runs, (4, 2), 0.01).checkpoints["c25"] = point(error=1.01e-10)


def spoil_reference(runs):
    bad = dataclasses.replace(point(), q_numpy=math.nan)
    find(runs, (5, 3), 0.0).checkpoints["c50"] = bad


def spoil_difference(runs):
    find(runs, (5, 2), 0.1).differences[3] = 1.01e-4


def spoil_one_direction(runs):
    find(runs, (5, 2), 0.1).differences[3] = math.nan


def spoil_curve(runs):
    find(runs, (4, 3), 0.0).curves["kl"][1] = np.inf


def spoil_final(runs):
    find(runs, (4, 3), 0.1).checkpoints["final"].kl = math.nan


def stop_early(runs):
    find(runs, (4, 3), 0.01).stopped = "step 0 to 10: diverged"


def drop_a_run(runs):
    del runs[4]


def drop_all_comparisons(runs):
    for run in runs:
        run.checkpoints["c50"] = run.checkpoints["c25"] = None


SPOILERS = [
    spoil_value,
    spoil_reference,
    spoil_difference,
    spoil_one_direction,
    spoil_curve,
    spoil_final,
    stop_early,
    drop_a_run,
    drop_all_comparisons,
]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_feasibility_fails_for_every_reason_and_goes_before_the_other_gates(spoil):
    runs = make_runs((2.0,) * 8)
    spoil(runs)
    found = judge(runs)
    assert not found["p1"]["pass"]
    assert found["outcome"] == 1
    find(runs, (5, 3), 0.0).checkpoints["c25"] = None
    assert judge(runs)["outcome"] == 1


def test_errors_at_the_tolerances_still_pass():
    runs = make_runs()
    find(runs, (4, 2), 0.01).checkpoints["c25"] = point(error=0.99e-10)
    find(runs, (5, 2), 0.1).differences = [0.0, 1e-4]
    p1 = judge(runs)["p1"]
    assert p1["pass"]
    assert p1["values"]["worst"] == pytest.approx(0.99e-10, rel=1e-4)  # it was rounded
    assert p1["differences"]["worst_per_cell"]["m5_s2"] == 1e-4


@pytest.mark.parametrize("check", ["detailed_balance", "cheeger", "symmetry"])
def test_a_check_that_did_not_apply_is_not_verified(check):
    runs = make_runs((2.0,) * 8)
    runs[3].checkpoints["init"].certificates[2] = certificate(without=(check,))
    found = judge(runs)
    assert not found["p4"]["pass"] and found["p4"]["failed"] == 0
    assert found["outcome"] == 1


def test_a_halt_is_outcome_1_and_says_why():
    halt = "seed0 at c50, teacher 2: failed symmetry"
    found = judge(make_runs((2.0,) * 8), halt)
    assert not found["p4"]["pass"] and "teacher 2" in found["p4"]["halted"]
    assert (found["p4"]["failed"], found["p4"]["symmetry_failures"]) == (1, 1)
    assert found["outcome"] == 1


def test_diagnostics_report_the_worst_of_all_certificates():
    runs = make_runs()
    row = runs[7].checkpoints["final"].certificates[3]
    row["residuals"]["detailed_balance"] = 3e-16
    row["cheeger_upper"] = 0.01
    p4 = judge(runs)["p4"]
    assert p4["worst_detailed_balance"] == 3e-16
    assert p4["smallest_cheeger_margin"] == p4["smallest_cheeger_upper"] == 0.01
    assert p4["smallest_cheeger_lower"] == 0.04


def test_certificates_are_rows_of_the_checks_that_apply():
    row = verdict.certificate_row(tq.certify(exp9.KERNEL, tq.RBM(0.3 * jnp.eye(2))))
    assert set(row["residuals"]) == set(CHECKS) and all(row["applicable"].values())
    assert row["cheeger_lower"] == row["conductance"] - row["gap"] / 2
    assert row["cheeger_upper"] == math.sqrt(2 * row["gap"]) - row["conductance"]
    one_way = tq.certify(tq.AlternatingBlockGibbs(), tq.RBM(0.3 * jnp.eye(2)))
    row = verdict.certificate_row(one_way)
    assert not row["applicable"]["detailed_balance"] and "gap" not in row


def test_finals_never_enter_the_verdict():
    runs = make_runs()
    before = judge(runs)
    for run in runs:
        run.checkpoints["final"].q *= 1e-12 if run.weight else 1e12
        run.checkpoints["final"].signal *= 1e3
    after = judge(runs)
    assert before["finals"] != after["finals"]
    del before["finals"], after["finals"]
    assert before == after


def test_finals_stand_beside_the_matched_crossings():
    finals = judge(make_runs((1.25,) * 8))["finals"]
    assert finals["in_verdict"] is False
    for row in finals["cells"]:
        assert row["c25"]["ratio"] == pytest.approx(1.25)
        assert row["final"]["ratio"] == pytest.approx(1e7)


def test_every_ratio_is_that_of_the_signals_over_that_of_the_noises():
    runs = make_runs()
    values = iter(np.random.default_rng(0).uniform(0.5, 2, 100))
    for run in runs:
        for name in ("c50", "c25"):
            signal, noise = next(values), next(values)
            at = run.checkpoints[name]
            at.signal, at.noise, at.q = signal, noise, signal / noise
    found = judge(runs)["decomposition"]
    assert len(found["pairs"]) == 16
    for pair in found["pairs"]:
        parts = pair["signal_ratio"] / pair["noise_ratio"]
        assert pair["ratio"] == pytest.approx(parts, rel=IDENTITY)
    primary = [pair for pair in found["pairs"] if pair["weight"] == 0.1]
    assert found["largest"] == max(primary, key=lambda pair: pair["ratio"])
    signals = [pair["signal_ratio"] for pair in primary]
    assert found["signal_ratios"] == [min(signals), max(signals)]


def test_the_ratio_compares_the_arm_with_the_baseline_at_the_same_crossing():
    runs = make_runs()
    run, base = find(runs, (4, 3), 0.1), find(runs, (4, 3), 0.0)
    run.checkpoints["c50"], base.checkpoints["c50"] = point(6.0), point(2.0)
    pairs = judge(runs)["p2"]["pairs"]
    found = {(tuple(p["cell"]), p["checkpoint"]): p["ratio"] for p in pairs}
    assert list(found) == PAIRS
    assert found[(4, 3), "c50"] == pytest.approx(3.0)
    assert found[(4, 3), "c25"] == pytest.approx(1.1)


def test_dose_response_goes_up_in_lambda():
    secondary = (0.8, 0.9, 0.95, 1.0, 1.02, 1.03, 1.05, 1.2)
    doses = judge(make_runs((1.3,) * 8, secondary))["dose_response"]
    assert [dose["weight"] for dose in doses] == [0.01, 0.1]
    low, high = doses
    assert low["median"] == pytest.approx(1.01, rel=IDENTITY)
    assert (low["above_one"], low["present"]) == (4, 8)
    assert (low["smallest"], low["largest"]) == pytest.approx((0.8, 1.2))
    assert high["median"] == pytest.approx(1.3) and high["above_one"] == 8


def test_spread_over_seeds_is_that_of_the_medians():
    runs = [make_runs((ratio,) * 8) for ratio in (1.2, 1.6, 1.0)]
    judged = dict(enumerate(map(judge, runs)))
    spread = verdict.spread(judged)
    assert [row["outcome"] for row in spread["rows"]] == [3, 2, 3]
    found = spread["median"]
    middle, ends = found["median"], (found["smallest"], found["largest"])
    assert middle == pytest.approx(1.2) and ends == pytest.approx((1.0, 1.6))
    assert spread["outcomes"] == {1: 0, 2: 1, 3: 2, 4: 0}


def test_nothing_at_all_is_outcome_1():
    assert judge([], halt="at once")["outcome"] == 1


def test_a_saved_run_comes_back_as_it_was(tmp_path):
    run = make_runs()[1]
    run.checkpoints["c25"] = None
    run.checkpoints["final"].q = math.nan
    run.differences = [1e-9, math.nan]
    stamp = {"constants": "a", "jax": "1"}
    run.save(tmp_path / "run.npz", stamp)
    back = verdict.Run.load(tmp_path / "run.npz", stamp)
    assert repr(back.summary()) == repr(run.summary())  # nan is not equal to itself
    assert back.finite is False
    assert_close(back.curves["kl"], run.curves["kl"], IDENTITY)
    assert verdict.Run.load(tmp_path / "run.npz", stamp | {"jax": "2"}) is None


# ------------------------------------------------- the command line, on two tiny cells


SUMMARY_KEYS = {
    "outcome",
    "p1",
    "p2",
    "p3",
    "p4",
    "decomposition",
    "dose_response",
    "finals",
    "evaluations",
    "constants",
    "versions",
    "wall_seconds",
}
FIGURES = ("trajectories", "ratios", "dose_response", "finals")


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


def read(out):
    """`summary.json`, as strict JSON."""
    text = (out / "summary.json").read_text()
    return json.loads(text, parse_constant=refuse_constant)


def timeless(summary):
    """What does not depend on when and how fast a summary was made."""
    clocks = ("wall_seconds", "reused_seconds", "timing")
    return {key: value for key, value in summary.items() if key not in clocks}


@pytest.fixture
def tiny(monkeypatch):
    """Two cells of one shape, so that everything is compiled only once."""
    constants = dataclasses.replace(PROTOCOL, cells=((2, 1), (2, 2)))
    monkeypatch.setattr(exp9, "PROTOCOL", constants)


@pytest.fixture
def one_lab(monkeypatch, lab):
    """What was compiled for one call of `main` serves the next, with a fresh clock."""

    def fresh():
        lab.clock = support.Clock()
        return lab

    monkeypatch.setattr(support, "Lab", fresh)


def run(out, *options):
    return exp9.main(["--steps", "3", "--out", str(out), *options])


@pytest.fixture
def finished(tmp_path, tiny, one_lab, monkeypatch):
    """The folder of a finished run, without figures, which take the longest."""
    monkeypatch.setattr(exp9.figures, "draw", lambda *_: [])
    assert run(tmp_path) == 0
    return tmp_path


def test_a_short_run_leaves_everything_it_should(tmp_path, tiny, one_lab, capsys):
    assert run(tmp_path) == 0
    shown, summary = capsys.readouterr().out, read(tmp_path)
    assert set(summary) >= SUMMARY_KEYS
    assert summary["label"] == "short run, not the protocol"
    assert "(short run, not the protocol)" in shown
    assert summary["verdict"] in shown
    assert summary["evaluations"] == 2 * 2 * 3
    sha = dataclasses.replace(exp9.PROTOCOL, steps=3).sha256
    assert summary["constants"]["sha256"] == sha
    assert summary["constants"]["steps"] == 3
    with np.load(tmp_path / "trajectories.npz") as curves:
        assert curves["constants"] == sha
        assert curves["seed0_m2_s2_lambda0.1/kl"].shape == (3,)
        assert curves["seed0_m2_s2_lambda0.1/q"].shape == (3,)
    files = ["summary.json", "trajectories.npz", *(f"{name}.png" for name in FIGURES)]
    for file in files:
        assert (tmp_path / file).stat().st_size > 0
        assert str(tmp_path / file) in shown
    # Nothing crosses in three steps: every pair is missing, and P1 has shown nothing.
    assert summary["p2"]["present"] == 0 and len(summary["p2"]["pairs"]) == 4
    assert summary["p4"]["pass"] and summary["p4"]["certified"] == 2 * 3 * 2 * 4
    assert summary["outcome"] == 1


def test_seeds_repeat_everything_and_the_first_gives_the_verdict(
    tmp_path, tiny, one_lab
):
    assert run(tmp_path, "--seeds", "2", "--lambdas", "0.1") == 0
    summary = read(tmp_path)
    assert [row["seed"] for row in summary["seeds"]["rows"]] == [0, 1]
    assert [one["seed"] for one in summary["runs"]] == [0] * 4 + [1] * 4
    firsts = [one["checkpoints"]["final"]["q"] for one in summary["runs"][1:4:2]]
    assert summary["finals"]["q_primary"] == [min(firsts), max(firsts)]
    assert (tmp_path / "seeds.png").exists()


def test_the_report_fits_80_columns(finished, monkeypatch):
    constants = dataclasses.replace(exp9.PROTOCOL, steps=3)
    summary = read(finished)
    for seeds in (None, verdict.spread({0: summary, 1: judge(make_runs())})):
        page = io.StringIO()
        monkeypatch.setattr(report, "console", Console(file=page, width=80))
        report.show(summary | {"seeds": seeds}, constants, [])
        lines = page.getvalue().splitlines()
        assert len(lines) > 50 and max(map(len, lines)) <= 80
        assert "…" not in page.getvalue()  # rich cuts what does not fit


def test_resuming_keeps_finished_runs_and_gives_the_same_numbers(
    finished, monkeypatch, capsys
):
    first = read(finished)

    def refuse(*_):
        raise AssertionError("a finished run was done again")

    monkeypatch.setattr(exp9, "run_arm", refuse)
    assert run(finished, "--resume") == 0
    assert capsys.readouterr().out.count("from disk") >= 6
    assert timeless(read(finished)) == timeless(first)
    assert read(finished)["reused_seconds"] > 0


def test_resuming_refuses_a_folder_made_with_other_constants(finished, capsys):
    before = (finished / "summary.json").read_text()
    with pytest.raises(SystemExit) as stop:
        exp9.main(["--steps", "4", "--out", str(finished), "--resume"])
    assert stop.value.code == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "its runs were made with other constants (steps: 3 there, 4 here)" in message
    assert (finished / "summary.json").read_text() == before


def test_an_interrupt_loses_only_the_run_in_flight(
    finished, tmp_path, monkeypatch, capsys
):
    out, run_arm, done = tmp_path / "interrupted", exp9.run_arm, []

    def interrupted(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(run_arm(*args))
        return done[-1]

    monkeypatch.setattr(exp9, "run_arm", interrupted)
    assert run(out) == 130
    options = ["--steps", "3", "--out", str(out), "--resume"]
    command = shlex.join(["python", "examples/exp9.py", *options])
    assert command in capsys.readouterr().out
    names = sorted(path.stem for path in out.glob("runs/*/*.npz"))
    assert names == ["seed0_m2_s1_lambda0", "seed0_m2_s1_lambda0.1"]
    assert not (out / "summary.json").exists()

    done.clear()
    monkeypatch.setattr(exp9, "run_arm", lambda *args: done.append(1) or run_arm(*args))
    assert run(out, "--resume") == 0
    assert len(done) == 4
    resumed, expected = read(out), read(finished)
    for summary in (resumed, expected):
        for one in summary["runs"]:
            del one["seconds"]
    assert timeless(resumed) == timeless(expected)


def test_a_failed_certificate_halts_the_experiment(
    tmp_path, tiny, one_lab, monkeypatch, capsys
):
    # The flip symmetry holds to the last bit, detailed balance only up to rounding.
    monkeypatch.setattr(tq, "certify", partial(tq.certify, tolerance=1e-30))
    monkeypatch.setattr(exp9, "certify", partial(exp9.certify))  # compiled anew
    assert run(tmp_path) == 1
    shown = " ".join(capsys.readouterr().out.split())
    where = "seed0_m2_s1_lambda0 at init, teacher 0: failed"
    assert "HALT" in shown and where in shown
    assert "Outcome 1: not feasible, or not verified" in shown
    summary = read(tmp_path)
    assert summary["outcome"] == 1
    assert summary["halt"] == summary["p4"]["halted"]
    assert summary["halt"].startswith(where)
    assert "detailed_balance (residual" in summary["halt"]
    assert "symmetry" not in summary["halt"]
    assert not list(tmp_path.glob("runs/*/*.npz"))


@pytest.mark.parametrize(
    "options, message",
    [
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--steps -5", "--steps must be at least 1, got -5"),
        ("--steps many", "invalid int value: 'many'"),
        ("--seeds 0", "--seeds must lie between 1 and 20"),
        ("--seeds 21", "--seeds must lie between 1 and 20"),
        ("--lambdas nan", "--lambdas must be finite and not negative, got [nan]"),
        ("--lambdas inf", "--lambdas must be finite and not negative, got [inf]"),
        ("--lambdas 0.1 -0.1", "--lambdas must be finite and not negative"),
        ("--lambdas 0.1 0.1", "--lambdas must be positive and distinct"),
        ("--lambdas 0.1 0.10000001", "--lambdas must be positive and distinct"),
        ("--lambdas 0", "--lambdas must be positive and distinct"),
        ("--lambdas", "expected at least one argument"),
        ("--out {file}", "--out must be a folder"),
        ("--cells 4", "unrecognized arguments: --cells 4"),
    ],
)
def test_a_bad_option_exits_with_2_and_says_what_is_allowed(
    options, message, tmp_path, capsys
):
    file = tmp_path / "file"
    file.touch()
    argv = ["--out", str(tmp_path / "out"), *options.format(file=file).split()]
    with pytest.raises(SystemExit) as stop:
        exp9.main(argv)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_options_replace_steps_and_lambdas_and_nothing_else():
    argv = ["--steps", "7", "--lambdas", "0", "0.3", "--seeds", "5"]
    args, constants = support.parse(argv, "", PROTOCOL)
    changed = {"steps": 7, "lambdas": (0.0, 0.3)}
    assert constants == dataclasses.replace(PROTOCOL, **changed)
    assert args.seeds == 5
    assert support.parse([], "", PROTOCOL)[1] == PROTOCOL


def test_only_the_protocol_is_labelled_as_such():
    replace = partial(dataclasses.replace, PROTOCOL)
    assert verdict.label(PROTOCOL, PROTOCOL) == "the protocol"
    assert verdict.label(replace(steps=1999), PROTOCOL).endswith("not the protocol")
    assert verdict.label(replace(lambdas=(0, 1)), PROTOCOL).endswith("not the protocol")


# ------------------------------------------------------------------ the script as it is


def script(*options):
    """A command and an environment: one thread of BLAS, as tests run side by side."""
    command = [sys.executable, "examples/exp9.py", *options]
    return command, {**os.environ, "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_script_passes_its_own_checks_within_120_steps(tmp_path):
    command, env = script("--steps", "120", "--out", str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary = read(tmp_path)
    assert set(summary) >= SUMMARY_KEYS
    p1, p4 = summary["p1"], summary["p4"]
    assert p1["pass"] and p1["values"]["compared"] == 24
    assert None not in p1["differences"]["worst_per_cell"].values()
    assert p4["pass"] and p4["certified"] == 192 and p4["symmetry_failures"] == 0
    assert summary["p3"]["pass"] and summary["p2"]["present"] == 8
    assert summary["evaluations"] == 8 * 120
    assert summary["label"] == "short run, not the protocol"
    with np.load(tmp_path / "trajectories.npz") as curves:
        assert curves["seed0_m5_s3_lambda0.01/q"].shape == (120,)
    assert all((tmp_path / f"{name}.png").exists() for name in FIGURES)


@pytest.mark.slow
def test_ctrl_c_leaves_the_finished_run_and_prints_how_to_go_on(tmp_path):
    command, env = script("--steps", "20", "--out", str(tmp_path))
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not list(tmp_path.glob("runs/*/seed*.npz")):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate()
    assert process.returncode == 130, errors.decode()
    assert shlex.join([*command, "--resume"]) in shown.decode()
    assert "Traceback" not in errors.decode()
    assert list(tmp_path.glob("runs/*/seed0_m4_s2_lambda0.npz"))
    assert len(list(tmp_path.glob("runs/*/*.npz"))) < 12
