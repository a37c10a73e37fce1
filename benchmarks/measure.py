"""How the benchmarks measure, and how they report.

Compile first; wait for every result; the same inputs, tolerance and precision for all;
contenders take turns in one process, and what is reported is a ratio of medians. Each
script ends with its claims, and fails if one of them is not true.
"""

import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np


jax.config.update("jax_enable_x64", True)

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"


def environment(*packages: str) -> dict[str, Any]:
    """The software and the machine that produced a number."""
    names = ("trainq", "jax", "jaxlib", "equinox", "numpy", "scipy", *packages)
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "openblas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "default"),
        **{name: version(name) for name in names},
    }


def medians(
    contenders: dict[str, Callable[[], Any]], seconds: float = 4.0
) -> dict[str, float]:
    """Median seconds of each contender, which take turns for about so long in all."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        jax.block_until_ready(run())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for name, run in contenders.items():
            # A contender that takes long is not repeated for the sake of a quick one.
            if len(times[name]) >= 3 and sum(times[name]) > seconds / len(contenders):
                continue
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
        if all(sum(t) > seconds / len(contenders) for t in times.values()):
            break
    return {name: float(np.median(t)) for name, t in times.items()}


def peak_gib() -> float:
    """The most memory that this process has had, in GiB."""
    if sys.platform == "linux":  # where `getrusage` begins with what the parent had
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) / 2**20
    scale = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def once_compiled(fn: Any, argument: Any, repeats: int) -> tuple[dict[str, Any], Any]:
    """The seconds of compiling a function of `eqx.filter_jit` and of its fastest call,
    and what it returns."""
    start = time.perf_counter()
    compiled = fn.lower(argument).compile()
    row = {"compile s": time.perf_counter() - start, "seconds": np.inf}
    found = None
    for _ in range(repeats):
        start = time.perf_counter()
        found = jax.block_until_ready(compiled(argument))
        row["seconds"] = min(row["seconds"], time.perf_counter() - start)
    return row, found


def in_own_process(
    script: str, *args: Any, seconds: float | None = None
) -> dict[str, Any]:
    """The last line that a script prints, as JSON, from a process of its own, which is
    ended after some seconds."""
    command = [sys.executable, str(Path(__file__).parent / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def claim(text: str, value: float, most: float | None = None, least: float = 0) -> dict:
    """A claim that a value lies between two bounds."""
    holds = value >= least and (most is None or value <= most)
    return {"claim": text, "value": float(value), "holds": bool(holds)}


def finish(
    script: str, rows: list[dict[str, Any]], claims: list[dict], *packages: str
) -> None:
    """Print the rows and the claims, save both, and exit with 1 if a claim fails."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[show(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [columns, *cells]:
        print("  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)))
    print()
    for one in claims:
        print(
            f"{'holds ' if one['holds'] else 'FAILS '} {one['claim']}: "
            f"{show(one['value'])}"
        )
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"environment": environment(*packages), "rows": rows, "claims": claims}
    path = RESULTS / f"{Path(script).stem}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(not all(one["holds"] for one in claims))


def show(x: Any) -> str:
    return f"{x:.3g}" if isinstance(x, float) else str(x)
