"""What any long experiment needs and what is not about exp9: clock, files, options."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import exp9_verdict as verdict
import jax
import numpy as np
from exp9_verdict import Run
from threadpoolctl import threadpool_limits


if TYPE_CHECKING:
    from exp9 import Constants


# --------------------------------------------------------------------- clock, compiling


class Clock:
    """Seconds by activity."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.reused = 0.0  # seconds that runs from disk took when they were made

    @contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - start

    @property
    def total(self) -> float:
        return time.perf_counter() - self.start


class Lab:
    """Calls functions under `eqx.filter_jit`, and keeps the time.

    They are compiled ahead of time, once for every combination of shapes and static
    arguments, so that compiling has a clock of its own.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self._compiled: dict[Any, Any] = {}

    def __call__(self, activity: str, function: Callable[..., Any], *args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        shapes = [(x.shape, x.dtype) if eqx.is_array(x) else x for x in leaves]
        key = (function, tree, *shapes)
        if key not in self._compiled:
            with self.clock("compile"):
                jitted: Any = eqx.filter_jit(function)
                self._compiled[key] = jitted.lower(*args).compile()
        with self.clock(activity):
            return jax.block_until_ready(self._compiled[key](*args))


def one_blas_thread() -> threadpool_limits:
    """LAPACK with one thread: more of them would spin against those of XLA."""
    # JAX takes LAPACK from here, and loads it late: only what is there can be limited.
    import_module("scipy.linalg")
    return threadpool_limits(1, user_api="blas")


# -------------------------------------------------------------------------------- files


def versions() -> dict[str, str]:
    """The software and the machine that produced a result."""
    packages = ("trainq", "jax", "jaxlib", "equinox", "optax", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": jax.devices()[0].device_kind,
        **{name: version(name) for name in packages},
    }


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Either the whole file is there under its name, or nothing is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def runs_folder(out: Path, constants: Constants) -> Path:
    """Where finished runs lie: one folder for every set of constants."""
    return out / "runs" / constants.sha256[:12]


def note_constants(out: Path, constants: Constants) -> Path:
    """Writes the constants in clear beside the runs that they make."""
    folder = runs_folder(out, constants)
    text = json.dumps(asdict(constants), indent=2) + "\n"
    write_atomically(folder / "constants.json", lambda path: path.write_text(text))
    return folder


def check_resume(out: Path, constants: Constants) -> None:
    """Refuses to resume a folder whose runs were all made with other constants."""
    others = list(out.glob("runs/*/constants.json"))
    if not others or runs_folder(out, constants).exists():
        return
    newest = max(others, key=lambda path: path.stat().st_mtime)
    then = json.loads(newest.read_text())
    now = json.loads(json.dumps(asdict(constants)))
    changed = [
        f"{name}: {then.get(name)} there, {now.get(name)} here"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    raise ValueError(
        f"cannot resume in {out}: its runs were made with other constants "
        f"({'; '.join(changed)}). Give the options they were made with, choose another "
        "--out, or leave out --resume to start afresh."
    )


def conclude(
    out: Path,
    protocol: Constants,
    constants: Constants,
    runs: list[Run],
    clock: Clock,
    halt: str | None,
) -> dict[str, Any]:
    """Judges the runs there are; writes `summary.json` and `trajectories.npz`.

    The top level of the summary is the verdict of the first seed.
    """
    by_seed: dict[int, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run)
    judged = {k: verdict.judge(v, constants, halt) for k, v in by_seed.items()}
    first = next(iter(judged.values()), None)
    summary = {
        **(first or verdict.judge([], constants, halt)),
        "label": verdict.label(constants, protocol),
        "halt": halt,
        "constants": {**asdict(constants), "sha256": constants.sha256},
        "versions": versions(),
        "wall_seconds": clock.total,
        "reused_seconds": clock.reused,
        "timing": dict(clock.seconds),
        "seeds": verdict.spread(judged) if len(judged) > 1 else None,
        "runs": [run.summary() for run in runs],
    }
    text = json.dumps(verdict.strict(summary), indent=2, allow_nan=False) + "\n"
    curves: dict[str, Any] = {"constants": constants.sha256}
    for run in runs:
        curves |= {f"{run.name}/{k}": curve for k, curve in run.curves.items()}
    write_atomically(out / "summary.json", lambda path: path.write_text(text))
    write_atomically(out / "trajectories.npz", lambda path: np.savez(path, **curves))
    return summary


# --------------------------------------------------------------------- the command line


def parse(
    argv: Sequence[str] | None, description: str, protocol: Constants
) -> tuple[argparse.Namespace, Constants]:
    """The options, and the protocol's constants with the options applied."""
    parser = argparse.ArgumentParser(prog="exp9.py", description=description)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/exp9"),
        metavar="DIR",
        help="where results go (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=protocol.steps,
        metavar="N",
        help="cap on training steps (default: %(default)s, the protocol)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="repeat everything over the first N seeds of the table (default: 1)",
    )
    parser.add_argument(
        "--lambdas",
        type=float,
        nargs="+",
        default=protocol.lambdas[1:],
        metavar="λ",
        help="weights of −log Q in the loss; the first is the verdict arm, and the "
        "baseline λ = 0 always runs (default: 0.1 0.01)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the finished runs in DIR and do the missing ones",
    )
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    if not 1 <= args.seeds <= len(protocol.seeds):
        parser.error(
            f"--seeds must lie between 1 and {len(protocol.seeds)}, the length of the "
            f"seed table, got {args.seeds}"
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in args.lambdas):
        parser.error(f"--lambdas must be finite and not negative, got {args.lambdas}")
    arms = tuple(weight for weight in args.lambdas if weight > 0)
    # As text, because runs and their files are named by it.
    if not arms or len({f"{weight:g}" for weight in arms}) < len(arms):
        parser.error(f"--lambdas must be positive and distinct, got {args.lambdas}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out must be a folder, and {args.out} is a file")
    constants = replace(protocol, steps=args.steps, lambdas=(0.0, *arms))
    if args.resume:
        try:
            check_resume(args.out, constants)
        except ValueError as error:
            parser.error(str(error))
    return args, constants
