"""What a GPU makes of trainq: a step of exp9, single flips of 20 to 24 units, block
kernels of 28 to 32, and sampling against thrml on the same card.

    python benchmarks/gpu.py              # on a GPU: writes docs/performance/gpu.md
    python benchmarks/gpu.py --short      # tiny sizes of every row, on any machine

Every row has a process and a time of its own, and what fails, is refused or takes too
long says so in its row. Off a GPU the table is printed, and written where `--out` says.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from measure import environment, in_own_process, medians, once_compiled
from one_case import measured, summary
from problems import WINDOW, data
from table import markdown, sentence

import trainq as tq


PAGE = Path(__file__).parents[1] / "docs" / "performance" / "gpu.md"
Row = dict[str, Any]
PRECISIONS = {
    "float64": tq.ConjugateGradient(),
    "refined float32": tq.ConjugateGradient(inner_dtype=jnp.float32),
}
SINGLE, BLOCKS = "RandomScanGibbs", "RandomScanBlockGibbs"


def exp9_step(m: int, solver: Any) -> Row:
    """log Q of four models together, with its gradient, as in examples/exp9.py."""
    predictor = tq.QStruct(tq.RandomScanGibbs(), WINDOW, solver=solver)
    weights = 0.5 * jr.normal(jr.key(0), (4, m, m))
    laws = jnp.stack([data(m)] * 4)

    def log_q(weights):
        ask = eqx.filter_vmap(lambda one, law: predictor(tq.RBM(one), law))
        snr = ask(weights, laws)
        return tq.pool(snr).log_q, snr.stats

    fn = eqx.filter_jit(eqx.filter_value_and_grad(log_q, has_aux=True))
    times, ((value, stats), slope) = once_compiled(fn, weights, repeats=20)
    return {
        "units": 2 * m,
        "right-hand sides": m * m,
        **times,
        **summary(stats),
        "value": float(value),
        "slope": float(jnp.linalg.norm(slope)),
    }


def solve(
    kernel: str, m: int, solver: Any = None, probes: int | None = None, repeats: int = 3
) -> Row:
    row = measured(kernel, m, m, solver, probes, repeats)
    del row["kernel"], row["peak GiB"]
    return row


def sampling(name: str, size: int, sweeps: int) -> Row:
    import thrml_chains  # which needs thrml

    graph, model, kernel, scan = thrml_chains.problem(name, size)
    chains = thrml_chains.CHAINS
    contenders = {
        "trainq": thrml_chains.ours(model, kernel, chains, sweeps),
        "thrml": thrml_chains.theirs(graph, scan, chains, sweeps),
    }
    times = medians(contenders, 10.0 if sweeps > 10 else 0.1)
    updates = chains * sweeps * model.n_units / 1e6
    rates = {f"{who} M updates/s": updates / s for who, s in times.items()}
    return {**rates, "ratio": times["thrml"] / times["trainq"]}


class Case(NamedTuple):
    """A row: what measures it, in full and in short, and its most seconds."""

    full: Callable[[], Row]
    short: Callable[[], Row]
    seconds: float


def cases() -> dict[str, Case]:
    found = {}
    for precision, solver in {"float64, factorised": None, **PRECISIONS}.items():
        step = partial(exp9_step, solver=solver)
        found[f"exp9 step, four models, {precision}"] = Case(
            partial(step, 5), partial(step, 2), 60
        )
    for name in ("RBM", "grid"):
        found[f"{name} 64x64, 64 chains, 500 sweeps"] = Case(
            partial(sampling, name, 64, 500), partial(sampling, name, 3, 2), 60
        )
    for m in (14, 15, 16):
        found[f"two blocks, {2 * m} units"] = Case(
            partial(solve, BLOCKS, m, repeats=1),
            partial(solve, BLOCKS, 2, repeats=1),
            100,
        )
    for m, probes in ((10, None), (11, 4), (12, 4)):
        for precision, solver in PRECISIONS.items():
            one = partial(solve, SINGLE, solver=solver, probes=probes, repeats=2)
            noise = "" if probes is None else f", {probes} probes"
            found[f"single flips, {2 * m} units{noise}, {precision}"] = Case(
                partial(one, m), partial(one, 2), 100
            )
    return found


def device_memory() -> Row:
    """The most memory that this process has had on its device, where that is known."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {} if peak is None else {"device GiB": peak / 2**30}


def reason(error: Exception) -> str:
    """Why there is no number, in one line of a table."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"took more than {error.timeout:.0f} s"
    lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
    # Of another process the last line of its traceback says what happened.
    last = lines[-1] if "Traceback" in str(error) else lines[0]
    return last.replace("|", "/").partition(". ")[0][:160]


def row_of(name: str, short: bool, seconds: float) -> Row:
    """The numbers of a row, or why there are none."""
    if seconds <= 0:
        return {"case": name, "no number": "no time was left"}
    try:
        # Tiny sizes take no process of their own: most of its time is imports.
        args = ("gpu.py", "--row", name)
        row = here(name, short) if short else in_own_process(*args, seconds=seconds)
    except Exception as error:
        row = {"no number": reason(error)}
    return {"case": name, **row}


def here(name: str, short: bool) -> Row:
    case = cases()[name]
    return {**(case.short() if short else case.full()), **device_memory()}


def about() -> Row:
    """The machine; JAX takes the memory of a GPU, so the process that asks must end."""
    return {"platform": jax.default_backend(), **environment()}


def page(rows: list[Row], where: Row, short: bool) -> str:
    said = "Tiny sizes under the names of the full ones, to try the script."
    if not short:
        said = f"Measured on one {where['device']} by `benchmarks/gpu.py`."
    rates = [row for row in rows if "ratio" in row]
    solves = [row for row in rows if row not in rates]
    parts = [f"{said} Seconds are those of a value with its gradient, compiled."]
    parts += [markdown(some) for some in (solves, rates) if some]
    parts.append(sentence(where))
    return "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="the file to write")
    parser.add_argument("--minutes", type=float, default=8.0, help="the most, in all")
    parser.add_argument("--short", action="store_true", help="tiny sizes")
    parser.add_argument("--row", help="measure one row, as JSON")
    args = parser.parse_args()
    if args.row:
        print(json.dumps(about() if args.row == "about" else here(args.row, False)))
        return
    start, rows = time.perf_counter(), []

    def left() -> float:
        return 60 * args.minutes - (time.perf_counter() - start)

    if args.short:
        where = about()
    else:
        where = in_own_process("gpu.py", "--row", "about", seconds=60)
    everything = cases()
    for i, (name, case) in enumerate(everything.items(), 1):
        print(f"{i}/{len(everything)} {name}", flush=True)
        began = time.perf_counter()
        rows.append(row_of(name, args.short, min(case.seconds, left())))
        found = rows[-1].get("no number", "measured")
        print(f"    {found}, {time.perf_counter() - began:.0f} s", flush=True)
    whole = page(rows, where, args.short)
    print(f"\n{whole}")
    out = args.out
    if out is None and where["platform"] == "gpu" and not args.short:
        out = PAGE
    if out is not None:
        out.write_text(whole)
        print(f"wrote {out}")


if __name__ == "__main__":
    main()
