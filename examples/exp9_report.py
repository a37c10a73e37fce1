"""What exp9 shows on the terminal: a progress bar, then tables."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp9_verdict import PUBLISHED, Run, pair_name
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table


if TYPE_CHECKING:
    from exp9 import Constants

console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)


# --------------------------------------------------------------------- numbers in words


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash for one that is missing."""
    if value is None or not math.isfinite(value):
        return "–"
    if value != 0 and not 1e-2 <= abs(value) < 1e4:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{digits}f}"


def interval(bounds: Any, digits: int = 2) -> str:
    return "–" if bounds is None else " to ".join(number(x, digits) for x in bounds)


def passed(ok: bool, yes: str = "pass", no: str = "fail") -> str:
    return f"[green]{yes}[/]" if ok else f"[bold red]{no}[/]"


# ----------------------------------------------------------------------------- progress


class Bar:
    """One bar for the runs, one for the steps of the run in flight."""

    def __init__(self, progress: Progress, n_runs: int, steps: int) -> None:
        self._progress = progress
        self._runs = progress.add_task("runs", total=n_runs)
        self._steps = progress.add_task("steps", total=steps)

    def begin(self, name: str) -> None:
        self._progress.update(self._steps, description=name, completed=0)

    def step(self, done: int) -> None:
        self._progress.update(self._steps, completed=done)

    def finish(self, run: Run, reused: bool) -> None:
        reached = []
        for name, point in run.checkpoints.items():
            if name not in ("init", "final"):
                reached.append(f"{name} {'never' if point is None else point.step:>5}")
        final = run.checkpoints["final"]
        q = "–" if final is None else f"{final.q:.2e}"
        source = "from disk" if reused else f"{run.seconds:.1f} s"
        print_line = self._progress.console.print
        print_line(f"{run.name:24} {'  '.join(reached)}  final Q {q:>8}  {source}")
        if run.stopped:
            print_line(f"  stopped early, {run.stopped}", style="red", markup=False)
        self._progress.advance(self._runs)


@contextmanager
def progress(n_runs: int, steps: int) -> Iterator[Bar]:
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield Bar(bars, n_runs, steps)


def interrupted(command: str) -> None:
    console.print(
        "\n[bold]Interrupted.[/] Finished runs are on disk; only the run in flight is "
        "lost. To pick up from there:"
    )
    console.print(f"  {command}", soft_wrap=True, markup=False)


def halted(summary: dict[str, Any], files: list[Path]) -> None:
    console.print(
        f"\n[bold red]HALT.[/] A student failed its certificate, and nothing after it "
        f"can be trusted:\n  {escape(summary['halt'])}\n"
        f"[bold]{summary['verdict']}[/], from {len(summary['runs'])} finished runs"
    )
    show_files(files)


def show_files(files: list[Path]) -> None:
    for file in files:
        console.print(f"  {file}", soft_wrap=True, markup=False, style="dim")


# ------------------------------------------------------------------------------- tables


def table(title: str, *columns: str, caption: str | None = None) -> Table:
    # Two spaces between columns, so that every table fits 80 characters.
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption and caption + "\n",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right")
    return made


def show(summary: dict[str, Any], constants: Constants, files: list[Path]) -> None:
    """The whole report."""
    console.print()
    for part in (gates, published, pair_table, doses, trap):
        console.print(part(summary, constants))
    if summary["seeds"]:
        console.print(seed_table(summary))
    console.print(timing(summary))
    colour = "green" if summary["label"] == "the protocol" else "yellow"
    console.print(
        f"[bold]{summary['verdict']}[/]   [{colour}]({summary['label']})[/]\n"
        f"constants {constants.sha256[:12]}, "
        f"{summary['evaluations']:,} in-loop evaluations of Q with its gradient"
    )
    show_files(files)


def gates(summary: dict[str, Any], constants: Constants) -> Table:
    p1, p2, p3, p4 = (summary[key] for key in ("p1", "p2", "p3", "p4"))
    values, differences = p1["values"], p1["differences"]
    made = Table(
        title="Gates", title_justify="left", title_style="bold", box=box.SIMPLE
    )
    for column in ("gate", "verdict", "what was found"):
        made.add_column(column)
    made.add_row(
        "P1 feasibility and fidelity",
        passed(p1["pass"]),
        f"every quantity finite: {'yes' if p1['finite'] else 'no'}\n"
        f"Q against NumPy: worst {number(values['worst'])} of {values['compared']} "
        f"(of {values['expected']}) comparisons, bar {values['tolerance']:g}\n"
        f"autodiff against differences: worst {number(differences['worst'])}, "
        f"bar {differences['tolerance']:g}",
    )
    made.add_row(
        "P2 steering",
        passed(p2["pass"]),
        f"median ratio {number(p2['median'])}, bar {p2['bar']:g}; above 1: "
        f"{p2['above_one']} of {p2['expected']}, {p2['needed_above_one']} needed; "
        f"missing: {p2['expected'] - p2['present']}",
    )
    made.add_row(
        "P3 KL compatibility",
        passed(p3["pass"]),
        f"{p3['crossed']} of {p3['expected']} arms reach "
        f"{constants.checkpoints[-2]} within {constants.steps} steps"
        + (f"\nnever: {', '.join(p3['missing'])}" if p3["missing"] else ""),
    )
    made.add_row(
        "P4 diagnostics",
        passed(p4["pass"], "verified", "not verified"),
        f"{p4['certified']} of {p4['expected']} certificates, {p4['failed']} failed, "
        f"{p4['missing']} missing",
    )
    return made


def published(summary: dict[str, Any], constants: Constants) -> Table:
    p1, p2, p3, p4 = (summary[key] for key in ("p1", "p2", "p3", "p4"))
    d11, last = summary["decomposition"], summary["finals"]
    doses = {dose["weight"]: dose for dose in summary["dose_response"]}
    made = table("Published numbers beside ours", "", "published", "here")

    def row(what: str, theirs: Any, ours: Any) -> None:
        made.add_row(what, str(theirs), str(ours))

    row("outcome", PUBLISHED["outcome"], summary["outcome"])
    row(
        "P1 Q against NumPy, worst",
        number(PUBLISHED["value_agreement"]),
        number(p1["values"]["worst"]),
    )
    for cell, error in p1["differences"]["worst_per_cell"].items():
        theirs = PUBLISHED["differences"].get(cell)
        row(f"P1 autodiff, worst at {cell}", number(theirs), number(error))
    row("P2 median ratio, verdict arm", PUBLISHED["median"], number(p2["median"]))
    row(
        "P2 ratios above 1",
        f"{PUBLISHED['above_one']} of 8",
        f"{p2['above_one']} of {p2['expected']}",
    )
    if (secondary := doses.get(0.01)) is not None:
        row(
            "λ = 0.01: median ratio",
            PUBLISHED["secondary_median"],
            number(secondary["median"], 4),
        )
        row(
            "λ = 0.01: ratios above 1",
            f"{PUBLISHED['secondary_above_one']} of 8",
            f"{secondary['above_one']} of {p2['expected']}",
        )
    row(
        f"P3 verdict arms crossing {constants.checkpoints[-2]}",
        PUBLISHED["primary_crossing"],
        f"{p3['primary_crossed']} of {p3['primary_expected']}",
    )
    row(
        "P4 worst detailed-balance residual",
        PUBLISHED["detailed_balance"],
        number(p4["worst_detailed_balance"]),
    )
    row(
        "P4 smallest Cheeger margin",
        number(PUBLISHED["cheeger_margin"]),
        number(p4["smallest_cheeger_margin"]),
    )
    row("   its lower side, Φ − γ/2", "–", number(p4["smallest_cheeger_lower"]))
    row("   its upper side, √(2γ) − Φ", "–", number(p4["smallest_cheeger_upper"]))
    row(
        "P4 symmetry failures",
        PUBLISHED["symmetry_failures"],
        f"{p4['symmetry_failures']} of {p4['certified']}",
    )
    row(
        "D11.i signal ratios",
        interval(PUBLISHED["signal_ratios"]),
        interval(d11["signal_ratios"]),
    )
    row(
        "D11.i noise ratios",
        interval(PUBLISHED["noise_ratios"]),
        interval(d11["noise_ratios"]),
    )
    largest = d11["largest"]
    row(
        "D11.i largest pair",
        PUBLISHED["largest"][0],
        "–" if largest is None else pair_name(largest),
    )
    row(
        "   ratio = signal × 1/noise ratio",
        PUBLISHED["largest"][1],
        "–"
        if largest is None
        else f"{largest['ratio']:.2f} = {largest['signal_ratio']:.2f} × "
        f"{1 / largest['noise_ratio']:.2f}",
    )
    row(
        "final Q, verdict arm",
        PUBLISHED["final_q_primary"],
        interval(last["q_primary"]),
    )
    row(
        "final Q, baseline", PUBLISHED["final_q_baseline"], interval(last["q_baseline"])
    )
    row(
        "in-loop evaluations",
        f"{PUBLISHED['evaluations']:,}",
        f"{summary['evaluations']:,}",
    )
    row(
        "wall time",
        f"{PUBLISHED['wall_seconds']:.0f} s",
        f"{summary['wall_seconds']:.0f} s"
        + (
            f" + {reused:.0f} s from disk"
            if (reused := summary["reused_seconds"])
            else ""
        ),
    )
    return made


def pair_table(summary: dict[str, Any], constants: Constants) -> Table:
    made = table(
        "Q over the baseline's Q at equal KL progress (P2, D11.i)",
        "pair",
        "λ",
        "Q ratio",
        "= signal ratio",
        "/ noise ratio",
        caption=f"The bar for the median is {constants.steering_bar:g}. A noise ratio "
        "below 1 is a gain.",
    )
    for pair in summary["decomposition"]["pairs"]:
        if pair["missing"]:
            cells = ["[yellow]missing:[/]", pair["missing"], ""]
        else:
            names = ("ratio", "signal_ratio", "noise_ratio")
            cells = [number(pair[name]) for name in names]
        made.add_row(pair_name(pair), f"{pair['weight']:g}", *cells)
    return made


def doses(summary: dict[str, Any], constants: Constants) -> Table:
    expected = summary["p2"]["expected"]
    made = table(
        "Dose response (D11.iv)", "λ", "median ratio", "above 1", "smallest", "largest"
    )
    for dose in summary["dose_response"]:
        made.add_row(
            f"{dose['weight']:g}",
            number(dose["median"], 4),
            f"{dose['above_one']} of {expected}",
            number(dose["smallest"]),
            number(dose["largest"]),
        )
    return made


def trap(summary: dict[str, Any], constants: Constants) -> Table:
    matched = constants.checkpoints[1:-1]
    made = table(
        "The trap of the last step (never part of the verdict)",
        "cell",
        *(f"ratio\nat {name}" for name in matched),
        "ratio\nat end",
        "final Q\narm",
        "final Q\nbaseline",
        "final KL\narm",
        "final KL\nbaseline",
        caption="Crossings compare arms at equal KL. The last step does not: an arm "
        "that has learnt less holds a larger gradient, hence a larger Q.",
    )
    for row in summary["finals"]["cells"]:
        last = row["final"]
        made.add_row(
            str(tuple(row["cell"])),
            *(number(row[name]["ratio"]) for name in matched),
            number(last["ratio"], 2),
            number(last["q_primary"], 2),
            number(last["q_baseline"], 2),
            number(last["kl_primary"]),
            number(last["kl_baseline"]),
        )
    return made


def seed_table(summary: dict[str, Any]) -> Table:
    spread = summary["seeds"]
    found = spread["median"]
    made = table(
        "Over seed tables",
        "seed",
        "outcome",
        "median",
        "above 1",
        "largest",
        "P3",
        caption=f"Median of medians {number(found['median'])}, from "
        f"{number(found['smallest'])} to {number(found['largest'])}. The verdict above "
        "is that of the first seed.",
    )
    for row in spread["rows"]:
        made.add_row(
            str(row["seed"]),
            str(row["outcome"]),
            number(row["median"]),
            f"{row['above_one']} of {row['present']}",
            number(row["largest"]),
            passed(row["p3"]),
        )
    return made


def timing(summary: dict[str, Any]) -> str:
    total, parts = summary["wall_seconds"], summary["timing"]
    split = sorted(parts.items(), key=lambda part: -part[1])
    split.append(("rest", total - sum(parts.values())))
    words = ", ".join(f"{name} {seconds:.1f}" for name, seconds in split)
    return f"Wall time {total:.1f} s: {words}"
