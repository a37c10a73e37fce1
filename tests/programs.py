"""Programs in processes of their own that have the libraries loaded.

Most of the time of a short program goes into its imports. Here a server does them once,
and forks itself for each program: JAX allows that as long as it has not computed yet.
"""

import multiprocessing
import os
import pathlib
import runpy
import traceback
import warnings
from typing import NamedTuple


class Done(NamedTuple):
    """What a program has left behind."""

    returncode: int | None
    stdout: str
    stderr: str


def run(program: str, folder: pathlib.Path) -> Done:
    """Run a program in a folder, with warnings as errors."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["matplotlib.pyplot", "optax", "trainq"])
    script, texts = folder / "program.py", [folder / name for name in ("out", "err")]
    script.write_text(program)
    process = server.Process(target=_run, args=(script, *texts))
    process.start()
    process.join()
    return Done(process.exitcode, *(text.read_text() for text in texts))


def _run(script: pathlib.Path, out: pathlib.Path, err: pathlib.Path) -> None:
    for stream, text in ((1, out), (2, err)):
        os.dup2(os.open(text, os.O_CREAT | os.O_WRONLY), stream)
    os.chdir(script.parent)
    warnings.simplefilter("error")
    try:
        runpy.run_path(str(script), run_name="__main__")
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
