"""The example of digits: what it learns from, how it adapts, and its report."""

import json
from dataclasses import replace

import digits
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import IDENTITY, assert_close, rbm


def test_the_digits_are_spins_and_held_out_ones_are_others():
    train, test = digits.digits()
    assert train.shape == (1437, 64) and test.shape == (360, 64)
    assert set(np.unique(train)) == {-1, 1}


def test_the_log_likelihood_is_exact():
    model = rbm(4, 3, biased=True)
    energies = oracle.rbm_energies(
        *(np.asarray(x) for x in (model.weights, model.visible_bias, model.hidden_bias))
    )
    law = oracle.law(energies).reshape(16, -1).sum(axis=1)
    found = digits.log_likelihood(model, jnp.asarray(oracle.states(4)[[0, 3, 5]]))
    assert_close(found, np.mean(np.log(law[[0, 3, 5]])), IDENTITY)


def test_gains_are_over_the_best_fixed_window_seed_by_seed():
    def run(name, seed, test):
        row = {"test": test, "train": 0.0, "updates": 1, "window": 1.0, "q": 1.0}
        return {"strategy": name, "seed": seed, "rows": [row]}

    ends = {
        "window 1": (-5.0, -3.0),
        "window 5": (-9.0, -9.0),
        "Q near 1": (-4.0, -1.0),
    }
    runs = [run(name, i, x) for name, xs in ends.items() for i, x in enumerate(xs)]
    strategies = [s for s in digits.CONSTANTS.strategies if s.name in ends]
    rows = {row["strategy"]: row for row in digits.summary(runs, strategies)}
    assert rows["Q near 1"]["over"] == "window 1"
    assert rows["Q near 1"]["gain"] == 1.5 and rows["Q near 1"]["gain_error"] == 0.5
    assert rows["window 1"]["gain"] == 0 and rows["window 1"]["test"] == -4


def test_the_script_writes_what_it_shows(tmp_path, monkeypatch, capsys, as_for_users):
    few = replace(digits.SHORT, n_hidden=3)
    monkeypatch.setattr(digits, "SHORT", few)
    digits.main(["--short", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "summary.json").read_text())
    assert (tmp_path / "digits.svg").stat().st_size > 1000
    assert (tmp_path / "digits.md").read_text().count("\n") == 4
    assert len(record["runs"]) == 4 and len(record["summary"]) == 2
    fixed, adapted = (r["rows"] for r in record["runs"][::2])
    # The budget is spent, but for less than a window; a fixed window is one.
    assert fixed[-1]["spent"] == 30 and fixed[-1]["updates"] == 6
    assert {row["window"] for row in fixed} == {5}
    assert adapted[-1]["updates"] != 6 and adapted[-1]["spent"] >= 30
    assert (tmp_path / "errors.md").read_text().count("\n") >= 4
    shown = capsys.readouterr().out
    assert all(f"{row['test']:.2f}" in shown for row in record["summary"])


@pytest.mark.slow
def test_the_window_follows_the_target():
    """From a model whose signal and noise hardly change."""
    constants = replace(digits.SHORT, n_hidden=2, budget=4000, n_chains=32)
    train = jnp.asarray(digits.digits()[0][:50])
    strategy = digits.Strategy("one", 5, 0.1, 1e-9)
    last = digits.run(strategy, 0, train, train, constants)["rows"][-1]
    # log(1 + Q) is averaged, and Q of few chains scatters.
    assert 0.05 < last["q"] < 0.2
    assert 5 < last["window"] < constants.most_window
