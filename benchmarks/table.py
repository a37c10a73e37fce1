"""Write what the benchmarks found to docs/performance/results.md."""

import json
from pathlib import Path

from measure import RESULTS, show


PAGE = Path(__file__).parents[1] / "docs" / "performance" / "results.md"
ACCURACY = PAGE.with_name("accuracy.md")
TITLES = {
    "naive_jax": "Against a dense solve with autodiff in JAX",
    "scipy_solvers": "Against NumPy and SciPy, values only",
    "lineax_solvers": "Against lineax on the same operator",
    "nonreversible_solvers": "Against jax.scipy and lineax, of a fixed order",
    "deeptime_chains": "Against deeptime",
    "thrml_chains": "Against thrml",
    "large": "Large systems",
    "bottlenecks": "Bottlenecks",
    "modes": "Modes, gaps and certificates of single flips",
    "scaling": "Every path against the number of units",
    "sharding": "States spread over devices",
    "coverage": "Coverage of confidence intervals",
    "annealing": "log Z by annealed importance sampling",
    "until": "Intervals where a run has stopped",
    "estimator": "What a gradient says of its own noise",
    "exp9_time": "exp9",
    "import_time": "Import",
}


def table(name):
    """The rows that a benchmark found, and where, as Markdown."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run benchmarks/{name}.py first.")
    record = json.loads(path.read_text())
    columns = list(dict.fromkeys(key for row in record["rows"] for key in row))
    lines = [f"`benchmarks/{name}.py`", ""]
    lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in record["rows"]:
        cells = [show(row.get(column, "")) for column in columns]
        lines.append(f"| {' | '.join(cells)} |")
    environment = ", ".join(f"{k} {v}" for k, v in record["environment"].items())
    return "\n".join([*lines, "", f"{environment}."])


def main():
    parts = [f"### {title}\n\n{table(name)}" for name, title in TITLES.items()]
    PAGE.write_text("\n\n".join(parts) + "\n")
    ACCURACY.write_text(table("accuracy") + "\n")
    print(f"wrote {PAGE} and {ACCURACY}")


if __name__ == "__main__":
    main()
