"""The published numbers of the field, side by side with what trainq finds.

The research programme behind exp9 ("thermodynamic machine learning", experiments 1 to
19, May and June 2026) publishes its figures and not its code. Here each of them is
computed anew, in a part short enough to be read as its recipe. Where the published text
does not say what was chosen, the choice here is ours, and the table says so: such rows
can be compared, and cannot agree to the digit. Nothing is tuned to a wanted number.

    python examples/published.py                # all parts, some minutes
    python examples/published.py --parts modes symmetrised
    python examples/published.py --quick        # smaller grids, for a look
    python examples/published.py --exp9 results/exp9    # and a ladder of λ of exp9.py

It writes a table, and the numbers as JSON.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import trainq as tq
from trainq import markov, sampling


jax.config.update("jax_enable_x64", True)


@dataclass(frozen=True)
class Constants:
    """Everything that is fixed before a run. "published" marks what the text says;
    "ours" marks what it leaves open."""

    factor: float = 3.0  # published: within it a prediction tracks
    cluster: float = 3.0  # published: modes up to so many times the slowest gap
    threshold: float = (
        1e-6  # ours: the share of the variance that makes a mode relevant
    )
    sizes: tuple[int, ...] = (4, 5, 6)  # published
    beta: float = 3.0  # published
    # In how many units two patterns differ, visible and hidden. Ours: of all pairs up
    # to gauge these are the ones that give the published gaps.
    distances: tuple[tuple[int, int], ...] = ((1, 2), (2, 3), (1, 3))  # m = 4, 5, 6

    # The grid of the first experiment. Published: the families, ⌈5/γ⌉, N ≤ 14.
    n_units: int = 8  # ours
    betas: tuple[float, ...] = (0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.1, 2.4)  # ours
    colder: float = 1.25  # ours: the data's inverse temperature over the model's
    windows: tuple[int, ...] = (10, 100)  # ours, in sweeps
    patterns: int = 2  # ours

    # The grid of the second: how wrong the magnetisation is about the gradient.
    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)  # ours: of planted weights
    draws: int = 4  # ours

    # Tempering. Published: eight replicas, ½ (LS + SL), R - 1 swaps.
    replicas: int = 8
    hottest: float = 0.1  # ours
    chains: int = 32  # ours
    steps: int = 8000  # published: where the estimate settled

    # Gap against conductance: the published betas and numbers of patterns.
    cut_betas: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    cut_patterns: tuple[int, ...] = (2, 3, 4)  # with one pattern there is no such cut
    seed: int = 0  # ours

    def quick(self) -> "Constants":
        """Smaller grids: the same code, other numbers."""
        return Constants(
            sizes=(4,), betas=(0.5, 1.5), scales=(1.0, 3.0), draws=1, steps=400
        )


CONSTANTS = Constants()
GIBBS = tq.RandomScanGibbs()
# The reversible kernel of the field's runs: one alternating sweep, forth or back.
SYMMETRISED = tq.Symmetrised(tq.AlternatingBlockGibbs())


@dataclass(frozen=True)
class Row:
    """One published figure. `verdict` is "agrees", "does not", or "comparable", where
    the published choices are not stated."""

    what: str
    published: str
    ours: str
    verdict: str
    note: str = ""


def same_digits(what: str, published: str, ours: float, note: str = "") -> Row:
    """A figure that is to agree in every digit that is published."""
    digits = len(published.partition(".")[2])
    shown = f"{ours:.{digits}f}"
    return Row(
        what, published, shown, "agrees" if shown == published else "does not", note
    )


# ------------------------------------------------------------------------------- models


def two_patterns(m: int, distances: tuple[int, int]) -> tq.RBM:
    """Two pairs of patterns that differ in so many visible and hidden units."""
    patterns = np.ones((2, 2, m))
    for layer, distance in enumerate(distances):
        patterns[layer, 1, :distance] = -1
    visible, hidden = patterns
    return tq.paired_rbm(visible, hidden, CONSTANTS.beta)


def random_pairs(key: jax.Array, m: int, n_patterns: int) -> list[jax.Array]:
    """Patterns of both layers."""
    return [tq.random_patterns(k, n_patterns, m) for k in jax.random.split(key)]


def all_states(n_units: int) -> np.ndarray:
    """`(2**n_units, n_units)` spins, in the order of the library."""
    return np.array(list(product((-1.0, 1.0), repeat=n_units)))


def sweep_modes(model: tq.RBM) -> markov.Modes:
    """The even modes of a sweep of single-site Gibbs, `P^2m`, in the weights' gradient:
    the odd ones have no weight in it."""
    chain = GIBBS.chain(model)
    found = markov.modes(chain, tq.observables(model), sector="even")
    return found.power(model.n_units)


# -------------------------------------------------------------------------------- parts


def modes() -> Iterator[Row]:
    """Experiment 5: the effective gap, with one pattern and with two."""
    one = {4: "0.648", 5: "0.648", 6: "0.647"}
    two = {4: "0.050", 5: "0.006", 6: "0.076"}
    for m in CONSTANTS.sizes:
        model = tq.paired_rbm(np.ones((1, m)), np.ones((1, m)), CONSTANTS.beta)
        found = sweep_modes(model).cluster(CONSTANTS.cluster, CONSTANTS.threshold)
        what = f"γ_eff, one pattern, m = {m}"
        yield same_digits(what, one[m], float(found.gamma_eff), f"{found.size} modes")
    for m in CONSTANTS.sizes:
        distances = CONSTANTS.distances[m - 4]
        found = sweep_modes(two_patterns(m, distances))
        found = found.cluster(CONSTANTS.cluster, CONSTANTS.threshold)
        note = f"{found.size} mode; patterns not stated: distances {distances} give it"
        what = f"γ_eff, two patterns, m = {m}"
        yield same_digits(what, two[m], float(found.gamma_eff), note)


def symmetrised() -> Iterator[Row]:
    """Experiment 12: noise and largest time of the reversible two-layer kernel, in the
    half convention, `T_O = Σ_a Var_a (½ + Σ_t ρ_a(t))`."""
    model = two_patterns(5, (2, 3))
    chain, f = SYMMETRISED.chain(model), tq.observables(model)
    times = markov.autocorrelation_times(chain, f, convention="half", sector="even")
    variance = chain.stationary @ chain.centre(f) ** 2
    found = float(variance @ times)
    yield same_digits("T_O of ½ (P_fwd + P_rev)", "1409.42", found, "half convention")
    largest = float(jnp.max(times))
    yield same_digits("its largest time", "112.48", largest, "half convention")


def predictors() -> Iterator[Row]:
    """Experiment 1: which prediction tracks the exact Q, in 48 cells. And its remark
    that the slowest mode is odd, so that no gradient feels it."""
    n, key = CONSTANTS.n_units, jax.random.key(CONSTANTS.seed)
    patterns = tq.random_patterns(key, CONSTANTS.patterns, n)
    families: dict[str, Callable[[float], tq.BoltzmannMachine]] = {
        "Curie–Weiss": lambda beta: tq.curie_weiss(n, beta),
        "SK": lambda beta: tq.sherrington_kirkpatrick(key, n, beta),
        "Hopfield": lambda beta: tq.hopfield(patterns, beta),
    }
    tracks: dict[str, int] = {"mode": 0, "structural": 0}
    cells = odd = models = 0
    overlap = 0.0
    for make, beta in track(
        list(product(families.values(), CONSTANTS.betas)), "predictors", transient=True
    ):
        model = make(beta)
        data = tq.visible_distribution(make(CONSTANTS.colder * beta))
        chain, f = GIBBS.chain(model), tq.observables(model)
        found = markov.modes(chain, f)
        models, odd = models + 1, odd + int(found.parity[0] < 0)
        scale = jnp.sqrt(found.observable_variance)
        overlap = max(overlap, float(jnp.max(jnp.sqrt(found.weight[0]) / scale)))
        relevant_gap = found.relevant_gap(CONSTANTS.threshold)
        burn_in = math.ceil(5 / float(relevant_gap))
        for sweeps in CONSTANTS.windows:
            window = GIBBS.steps(model, sweeps=sweeps)
            exact = tq.QOperational(GIBBS, window, burn_in=burn_in)(model, data).q
            predictions = {
                "mode": tq.SingleGap(GIBBS, window, "relevant mode"),
                "structural": tq.QStruct(GIBBS, window),
            }
            cells += 1
            for name, predictor in predictions.items():
                ratio = float(predictor(model, data).q / exact)
                tracks[name] += 1 / CONSTANTS.factor <= ratio <= CONSTANTS.factor
    note = "grid not stated: ours is another one"
    for name, label, published in (
        ("mode", "the slowest relevant mode alone tracks", "23 of 48"),
        ("structural", "Q_struct⊥ tracks", "45 of 48"),
    ):
        yield Row(label, published, f"{tracks[name]} of {cells}", "comparable", note)
    verdict = "agrees" if odd == models else "does not"
    yield Row("slowest mode is odd", "always", f"{odd} of {models}", verdict)
    verdict = "agrees" if overlap < 1e-15 else "does not"
    note = "rounding errors, both"
    yield Row("its overlap with f, at most", "3.5e-17", f"{overlap:.1e}", verdict, note)


def magnetisation() -> Iterator[Row]:
    """Experiment 2: by how much the relaxation time of the magnetisation is wrong about
    that of the gradient."""
    keys = jax.random.split(jax.random.key(CONSTANTS.seed), CONSTANTS.draws)
    for name, kernel in {"single-site": GIBBS, "block": SYMMETRISED}.items():
        worst = dict.fromkeys(CONSTANTS.scales, 0.0)
        grid = list(product(CONSTANTS.scales, keys, (1, 2, 3, 4)))
        for beta, key, n_patterns in track(grid, f"times, {name}", transient=True):
            visible, hidden = random_pairs(key, 4, n_patterns)
            model = tq.paired_rbm(visible, hidden, beta)
            chain, f = kernel.chain(model), tq.observables(model)
            total = jnp.asarray(all_states(model.n_units).sum(axis=1))
            own = markov.autocorrelation_times(chain, total)
            variance = chain.stationary @ chain.centre(f) ** 2
            times = markov.autocorrelation_times(chain, f)
            gradient = variance @ times / jnp.sum(variance)
            wrong = float(jnp.maximum(own / gradient, gradient / own))
            worst[beta] = max(worst[beta], wrong)
        ours = ", ".join(f"{factor:.2g}×" for factor in worst.values())
        betas = ", ".join(f"{beta:g}" for beta in worst)
        note = f"models not stated: planted pairs, m = 4, at β = {betas}"
        what = f"magnetisation is wrong by up to, {name}"
        yield Row(what, "72×", ours, "comparable", note)


def tempering() -> Iterator[Row]:
    """Experiments 12 to 14: noise of the cold replica under parallel tempering, in the
    same model as above; a step is a sweep of every replica."""
    model = two_patterns(5, (2, 3))
    n = CONSTANTS.replicas
    ladders = {
        "linear": np.linspace(1, CONSTANTS.hottest, n),
        "geometric": np.geomspace(1, CONSTANTS.hottest, n),
    }
    for (name, betas), published in zip(ladders.items(), ("63", "400"), strict=True):
        kernel = tq.ParallelTempering(SYMMETRISED, betas)
        key, n_chains = jax.random.key(CONSTANTS.seed), CONSTANTS.chains
        start = tq.start_chains(key, model, n_chains, tq.Stationary(), kernel=kernel)
        values = tq.run(kernel, model, start, CONSTANTS.steps, keep=True).values
        assert values is not None
        found = sampling.sampled_time(values)
        t_o = found.segments - found.variance / 2  # the half convention
        error = jnp.std(t_o, ddof=1) / math.sqrt(len(t_o))
        ours = f"{float(jnp.mean(t_o)):.0f} ± {float(error):.0f}"
        note = f"ladder not stated: ours is {name}, down to β = {CONSTANTS.hottest}"
        what = f"T_O of the cold replica, R = {n}"
        yield Row(what, published, ours, "comparable", note)


def conductance() -> Iterator[Row]:
    """Experiment 7: the slope of the logarithm of the gap over that of the conductance.
    Cuts are along patterns: states nearer to one pair than to all others."""
    published = {4: "1.033", 5: "1.118", 6: "1.344"}
    key = jax.random.key(CONSTANTS.seed)
    for m in CONSTANTS.sizes:
        gaps, cuts = [], []
        grid = list(product(CONSTANTS.cut_patterns, CONSTANTS.cut_betas))
        for n, beta in track(grid, f"conductance, m = {m}", transient=True):
            visible, hidden = random_pairs(jax.random.fold_in(key, n), m, n)
            chain = GIBBS.chain(tq.paired_rbm(visible, hidden, beta))
            states = all_states(2 * m)
            near = (states[:, :m] @ visible.T) * (states[:, m:] @ hidden.T)
            wells = [
                near[:, i] > np.delete(near, i, axis=1).max(axis=1) for i in range(n)
            ]
            found = [
                markov.cut(chain, jnp.asarray(well)) for well in wells if well.any()
            ]
            if found:  # two pairs of patterns may be one
                gaps.append(float(markov.spectral_gap(chain, "even")))
                cuts.append(min(float(one.conductance) for one in found))
        slope = float(np.polyfit(np.log(cuts), np.log(gaps), 1)[0])
        note = f"cuts not stated: along patterns, {len(gaps)} models"
        what = f"log gap over log conductance, m = {m}"
        yield Row(what, published[m], f"{slope:.3f}", "comparable", note)


def ladder(folder: Path | None) -> Iterator[Row]:
    """Experiment 11: with λ the ratio of Q rises, and KL progress is lost: the guard is
    that 3 of 4 cells still cross c25. From a run of `exp9.py --lambdas 0.1 0.3 1 3`."""
    if folder is None:
        note = "python examples/exp9.py --lambdas 0.1 0.3 1 3, then --exp9 DIR"
        yield Row(
            "ratio of Q at equal KL, over λ", "rises", "not run", "comparable", note
        )
        return
    summary = json.loads((folder / "summary.json").read_text())
    doses = sorted(summary["dose_response"], key=lambda dose: dose["weight"])
    medians = [dose["median"] for dose in doses if dose["median"] is not None]
    shown = ", ".join(
        f"{dose['weight']:g}: {dose['median']:.2f}" if dose["median"] else "none"
        for dose in doses
    )
    verdict = "agrees" if medians == sorted(medians) else "does not"
    yield Row("median ratio of Q at equal KL, over λ", "rises", shown, verdict)
    crossed = {
        f"{dose['weight']:g}": sum(
            str(arm).endswith(f"λ = {dose['weight']:g}") and at["c25"] is not None
            for arm, at in summary["p3"]["steps"].items()
        )
        for dose in doses
    }
    shown = ", ".join(f"{weight}: {n}" for weight, n in crossed.items())
    fails = any(n < 3 for n in crossed.values())
    verdict = "agrees" if fails else "does not"
    yield Row("cells of 4 that cross c25, over λ", "fewer than 3", shown, verdict)


# --------------------------------------------------------------------------------- main

PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    part.__name__: part
    for part in (modes, symmetrised, predictors, magnetisation, tempering, conductance)
}


def show(console: Console, rows: Sequence[Row]) -> None:
    table = Table(title="Published, and ours")
    for name in ("", "published", "ours", "verdict", "not stated, or of note"):
        table.add_column(name)
    for row in rows:
        table.add_row(row.what, row.published, row.ours, row.verdict, row.note)
    console.print(table)
    counts = {v: sum(row.verdict == v for row in rows) for v in VERDICTS}
    console.print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()))


VERDICTS = ("agrees", "does not", "comparable")


def main(argv: Sequence[str] | None = None) -> int:
    global CONSTANTS
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("results/published"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--exp9", type=Path, help="results of exp9.py with a ladder of λ"
    )
    parser.add_argument("--quick", action="store_true", help="smaller grids")
    args = parser.parse_args(argv)
    if args.quick:
        CONSTANTS = CONSTANTS.quick()

    start = time.perf_counter()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    for name in args.parts:
        began = time.perf_counter()
        rows += PARTS[name]()
        seconds[name] = time.perf_counter() - began
        console.print(f"{name}: {seconds[name]:.0f} s")
    rows += ladder(args.exp9)
    show(console, rows)
    args.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "constants": asdict(CONSTANTS),
        "rows": [asdict(row) for row in rows],
        "seconds": seconds,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (args.out / "summary.json").write_text(text)
    taken = time.perf_counter() - start
    console.print(f"{taken:.0f} s; wrote {args.out}/summary.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
