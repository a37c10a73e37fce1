"""The wall time of the complete exp9, one process, compiling included, and the compile
time of its training step alone. Takes about two minutes."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from measure import claim, finish


EXAMPLES = Path(__file__).parents[1] / "examples"


def compiling(m: int) -> float:
    sys.path.insert(0, str(EXAMPLES))
    import exp9

    task, network = exp9.make_task(0, (m, 2), "two-layer")
    weight, length = jnp.asarray(0.01), jnp.asarray(exp9.CHUNK)
    arguments = exp9.start(network), task, weight, exp9.augmented_loss, length
    start = time.perf_counter()
    advance: Any = exp9.advance  # Equinox's stubs have no `lower`
    advance.lower(*arguments).compile()
    return time.perf_counter() - start


def main():
    rows, claims = [], []
    for m in (4, 5):
        seconds = compiling(m)
        rows.append({"what": f"compiling the step, m = {m}", "seconds": seconds})
        claims.append(claim(f"m = {m}: seconds of compiling", seconds, most=5))
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(EXAMPLES / "exp9.py"), "--out", out]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        summary = json.loads((Path(out) / "summary.json").read_text())
    rows.append({"what": "exp9, the whole process", "seconds": seconds})
    rows += [
        {"what": f"exp9, {name}", "seconds": value}
        for name, value in summary["timing"].items()
    ]
    claims.append(
        claim("seconds of exp9, by its own clock", summary["wall_seconds"], most=90)
    )
    finish(__file__, rows, claims)


if __name__ == "__main__":
    main()
