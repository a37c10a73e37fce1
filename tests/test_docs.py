"""What the documentation claims: its code runs, and its numbers are the stored ones."""

import ast
import dataclasses
import hashlib
import inspect
import json
import pathlib
import re
import subprocess
import sys
import textwrap

import numpy as np
import programs
import pytest

import trainq as tq
from trainq._show import AbstractShown


ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A program, and what it prints where a page shows that, after a line in between.
PROGRAM = r"^```python\n(.*?)^```\n(?:\n[^\n]+\n\n```text\n(.*?)^```)?"
BLOCKS = {
    f"{page.relative_to(ROOT)} {number}": block
    for page in PAGES
    for number, block in enumerate(
        re.findall(PROGRAM, page.read_text(), re.M | re.S), 1
    )
}


@pytest.mark.parametrize("name", BLOCKS)
def test_code_of_the_documentation_runs_and_prints_what_the_page_says(
    name, tmp_path, monkeypatch
):
    # As a user runs it: in a process of its own, where warnings are errors.
    program, printed = BLOCKS[name]
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    done = programs.run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    if printed:
        assert done.stdout == printed


def test_pages_that_show_what_is_printed_are_held_to_it():
    shown = sum(page.read_text().count("```text") for page in PAGES)
    assert shown == sum(bool(printed) for _, printed in BLOCKS.values()) >= 2


def test_programs_of_the_documentation_are_at_most_72_columns_wide():
    for name, (program, _) in BLOCKS.items():
        wide = [line for line in program.splitlines() if len(line) > 72]
        assert not wide, name


def test_the_figure_of_getting_started_is_that_of_its_program():
    program, _ = BLOCKS["docs/getting_started.md 1"]
    figure = (ROOT / "docs/getting_started/q_against_window.svg").read_text()
    assert hashlib.sha256(program.encode()).hexdigest() in figure, (
        "Run `python docs/getting_started/_figure.py`."
    )


def test_the_figure_of_conditional_models_is_that_of_its_program():
    program, _ = BLOCKS["docs/conditional.md 3"]
    figure = (ROOT / "docs/conditional/denoising.svg").read_text()
    assert hashlib.sha256(program.encode()).hexdigest() in figure, (
        "Run `python docs/conditional/_figure.py`."
    )


def test_the_readme_has_an_example_of_at_most_fifteen_statements():
    assert "README.md 1" in BLOCKS
    program, _ = BLOCKS["README.md 1"]
    lines = [line for line in program.splitlines() if line.strip()]
    assert len(lines) <= 15


def test_the_readme_names_every_link_that_the_home_page_does():
    names = re.compile(r"^\[(\w+)\]: ", re.M)
    home = (ROOT / "docs/index.md").read_text()
    assert set(names.findall(PAGES[0].read_text())) == set(names.findall(home))


def test_the_tables_of_exp9_are_those_of_the_stored_summaries():
    page = (ROOT / "docs/exp9.md").read_text()
    rows = {}
    for family in ("two-layer", "hidden"):
        stored = json.loads((ROOT / f"docs/exp9/{family}/summary.json").read_text())
        assert stored["label"] == f"the protocol; {family} teachers"
        assert f"**{stored['verdict']}**" in page
        for pair in stored["decomposition"]["pairs"]:
            m, s = pair["cell"]
            numbers = [pair[k] for k in ("ratio", "signal_ratio", "noise_ratio")]
            row = f"| ({m},{s}) {pair['checkpoint']} | {pair['weight']:g} |"
            cells = "".join(f" {number:.3f} |" for number in numbers)
            rows[row] = rows.get(row, "") + cells
        medians = [f"{stored['p2']['median']:.3f}", f"{stored['p2']['above_one']} of 8"]
        assert all(number in page for number in medians)
    assert len(rows) == 16
    for row, cells in rows.items():
        assert row + cells in page, row


def test_the_table_over_seeds_of_exp9_is_that_of_the_stored_seeds():
    page = (ROOT / "docs/exp9.md").read_text()
    for family in ("two-layer", "hidden"):
        stored = json.loads((ROOT / f"docs/exp9/{family}/seeds.json").read_text())
        seeds, bar = stored["seeds"], stored["constants"]["steering_bar"]
        assert stored["label"].endswith(f"{family} teachers") and len(seeds) > 1
        for arms in zip(*(seed["arms"] for seed in seeds), strict=True):
            medians = [a["median"] for a in arms if a["median"] is not None]
            gains = [a["g_gamma"] for a in arms if a["g_gamma"] is not None]
            cells = [family, f"{arms[0]['weight']:g}"]
            for found in (medians, gains):
                ends = [np.median(found), min(found), max(found)] if found else []
                cells.append("{:.2f}, {:.2f} to {:.2f}".format(*ends) if ends else "–")
            reached = sum(median >= bar for median in medians)
            genuine = sum(gain <= 0.9 for gain in gains)
            crossed = f"{sum(a['crossed'] for a in arms)} of {4 * len(arms)}"
            halted = sum(a["halted"] for a in arms)
            cells[3:3] = [f"{reached} of {len(arms)}", crossed]
            cells += [f"{genuine} of {len(arms)}", f"{halted}"]
            assert f"| {' | '.join(cells)} |" in page


def test_the_counts_of_three_rungs_are_those_of_the_stored_summary():
    stored = json.loads((ROOT / "docs/three_rungs/summary.json").read_text())
    page = (ROOT / "docs/three_rungs.md").read_text()
    found = stored["three_rungs"]
    for name, counts in found["tracks"].items():
        numbers = " | ".join(map(str, counts.values()))
        assert re.search(rf"^\| {name}: .* \| {numbers} \|$", page, re.M), name
    inside = found["exact inside the sampled 95 % interval"]
    assert f"interval in {inside} of the {found['cells']}" in page.replace("\n", " ")


FAULTY = """
import equinox as eqx, jax, jax.numpy as jnp, trainq as tq
jax.config.update("jax_enable_x64", True)
def loss(weights):
    return tq.kl_divergence(tq.RBM(weights), jnp.ones(4))
COMPILED(jnp.ones((2, 1)))
"""
SENTENCE = "data is not a law: its entries must be at least 0 and sum to 1. Divide"


@pytest.mark.quick(1)
@pytest.mark.parametrize("outermost", ["eqx.filter_jit", "", "jax.jit"])
def test_a_run_time_error_has_its_sentence_on_a_line(outermost):
    # As `docs/conventions.md` says: what Equinox and JAX make of it is not ours.
    command = FAULTY.replace("COMPILED", f"{outermost}(loss)")
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    errors = [line for line in lines if SENTENCE in line]
    if outermost == "jax.jit":
        assert any(line.startswith("jax.errors.JaxRuntimeError") for line in lines)
        assert "_EquinoxRuntimeError: " in errors[0]
    else:
        assert len(errors) == 1 and len(lines) < 40
        assert errors[0].startswith(f"equinox.EquinoxRuntimeError: {SENTENCE}")
        assert "JaxRuntimeError" not in done.stderr


def results(cls=AbstractShown):
    """Everything that a user is given to read, by name."""
    for name in dir(tq):  # all of it is loaded
        getattr(tq, name)
    found = {}
    for sub in cls.__subclasses__():
        if not sub.__name__.startswith("Abstract"):
            found[sub.__name__] = sub
        found = results(sub) | found  # Equinox makes subclasses of the same name
    return found


@pytest.mark.parametrize("name", results())
def test_every_field_of_a_result_is_on_a_page(name):
    cls = results()[name]
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    body = tree.body
    after = zip(body, [*body[1:], None], strict=True)
    documented = {
        ast.unparse(field.target)
        for field, text in after
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
    assert documented == {field.name for field in dataclasses.fields(cls)}
    pages = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    entry = rf"^::: trainq\.(\w+\.)*{cls.__name__}\n    options:\n      members: null"
    assert len(re.findall(entry, pages, re.M)) == 1
