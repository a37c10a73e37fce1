"""The example of a program with stale weights, in short."""

import json

import pytest


foreign_sampler = pytest.importorskip("foreign_sampler")


@pytest.mark.slow
def test_a_short_run_catches_the_stale_program(tmp_path, capsys):
    assert foreign_sampler.main(["--short", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "summary.json").read_text())
    sound, stale = record["runs"]["built anew"], record["runs"]["stale"]
    assert sound["step"] == stale["step"] == [0, foreign_sampler.CONSTANTS.every]
    assert all(not o["program"] and not o["sampler"] for o in sound["look"])
    before, after = stale["look"]
    assert before == sound["look"][0]  # nothing is stale yet
    assert "couplings" in after["program"] and "fields" in after["sampler"]
    assert after["q limit"] < 1 < sound["look"][1]["q limit"]
    shown = capsys.readouterr().out
    assert "A program stale" in shown and "couplings, fields" in shown
    files = {p.name for p in tmp_path.iterdir()}
    assert files == {"summary.json", "foreign_sampler.svg"}
