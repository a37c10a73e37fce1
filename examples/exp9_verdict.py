"""From runs to a verdict: the gates of exp9, as plain functions of what was recorded.

Nothing here trains, samples or solves. A run that is missing (a halt) and a checkpoint
that was never reached are carried along as missing and counted as such: they are never
replaced by anything, and never quietly dropped.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from exp9 import Constants

Cell = tuple[int, int]

OUTCOMES = {
    1: "not feasible, or not verified",
    2: "feasible, steers",
    3: "feasible, does not steer",
    4: "feasible, but KL progress is lost",
}

# The published run, to print beside ours. Only these numbers are known of it.
PUBLISHED: dict[str, Any] = {
    "outcome": 3,
    "value_agreement": 2.26e-14,
    "differences": {
        "m4_s2": 2.51e-9,
        "m4_s3": 2.53e-9,
        "m5_s2": 1.07e-9,
        "m5_s3": 1.96e-9,
    },
    "median": 1.125,
    "above_one": 7,
    "secondary_median": 1.0002,
    "secondary_above_one": 4,
    "primary_crossing": "4 of 4",
    "detailed_balance": 4.16e-17,
    "cheeger_margin": 3.68e-3,
    "symmetry_failures": "0 of 192",
    "signal_ratios": (0.96, 2.05),
    "noise_ratios": (0.87, 1.04),
    "largest": ("(5,2) c25", "2.37 = 2.05 × 1.15"),
    "final_q_primary": "10 to 10²",
    "final_q_baseline": "1e-8 to 1e-5",
    "evaluations": 16_000,
    "wall_seconds": 1913.0,
}


def cell_name(cell: Cell) -> str:
    return f"m{cell[0]}_s{cell[1]}"


def run_name(seed: int, cell: Cell, weight: float) -> str:
    return f"seed{seed}_{cell_name(cell)}_lambda{weight:g}"


def pair_name(pair: dict[str, Any]) -> str:
    m, s = pair["cell"]
    return f"({m},{s}) {pair['checkpoint']}"


def strict(value: Any) -> Any:
    """The same value for strict JSON: what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    if isinstance(value, np.generic):
        return strict(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# -------------------------------------------------------------------- what a run leaves


def failed_checks(certificate: Any) -> list[str]:
    """The checks that one teacher's certificate failed, with their residuals."""
    return [
        f"{name} (residual {float(check.residual):.3g})"
        for name, check in certificate.checks.items()
        if check.applicable and not check.passed
    ]


def certificate_row(certificate: Any) -> dict[str, Any]:
    """The numbers of one teacher's certificate; checks that do not apply have none."""
    checks, cheeger = certificate.checks, certificate.cheeger
    row: dict[str, Any] = {
        "applicable": {name: c.applicable for name, c in checks.items()},
        "residuals": {
            name: float(c.residual) for name, c in checks.items() if c.applicable
        },
    }
    if cheeger is not None:
        row |= {
            "gap": float(cheeger.gap),
            "conductance": float(cheeger.conductance),
            "cheeger_lower": float(cheeger.lower),
            "cheeger_upper": float(cheeger.upper),
        }
    return row


@dataclass
class Checkpoint:
    """One network on the way, pooled over its teachers; one certificate per teacher."""

    step: int
    kl: float
    q: float
    signal: float
    noise: float
    q_numpy: float | None
    certificates: list[dict[str, Any]]

    @property
    def value_error(self) -> float | None:
        """Relative distance from the independent NumPy evaluation."""
        if self.q_numpy is None:
            return None
        return abs(self.q - self.q_numpy) / abs(self.q_numpy)


@dataclass
class Run:
    """One arm of one cell. A checkpoint that was not reached is None."""

    seed: int
    cell: Cell
    weight: float
    evaluations: int
    stopped: str | None
    seconds: float
    checkpoints: dict[str, Checkpoint | None]
    differences: list[float] | None
    curves: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return run_name(self.seed, self.cell, self.weight)

    @property
    def finite(self) -> bool:
        """Whether training reached its end and every recorded number is finite."""
        points = [p for p in self.checkpoints.values() if p is not None]
        numbers = [x for p in points for x in (p.kl, p.q, p.signal, p.noise)]
        curves = all(np.isfinite(curve).all() for curve in self.curves.values())
        return self.stopped is None and curves and bool(np.isfinite(numbers).all())

    def summary(self) -> dict[str, Any]:
        """Everything but the curves."""
        fields = asdict(self)
        del fields["curves"]
        return fields

    def save(self, path: Path, stamp: dict[str, str]) -> None:
        meta = json.dumps({"stamp": stamp, "run": self.summary()})
        np.savez(path, meta=np.array(meta), **self.curves)

    @classmethod
    def load(cls, path: Path, stamp: dict[str, str]) -> Run | None:
        """The run, or None if other constants or other software made it."""
        with np.load(path) as file:
            meta = json.loads(str(file["meta"]))
            curves = {name: file[name] for name in file.files if name != "meta"}
        if meta["stamp"] != stamp:
            return None
        fields = meta["run"]
        fields["cell"] = tuple(fields["cell"])
        fields["checkpoints"] = {
            name: None if point is None else Checkpoint(**point)
            for name, point in fields["checkpoints"].items()
        }
        return cls(**fields, curves=curves)


# ---------------------------------------------------------------------------- the gates


def judge(runs: list[Run], constants: Constants, halt: str | None) -> dict[str, Any]:
    """All gates and the outcome, for the runs of one seed."""
    p1 = feasibility(runs, constants)
    pairs = compare(runs, constants)
    p2 = steering(pairs, constants)
    p3 = compatibility(runs, constants)
    p4 = diagnostics(runs, constants, halt)
    if not (p1["pass"] and p4["pass"]):
        outcome = 1
    elif not p3["pass"]:
        outcome = 4
    else:
        outcome = 2 if p2["pass"] else 3
    return {
        "outcome": outcome,
        "verdict": f"Outcome {outcome}: {OUTCOMES[outcome]}",
        "p1": p1,
        "p2": p2,
        "p3": p3,
        "p4": p4,
        "decomposition": decomposition(pairs),
        "dose_response": dose_response(pairs, constants),
        "finals": finals(runs, constants),
        "evaluations": sum(run.evaluations for run in runs),
    }


def label(constants: Constants, protocol: Constants) -> str:
    """What kind of run this was, in the words that stand next to its verdict."""
    if constants == protocol:
        return "the protocol"
    if constants.steps < protocol.steps:
        return "short run, not the protocol"
    return "changed constants, not the protocol"


def crossings(constants: Constants) -> tuple[str, ...]:
    """c50 and c25."""
    return constants.checkpoints[1:-1]


def find(runs: list[Run], cell: Cell, weight: float) -> Run | None:
    return next((r for r in runs if r.cell == cell and r.weight == weight), None)


def checkpoint(
    runs: list[Run], cell: Cell, weight: float, name: str
) -> Checkpoint | None:
    run = find(runs, cell, weight)
    return None if run is None else run.checkpoints[name]


def arms(constants: Constants) -> list[tuple[Cell, float]]:
    return [(c, weight) for c in constants.cells for weight in constants.lambdas]


def worst(errors: list[float]) -> float:
    """The largest error; NaN if there is none, or if one is NaN, unlike `max`."""
    return float(np.max(errors)) if errors else math.nan


def feasibility(runs: list[Run], constants: Constants) -> dict[str, Any]:
    """P1: finite throughout, Q as in NumPy, autodiff as in central differences.

    What is missing cannot fail; but with nothing left to compare, nothing is shown.
    """
    rows, missing = [], []
    for cell, weight in arms(constants):
        for name in crossings(constants):
            point = checkpoint(runs, cell, weight, name)
            where = {"cell": cell, "weight": weight, "checkpoint": name}
            if point is None:
                missing.append(where)
            else:
                row = {"q": point.q, "q_numpy": point.q_numpy}
                rows.append(where | row | {"error": point.value_error})
    worst_value = worst([row["error"] for row in rows])

    differences: dict[str, float | None] = {}
    for cell in constants.cells:
        run = find(runs, cell, constants.lambdas[1])
        errors = None if run is None else run.differences
        differences[cell_name(cell)] = None if errors is None else worst(errors)
    worst_difference = worst([e for e in differences.values() if e is not None])

    finite = len(runs) == len(arms(constants)) and all(run.finite for run in runs)
    values_pass = worst_value <= constants.value_tolerance
    differences_pass = worst_difference <= constants.difference_tolerance
    return {
        "pass": finite and values_pass and differences_pass,
        "finite": finite,
        "stopped": {r.name: r.stopped for r in runs if r.stopped},
        "values": {
            "pass": values_pass,
            "worst": worst_value,
            "tolerance": constants.value_tolerance,
            "compared": len(rows),
            "expected": len(rows) + len(missing),
            "comparisons": rows,
            "missing": missing,
        },
        "differences": {
            "pass": differences_pass,
            "worst": worst_difference,
            "tolerance": constants.difference_tolerance,
            "worst_per_cell": differences,
            "at": f"λ = {constants.lambdas[1]:g}, {constants.difference_checkpoint}",
        },
    }


def compare(runs: list[Run], constants: Constants) -> list[dict[str, Any]]:
    """Q of every augmented arm over Q of its baseline, at equal progress in KL.

    ratio = signal_ratio / noise_ratio, arm over baseline in both.
    """
    pairs = []
    for weight in constants.lambdas[1:]:
        for cell in constants.cells:
            for name in crossings(constants):
                arm = checkpoint(runs, cell, weight, name)
                base = checkpoint(runs, cell, constants.lambdas[0], name)
                pair: dict[str, Any] = {
                    "weight": weight,
                    "cell": cell,
                    "checkpoint": name,
                    "ratio": None,
                    "signal_ratio": None,
                    "noise_ratio": None,
                    "missing": None,
                }
                if arm is None or base is None:
                    sides = {"arm": arm, "baseline": base}
                    never = [who for who, point in sides.items() if point is None]
                    pair["missing"] = " and ".join(never)
                else:
                    pair["ratio"] = arm.q / base.q
                    pair["signal_ratio"] = arm.signal / base.signal
                    pair["noise_ratio"] = arm.noise / base.noise
                pairs.append(pair)
    return pairs


def ratios(pairs: list[dict[str, Any]], weight: float) -> list[float]:
    """The ratios of one arm that exist."""
    ours = [pair for pair in pairs if pair["weight"] == weight]
    return [pair["ratio"] for pair in ours if pair["ratio"] is not None]


def summarise(values: list[float]) -> dict[str, Any]:
    return {
        "median": float(np.median(values)) if values else None,
        "smallest": min(values, default=None),
        "largest": max(values, default=None),
        "above_one": sum(value > 1 for value in values),
        "present": len(values),
    }


def steering(pairs: list[dict[str, Any]], constants: Constants) -> dict[str, Any]:
    """P2: does the verdict arm have a better Q than the baseline at equal KL?"""
    primary = constants.lambdas[1]
    found = summarise(ratios(pairs, primary))
    median = found["median"]
    return {
        "pass": median is not None
        and median >= constants.steering_bar
        and found["above_one"] >= constants.pairs_above_one,
        **found,
        "expected": len(constants.cells) * len(crossings(constants)),
        "bar": constants.steering_bar,
        "needed_above_one": constants.pairs_above_one,
        "weight": primary,
        "pairs": [pair for pair in pairs if pair["weight"] == primary],
    }


def compatibility(runs: list[Run], constants: Constants) -> dict[str, Any]:
    """P3: every arm reaches the last crossing within the cap."""
    last = crossings(constants)[-1]
    steps = {name: {} for name in crossings(constants)}
    for cell, weight in arms(constants):
        for name in steps:
            point = checkpoint(runs, cell, weight, name)
            where = f"{cell_name(cell)}_lambda{weight:g}"
            steps[name][where] = None if point is None else point.step
    crossed = [where for where, step in steps[last].items() if step is not None]
    primary = [checkpoint(runs, c, constants.lambdas[1], last) for c in constants.cells]
    return {
        "pass": len(crossed) == len(arms(constants)),
        "crossed": len(crossed),
        "expected": len(arms(constants)),
        "primary_crossed": sum(point is not None for point in primary),
        "primary_expected": len(primary),
        "missing": sorted(set(steps[last]) - set(crossed)),
        "steps": steps,
    }


def diagnostics(
    runs: list[Run], constants: Constants, halt: str | None
) -> dict[str, Any]:
    """P4: detailed balance, Cheeger margin and symmetry of every student.

    A certificate that fails halts the experiment, so every one that is listed here has
    passed; the gate also wants the three checks to have applied.
    """
    cells = [
        certificate
        for run in runs
        for point in run.checkpoints.values()
        if point is not None
        for certificate in point.certificates
    ]
    needed = ("detailed_balance", "cheeger", "symmetry")
    applied = all(cell["applicable"][name] for cell in cells for name in needed)
    expected = len(arms(constants)) * len(constants.checkpoints) * constants.teachers

    # The numbers of a check that did not apply are not there.
    residuals = {
        name: [cell["residuals"][name] for cell in cells if name in cell["residuals"]]
        for name in needed
    }

    def smallest(*names: str) -> float | None:
        return min(
            (cell[name] for cell in cells for name in names if name in cell),
            default=None,
        )

    return {
        "pass": halt is None and applied and bool(cells),
        "halted": halt,
        "certified": len(cells),
        "expected": expected,
        "missing": expected - len(cells),
        "failed": 0 if halt is None else 1,
        "worst_detailed_balance": worst(residuals["detailed_balance"]),
        "worst_symmetry": worst(residuals["symmetry"]),
        "symmetry_failures": int(halt is not None and "symmetry" in halt),
        "smallest_cheeger_margin": smallest("cheeger_lower", "cheeger_upper"),
        "smallest_cheeger_lower": smallest("cheeger_lower"),
        "smallest_cheeger_upper": smallest("cheeger_upper"),
        "smallest_gap": smallest("gap"),
    }


def decomposition(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """D11.i: does a ratio come from the signal or from the noise?"""
    present = [pair for pair in pairs if pair["ratio"] is not None]
    primary = [pair for pair in present if pair["weight"] == pairs[0]["weight"]]

    def bounds(name: str) -> list[float] | None:
        values = [pair[name] for pair in primary]
        return [min(values), max(values)] if values else None

    return {
        "signal_ratios": bounds("signal_ratio"),
        "noise_ratios": bounds("noise_ratio"),
        "largest": max(primary, key=lambda pair: pair["ratio"], default=None),
        "pairs": pairs,
    }


def dose_response(
    pairs: list[dict[str, Any]], constants: Constants
) -> list[dict[str, Any]]:
    """D11.iv: the ratios as a function of λ."""
    return [
        {"weight": w, **summarise(ratios(pairs, w)), "ratios": ratios(pairs, w)}
        for w in sorted(constants.lambdas[1:])
    ]


def finals(runs: list[Run], constants: Constants) -> dict[str, Any]:
    """The trap: what one would read off the last step. Never part of the verdict."""
    base_weight, primary_weight = constants.lambdas[:2]
    rows = []
    for cell in constants.cells:
        row: dict[str, Any] = {"cell": cell}
        for name in constants.checkpoints[1:]:
            arm = checkpoint(runs, cell, primary_weight, name)
            base = checkpoint(runs, cell, base_weight, name)
            row[name] = {
                "q_primary": arm and arm.q,
                "q_baseline": base and base.q,
                "kl_primary": arm and arm.kl,
                "kl_baseline": base and base.kl,
                "ratio": arm.q / base.q if arm and base else None,
            }
        rows.append(row)

    def bounds(name: str) -> list[float] | None:
        values = [row["final"][name] for row in rows if row["final"][name] is not None]
        return [min(values), max(values)] if values else None

    return {
        "in_verdict": False,
        "q_primary": bounds("q_primary"),
        "q_baseline": bounds("q_baseline"),
        "cells": rows,
    }


def spread(per_seed: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The verdict arm's median over seed tables, and every seed's outcome."""
    rows = [
        {
            "seed": seed,
            "outcome": found["outcome"],
            "median": found["p2"]["median"],
            "above_one": found["p2"]["above_one"],
            "present": found["p2"]["present"],
            "largest": found["p2"]["largest"],
            "p3": found["p3"]["pass"],
            "dose_response": {d["weight"]: d["median"] for d in found["dose_response"]},
        }
        for seed, found in per_seed.items()
    ]
    medians = [row["median"] for row in rows if row["median"] is not None]
    return {
        "rows": rows,
        "median": summarise(medians),
        "outcomes": {n: sum(row["outcome"] == n for row in rows) for n in OUTCOMES},
    }
