"""The benchmark for GPUs, as far as it goes without one."""

import os
import pathlib
import subprocess
import sys

import pytest


SCRIPT = pathlib.Path(__file__).parent.parent / "benchmarks" / "gpu.py"
PAGE = SCRIPT.parents[1] / "docs" / "performance" / "gpu.md"


def run(*args):
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(text):
    """What is said of every row, by its name."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in cells if row[0] != "case"}


@pytest.mark.slow
def test_every_row_is_measured_in_short(tmp_path):
    before, out = PAGE.read_text(), tmp_path / "gpu.md"
    printed = run("--short", "--out", out)
    found = rows(out.read_text())
    assert len(found) == printed.count("    measured") == 14
    rates = {name: cells for name, cells in found.items() if "sweeps" in name}
    assert len(rates) == 2 and all(float(cells[2]) > 0 for cells in rates.values())
    for name in found.keys() - rates.keys():
        units, _, compiling, seconds = map(float, found[name][:4])
        assert units == 4 and compiling > 0 and seconds > 0
    assert PAGE.read_text() == before and "platform cpu" in printed


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0, 0.2])
def test_a_row_that_has_no_number_says_why_and_loses_no_other(tmp_path, minutes):
    out = tmp_path / "gpu.md"
    run("--minutes", minutes, "--out", out)
    said = [cells[-1] for cells in rows(out.read_text()).values()]
    late = [one for one in said if one.startswith("took more than")]
    unseen = said.count("no time was left")
    # The first rows may be quick. One is ended, and the others have no time.
    assert len(said) == 14 and len(late) == (minutes > 0) and unseen > 4
    if minutes == 0:
        assert unseen == 14
