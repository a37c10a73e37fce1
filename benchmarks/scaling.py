"""Time and memory of log Q with its gradient against the number of units, for every
path: the data and the figure of docs/performance.md. Takes about ten minutes.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from measure import claim, finish, in_own_process


FIGURE = Path(__file__).parents[1] / "docs" / "performance" / "scaling.png"
PATHS = {
    "dense solve + autodiff": ("naive", "", (2, 3, 4, 5, 6)),
    "single flips, Direct": ("RandomScanGibbs", "Direct()", (2, 3, 4, 5, 6, 7)),
    "single flips, ConjugateGradient": (
        "RandomScanGibbs",
        "ConjugateGradient()",
        (4, 5, 6, 7, 8, 9, 10),
    ),
    "block kernel": ("RandomScanBlockGibbs", "Direct()", (4, 6, 8, 10, 12, 13, 14)),
}


def main():
    rows = []
    for path, (kernel, solver, layers) in PATHS.items():
        for m in layers:
            options = ["--solver", solver] if solver else []
            row = in_own_process("one_case.py", kernel, m, m, *options)
            rows.append({"path": path, **row})
            print(f"{path}, {2 * m} units: {row['seconds']:.3g} s", flush=True)
    draw(rows)
    by_path = {(row["path"], row["units"]): row for row in rows}
    naive, ours = (
        by_path[name, 12]["seconds"]
        for name in ("dense solve + autodiff", "single flips, ConjugateGradient")
    )
    text = "12 units, conjugate gradients: times as fast as dense"
    finish(__file__, rows, [claim(text, naive / ours, least=20)])


def draw(rows):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axis, name, label in (
        (axes[0], "seconds", "seconds, value and gradient"),
        (axes[1], "peak GiB", "peak memory of the process, GiB"),
    ):
        for path, marker in zip(PATHS, "so^D", strict=True):
            mine = [row for row in rows if row["path"] == path]
            units = [row["units"] for row in mine]
            axis.semilogy(units, [row[name] for row in mine], marker=marker, label=path)
        axis.set_xlabel("units N (all N²/4 weights as observables)")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    main()
