"""A line that says how far a run, or a longer computation, is."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ._checks import needed_for


@contextlib.contextmanager
def bar(n_steps: int, show: bool) -> Iterator[Callable[[int], Any]]:
    """What to call after some steps are done. It is one line of text, on standard
    error, which notebooks show as well, without widgets. The first steps take as long
    as compiling them does, and the line says so from the start."""
    if not show:
        yield lambda _: None
        return
    with _line(n_steps, " steps", "compiling") as line:

        def advance(steps: int) -> None:
            line.set_description("sampling", refresh=False)
            line.update(steps)

        yield advance


@contextlib.contextmanager
def parts(n_parts: int, show: bool) -> Iterator[Callable[[str], Any]]:
    """What to call at the beginning of each of some parts, with what it is. A part is
    one call or a few, whose own way is not seen."""
    if not show:
        yield lambda _: None
        return
    with _line(n_parts, " parts") as line:
        begun = 0

        def begin(what: str) -> None:
            nonlocal begun
            line.update(int(begun > 0))
            line.set_description(what)
            begun += 1

        yield begin


def _line(total: int, unit: str, what: str = "") -> Any:
    with needed_for("progress=True", "tqdm"):
        from tqdm import tqdm
    return tqdm(total=total, desc=what, unit=unit, leave=False)
