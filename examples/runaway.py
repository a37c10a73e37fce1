"""Runaway: above a critical λ, the loss KL − λ log Q has no minimum.

A student that freezes into one pair of states ±x has a noise that vanishes
exponentially in its couplings, while its signal stays: log Q grows without end, and
KL with it. Which one wins is decided by the law p of the data alone. For an RBM without
biases, with as many hidden units as visible ones, the loss is bounded below if

    λ ≤ 1 − p*,

with p* the mass of the most probable pair ±v, and it is not if

    λ > min over cyclic orders of the visible units of E_p[arcs],

where a visible state has as many arcs as there are runs, around the circle, of units
that differ from those of v. The two are equal where every state that the data show is
one arc. `docs/runaway.md` derives both. Here they are put to the test: along rays of
frozen students, and by training on either side.

    python examples/runaway.py                    # about two minutes
    python examples/runaway.py --steps 200        # a quick look

It writes a table, the numbers as JSON, and a figure.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import equinox as eqx
import exp9
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import trainq as tq


jax.config.update("jax_enable_x64", True)

Array = np.ndarray


@dataclass(frozen=True)
class Constants:
    """Everything that is fixed before a run. All of it is our choice, but for the cells
    and the teachers, which are those of `exp9.py`, and the published ladder of λ."""

    ladder: tuple[float, ...] = (0.01, 0.1, 0.3, 1.0, 3.0)
    strengths: tuple[float, ...] = (1.0, 2.0, 4.0, 6.0, 8.0)  # t, along a ray
    trained: tuple[int, int] = (4, 3)  # the cell that is trained on
    teacher: int = 1  # which of its four
    multiples: tuple[float, ...] = (0.9, 1.1, 2.0)  # λ over the lower bound
    starts: int = 2  # students at random, for each λ
    frozen_strength: float = 3.0  # and one that is frozen: t of its ray
    scale: float = 0.1  # standard deviation of the weights of those at random
    learning_rate: float = 1e-2
    steps: int = 2000
    seed: int = 0


CONSTANTS = Constants()
KERNEL = tq.RandomScanGibbs()
WINDOW_SWEEPS = 250  # only moves log Q by a constant


# --------------------------------------------------------------------------- the bounds


@dataclass(frozen=True)
class Bounds:
    """Where the loss loses its minimum: between `lower` and `upper`.

    - `state`: `(m,)`, the visible state `v` of the most probable pair.
    - `order`: the cyclic order of the visible units that gives `upper`.
    """

    lower: float
    upper: float
    state: tuple[int, ...]
    order: tuple[int, ...]


def arcs(states: Array, state: Array, order: Sequence[int]) -> Array:
    """In how many arcs of the circle each state differs from another one."""
    differ = (states * state)[:, list(order)]
    return (differ != np.roll(differ, -1, axis=1)).sum(axis=1) / 2


def bounds(law: Any) -> Bounds:
    """Both bounds for the law of the data, `(2**m,)`."""
    law = np.asarray(law)
    m = law.size.bit_length() - 1
    bits = (np.arange(law.size)[:, None] >> np.arange(m)[::-1]) & 1
    states = 2 * bits - 1
    best = int(law.argmax())
    state = states[best]
    orders = [(0, *rest) for rest in permutations(range(1, m))]
    upper, order = min((law @ arcs(states, state, o), o) for o in orders)
    lower = 1 - law[best] - law[law.size - 1 - best]
    return Bounds(float(lower), float(upper), tuple(state.tolist()), order)


def on_the_circle(found: Bounds) -> jax.Array:
    """Weights of a student that freezes into the pair: each hidden unit on two
    neighbours of the circle."""
    m = len(found.state)
    weights = np.zeros((m, m))
    for j in range(m):
        for i in (found.order[j], found.order[(j + 1) % m]):
            weights[i, j] = found.state[i]
    return jnp.asarray(weights)


def aligned(found: Bounds) -> jax.Array:
    """Weights of another one, for comparison: every one along the pair."""
    return jnp.outer(jnp.array(found.state, float), jnp.ones(len(found.state)))


# ----------------------------------------------------------------------------- the rays


def both(model: tq.RBM, law: jax.Array) -> tuple[jax.Array, jax.Array]:
    """KL and log Q."""
    predictor = tq.QStruct(KERNEL, KERNEL.steps(model, sweeps=WINDOW_SWEEPS))
    return tq.kl_divergence(model, law), predictor(model, law).log_q


@jax.jit
def along(ray: jax.Array, strength: Any, law: jax.Array) -> tuple[Any, Any]:
    """KL and log Q of the student with weights `strength · ray`, and their derivatives
    by the strength."""
    values, pull = jax.vjp(lambda t: both(tq.RBM(t * ray), law), strength)
    return values, [pull(unit)[0] for unit in ((1.0, 0.0), (0.0, 1.0))]


def slope(ray: jax.Array, law: jax.Array) -> tuple[Array, Array, float]:
    """KL and log Q along a ray, and how much the one rises for each unit of the other
    at its end."""
    found = [along(ray, strength, law) for strength in CONSTANTS.strengths]
    kl, log_q = np.array([values for values, _ in found]).T
    _, (kl_slope, log_q_slope) = found[-1]
    return kl, log_q, float(kl_slope / log_q_slope)


# ------------------------------------------------------------------------- the training


def train(law: jax.Array, found: Bounds, steps: int) -> dict[str, Array]:
    """KL and log Q at every step of every run: `(λ, starts, steps)`, the last start
    being frozen."""
    m, keys = (
        len(found.state),
        jax.random.split(jax.random.key(CONSTANTS.seed), CONSTANTS.starts),
    )
    at_random = jax.vmap(lambda key: jax.random.normal(key, (m, m)))(keys)
    start = CONSTANTS.frozen_strength * on_the_circle(found)[None]
    starts = jnp.concatenate([CONSTANTS.scale * at_random, start])
    optimiser = optax.adam(CONSTANTS.learning_rate)

    def run(weight, start):
        def loss(weights):
            kl, log_q = both(tq.RBM(weights), law)
            return kl - weight * log_q, (kl, log_q)

        def step(carry, _):
            weights, state = carry
            (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
            change, state = optimiser.update(gradient, state)
            return (optax.apply_updates(weights, change), state), out

        return jax.lax.scan(step, (start, optimiser.init(start)), None, steps)[1]

    weights = found.lower * jnp.array(CONSTANTS.multiples)
    runs = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
    kl, log_q = eqx.filter_jit(runs)(weights, starts)
    return {"kl": np.asarray(kl), "log_q": np.asarray(log_q)}


# ------------------------------------------------------------------------- the verdicts


def cell_bounds(seed: int, cell: exp9.Cell, family: str) -> tuple[float, float]:
    """Both bounds of a cell of exp9: its loss takes the mean of KL over four teachers,
    and its pooled noise is at least that of the student with most of it. So its bounds
    are the means of those of the teachers."""
    task, _ = exp9.make_task(seed, cell, family)
    found = [bounds(law) for law in task.laws]
    return (
        float(np.mean([b.lower for b in found])),
        float(np.mean([b.upper for b in found])),
    )


def verdict(weight: float, lower: float, upper: float) -> str:
    if weight <= lower:
        return "bounded"
    return "no minimum" if weight > upper else "open"


def show_rays(console: Console, family: str) -> list[dict[str, Any]]:
    table = Table(
        *("cell", "teacher", "1 − p*", "E\\[arcs]", "slope, on the circle"),
        "slope, all aligned",
        title="KL for each unit of log Q, along rays of frozen students",
    )
    rows = []
    for cell in exp9.PROTOCOL.cells:
        task, _ = exp9.make_task(CONSTANTS.seed, cell, family)
        for i, law in enumerate(task.laws):
            found = bounds(law)
            rays = (on_the_circle(found), aligned(found))
            slopes = [slope(ray, law)[2] for ray in rays]
            numbers = [found.lower, found.upper, *slopes]
            table.add_row(str(cell), str(i), *(f"{x:.4f}" for x in numbers))
            names = ("lower", "upper", "slope_circle", "slope_aligned")
            row = dict(zip(names, numbers, strict=True))
            rows.append({"cell": cell, "teacher": i, **row})
    console.print(table)
    return rows


def show_ladder(console: Console, seeds: Sequence[int]) -> dict[str, Any]:
    ladder = CONSTANTS.ladder
    table = Table(
        *("teachers", "seeds", "cells", "λ critical, range"),
        *(f"λ = {weight:g}" for weight in ladder),
        title="Cells of exp9 whose loss has no minimum",
    )
    record = {}
    for family in ("two-layer", "hidden"):
        cells = exp9.PROTOCOL.cells
        found = [cell_bounds(seed, c, family) for seed in seeds for c in cells]
        counts = []
        for weight in ladder:
            said = [verdict(weight, *one) for one in found]
            counts.append({v: said.count(v) for v in ("no minimum", "open", "bounded")})
        shown = [
            f"{c['no minimum']}"
            + (f" to {c['no minimum'] + c['open']}" * bool(c["open"]))
            for c in counts
        ]
        low, high = min(b[0] for b in found), max(b[1] for b in found)
        span = f"{low:.3f} to {high:.3f}"
        table.add_row(family, str(len(seeds)), str(len(found)), span, *shown)
        record[family] = {
            "bounds": found,
            "counts": dict(zip(map(str, ladder), counts, strict=True)),
        }
    console.print(table)
    return record


def show_training(
    console: Console, found: Bounds, runs: dict[str, Array]
) -> list[dict[str, Any]]:
    table = Table(
        *("λ", "λ / (1 − p*)", "start", "KL", "log Q"),
        "KL for each unit of log Q, second half",
        title=f"After {runs['kl'].shape[-1]} steps, cell {CONSTANTS.trained}",
    )
    rows = []
    for multiple, kls, log_qs in zip(
        CONSTANTS.multiples, runs["kl"], runs["log_q"], strict=True
    ):
        for i, (kl, log_q) in enumerate(zip(kls, log_qs, strict=True)):
            half = len(kl) // 2
            gain = log_q[-1] - log_q[half]
            ran = gain > 1  # it still moves
            slope_ = float((kl[-1] - kl[half]) / gain) if ran else None
            start = "frozen" if i == CONSTANTS.starts else f"random {i}"
            weight = multiple * found.lower
            table.add_row(
                *(f"{weight:.3f}", f"{multiple:g}", start, f"{kl[-1]:.3f}"),
                *(f"{log_q[-1]:.2f}", "rests" if slope_ is None else f"{slope_:.3f}"),
            )
            rows.append(
                {
                    **{"lambda": weight, "start": start, "kl": float(kl[-1])},
                    **{"log_q": float(log_q[-1]), "slope": slope_},
                }
            )
    console.print(table)
    return rows


def figure(found: Bounds, law: jax.Array, runs: dict[str, Array]) -> Figure:
    """Left, the rays; right, where training goes."""
    drawn = Figure(figsize=(9, 3.8), layout="constrained")
    rays, training = drawn.subplots(1, 2)
    curves = {"on the circle": on_the_circle(found), "aligned": aligned(found)}
    ends = {name: slope(ray, law)[:2] for name, ray in curves.items()}
    colours = ("#D55E00", "#0072B2")
    for (name, (kl, log_q)), colour in zip(ends.items(), colours, strict=True):
        rays.plot(log_q, kl, "o-", color=colour, label=name)
    kl, log_q = ends["on the circle"]
    least = kl[-1] + found.lower * (log_q - log_q[-1])
    rays.plot(log_q, least, "k--", lw=1, label="slope 1 − p*")
    rays.set(xlabel="log Q", ylabel="KL", title="Frozen students")
    rays.legend(frameon=False)
    steps = np.arange(1, runs["kl"].shape[-1] + 1)
    colours = ("#0072B2", "#E69F00", "#CC79A7")
    for multiple, colour, all_ in zip(
        CONSTANTS.multiples, colours, runs["log_q"], strict=False
    ):
        for i, log_q in enumerate(all_):
            is_frozen = i == CONSTANTS.starts
            label = f"λ = {multiple:g} (1 − p*)" if i == 0 else None
            dash = "--" if is_frozen else "-"
            training.plot(steps, log_q, dash, color=colour, lw=1.2, label=label)
    training.set(
        xscale="log", xlabel="step", ylabel="log Q", title="Training (dashed: frozen)"
    )
    training.legend(frameon=False, fontsize=8)
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("results/runaway"))
    parser.add_argument(
        "--steps", type=int, default=CONSTANTS.steps, help="of training"
    )
    parser.add_argument(
        "--seeds", type=int, default=20, help="of the ladder, at most 20"
    )
    parser.add_argument(
        "--teachers", choices=("two-layer", "hidden"), default="two-layer"
    )
    args = parser.parse_args(argv)
    if args.steps < 2 or not 1 <= args.seeds <= len(exp9.PROTOCOL.seeds):
        parser.error("--steps is at least 2, and --seeds between 1 and 20")

    start = time.perf_counter()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    args.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"constants": asdict(CONSTANTS), "teachers": args.teachers}
    record["ladder"] = show_ladder(console, exp9.PROTOCOL.seeds[: args.seeds])
    with console.status("Frozen students …"):
        record["rays"] = show_rays(console, args.teachers)
    task, _ = exp9.make_task(CONSTANTS.seed, CONSTANTS.trained, args.teachers)
    law = task.laws[CONSTANTS.teacher]
    found = bounds(law)
    with console.status("Training …"):
        runs = train(law, found, args.steps)
    record["training"] = show_training(console, found, runs)
    figure(found, law, runs).savefig(args.out / "runaway.svg")
    text = json.dumps(record, indent=2) + "\n"
    (args.out / "summary.json").write_text(text)
    seconds = time.perf_counter() - start
    console.print(f"{seconds:.0f} s; wrote {args.out}/: summary.json, runaway.svg")
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main())
