"""The figures of exp9.

Colours are from Okabe and Ito, told apart by readers with any colour vision; arms also
differ in their dashes or markers. Titles ask what a figure answers.
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


# The baseline, then the other arms; more than six of them share.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":", "-.", "--", ":", "-.")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
ONE: dict[str, Any] = {"color": "black", "lw": 1, "zorder": 1}
BAR: dict[str, Any] = {"color": "grey", "lw": 1.4, "ls": "--", "zorder": 1}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",  # leaves room for the label of a short run
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
            figure.savefig(paths[-1], metadata={"Constants": constants.sha256})
    return paths


def arm_name(weight: float) -> str:
    return "baseline, λ = 0" if weight == 0 else f"λ = {weight:g}"


def arm_style(index: int, *names: str) -> dict[str, Any]:
    """Of the arm at a place in `constants.lambdas`: any of color, ls and marker."""
    place = index and 1 + (index - 1) % (len(COLOURS) - 1)
    every = {"color": COLOURS, "ls": DASHES, "marker": MARKERS}
    return {name: every[name][place] for name in names}


def cell_title(cell: tuple[int, int]) -> str:
    return f"m = {cell[0]}, s = {cell[1]}"


def legend(figure: Figure, handles: list[Any], ncols: int | None = None) -> None:
    """Below the axes. Each handle is a label with the style of its line."""
    lines = [Line2D([], [], **{"label": label, **style}) for label, style in handles]
    columns = ncols or len(lines)
    figure.legend(handles=lines, loc="outside lower center", ncols=columns)


def ratio_axis(axis: Any, constants: Constants) -> None:
    """A log axis of ratios over about a decade: the bar, and ticks in plain numbers."""
    axis.axhline(1, **ONE)
    axis.axhline(constants.steering_bar, **BAR)
    axis.set(yscale="log", ylabel="Q ratio, arm over baseline")
    low, high = axis.get_ylim()
    low, high = min(low, 0.75), max(high, 2.2)
    ticks = [
        t for t in (0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50) if low <= t <= high
    ]
    axis.set_ylim(low, high)
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(axis="x", visible=False)


def figure_trajectories(runs: list[Run], constants: Constants) -> Figure:
    n_cells = len(constants.cells)
    figure = Figure(figsize=(3.1 * n_cells + 0.6, 6.2), layout="constrained")
    axes = figure.subplots(2, n_cells, sharex=True, sharey="row", squeeze=False)
    styles = [arm_style(i, "color", "ls") for i in range(len(constants.lambdas))]
    marks = dict(zip(constants.checkpoints[1:-1], ("o", "D"), strict=True))
    for column, cell in enumerate(constants.cells):
        top, bottom = axes[:, column]
        top.set_title(cell_title(cell))
        for weight, style in zip(constants.lambdas, styles, strict=True):
            run = find(runs, cell, weight)
            if run is None or "kl" not in run.curves:
                continue
            top.plot(1 + np.arange(run.curves["kl"].size), run.curves["kl"], **style)
            bottom.plot(1 + run.curves["q_step"], run.curves["q"], **style)
            for name, marker in marks.items():
                point = run.checkpoints[name]
                if point is not None:
                    dot = {"marker": marker, "mfc": "white", "mec": style["color"]}
                    top.plot(1 + point.step, point.kl, **dot, zorder=5)
                    bottom.plot(1 + point.step, point.q, **dot, zorder=5)
        for axis in (top, bottom):
            axis.set(xscale="log", yscale="log")
        bottom.set_xlabel("step + 1")
        if constants.steps > 100:  # before step 10 nothing has moved yet
            bottom.set_xlim(10, 1.15 * constants.steps)
    axes[0, 0].set_ylabel("KL to the teachers, L_KL")
    axes[1, 0].set_ylabel("signal-to-noise of the gradient, Q")
    named = zip(map(arm_name, constants.lambdas), styles, strict=True)
    dot = {"color": "grey", "ls": "", "mfc": "white"}
    dots = [(f"at {name}", {**dot, "marker": marks[name]}) for name in marks]
    legend(figure, [*named, *dots])
    figure.suptitle("What does λ change while the model learns?")
    return figure


def figure_ratios(summary: dict[str, Any], constants: Constants) -> Figure:
    figure = Figure(figsize=(8.2, 4.4), layout="constrained")
    axis = figure.subplots()
    names = [pair_name(pair) for pair in summary["p2"]["pairs"]]
    arms = constants.lambdas[1:]
    for pair in summary["decomposition"]["pairs"]:
        index = 1 + arms.index(pair["weight"])
        offset = (index - len(constants.lambdas) / 2) * 0.5 / len(arms)
        x = names.index(pair_name(pair)) + offset
        style = arm_style(index, "color", "marker")
        if pair["ratio"] is None:
            text = {"rotation": 90, "ha": "center", "size": 8, "color": style["color"]}
            axis.text(x, 1.02, "missing", **text)
        else:
            axis.plot([x, x], [1, pair["ratio"]], color=style["color"])
            axis.plot(x, pair["ratio"], **style, ms=8 if index == 1 else 5.5)
    median_style = {"color": COLOURS[1], "lw": 1.2, "ls": ":"}
    if summary["p2"]["median"] is not None:
        axis.axhline(summary["p2"]["median"], **median_style, zorder=1)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.set_title("At equal progress in KL, does log Q in the loss buy a better Q?")
    axis.set_xticks(range(len(names)), names)
    ratio_axis(axis, constants)
    handles = [
        (arm_name(weight), {**arm_style(index, "color", "marker"), "ls": ""})
        for index, weight in enumerate(arms, start=1)
    ]
    handles.insert(1, ("its median", median_style))
    legend(figure, [*handles, (f"bar for the median, {constants.steering_bar:g}", BAR)])
    return figure


def figure_doses(summary: dict[str, Any], constants: Constants) -> Figure:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    pairs, doses = summary["decomposition"]["pairs"], summary["dose_response"]
    weights = [0.0, *(dose["weight"] for dose in doses)]
    early, late = constants.checkpoints[1], constants.checkpoints[-2]
    thin = {"lw": 1, "ms": 4, "alpha": 0.8}
    styles = {
        early: {"color": "#56B4E9", "ls": "--", "marker": "o", **thin},
        late: {"color": "#0072B2", "ls": "-", "marker": "D", **thin},
    }
    for first in summary["p2"]["pairs"]:
        points = [(0.0, 1.0)] + sorted(
            (pair["weight"], pair["ratio"])
            for pair in pairs
            if pair_name(pair) == pair_name(first) and pair["ratio"] is not None
        )
        xs, ys = [weights.index(w) for w, _ in points], [ratio for _, ratio in points]
        axis.plot(xs, ys, **styles[first["checkpoint"]])
    known = [d for d in doses if d["median"] is not None]
    thick = {"color": COLOURS[1], "lw": 3, "marker": "s", "ms": 8}
    axis.plot(
        [0, *(weights.index(dose["weight"]) for dose in known)],
        [1.0, *(dose["median"] for dose in known)],
        **thick,
    )
    axis.set_xlabel("weight λ of −log Q in the loss")
    axis.set_title("Does a larger dose steer further?")
    axis.set_xticks(range(len(weights)), [f"{weight:g}" for weight in weights])
    ratio_axis(axis, constants)
    cells = [(f"a cell at {name}", style) for name, style in styles.items()]
    bar = (f"bar, {constants.steering_bar:g}", BAR)
    legend(figure, [("median", thick), *cells, bar])
    return figure


def figure_finals(summary: dict[str, Any], constants: Constants) -> Figure:
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = constants.checkpoints[1:]
    cells = summary["finals"]["cells"]
    primary, baseline = arm_style(1, "color", "ls"), arm_style(0, "color", "ls")
    for index, (row, marker) in enumerate(zip(cells, MARKERS, strict=False)):
        for who, style in (("primary", primary), ("baseline", baseline)):
            line = [
                (x, row[name][f"q_{who}"])
                for x, name in enumerate(names)
                if row[name][f"q_{who}"] is not None
            ]
            if line:
                left.plot(*zip(*line, strict=True), **style, marker=marker, lw=1.2)
        shift = 0.12 * (index - (len(cells) - 1) / 2)
        for x, name in enumerate(names):
            if row[name]["ratio"] is not None:
                right.plot(x + shift, row[name]["ratio"], marker, color="#0072B2", ms=7)
    right.axhline(1, **ONE)
    right.axhline(constants.steering_bar, **BAR)
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
        (arm_name(constants.lambdas[1]), primary),
        (arm_name(constants.lambdas[0]), baseline),
        *(
            (cell_title(c), {"color": "grey", "ls": "", "marker": marker})
            for c, marker in zip(constants.cells, MARKERS, strict=False)
        ),
        (f"bar, {constants.steering_bar:g}", BAR),
    ]
    legend(figure, handles, ncols=4)
    figure.suptitle("Would the last step have told the same story?")
    return figure


def figure_seeds(summary: dict[str, Any], constants: Constants) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    rows = summary["seeds"]["rows"]
    handles = []
    for index, weight in enumerate(constants.lambdas[1:], start=1):
        style = {**arm_style(index, "color", "marker"), "ls": "", "ms": 8}
        handles.append((f"median, {arm_name(weight)}", style))
        for row in rows:
            if row["dose_response"][weight] is not None:
                axis.plot(row["seed"], row["dose_response"][weight], **style)
    axis.set(xlabel="seed", title="How much of the verdict is luck?")
    axis.set_xticks([row["seed"] for row in rows])
    ratio_axis(axis, constants)
    axis.set_ylabel("median Q ratio, arm over baseline")
    legend(figure, [*handles, (f"bar, {constants.steering_bar:g}", BAR)])
    return figure
