"""Three rungs: how good is a gradient, predicted, exactly, and as sampled?

The signal-to-noise ratio Q of a gradient estimated from a window of a Markov chain can
be predicted from one spectral gap, read in three ways, or from the whole resolvent
(Q_struct⊥); it can be computed exactly for the window; and it can be measured, by doing
it many times. Here all of them stand side by side, for three kinds of systems, four
temperatures and four windows: 48 cells. Which predictor tracks the exact Q, and where
does it stop?

    python examples/three_rungs.py                       # 48 cells, some minutes
    python examples/three_rungs.py --cells 6             # a quick look
    python examples/three_rungs.py --exp9 results/exp9   # and the students of exp9

It writes a table, the numbers as JSON, and two figures.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

import trainq as tq
from trainq import sampling


jax.config.update("jax_enable_x64", True)


@dataclass(frozen=True)
class Constants:
    """Everything that is fixed before a run. All of it is our choice but for the kinds
    of systems and the number of cells, which are those of the published comparison."""

    n_units: int = 10
    patterns: int = 4  # hidden units of the planted machine, of the ten
    betas: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    windows: tuple[int, ...] = (3, 30, 300, 3000)  # sweeps
    heat: float = 0.8  # the model is at this fraction of the data's inverse temperature
    factor: float = 3.0  # a prediction within it, up or down, tracks: as published
    other_factors: tuple[float, ...] = (1.25, 1.5, 2.0)  # how much depends on that
    replicates: int = 64
    exp9_windows: tuple[int, ...] = (3, 30, 250)  # sweeps; 250 is that of the protocol
    seed: int = 0


CONSTANTS = Constants()
KERNEL = tq.RandomScanGibbs()
PREDICTORS = {
    "single gap": "the slowest mode alone",
    "relevant mode": "the slowest mode that the observables feel, alone",
    "relevant gap": "all variance at the gap of that mode",
    "structural": "the whole resolvent, Q_struct⊥",
    "sokal": "the same in the Sokal convention, 2 T_O − V",
}
KINDS = ("Curie–Weiss", "Sherrington–Kirkpatrick", "planted")
COLOURS = {
    "single gap": "#CC79A7",
    "relevant mode": "#009E73",
    "relevant gap": "#0072B2",
    "structural": "#D55E00",
    "sokal": "#E69F00",
}
MARKERS = {
    "single gap": "^",
    "relevant mode": "v",
    "relevant gap": "s",
    "structural": "o",
    "sokal": "D",
}
TOP = 6.0  # ratios beyond it are drawn there


@dataclass(frozen=True)
class Cell:
    """One comparison. `window` is in sweeps, all else is a value of Q."""

    kind: str
    beta: float
    window: int
    relaxation: float
    predicted: dict[str, float]
    exact: float
    sampled: float
    interval: tuple[float, float]

    def tracks(self, name: str, factor: float) -> bool:
        ratio = self.predicted[name] / self.exact
        return 1 / factor <= ratio <= factor


# -------------------------------------------------------------------------- the systems


def system(kind: str, beta: float) -> tq.AbstractEnergyModel:
    """One of the three kinds, the disorder being the same at every temperature."""
    n, key = CONSTANTS.n_units, jax.random.key(CONSTANTS.seed)
    if kind == "planted":
        n_visible = n - CONSTANTS.patterns
        return tq.planted_rbm(key, n_visible, CONSTANTS.patterns, beta)
    if kind == "Curie–Weiss":
        return tq.curie_weiss(n, beta)
    return tq.sherrington_kirkpatrick(key, n, beta)


def systems(n_cells: int) -> Iterator[tuple[str, float, Any, Any, int]]:
    """The law of the data, and a model of it that is a little too hot."""
    cells = [
        (kind, beta, window)
        for window in CONSTANTS.windows
        for beta in CONSTANTS.betas
        for kind in KINDS
    ]
    for kind, beta, window in cells[:n_cells]:
        data = tq.visible_distribution(system(kind, beta))
        yield kind, beta, system(kind, CONSTANTS.heat * beta), data, window


def exp9_systems(folder: Path) -> Iterator[tuple[str, float, Any, Any, int]]:
    """The students of the protocol at their checkpoints, each with its teacher."""
    import exp9

    path = folder / "trajectories.npz"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run examples/exp9.py first.")
    weights = np.load(path)
    constants = json.loads(str(weights["constants"]))
    seed, family = constants["seeds"][0], constants["teacher_family"]
    cells = [(m, s) for m, s in constants["cells"]]
    tasks = {cell: exp9.make_task(seed, cell, family)[0] for cell in cells}
    for window in CONSTANTS.exp9_windows:
        for cell, task in tasks.items():
            for weight in constants["lambdas"]:
                name = exp9.Run(seed, cell, weight).name
                for label in exp9.PROTOCOL.checkpoints:
                    key = f"{name}/weights_{label}"
                    if key in weights:
                        # The first of the four teachers.
                        model = tq.RBM(weights[key][0])
                        kind = f"exp9 {cell} {label}"
                        yield kind, weight, model, task.laws[0], window


# ---------------------------------------------------------------------------- the rungs


def compare(
    index: int, kind: str, beta: float, model: Any, data: jax.Array, window: int
) -> Cell:
    """All rungs for one cell. The gradient is exact where Q is sampled, as it is in the
    definition of Q, and chains start from the exact law."""
    steps = KERNEL.steps(model, sweeps=window)
    predictors = {
        "single gap": tq.SingleGap(KERNEL, steps),
        "relevant mode": tq.SingleGap(KERNEL, steps, noise="relevant mode"),
        "relevant gap": tq.SingleGap(KERNEL, steps, noise="relevant gap"),
        "structural": tq.QStruct(KERNEL, steps),
        "sokal": tq.QStruct(KERNEL, steps, convention="sokal"),
    }
    chain = KERNEL.chain(model)
    measured = sampling.QSampled(
        KERNEL, steps, start=tq.Stationary(), replicates=CONSTANTS.replicates
    )(
        jax.random.fold_in(jax.random.key(CONSTANTS.seed), index),
        model,
        data,
    )
    low, high = measured.interval()
    return Cell(
        kind=kind,
        beta=beta,
        window=window,
        relaxation=1 / float(tq.markov.spectral_gap(chain, "even")) / model.n_units,
        predicted={k: float(p(model, data).q) for k, p in predictors.items()},
        exact=float(tq.QOperational(KERNEL, steps, 0, tq.Stationary())(model, data).q),
        sampled=float(measured.q),
        interval=(float(low), float(high)),
    )


# ------------------------------------------------------------------------------ results


def summarise(cells: list[Cell]) -> dict[str, Any]:
    """How many cells each predictor tracks, within every factor."""
    factors = sorted({CONSTANTS.factor, *CONSTANTS.other_factors})
    covered = sum(c.interval[0] <= c.exact <= c.interval[1] for c in cells)
    return {
        "cells": len(cells),
        "tracks": {
            name: {f"{f:g}": sum(c.tracks(name, f) for c in cells) for f in factors}
            for name in PREDICTORS
        },
        "exact inside the sampled 95 % interval": covered,
    }


def show(console: Console, title: str, cells: list[Cell], summary: Any) -> None:
    table = Table(title=title, caption=f"* outside a factor of {CONSTANTS.factor:g}")
    table.add_column("system", no_wrap=True)
    for name in ("β or λ", "K, sweeps", "τ", *PREDICTORS, "exact", "sampled, 95 %"):
        table.add_column(name, justify="right")
    for cell in cells:
        guesses = [
            f"{cell.predicted[name]:.3g}"
            + (" " if cell.tracks(name, CONSTANTS.factor) else "*")
            for name in PREDICTORS
        ]
        reach = np.sqrt(cell.interval[1] / cell.interval[0]) - 1
        table.add_row(
            cell.kind,
            f"{cell.beta:g}",
            f"{cell.window}",
            f"{cell.relaxation:.3g}",
            *guesses,
            f"{cell.exact:.3g}",
            f"{cell.sampled:.3g} ± {100 * reach:.0f} %",
        )
    console.print(table)
    counts = Table(title=f"of {summary['cells']} cells, tracked within a factor of")
    counts.add_column("predictor")
    for factor in summary["tracks"]["structural"]:
        counts.add_column(factor, justify="right")
    for name, what in PREDICTORS.items():
        counts.add_row(f"{name}: {what}", *map(str, summary["tracks"][name].values()))
    console.print(counts)
    console.print(
        "The exact Q is inside the sampled 95 % interval in "
        f"{summary['exact inside the sampled 95 % interval']} of {len(cells)} cells."
    )


def figure_ratios(cells: list[Cell], kinds: Sequence[str]) -> Figure:
    """Predicted over exact Q, against the window in relaxation times."""
    figure = Figure(figsize=(3.4 * len(kinds), 3.6), layout="constrained")
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axis, kind in zip(axes, kinds, strict=True):
        chosen = [cell for cell in cells if cell.kind == kind]
        x = np.array([cell.window / cell.relaxation for cell in chosen])
        exact = np.array([cell.exact for cell in chosen])
        axis.axhspan(1 / CONSTANTS.factor, CONSTANTS.factor, color="#eeeeee", zorder=0)
        axis.axhline(1, color="black", lw=1)
        for name, colour in COLOURS.items():
            y = np.array([cell.predicted[name] for cell in chosen]) / exact
            label = f"{name}, off the scale" if min(y, default=0) > TOP else name
            style = {"color": colour, "marker": MARKERS[name], "ls": "none", "ms": 5}
            axis.plot(x, np.minimum(y, TOP), **style, label=label)
        y = np.array([cell.sampled for cell in chosen]) / exact
        ends = np.array([cell.interval for cell in chosen]).T / exact
        bars = np.abs(ends - y)
        axis.errorbar(x, y, bars, fmt=".", color="black", ms=3, lw=1, label="sampled")
        axis.set(
            xscale="log", yscale="log", title=kind, xlabel="window / relaxation time"
        )
    axes[0].set_yticks([0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5])
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].minorticks_off()
    axes[0].set_ylabel("Q over the exact Q")
    named = axes[0].get_legend_handles_labels()
    where = dict(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    figure.legend(*named, **where)
    return figure


def figure_conventions() -> Figure:
    """When the factor between the two conventions matters: chains that mix fast."""
    kernels = {
        "random-scan Gibbs": tq.RandomScanGibbs(),
        "random two-block": tq.RandomScanBlockGibbs(),
        "palindromic": tq.PalindromicBlockGibbs(),
        "alternating": tq.AlternatingBlockGibbs(),
    }
    betas = np.linspace(0.1, 3, 30)
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axis = figure.subplots()
    styles = (("-", "#000000"), ("--", "#D55E00"), (":", "#0072B2"), ("-.", "#009E73"))
    for (name, kernel), (dash, colour) in zip(kernels.items(), styles, strict=True):
        factors = []
        for beta in betas:
            model = system("planted", float(beta))
            data = tq.visible_distribution(system("planted", float(beta) * 1.25))
            both = [
                tq.QStruct(kernel, 100, convention=convention)(model, data).mse
                for convention in ("resolvent", "sokal")
            ]
            factors.append(float(both[0] / both[1]))
        axis.plot(betas, factors, ls=dash, color=colour, label=name)
    axis.set(
        xlabel="inverse temperature β of a planted machine",
        ylabel="2 T_O / (2 T_O − V)",
        title="When does the convention matter?",
    )
    axis.axhline(1, color="grey", lw=1)
    axis.legend(frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    total = len(KINDS) * len(CONSTANTS.betas) * len(CONSTANTS.windows)
    parser.add_argument("--out", type=Path, default=Path("results/three_rungs"))
    parser.add_argument("--cells", type=int, default=total, help="how many cells")
    parser.add_argument("--exp9", type=Path, help="a folder of results of exp9.py")
    args = parser.parse_args(argv)
    if not 1 <= args.cells <= total:
        parser.error(f"--cells is between 1 and {total}, but {args.cells} was given")

    start = time.perf_counter()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    groups = {"three_rungs": list(systems(args.cells))}
    if args.exp9 is not None:
        groups["exp9"] = list(exp9_systems(args.exp9))
    args.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"constants": asdict(CONSTANTS)}
    for name, group in groups.items():
        cells = [
            compare(i, *one) for i, one in enumerate(track(group, name, transient=True))
        ]
        summary = summarise(cells)
        record[name] = {**summary, "every cell": [asdict(cell) for cell in cells]}
        show(console, name, cells, summary)
        if name == "three_rungs":
            figure_ratios(cells, KINDS).savefig(args.out / "ratios.svg")
    figure_conventions().savefig(args.out / "conventions.svg")
    text = json.dumps(record, indent=2, default=str) + "\n"
    (args.out / "summary.json").write_text(text)
    seconds = time.perf_counter() - start
    console.print(f"{seconds:.0f} s; wrote {args.out}/: summary.json, two figures")
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main())
