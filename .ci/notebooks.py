"""Execute the tutorials, each in a kernel of its own, and store what they show.

With `--check` nothing is stored: what they print has to be what is stored already, up
to numbers. Either way an error fails, and so does more than a minute.
"""

import argparse
import os
import re
import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient


TUTORIALS = Path(__file__).parent.parent / "docs/tutorials"
# Of processor time, which does not depend on what else the machine does. On two idle
# cores the wall clock shows less.
LIMIT = 60
# Figures as vectors, which are the same again from the same numbers.
FIGURES = [
    "--InlineBackend.figure_formats={'svg'}",
    "--InlineBackend.rc={'svg.hashsalt': 'trainq'}",
    "--InlineBackend.print_figure_kwargs={'metadata': {'Date': None},"
    " 'bbox_inches': 'tight'}",
]


def execute(path: Path) -> tuple[nbformat.NotebookNode, float]:
    """The notebook with new outputs, and the seconds that it took."""
    notebook = nbformat.read(path, as_version=4)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as elsewhere:
        NotebookClient(
            notebook,
            timeout=None,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": elsewhere}},
            extra_arguments=["--log-level=ERROR", *FIGURES],
        ).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # What depends on the machine, and would change with it.
    notebook.metadata["language_info"] = {"name": "python"}
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return notebook, seconds


def shown(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What each cell shows, without numbers, spaces, and the insides of figures."""

    def text(output):
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "image/svg+xml" in data:
            return "a figure"
        number = r"[-−+]?\b\d[\d,]*(\.\d*)?(e[-+]?\d+)?"
        return re.sub(r"\s", "", re.sub(number, "#", "".join(data["text/plain"])))

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [[text(output) for output in cell.outputs] for cell in code]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="store nothing")
    parser.add_argument("names", nargs="*", help="some of them, by their first letters")
    options = parser.parse_args()
    paths = [
        path
        for path in sorted(TUTORIALS.glob("*.ipynb"))
        if not options.names or path.name.startswith(tuple(options.names))
    ]
    if options.check:
        # A third of the time, which goes into compiling; as in tests/conftest.py.
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        flags = ["--xla_cpu_parallel_codegen_split_count=1"]
        if tuple(map(int, version("jax").split(".")[:2])) < (0, 11):
            flags.append("--xla_cpu_use_fusion_emitters=false")
        os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])
    verdicts = []
    # Two at a time: each of them takes about one core.
    with ProcessPoolExecutor(max_workers=2) as pool:
        for line, verdict in pool.map(one, paths, [options.check] * len(paths)):
            print(line + verdict, flush=True)
            verdicts.append(verdict)
    return int(any(verdicts))


def one(path: Path, check: bool) -> tuple[str, str]:
    """Execute a tutorial, and compare or store: what to print, and what is wrong."""
    notebook, seconds = execute(path)
    verdict = "" if seconds < LIMIT else f": more than {LIMIT} s"
    if check:
        before, after = shown(nbformat.read(path, as_version=4)), shown(notebook)
        for stored, printed in zip(before, after, strict=True):
            if stored != printed:
                verdict += f"\n  stored  {stored}\n  printed {printed}"
                verdict += "\n  `make tutorials` stores what is printed now."
    else:
        nbformat.write(notebook, path)
    return f"{path.name}: {seconds:.0f} s", verdict


if __name__ == "__main__":
    sys.exit(main())
