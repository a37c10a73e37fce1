"""The notebooks as they are stored; `make tutorials` executes them."""

import json
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PATHS = sorted((ROOT / "docs/tutorials").glob("*.ipynb"))
CELLS = {path.stem: json.loads(path.read_text())["cells"] for path in PATHS}


def source(cell):
    return "".join(cell["source"])


def code(name):
    return [cell for cell in CELLS[name] if cell["cell_type"] == "code"]


def test_they_are_numbered():
    assert [int(name[:2]) for name in CELLS] == list(range(1, len(CELLS) + 1))


@pytest.mark.parametrize("name", CELLS)
def test_a_title_has_the_number_of_the_file(name):
    assert source(CELLS[name][0]).startswith(f"# {int(name[:2])}. ")


@pytest.mark.parametrize("name", CELLS)
def test_outputs_are_those_of_one_run_from_top_to_bottom(name):
    counts = [cell["execution_count"] for cell in code(name)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code(name) for output in cell["outputs"]]
    assert outputs
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", output["text"]


@pytest.mark.parametrize("name", CELLS)
def test_the_end_is_a_picture_and_what_it_does_not_show(name):
    *_, picture, text = CELLS[name]
    assert any("image/svg+xml" in output["data"] for output in picture["outputs"])
    assert re.search(r"^\*\*What this does not show:\*\* \w", source(text), re.M)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_nothing_of_the_machine_is_stored(path):
    text = path.read_text()
    assert not re.search(r"(?<![\w./:])/(home|root|tmp|usr|opt|var|Users)\b", text)
    assert len(text) < 300_000


@pytest.mark.parametrize("name", CELLS)
def test_the_site_leads_to_them(name):
    assert f": tutorials/{name}.md\n" in (ROOT / "mkdocs.yml").read_text()
    assert f"]({name}.md)" in (ROOT / "docs/tutorials/index.md").read_text()
