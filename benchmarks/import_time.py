"""The time of `import trainq` over that of `import equinox`: of its name, and of its
parts, which are loaded where they are first used."""

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


STATEMENTS = {
    "equinox": "import equinox",
    "trainq": "import trainq",
    "RBM and QStruct of trainq": "from trainq import RBM, QStruct, RandomScanGibbs",
    "all of trainq": "from trainq import *",
}


def main():
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for statement in STATEMENTS.values():
        seconds(statement)
    for _ in range(7):
        for name, statement in STATEMENTS.items():
            times[name].append(seconds(statement))
    medians = {name: float(np.median(taken)) for name, taken in times.items()}
    rows = [{"what": name, "seconds": s} for name, s in medians.items()]
    one = medians["equinox"]
    claims = [
        claim("import trainq / import equinox", medians["trainq"] / one, most=1.05),
        claim("all of trainq / equinox", medians["all of trainq"] / one, most=1.5),
    ]
    finish(__file__, rows, claims)


if __name__ == "__main__":
    main()
