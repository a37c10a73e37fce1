"""The figures of exp9.

Colours are from Okabe and Ito, told apart by readers with any colour vision; no figure
relies on colour alone. Titles ask what a figure answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from exp9_verdict import Run, find, pair_name
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


if TYPE_CHECKING:
    from exp9 import Constants


# The first three arms; further ones cycle through the rest.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "-", "--", ":", "-.", "--", ":")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
}


def draw(
    out: Path, summary: dict[str, Any], runs: list[Run], constants: Constants
) -> list[Path]:
    """All figures, for the verdict seed; one more if there are several seeds."""
    first = [run for run in runs if run.seed == runs[0].seed]
    with matplotlib.rc_context(STYLE):
        figures = {
            "trajectories": figure_trajectories(first, constants),
            "ratios": figure_ratios(summary, constants),
            "dose_response": figure_doses(summary, constants),
            "finals": figure_finals(summary, constants),
        }
        if summary["seeds"]:
            figures["seeds"] = figure_seeds(summary, constants)
        paths = []
        for name, figure in figures.items():
            if summary["label"] != "the protocol":
                figure.text(0.995, 0.99, summary["label"], ha="right", va="top", size=8)
            paths.append(out / f"{name}.png")
            figure.savefig(paths[-1])
    return paths


def arm_name(weight: float) -> str:
    return "baseline, λ = 0" if weight == 0 else f"λ = {weight:g}"


def cell_title(cell: tuple[int, int]) -> str:
    return f"m = {cell[0]}, s = {cell[1]}"


def figure_trajectories(runs: list[Run], constants: Constants) -> Figure:
    figure = Figure(
        figsize=(3.1 * len(constants.cells) + 0.6, 6.2), layout="constrained"
    )
    axes = figure.subplots(
        2, len(constants.cells), sharex=True, sharey="row", squeeze=False
    )
    marks = dict(zip(constants.checkpoints[1:-1], ("o", "D"), strict=False))
    for column, cell in enumerate(constants.cells):
        top, bottom = axes[:, column]
        top.set_title(cell_title(cell))
        for index, weight in enumerate(constants.lambdas):
            run = find(runs, cell, weight)
            if run is None or not run.curves.get("kl", np.empty(0)).size:
                continue
            style = {"color": COLOURS[index % 7], "ls": DASHES[index % 7], "lw": 1.6}
            top.plot(1 + np.arange(run.curves["kl"].size), run.curves["kl"], **style)
            bottom.plot(1 + run.curves["q_step"], run.curves["q"], **style)
            for name, marker in marks.items():
                point = run.checkpoints[name]
                if point is not None:
                    dot = {
                        "marker": marker,
                        "mfc": "white",
                        "mec": style["color"],
                        "ms": 6,
                        "mew": 1.4,
                        "zorder": 5,
                    }
                    top.plot(1 + point.step, point.kl, **dot)
                    bottom.plot(1 + point.step, point.q, **dot)
        for axis in (top, bottom):
            axis.set(xscale="log", yscale="log")
        bottom.set_xlabel("step + 1")
        if constants.steps > 100:  # before step 10 nothing has moved yet
            bottom.set_xlim(10, 1.15 * constants.steps)
    axes[0, 0].set_ylabel("KL to the teachers, L_KL")
    axes[1, 0].set_ylabel("signal-to-noise of the gradient, Q")
    handles = [
        Line2D(
            [], [], color=COLOURS[i % 7], ls=DASHES[i % 7], lw=1.6, label=arm_name(w)
        )
        for i, w in enumerate(constants.lambdas)
    ] + [
        Line2D([], [], color="grey", ls="", marker=marker, mfc="white", label=f"at {n}")
        for n, marker in marks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle("What does λ change while the model learns?")
    return figure


def figure_ratios(summary: dict[str, Any], constants: Constants) -> Figure:
    figure = Figure(figsize=(8.2, 4.4), layout="constrained")
    axis = figure.subplots()
    names = [pair_name(pair) for pair in summary["p2"]["pairs"]]
    width = 0.5 / max(1, len(constants.lambdas) - 1)
    for index, weight in enumerate(constants.lambdas[1:], start=1):
        offset = (index - len(constants.lambdas) / 2) * width
        for pair in summary["decomposition"]["pairs"]:
            if pair["weight"] != weight:
                continue
            x = names.index(pair_name(pair)) + offset
            if pair["ratio"] is None:
                axis.annotate(
                    "missing",
                    (x, 1),
                    (0, 6),
                    textcoords="offset points",
                    rotation=90,
                    ha="center",
                    size=8,
                    color=COLOURS[index % 7],
                )
                continue
            axis.plot([x, x], [1, pair["ratio"]], color=COLOURS[index % 7], lw=1.4)
            axis.plot(
                x,
                pair["ratio"],
                color=COLOURS[index % 7],
                marker=MARKERS[index % 7],
                ms=8 if index == 1 else 5.5,
            )
    median = summary["p2"]["median"]
    if median is not None:
        axis.axhline(median, color=COLOURS[1], lw=1.2, ls=":", zorder=1)
    axis.axhline(1, color="black", lw=1)
    axis.axhline(constants.steering_bar, color="grey", lw=1.4, ls="--")
    axis.set(
        yscale="log",
        xlim=(-0.6, len(names) - 0.4),
        ylabel="Q ratio, arm over baseline",
        title="At equal progress in KL, does log Q in the loss buy a better Q?",
    )
    plain_log_ticks(axis)
    axis.set_xticks(range(len(names)), names)
    axis.grid(axis="x", visible=False)
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS[i % 7],
            ls="",
            marker=MARKERS[i % 7],
            label=arm_name(w),
        )
        for i, w in enumerate(constants.lambdas[1:], start=1)
    ] + [
        Line2D([], [], color=COLOURS[1], lw=1.2, ls=":", label="its median"),
        Line2D(
            [],
            [],
            color="grey",
            lw=1.4,
            ls="--",
            label=f"bar for the median, {constants.steering_bar:g}",
        ),
    ]
    handles.insert(1, handles.pop(-2))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def plain_log_ticks(axis: Any) -> None:
    """Plain numbers at readable places on a log axis that spans about a decade."""
    low, high = axis.get_ylim()
    low, high = min(low, 0.75), max(high, 2.2)
    ticks = [
        t for t in (0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50) if low <= t <= high
    ]
    axis.set_ylim(low, high)
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def figure_doses(summary: dict[str, Any], constants: Constants) -> Figure:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    pairs = summary["decomposition"]["pairs"]
    weights = [dose["weight"] for dose in summary["dose_response"]]
    positions = dict(zip([0.0, *weights], range(len(weights) + 1), strict=True))
    names = list(dict.fromkeys(pair_name(pair) for pair in pairs))
    for name in names:
        points = [(0.0, 1.0)] + sorted(
            (pair["weight"], pair["ratio"])
            for pair in pairs
            if pair_name(pair) == name and pair["ratio"] is not None
        )
        xs, ys = [positions[weight] for weight, _ in points], [y for _, y in points]
        first = name.endswith(constants.checkpoints[1])
        axis.plot(
            xs,
            ys,
            color="#56B4E9" if first else "#0072B2",
            ls="--" if first else "-",
            marker="o" if first else "D",
            ms=4,
            lw=1,
            alpha=0.8,
        )
    medians = [(0, 1.0)] + [
        (positions[dose["weight"]], dose["median"])
        for dose in summary["dose_response"]
        if dose["median"] is not None
    ]
    axis.plot(*zip(*medians, strict=True), color=COLOURS[1], lw=3, marker="s", ms=8)
    axis.axhline(constants.steering_bar, color="grey", lw=1.4, ls="--")
    axis.set(
        yscale="log",
        xlabel="weight λ of −log Q in the loss",
        ylabel="Q ratio, arm over baseline",
        title="Does a larger dose steer further?",
    )
    plain_log_ticks(axis)
    axis.set_xticks(list(positions.values()), [f"{weight:g}" for weight in positions])
    axis.grid(axis="x", visible=False)
    early, late = constants.checkpoints[1], constants.checkpoints[-2]
    handles = [
        Line2D([], [], color=COLOURS[1], lw=3, marker="s", label="median"),
        Line2D(
            [],
            [],
            color="#56B4E9",
            ls="--",
            marker="o",
            ms=4,
            label=f"a cell at {early}",
        ),
        Line2D([], [], color="#0072B2", marker="D", ms=4, label=f"a cell at {late}"),
        Line2D([], [], color="grey", ls="--", label=f"bar, {constants.steering_bar:g}"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def figure_finals(summary: dict[str, Any], constants: Constants) -> Figure:
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = constants.checkpoints[1:]
    cells = summary["finals"]["cells"]
    for index, row in enumerate(cells):
        marker = MARKERS[index % 7]
        for who, colour in (("primary", COLOURS[1]), ("baseline", COLOURS[0])):
            line = [
                (x, row[name][f"q_{who}"])
                for x, name in enumerate(names)
                if row[name][f"q_{who}"] is not None
            ]
            if line:
                left.plot(
                    *zip(*line, strict=True), color=colour, marker=marker, lw=1.2, ms=6
                )
        for x, name in enumerate(names):
            if row[name]["ratio"] is not None:
                shift = 0.12 * (index - (len(cells) - 1) / 2)
                right.plot(
                    x + shift,
                    row[name]["ratio"],
                    color="#0072B2",
                    marker=marker,
                    ms=8,
                    ls="",
                )
    right.axhline(1, color="black", lw=1)
    right.axhline(constants.steering_bar, color="grey", lw=1.4, ls="--")
    ticks = [*names[:-1], "last step\n(unequal KL)"]
    for axis in (left, right):
        axis.set_yscale("log")
        axis.set_xticks(range(len(names)), ticks)
        axis.set_xlim(-0.4, len(names) - 0.6)
        axis.axvspan(len(names) - 1.4, len(names) - 0.6, color="#f3e9d9", zorder=0)
        axis.grid(axis="x", visible=False)
    left.set(ylabel="pooled Q", title="Q of both arms")
    right.set(ylabel="Q ratio, arm over baseline", title="their ratio")
    handles = [
        Line2D([], [], color=COLOURS[1], label=arm_name(constants.lambdas[1])),
        Line2D([], [], color=COLOURS[0], label=arm_name(constants.lambdas[0])),
        *(
            Line2D(
                [], [], color="grey", ls="", marker=MARKERS[i % 7], label=cell_title(c)
            )
            for i, c in enumerate(constants.cells)
        ),
        Line2D([], [], color="grey", ls="--", label=f"bar, {constants.steering_bar:g}"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.suptitle("Would the last step have told the same story?")
    return figure


def figure_seeds(summary: dict[str, Any], constants: Constants) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    rows = summary["seeds"]["rows"]
    for index, weight in enumerate(constants.lambdas[1:], start=1):
        points = [
            (row["seed"], row["dose_response"][weight])
            for row in rows
            if row["dose_response"][weight] is not None
        ]
        if points:
            axis.plot(
                *zip(*points, strict=True),
                color=COLOURS[index % 7],
                marker=MARKERS[index % 7],
                ls="",
                ms=8,
                label=f"median, {arm_name(weight)}",
            )
    axis.axhline(1, color="black", lw=1)
    axis.axhline(constants.steering_bar, color="grey", lw=1.4, ls="--", label="bar")
    axis.set(
        yscale="log",
        xlabel="seed",
        ylabel="median Q ratio",
        title="How much of the verdict is luck?",
    )
    plain_log_ticks(axis)
    axis.set_xticks([row["seed"] for row in rows])
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=4)
    return figure
