"""What a release says of itself: the same in every place."""

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import trainq


ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]


def first(pattern: str, file: str) -> str:
    found = re.search(pattern, (ROOT / file).read_text(), re.M)
    assert found is not None, f"{pattern} in {file}"
    return found[1]


def test_there_is_one_version():
    assert trainq.__version__ == VERSION
    assert first(r"^version: (.*)$", "CITATION.cff") == VERSION
    newest = first(r"^## \[(.*)\] - (unreleased|\d{4}-\d\d-\d\d)$", "CHANGELOG.md")
    assert newest == VERSION


def test_citation_and_metadata_agree():
    authors = [author["name"] for author in PROJECT["authors"]]
    assert [first(r"^  - name: (.*)$", "CITATION.cff")] == authors
    assert first(r"^license: (.*)$", "CITATION.cff") == PROJECT["license"]
    lowest = first(r"^requires-python = \">=3\.(\d+)\"$", "pyproject.toml")
    minors = [
        int(name.rpartition(".")[2])
        for name in PROJECT["classifiers"]
        if re.search(r":: 3\.\d+$", name)
    ]
    assert minors == list(range(int(lowest), int(lowest) + len(minors)))


def test_the_changelog_has_one_section_for_each_version():
    headings = re.findall(r"^## .*$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    form = r"## \[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d\d-\d\d)"
    found = [re.fullmatch(form, heading) for heading in headings]
    assert all(found) and len({f[1] for f in found if f}) == len(headings)


@pytest.mark.parametrize(
    "tag, date, message",
    [
        (f"v{VERSION}", "2030-01-31", ""),
        (f"v{VERSION}", "unreleased", "needs a section"),
        ("v9.9.9", "2030-01-31", f"tag v{VERSION}"),
    ],
)
def test_only_a_dated_version_is_released(tag, date, message, tmp_path):
    (tmp_path / ".ci").mkdir()
    for name in ("pyproject.toml", ".ci/released.py"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    changes = (
        f"# Changelog\n\n## [{VERSION}] - {date}\n\nNew.\n\n## [0.0.1] - 2029-01-01\n"
    )
    (tmp_path / "CHANGELOG.md").write_text(changes)
    done = subprocess.run(
        [sys.executable, tmp_path / ".ci/released.py", tag],
        capture_output=True,
        text=True,
    )
    assert message in done.stderr
    assert (done.returncode, done.stdout) == ((1, "") if message else (0, "New.\n"))
