"""The exp9 example: its constants, its training loop, its judge, its command line."""

import dataclasses
import io
import json
import math
import shutil
from functools import partial

import equinox as eqx
import exp9
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import DIRECT, IDENTITY, assert_close, slow_except
from rich.console import Console

import trainq as tq


PROTOCOL = exp9.PROTOCOL
CELL = (2, 2)


@pytest.fixture(autouse=True)
def relaxed():  # as Optax does not pass the strict settings of `conftest.py`
    # In all threads, which a context would not be.
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


def test_teachers_are_those_of_either_reading():
    key = jax.random.key(3)
    hidden = exp9.make_teacher(key, (5, 3), "hidden").weights
    assert_close(hidden, tq.planted_rbm(key, 5, 3, 3.0).weights, IDENTITY)
    both = exp9.make_teacher(key, (5, 3), "two-layer").weights * 5 / 3.0
    assert both.shape == (5, 5) and np.linalg.matrix_rank(both) <= 3
    assert set(np.round(np.abs(both), 9).ravel().tolist()) == {1.0, 3.0}
    task, _ = exp9.make_task(0, (5, 3), "two-layer")
    assert task.predictor == tq.QStruct(tq.RandomScanGibbs(), 250 * 10)
    assert task.laws.shape == (4, 32) and not np.allclose(task.laws[0], task.laws[1])


@pytest.mark.parametrize("weight", slow_except([0.0, 0.1], 0.1))
def test_a_run_is_that_of_a_plain_loop(weight, monkeypatch):
    constants = dataclasses.replace(PROTOCOL, steps=90, crossings=(0.9, 0.8))
    constants = dataclasses.replace(constants, difference_checkpoint="c90")
    monkeypatch.setattr(exp9, "PROTOCOL", constants)
    run = exp9.run_arm(exp9.Clock(), constants, exp9.Run(0, CELL, weight))
    task, network = exp9.make_task(0, CELL, "two-layer")
    networks, kl, optimiser = [network], [], optax.adam(1e-3)
    state = optimiser.init(eqx.filter(network, eqx.is_inexact_array))
    loss = exp9.augmented_loss if weight else exp9.plain_loss
    slope = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))
    for _ in range(90):
        (_, record), gradient = slope(networks[-1], task, jnp.asarray(weight))
        updates, state = optimiser.update(gradient, state)
        networks.append(eqx.apply_updates(networks[-1], updates))
        kl.append(float(record["kl"]))
    # The baseline draws its Q between chunks, and does not evaluate it in its loop.
    assert set(record) == ({"kl", "q", "signal", "noise"} if weight else {"kl"})
    assert len(run.curves["q"]) == (90 if weight else 5)
    assert run.finite and run.evaluations == (90 if weight else 0)
    assert_close(run.curves["kl"], kl, DIRECT)
    assert weight == 0 or max(run.differences) < 1e-6
    # Checkpoints are the networks before the first step below each level.
    steps = [int(np.argmax(np.array(kl) <= level * kl[0])) for level in (0.9, 0.8)]
    laws, window = np.asarray(task.laws), task.predictor.window
    points = zip(run.checkpoints.items(), (0, *steps, 90), strict=True)
    for (name, point), step in points:
        weights = np.stack([networks[step](code).weights for code in task.codes])
        assert_close(run.curves[f"weights_{name}"], weights, DIRECT)
        q = exp9.pooled_structural_q(weights, laws, window)
        assert_close((point.step, point.q, point.q_numpy or q), (step, q, q), DIRECT)


@pytest.mark.parametrize("before, after", [(math.nan, 1), (1, 1e4)])
def test_what_has_no_answer_is_survived_and_told(before, after, monkeypatch):
    # As of an arm that runs away until its chain is reducible in floating point.
    train, constants = exp9.train, dataclasses.replace(PROTOCOL, steps=3)

    def scaled(clock, task, network, *args):
        network = exp9.unflat(before * exp9.flat(network), network)
        last = train(clock, task, network, *args)
        return exp9.unflat(after * exp9.flat(last), last)

    monkeypatch.setattr(exp9, "train", scaled)
    run = exp9.run_arm(exp9.Clock(), constants, exp9.Run(0, CELL, 0.1))
    why = "final, at step 3: " if after > 1 else "step 0 to 3: A parameter of this"
    assert run.stopped.startswith(why) and not run.finite
    assert run.checkpoints["init"] and not run.checkpoints["final"]


def test_a_wrong_gradient_is_seen(monkeypatch):
    right, (task, network) = exp9.augmented_loss, exp9.make_task(0, CELL, "two-layer")

    def wrong(network, task, weight):
        loss, record = right(network, task, weight)
        extra = 1e-2 * jnp.sum(network.mlp.layers[0].weight)
        return loss + extra - jax.lax.stop_gradient(extra), record

    monkeypatch.setattr(exp9, "augmented_loss", wrong)
    errors = exp9.difference_errors(network, task, 0.1, jax.random.key(0))
    assert errors.min(axis=0).max() > PROTOCOL.difference_tolerance


# ------------------------------------------------------ the gates, on runs made by hand


def point(ratio=1.0, *, noise=4.0, kl=0.5, error=0.0):
    """A checkpoint with `ratio` times the Q of the default, which is 2."""
    q, checks = 2 * ratio, {"detailed_balance": 1e-17, "symmetry": 0.0, "gap": 0.02}
    checks |= {"cheeger_lower": 0.04, "cheeger_upper": 0.15}
    row = [dict(checks) for _ in range(4)]
    return exp9.Checkpoint(60, kl, q, q * noise, noise, q / (1 + error), row)


def make_runs(primary=(1.1,) * 8):
    """Twelve runs that pass P1, P3 and P4, with the given ratios at the eight pairs."""
    runs = []
    for index, (cell, weight) in enumerate(PROTOCOL.arms):
        ratios = {0.0: (1.0,) * 8, 0.1: primary, 0.01: (0.8,) * 4 + (1.2,) * 4}[weight]
        early, late = ratios[2 * (index // 3) :][:2]
        points = {"init": point(kl=2.0), "c50": point(early, noise=4 + 10 * weight)}
        points |= {"c25": point(late), "final": point(1e7 if weight else 1.0, kl=0.1)}
        curves = {"kl": np.ones(3), "q": np.ones(3), "q_step": np.arange(3)}
        differences = [1e-9] * 5 if weight == 0.1 else None
        runs.append(exp9.Run(0, cell, weight, None, 1.0, points, differences, curves))
    return runs


def at(runs, weight, name):
    return exp9.find(runs, (4, 3), weight).checkpoints[name]


def test_channels_add_up_and_a_gain_is_genuine_if_modes_are_faster():
    runs = make_runs((1.1,) * 8)
    found = exp9.judge(runs, PROTOCOL)["channels"]
    assert found["median_g_gamma"] is None and not found["genuine"]  # older runs
    for run in runs:
        for name in PROTOCOL.matched:
            one = run.checkpoints[name]
            one.mu, one.gamma_eff = 3.0 + run.weight, 0.01 * (1 + 2 * run.weight)
    found = exp9.judge(runs, PROTOCOL)["channels"]
    for row in found["pairs"]:
        assert row["log_q"] == pytest.approx(np.log(1.1), abs=1e-12)
        assert row["mu"] == pytest.approx(np.log(3 / 3.1))
        assert row["g_gamma"] == pytest.approx(1 / 1.2)
    assert found["median_g_gamma"] == pytest.approx(1 / 1.2) and found["genuine"]
    assert not found["in_verdict"] and found["bar"] == 0.9
    at(runs, 0.1, "c50").gamma_eff = None
    rows = exp9.judge(runs, PROTOCOL)["channels"]["pairs"]
    assert sum(row["g_gamma"] is None for row in rows) == 1


def test_steering_needs_the_median_and_the_count():
    for ratios, median, above_one, outcome in (
        ((2.0,) * 6 + (0.5,) * 2, 2.0, 6, 2),
        ((1.6,) * 5 + (0.9,) * 3, 1.6, 5, 3),
        ((1.4, 1.4, 1.4, 1.4, 1.5, 9.0, 9.0, 9.0), 1.45, 8, 3),
    ):
        found = exp9.judge(make_runs(ratios), PROTOCOL)
        p2, row = found["p2"], found["decomposition"]["pairs"][0]
        assert p2["median"] == pytest.approx(median, rel=IDENTITY)
        assert (p2["above_one"], p2["present"], p2["expected"]) == (above_one, 8, 8)
        assert p2["pass"] == (outcome == 2) and found["outcome"] == outcome
        assert (row["checkpoint"], row["ratio"]) == ("c50", pytest.approx(ratios[0]))
        assert row["signal_ratio"] == pytest.approx(1.25 * ratios[0])
        assert found["decomposition"]["noise_ratios"] == (1.0, 1.25)
    p1, p3, p4 = found["p1"], found["p3"], found["p4"]
    assert p1["values"]["compared"] == 24 and p3["crossed"] == 12
    assert p4["verdict"] == "verified" and p4["certified"] == p4["expected"] == 192
    low, high = found["dose_response"]
    assert (low["weight"], low["median"], high["median"]) == (0.01, 1.0, 1.45)


@pytest.mark.parametrize("weight, missing", [(0.1, "arm"), (0.0, "baseline")])
def test_a_missing_pair_is_reported_and_not_replaced(weight, missing):
    runs = make_runs((1.1, 1.2, 1.3, 1.4, 1.5, 9.9, 1.6, 1.7))
    exp9.find(runs, (5, 2), weight).checkpoints["c25"] = None
    found = exp9.judge(runs, PROTOCOL)
    p2, p3, p4, d11 = (found[key] for key in ("p2", "p3", "p4", "decomposition"))
    gaps = [row for row in d11["pairs"] if row["missing"] and row["weight"] == 0.1]
    assert [(row["cell"], row["missing"]) for row in gaps] == [((5, 2), missing)]
    assert gaps[0]["ratio"] is None and d11["largest"]["ratio"] == pytest.approx(1.7)
    assert p2["median"] == pytest.approx(1.4, rel=IDENTITY)
    assert (p2["present"], p2["expected"], p2["above_one"]) == (7, 8, 7)
    # It never crossed: P3 fails, and four certificates are not there.
    assert not p3["pass"] and p3["missing"] == [f"(5,2) λ = {weight:g}"]
    assert (p4["verdict"], p4["missing"], p4["pass"]) == ("incomplete", 4, False)
    assert found["outcome"] == 4 and found["p1"]["pass"]


def test_what_is_not_shown_is_outcome_1():
    for name, spoil in {
        "value": lambda runs: setattr(at(runs, 0.01, "c25"), "q_numpy", 2 + 3e-10),
        "reference": lambda runs: setattr(at(runs, 0.0, "c50"), "q_numpy", math.nan),
        "difference": lambda runs: runs[4].differences.append(1.01e-4),
        "curve": lambda runs: runs[3].curves.update(kl=np.array([np.inf])),
        "final": lambda runs: setattr(at(runs, 0.1, "final"), "kl", math.nan),
        "stopped": lambda runs: setattr(runs[4], "stopped", "step 0 to 10: diverged"),
        "absent": lambda runs: runs.pop(4),
        "nothing": lambda runs: [
            r.checkpoints.update(c50=None, c25=None) for r in runs
        ],
        "p4": lambda runs: at(runs, 0.1, "init").certificates[2].update(symmetry=None),
    }.items():
        runs = make_runs((2.0,) * 8)
        spoil(runs)
        found = exp9.judge(runs, PROTOCOL)
        assert not found["p4" if name == "p4" else "p1"]["pass"], name
        exp9.find(runs, (5, 3), 0.0).checkpoints["c25"] = None
        later = exp9.judge(runs, PROTOCOL)
        assert found["outcome"] == later["outcome"] == 1, name


def test_the_last_step_never_enters_the_verdict_but_a_relapse_is_told():
    runs = make_runs()
    before = exp9.judge(runs, PROTOCOL)
    for run in runs:
        run.checkpoints["final"].q *= 1e-12 if run.weight else 1e12
    at(runs, 0.1, "final").kl = 0.51  # of 2.0 at first
    after = exp9.judge(runs, PROTOCOL)
    assert before["p3"].pop("relapsed") == []
    assert after["p3"].pop("relapsed") == ["(4,3) λ = 0.1"] and after["p3"]["pass"]
    assert "KL 0.510" in after["p3"].pop("found") != before["p3"].pop("found")
    assert before.pop("finals") != after.pop("finals") and before == after


def test_published_numbers_stand_beside_what_they_are_of(tmp_path, monkeypatch):
    def shown(*lambdas):
        page, runs = io.StringIO(), make_runs()
        monkeypatch.setattr(exp9, "console", Console(file=page, width=80))
        constants = dataclasses.replace(PROTOCOL, lambdas=(0.0, *lambdas))
        for run, weight in zip(runs, 4 * constants.lambdas, strict=True):
            run.weight = weight
        # What is missing leaves gaps in tables and figures.
        runs[1].checkpoints["c25"] = runs[0].checkpoints["c50"] = None
        runs[4].checkpoints = dict.fromkeys(PROTOCOL.checkpoints)
        runs[4].curves, runs[6].checkpoints["final"] = {"q_step": np.arange(0)}, None
        extra = {"wall_seconds": 1.0, "reused_seconds": 0.0, "timing": {}, "label": ""}
        summary = exp9.judge(runs, constants) | extra | {"seeds": None}
        exp9.show(summary, constants, [])
        if lambdas == (0.1, 0.3):
            exp9.draw(tmp_path, summary, runs, constants)
        lines = page.getvalue().splitlines()
        assert max(map(len, lines)) <= 80 and "…" not in page.getvalue()
        numbers = ("1.1250", "1.0002", "0.96 to 2.05", "2.26e-14")
        return [number in page.getvalue() for number in numbers]

    assert shown(0.1, 0.01) == [True, True, True, True]
    assert shown(0.1, 0.3) == [True, False, True, False]
    assert shown(0.01, 0.1) == [True, True, False, False]


# ------------------------------------------------- the command line, on two tiny cells


@pytest.fixture
def tiny(monkeypatch):
    constants = dataclasses.replace(PROTOCOL, cells=((2, 1), (2, 2)))
    monkeypatch.setattr(exp9, "PROTOCOL", constants)


def main(out, *options):
    return exp9.main(["--steps", "3", "--out", str(out), *options])


def read(out):
    """`summary.json`, as strict JSON, without what depends on when it was made."""
    summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)
    for clock in ("wall_seconds", "reused_seconds", "timing"):
        del summary[clock]
    for run in summary["runs"]:
        del run["seconds"]
    return summary


def test_a_short_run_leaves_everything_it_should(tmp_path, tiny, capsys):
    assert main(tmp_path, "--seeds", "2", "--teachers", "hidden") == 0
    shown, summary = capsys.readouterr().out, read(tmp_path)
    assert summary["label"] == "short run, not the protocol; hidden teachers"
    words = (
        summary["verdict"],
        summary["label"],
        *exp9.DEFINITIONS,
        "Over seed tables",
    )
    files = "summary.json trajectories.npz seeds.png trajectories.png ratios.png"
    files = [*files.split(), "dose_response.png", "finals.png"]
    assert all(word in shown for word in (*words, *files))
    assert all((tmp_path / file).stat().st_size > 0 for file in files)
    figures = [tmp_path / file for file in files if file.endswith("png")]
    digest = f"Constants {summary['constants']['sha256']}"
    assert all(digest in f.with_suffix(".svg").read_text() for f in figures)
    with np.load(tmp_path / "trajectories.npz") as curves:
        assert json.loads(str(curves["constants"])) == summary["constants"]
        assert curves["seed1_m2_s2_lambda0.1/weights_final"].shape == (4, 2, 2)
    # Nothing crosses in three steps: P1 has shown nothing, and P4 is not complete.
    assert summary["p2"]["present"] == 0 and summary["outcome"] == 1
    assert summary["p4"]["verdict"] == "incomplete" and summary["p4"]["certified"] == 48


def test_resuming_gives_the_same_bits(tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.setattr(exp9, "draw", lambda *_: [])  # figures take the longest
    out, run_arm = tmp_path / "interrupted", exp9.run_arm

    def interrupted(*args):
        if len(list(out.glob("runs/*/*.npz"))) >= 2:  # in several runs at a time
            raise KeyboardInterrupt
        return run_arm(*args)

    monkeypatch.setattr(exp9, "run_arm", interrupted)
    assert main(out) == 130
    assert f"exp9.py --steps 3 --out {out} --resume" in capsys.readouterr().out
    monkeypatch.setattr(exp9, "run_arm", run_arm)
    finished = len(list(out.glob("runs/*/*.npz")))
    assert 2 <= finished < 12
    assert main(tmp_path / "whole") == main(out, "--resume") == 0
    assert capsys.readouterr().out.count("from disk") == finished
    assert read(out) == (whole := read(tmp_path / "whole"))
    with pytest.raises(SystemExit, match="2"):
        exp9.main(["--steps", "4", "--out", str(out), "--resume"])
    assert "(steps: 3 there, 4 here)" in " ".join(capsys.readouterr().err.split())

    # A damaged or misnamed file is named, and its run made anew.
    files = sorted(out.glob("runs/*/*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:1000])
    files[1].write_bytes(b"")
    np.savez(files[2], meta=np.array("{}"))
    shutil.copy(files[4], files[3])
    with pytest.warns(UserWarning, match="is not used") as warned:
        assert main(out, "--resume") == 0
    messages = sorted(str(one.message) for one in warned)
    assert [one.split(" is not")[0] for one in messages] == [*map(str, files[:4])]
    assert f"it holds the run {files[4].stem}" in messages[3] and read(out) == whole


def test_a_failed_certificate_halts_the_experiment(tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.setattr(tq, "certify", partial(tq.certify, tolerance=1e-30))
    assert main(tmp_path) == 1
    shown, summary = " ".join(capsys.readouterr().out.split()), read(tmp_path)
    where = "seed0_m2_s1_lambda0 at init, teacher 0: failed"
    assert "HALT" in shown and where in shown and summary["outcome"] == 1
    assert summary["p4"]["verdict"] == "not verified"
    assert "detailed_balance (" in summary["p4"]["halted"]


def test_a_bad_option_exits_with_2_and_says_why(tmp_path, capsys):
    (tmp_path / "file").touch()
    for options, message in {
        "--seeds 21": "--seeds must lie between 1 and 20",
        "--lambdas nan": "--lambdas must be finite and not negative, got [nan]",
        "--lambdas 0.1 0.10000001": "--lambdas must be positive and distinct",
        "--teachers three": "invalid choice: 'three'",
        f"--out {tmp_path}/file": "--out must be a folder",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            exp9.main(["--out", str(tmp_path / "out"), *options.split()])
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_options_replace_three_constants_and_the_hash_is_of_all():
    argv = "--steps 7 --lambdas 0 0.3 --seeds 5 --teachers hidden".split()
    changed = {"steps": 7, "lambdas": (0.0, 0.3), "teacher_family": "hidden"}
    assert exp9.parse(argv)[1] == dataclasses.replace(PROTOCOL, **changed)
    assert exp9.label(exp9.parse([])[1]) == "the protocol; two-layer teachers"
    for field, value in dataclasses.asdict(PROTOCOL).items():
        other = value[:-1] if isinstance(value, tuple | str) else value + 1
        changed = dataclasses.replace(PROTOCOL, **{field: other})
        assert changed.sha256 != PROTOCOL.sha256 == exp9.Constants().sha256
        assert field == "teacher_family" or "not the protocol" in exp9.label(changed)
