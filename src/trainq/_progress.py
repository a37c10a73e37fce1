"""A line that says how far a run, or a longer computation, is."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax.monitoring

from ._checks import needed_for


_PATIENCE = 1.0  # seconds before a line is shown
# What JAX is at once it has told the end of these.
_STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "compiling",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "compiling",
    "/jax/core/compile/backend_compile_duration": "running",
}


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


@contextlib.contextmanager
def progress(what: str = "") -> Iterator[None]:
    """Say what JAX is at while a block runs, and for how long: compiling, running what
    it has compiled, or at work before that. For calls that are one program, such as a
    predictor of a large model, which cannot tell how far they are.

    It is one line of text, on standard error, which notebooks show as well, without
    widgets. It comes after a second, and is gone at the end. JAX returns from a call
    before its numbers are there: at its end the block waits for all arrays that exist.

    **Arguments:**

    - `what`: what the line begins with.

    **Raises:** `ImportError` without `tqdm`, which the extra `progress` installs.

    !!! example

        ```python
        with tq.progress("log Q"):
            snr = tq.QStruct(tq.RandomScanGibbs(), 1000)(model, data)
        ```
    """
    with needed_for("progress", "tqdm"):
        from tqdm import tqdm
    # JAX does not tell when it begins: what was compiled before may run already.
    stage, done, start = "at work", threading.Event(), time.monotonic()

    def hear(event: str, *_: Any, **__: Any) -> None:
        nonlocal stage
        stage = _STAGES.get(event, stage)

    def tell() -> None:
        if done.wait(_PATIENCE):
            return
        with tqdm(bar_format="{desc}", leave=False) as line:
            while not done.is_set():
                seconds = f"{time.monotonic() - start:.0f} s"
                line.set_description_str(f"{what}: {stage}, {seconds}".lstrip(": "))
                done.wait(_PATIENCE / 4)

    teller = threading.Thread(target=tell, daemon=True)
    jax.monitoring.register_event_duration_secs_listener(hear)
    teller.start()
    try:
        yield
        jax.block_until_ready(jax.live_arrays())
    finally:
        done.set()
        teller.join()
        jax.monitoring.unregister_event_duration_listener(hear)
