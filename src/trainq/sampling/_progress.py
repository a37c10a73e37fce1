"""A line that says how far a run is."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from .._checks import needed_for


@contextlib.contextmanager
def bar(n_steps: int, show: bool) -> Iterator[Callable[[int], Any]]:
    """What to call after some steps are done. It is one line of text, on standard
    error, which notebooks show as well, without widgets. The first steps take as long
    as compiling them does, and the line says so from the start."""
    if not show:
        yield lambda _: None
        return
    with needed_for("progress=True", "tqdm"):
        from tqdm import tqdm
    with tqdm(total=n_steps, desc="compiling", unit=" steps", leave=False) as line:

        def advance(steps: int) -> None:
            line.set_description("sampling", refresh=False)
            line.update(steps)

        yield advance
