"""The time of `import trainq` over that of `import equinox`."""

import os
import subprocess
import sys
import time

import numpy as np
from measure import claim, finish


def seconds(statement: str) -> float:
    # From bytecode, as where packages are installed, whatever this shell says.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env=env)
    return time.perf_counter() - start


def main():
    times: dict[str, list[float]] = {"equinox": [], "trainq": []}
    for package in times:
        seconds(f"import {package}")
    for _ in range(7):
        for package, taken in times.items():
            taken.append(seconds(f"import {package}"))
    medians = {package: float(np.median(taken)) for package, taken in times.items()}
    ratio = medians["trainq"] / medians["equinox"]
    rows = [{"package": package, "seconds": s} for package, s in medians.items()]
    finish(__file__, rows, [claim("import trainq / import equinox", ratio, most=1.5)])


if __name__ == "__main__":
    main()
