"""A sampler with stale weights, caught: training by a program of thrml that was built
once, and never again.

A program of thrml copies the parameters of its model when it is built. Here a
restricted Boltzmann machine of 5 + 3 units learns a law of patterns from 256 persistent
chains of such a program, twice: with the program built anew at every step, and with the
first one kept. Nothing raises, and in the first steps both learn. Every few steps three
questions are asked of each:

- do the arrays of the program equal the model's? (`certify_program`, nothing sampled)
- are its samples those of the model? (`certify_sampler`)
- what does the wrong sampler cost? (Q, with the program's model as the device)

    python examples/foreign_sampler.py            # about a minute
    python examples/foreign_sampler.py --short    # a quick look

It writes a table, the numbers as JSON, and a figure.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from thrml.models import IsingEBM, IsingSamplingProgram

import trainq as tq
from trainq.interop import thrml


jax.config.update("jax_enable_x64", True)


@dataclass(frozen=True)
class Constants:
    """Everything that is fixed before a run; all of it is our choice."""

    n_visible: int = 5
    n_hidden: int = 3
    n_patterns: int = 2
    teacher_beta: float = 1.5
    scale: float = 0.1  # standard deviation of the first weights
    learning_rate: float = 0.05
    n_chains: int = 256
    iterations: int = 5  # of the program, between two steps
    every: int = 20  # steps between two looks
    false_alarm: float = 0.001  # of each look
    window: int = 200  # of Q, in iterations
    seed: int = 0


CONSTANTS = Constants()


class Trained(eqx.Module):
    """A model of thrml in training, with the program that samples it."""

    ebm: IsingEBM
    program: IsingSamplingProgram
    x: jax.Array


def begin(key: jax.Array) -> tuple[Trained, list[Any], tq.AlternatingBlockGibbs]:
    """The model before its first step, its blocks, and the kernel that they are."""
    m, n = CONSTANTS.n_visible, CONSTANTS.n_hidden
    edges = [(i, m + j) for i in range(m) for j in range(n)]
    weights_key, chains_key = jax.random.split(key)
    weights = CONSTANTS.scale * jax.random.normal(weights_key, (len(edges),))
    machine = tq.BoltzmannMachine(weights, jnp.zeros(m + n), m, edges)
    kernel = tq.AlternatingBlockGibbs(machine.colouring())
    ebm, free = thrml.to_thrml(machine, kernel)
    blocks: list[Any] = [*free]
    shape = (CONSTANTS.n_chains, m + n)
    x = jax.random.rademacher(chains_key, shape, float)
    return Trained(ebm, IsingSamplingProgram(ebm, blocks, []), x), blocks, kernel


def model_of(ebm: IsingEBM, blocks: list[Any]) -> Any:
    return thrml.from_thrml(ebm, blocks, CONSTANTS.n_visible)[0]


@eqx.filter_jit
def gradient(model: Any, data: jax.Array, x: jax.Array) -> jax.Array:
    """The data phase, exact, less the observables of the chains."""
    phase = tq.models.data_phase(model, data)
    return phase - jnp.mean(model.observables(x), axis=0)


def advance(
    key: jax.Array, state: Trained, blocks: list[Any], data: jax.Array, rebuilt: bool
) -> Trained:
    """One step of training."""
    step, x = thrml.program_step(state.program, state.ebm), state.x
    for one in jax.random.split(key, CONSTANTS.iterations):
        x = step(one, x)
    g = gradient(model_of(state.ebm, blocks), data, x)
    old, n = state.ebm, len(state.ebm.edges)
    ebm = IsingEBM(
        old.nodes,
        old.edges,
        old.biases - CONSTANTS.learning_rate * g[n:],
        old.weights - CONSTANTS.learning_rate * g[:n],
        old.beta,
    )
    # The one line that matters.
    program = IsingSamplingProgram(ebm, blocks, []) if rebuilt else state.program
    return Trained(ebm, program, x)


def look(
    key: jax.Array,
    state: Trained,
    built: IsingEBM,
    blocks: list[Any],
    kernel: tq.AlternatingBlockGibbs,
    data: jax.Array,
) -> dict[str, Any]:
    """What can be said of a step: `built` is the model that the program was built
    from."""
    model, device = model_of(state.ebm, blocks), model_of(built, blocks)
    arrays = thrml.certify_program(state.program, state.ebm)
    sampled = tq.certify_sampler(
        key,
        thrml.program_step(state.program, state.ebm),
        model,
        kernel=kernel,
        n_starts=2048,
        n_steps=5,
        false_alarm=CONSTANTS.false_alarm,
    )
    snr = tq.QStruct(kernel, CONSTANTS.window)(model, data, device=device)
    deviations = {
        name: float(check.residual / check.tolerance)
        for name, check in sampled.checks.items()
        if name != "motion" and check.residual is not None
    }
    return {
        "kl": float(tq.kl_divergence(model, data)),
        "program": list(arrays.failed),
        "largest difference": float(abs(arrays.held - arrays.expected).max()),
        "sampler": list(sampled.failed),
        "deviations": deviations,
        "beta": sampled.beta,
        "q": float(snr.q),
        "q limit": min(float(snr.q_limit), 1e300),
    }


def train(key: jax.Array, data: jax.Array, steps: int, rebuilt: bool) -> dict[str, Any]:
    """A whole run, with what was seen of it."""
    first, key = jax.random.split(key)
    state, blocks, kernel = begin(first)
    built, seen = state.ebm, {"step": [], "look": []}
    for i in range(steps + 1):
        now = jax.random.fold_in(key, i)
        if i % CONSTANTS.every == 0:
            if rebuilt:
                built = state.ebm
            seen["step"].append(i)
            seen["look"].append(look(now, state, built, blocks, kernel, data))
        state = advance(now, state, blocks, data, rebuilt)
    return seen


def show(console: Console, runs: dict[str, dict[str, Any]]) -> None:
    for name, seen in runs.items():
        table = Table(
            *("step", "KL", "arrays differ by", "program", "beta eff", "sampler"),
            *("Q", "Q cannot exceed"),
            title=f"A program {name}",
        )
        for step, one in zip(seen["step"], seen["look"], strict=True):
            limit = one["q limit"]
            table.add_row(
                *(str(step), f"{one['kl']:.3f}", f"{one['largest difference']:.3f}"),
                ", ".join(one["program"]) or "passed",
                f"{one['beta']:.3f}",
                ", ".join(one["sampler"]) or "passed",
                *(f"{one['q']:.2f}", f"{limit:.2f}" if limit < 1e9 else "no limit"),
            )
        console.print(table)


def figure(runs: dict[str, dict[str, Any]]) -> Figure:
    """Left, what is learned; in the middle, how the sampler is told; right, Q."""
    drawn = Figure(figsize=(10.5, 3.4), layout="constrained")
    left, middle, right = drawn.subplots(1, 3)
    for (name, seen), colour in zip(runs.items(), ("#0072B2", "#D55E00"), strict=True):
        steps, looks = seen["step"], seen["look"]
        left.plot(steps, [o["kl"] for o in looks], "o-", color=colour, label=name)
        most = [max(o["deviations"].values()) for o in looks]
        middle.plot(steps, most, "o-", color=colour)
        right.plot(steps, [o["q"] for o in looks], "o-", color=colour, label=name)
        limits = [o["q limit"] if o["q limit"] < 1e9 else np.nan for o in looks]
        if np.isfinite(limits).any():
            right.plot(steps, limits, "k--", lw=1, label=f"limit, {name}")
    middle.axhline(1, color="k", lw=1, ls="--")
    left.set(xlabel="step", ylabel="KL", yscale="log", title="What is learned")
    middle.set(xlabel="step", yscale="log", title="Largest deviation over its bar")
    right.set(xlabel="step", yscale="log", title=f"Q, {CONSTANTS.window} iterations")
    left.legend(frameon=False, title="the program is")
    right.legend(frameon=False)
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("results/foreign_sampler"))
    parser.add_argument("--steps", type=int, default=160, help="of training")
    parser.add_argument("--short", action="store_true", help="20 steps")
    args = parser.parse_args(argv)
    steps = CONSTANTS.every if args.short else args.steps
    if steps < 1:
        parser.error("--steps is at least 1")
    start = time.perf_counter()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    args.out.mkdir(parents=True, exist_ok=True)
    c = CONSTANTS
    key = jax.random.key(c.seed)
    teacher = tq.planted_rbm(key, c.n_visible, c.n_patterns, c.teacher_beta)
    data = tq.visible_distribution(teacher)
    runs = {}
    for name, rebuilt in (("built anew", True), ("stale", False)):
        with console.status(f"Training with a program {name} …"):
            runs[name] = train(jax.random.fold_in(key, 1), data, steps, rebuilt)
    show(console, runs)
    figure(runs).savefig(args.out / "foreign_sampler.svg")
    record = {"constants": asdict(CONSTANTS), "steps": steps, "runs": runs}
    (args.out / "summary.json").write_text(json.dumps(record, indent=2) + "\n")
    seconds = time.perf_counter() - start
    console.print(
        f"{seconds:.0f} s; wrote {args.out}/: summary.json, foreign_sampler.svg"
    )
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main())
