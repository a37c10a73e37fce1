"""Digits: does it pay to watch Q while an RBM trains?

An RBM of 64 × 16 units learns the digits of scikit-learn, 8 × 8 pixels, by persistent
contrastive divergence. Every step comes with the Q of its gradient. One strategy keeps
the window of the chains fixed; the other one adapts it, so that Q stays near a target.
Both spend the same number of kernel steps, of the same chains. What counts is the
log-likelihood of digits that were held out, exact: with 16 hidden units log Z is a sum
of 2**16 terms. (With 32 it is not, and would be an estimate, whose error is what is to
be compared.)

    python examples/digits.py             # about two minutes
    python examples/digits.py --short     # a quick look

It prints two tables, and writes them, the numbers as JSON, and a figure.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import trainq as tq
from trainq import plot


jax.config.update("jax_enable_x64", True)

Array = np.ndarray


@dataclass(frozen=True)
class Strategy:
    """How many kernel steps a gradient is given.

    - `window`: of the first gradient; of all of them, without a target.
    - `target`: the Q that the window is adapted to, or None.
    - `learning_rate`: at the start; it falls linearly to zero as the budget is spent.
    """

    name: str
    window: int
    target: float | None
    learning_rate: float


@dataclass(frozen=True)
class Constants:
    """Everything that is fixed before a run. The learning rate of each strategy is the
    best of a grid in factors of two, from 0.0125 to 0.05 for a window of 1, from 0.025
    to 0.4 for one of 5 and from 0.05 to 0.4 for one of 25, and from 0.0125 to 0.2 where
    it is adapted, by the test digits and with the seed 100, which is none of the
    `seeds`."""

    n_hidden: int = 16
    scale: float = 0.01  # standard deviation of the first weights
    n_chains: int = 64
    budget: int = 6_000  # kernel steps of each chain
    checkpoints: int = 24
    held_to_the_truth: tuple[int, ...] = (4, 8, 16, 24)  # with the first seed
    most_window: int = 25  # that a target may ask for
    memory: float = 0.9  # of the averages that the window is adapted by
    strategies: tuple[Strategy, ...] = (
        Strategy("window 1", 1, None, 0.025),
        Strategy("window 5", 5, None, 0.05),
        Strategy("window 25", 25, None, 0.1),
        Strategy("Q near 1", 5, 1.0, 0.05),
        Strategy("Q near 5", 5, 5.0, 0.05),
    )
    seeds: tuple[int, ...] = (0, 1, 2, 3)


CONSTANTS = Constants()
SHORT = Constants(
    budget=30,
    checkpoints=2,
    held_to_the_truth=(1, 2),
    strategies=CONSTANTS.strategies[1:4:2],
    seeds=(0, 1),
)
KERNEL = tq.AlternatingBlockGibbs()


def digits() -> tuple[Array, Array]:
    """Spins of 1437 digits to learn, and of 360 that are held out."""
    images: Any = load_digits()
    spins = np.where(images.data > 7, 1.0, -1.0)
    order = np.random.default_rng(0).permutation(len(spins))
    return spins[order[:1437]], spins[order[1437:]]


def first_model(key: jax.Array, train: jax.Array, n_hidden: int) -> tq.RBM:
    """Small weights, and visible biases with the means of the pixels."""
    mean = jnp.clip(train.mean(axis=0), -0.98, 0.98)
    weights = CONSTANTS.scale * jax.random.normal(key, (mean.size, n_hidden))
    return tq.RBM(weights, jnp.arctanh(mean), jnp.zeros(n_hidden))


class Training(NamedTuple):
    """Where a run stands."""

    model: tq.RBM
    chains: tq.sampling.ChainState
    window: jax.Array
    signal: jax.Array  # an average over the last steps
    noise: jax.Array  # the same, of one kernel step
    spent: jax.Array  # kernel steps of each chain
    updates: jax.Array
    sums: jax.Array  # of log(1 + Q) and of windows that were short


@eqx.filter_jit
def train_until(
    training: Training,
    end: jax.Array,
    data: jax.Array,
    target: jax.Array,
    learning_rate: jax.Array,
    constants: Constants,
) -> Training:
    """Update until so many kernel steps have been spent."""

    def update(t: Training) -> Training:
        estimator = tq.sampling.GradientEstimator(KERNEL, t.window)
        estimate = estimator(t.chains, t.model, data)
        rate = learning_rate * (1 - t.spent.astype(float) / constants.budget)
        model = jax.tree.map(lambda p, g: p - rate * g, t.model, estimate.gradient)
        # Noise of a long window goes with its inverse, and the signal stays: what comes
        # near to the target. Both are averaged, as one estimate is noisy.
        keep = jnp.where(t.updates == 0, 0.0, constants.memory)
        signal = keep * t.signal + (1 - keep) * estimate.signal
        noise = keep * t.noise + (1 - keep) * estimate.mse * t.window.astype(float)
        wanted = target * noise / jnp.maximum(signal, 1e-3 * noise)
        wanted = jnp.clip(jnp.round(wanted), 1, constants.most_window).astype(int)
        window = jnp.where(target > 0, wanted, t.window)
        short = (estimate.window_status != 0).astype(float)
        watched = jnp.stack([jnp.log1p(estimate.q), short])
        return Training(
            model,
            estimate.state,
            window,
            signal,
            noise,
            t.spent + t.window,
            t.updates + 1,
            t.sums + watched,
        )

    return jax.lax.while_loop(lambda t: t.spent.astype(float) < end, update, training)


@eqx.filter_jit
def log_likelihood(model: tq.RBM, samples: jax.Array) -> jax.Array:
    """The mean over samples, in nats, exact."""
    return -tq.free_energy(model, samples).mean() - tq.log_partition(model)


@eqx.filter_jit
def next_error(training: Training, data: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The squared error of the next gradient: as its chains tell it, and true."""
    estimator = tq.sampling.GradientEstimator(KERNEL, training.window)
    estimate = estimator(training.chains, training.model, data)
    exact = tq.models.gradient_of_kl(training.model, data)
    flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(estimate.gradient)])
    return estimate.mse, jnp.sum((flat - exact) ** 2)


def run(
    strategy: Strategy, seed: int, train: Any, test: Any, constants: Constants
) -> dict[str, Any]:
    """One training: what it has spent and reached at each checkpoint."""
    keys = jax.random.split(jax.random.key(seed))
    model = first_model(keys[0], train, constants.n_hidden)
    chains = tq.start_chains(
        keys[1], model, constants.n_chains, tq.FromData(), data=train
    )
    zero = jnp.zeros(())
    training = Training(
        *(model, chains, jnp.array(strategy.window), zero, zero),
        *(jnp.array(0), jnp.array(0), jnp.zeros(2)),
    )
    rows: list[dict[str, Any]] = []
    for i in range(1, constants.checkpoints + 1):
        before = training
        # As arrays, which compile nothing anew.
        end = jnp.asarray(constants.budget * i / constants.checkpoints)
        target = jnp.asarray(strategy.target or 0.0)
        rate = jnp.asarray(strategy.learning_rate)
        training = train_until(training, end, train, target, rate, constants)
        n = int(training.updates - before.updates)
        if n == 0:  # the last window has passed this checkpoint as well
            rows.append(rows[-1])
            continue
        log_q, short = np.asarray(training.sums - before.sums) / n
        rows.append(
            {
                "spent": int(training.spent),
                "updates": int(training.updates),
                "train": float(log_likelihood(training.model, train)),
                "test": float(log_likelihood(training.model, test)),
                "q": float(np.expm1(log_q)),
                "window": float((training.spent - before.spent) / n),
                "short": float(short),
            }
        )
        if seed == constants.seeds[0] and i in constants.held_to_the_truth:
            rows[-1]["errors"] = [float(x) for x in next_error(training, train)]
    return {"strategy": strategy.name, "seed": seed, "rows": rows}


# --------------------------------------------------------------------------- the report


def at_the_end(runs: Sequence[dict[str, Any]], strategy: str, name: str) -> Array:
    """A number of the last checkpoint, one for each seed, in order."""
    return np.array([r["rows"][-1][name] for r in runs if r["strategy"] == strategy])


def mean_and_error(values: Array) -> tuple[float, float]:
    """The mean over seeds, and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def summary(
    runs: Sequence[dict[str, Any]], strategies: Sequence[Strategy]
) -> list[dict[str, Any]]:
    """What each strategy has reached, and how much more that is than what the best of
    those with a fixed window has, seed by seed."""
    fixed = [s.name for s in strategies if s.target is None]
    best = max(fixed, key=lambda name: at_the_end(runs, name, "test").mean())
    rows = []
    for strategy in strategies:
        name = strategy.name
        test = at_the_end(runs, name, "test")
        gain, error = mean_and_error(test - at_the_end(runs, best, "test"))
        row: dict[str, Any] = {
            "strategy": name,
            "learning_rate": strategy.learning_rate,
        }
        for what in ("updates", "window", "q", "train"):
            row[what] = float(at_the_end(runs, name, what).mean())
        row["test"], row["test_error"] = mean_and_error(test)
        row |= {"gain": gain, "gain_error": error, "over": best}
        rows.append(row)
    return rows


def cells(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table, its heading first."""
    best = rows[0]["over"]
    found = [
        (
            *("strategy", "learning rate", "gradients", "window, last", "Q, last"),
            *("train", "test", f"test, over {best}"),
        )
    ]
    for row in rows:
        gain = f"{row['gain']:+.2f} ± {row['gain_error']:.2f}"
        found.append(
            (
                *(row["strategy"], f"{row['learning_rate']:g}"),
                *(f"{row['updates']:.0f}", f"{row['window']:.1f}", f"{row['q']:.2f}"),
                *(
                    f"{row['train']:.2f}",
                    f"{row['test']:.2f} ± {row['test_error']:.2f}",
                ),
                "" if row["strategy"] == best else gain,
            )
        )
    return found


def errors(runs: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """What chains say of the squared error of a gradient, and what it is."""
    head = ("strategy", "kernel steps", "window", "squared error, told", "true")
    found: list[tuple[str, ...]] = [head]
    for one in runs:
        for row in one["rows"]:
            if "errors" in row:
                numbers = (f"{x:.3g}" for x in row["errors"])
                about = (one["strategy"], str(row["spent"]), f"{row['window']:.1f}")
                found.append((*about, *numbers))
    return found


def show(console: Console, title: str, cells: Sequence[tuple[str, ...]]) -> None:
    head, *body = cells
    table = Table(*head, title=title)
    for row in body:
        table.add_row(*row)
    console.print(table)


def as_markdown(cells: Sequence[tuple[str, ...]]) -> str:
    head, *body = cells
    lines = [head, ("---",) * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def figure(runs: Sequence[dict[str, Any]], strategies: Sequence[Strategy]) -> Figure:
    """What is learnt, how good gradients are, and what they are given."""
    drawn = Figure(figsize=(9, 3.4), layout="constrained")
    axes = drawn.subplots(1, 3)
    panels = {
        "test": "log-likelihood of a test digit, nats",
        "q": "Q of a gradient",
        "window": "window, kernel steps",
    }
    for (what, label), ax in zip(panels.items(), axes, strict=True):
        for number, strategy in enumerate(strategies):
            own = [r["rows"] for r in runs if r["strategy"] == strategy.name]
            spent = np.mean([[row["spent"] for row in rows] for rows in own], axis=0)
            values = np.array([[row[what] for row in rows] for rows in own])
            style = plot.style(number) | {"markersize": 3}
            ax.plot(spent, values.mean(axis=0), label=strategy.name, **style)
        ax.set(xlabel="kernel steps of each chain", ylabel=label)
    axes[0].legend(frameon=False, fontsize=7)
    for ax in axes[1:]:
        ax.set_yscale("log")
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("results/digits"))
    parser.add_argument("--short", action="store_true", help="a quick look")
    args = parser.parse_args(argv)
    constants = SHORT if args.short else CONSTANTS

    start = time.perf_counter()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    args.out.mkdir(parents=True, exist_ok=True)
    train, test = map(jnp.asarray, digits())
    runs = []
    for strategy in constants.strategies:
        for seed in constants.seeds:
            with console.status(f"{strategy.name}, seed {seed} …"):
                runs.append(run(strategy, seed, train, test, constants))
    rows = summary(runs, constants.strategies)
    title = "Log-likelihood of a digit after the same number of kernel steps, nats"
    show(console, title, cells(rows))
    seed = constants.seeds[0]
    show(console, f"Is what the chains tell true? Seed {seed}", errors(runs))
    drawn = figure(runs, constants.strategies)
    drawn.savefig(args.out / "digits.svg", metadata={"Date": None})
    record = {"constants": asdict(constants), "summary": rows, "runs": runs}
    (args.out / "summary.json").write_text(json.dumps(record, indent=2) + "\n")
    (args.out / "digits.md").write_text(as_markdown(cells(rows)))
    (args.out / "errors.md").write_text(as_markdown(errors(runs)))
    seconds = time.perf_counter() - start
    console.print(
        f"{seconds:.0f} s; wrote {args.out}/: "
        "summary.json, digits.md, errors.md, digits.svg"
    )
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main())
