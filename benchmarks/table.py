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
    "windows": "Finite windows",
    "first_call": "The first call of a process",
    "study": "A study in one program",
    "import_time": "Import",
}


def table(name):
    """The rows that a benchmark found, and where, as Markdown."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run benchmarks/{name}.py first.")
    record = json.loads(path.read_text())
    return "\n\n".join(
        [
            f"`benchmarks/{name}.py`",
            markdown(record["rows"]),
            sentence(record["environment"]),
        ]
    )


def markdown(rows):
    """A table of rows, which need not have the same columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [show(row.get(column, "")) for column in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sentence(environment):
    return ", ".join(f"{name} {value}" for name, value in environment.items()) + "."


def main():
    parts = [f"### {title}\n\n{table(name)}" for name, title in TITLES.items()]
    PAGE.write_text("\n\n".join(parts) + "\n")
    ACCURACY.write_text(table("accuracy") + "\n")
    print(f"wrote {PAGE} and {ACCURACY}")


if __name__ == "__main__":
    main()
