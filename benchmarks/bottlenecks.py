"""What stops a chain, without a matrix: seconds for basins, cuts and passage times,
compiling included, and how well the times are known. Each size is a process of its own.

    python benchmarks/bottlenecks.py          # 16 units
    python benchmarks/bottlenecks.py --all    # and 20
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
from measure import claim, finish, in_own_process, peak_gib

import trainq as tq


# (units, most seconds for basins, a cut, a sweep and passage times, most GiB)
SHORT = [(16, 3, 10, 30, 60, 4)]
LONG = [(20, 20, 30, 90, 400, 12)]
NAMES = ("basins", "cut", "sweep", "passages")


def glass(n):
    """Couplings of Sherrington and Kirkpatrick at β = 1.5."""
    upper = jnp.triu(jax.random.normal(jax.random.key(0), (n, n)), 1)
    couplings = 1.5 / n**0.5 * (upper + upper.T)
    return tq.RandomScanGibbs().chain(tq.BoltzmannMachine(couplings))


def timed(fn, *args):
    start = time.perf_counter()
    out = jax.block_until_ready(fn(*args))
    return out, time.perf_counter() - start


def one_size(n):
    chain, _ = timed(glass, n)
    found, basins = timed(lambda: tq.markov.basins(chain, least=1.0))
    one, other = (jnp.asarray(found.label == k) for k in range(2))
    cut, given = timed(tq.markov.cut, chain, one | other)
    swept, sweep = timed(tq.markov.best_sweep_cut, chain, -chain.log_stationary)
    times, passages = timed(tq.markov.passage_times, chain, one, other)
    return {
        "units": n,
        "basins s": basins,
        "cut s": given,
        "sweep s": sweep,
        "passages s": passages,
        "peak GiB": peak_gib(),
        "basins": len(found.minima),
        "conductance": float(cut.conductance),
        "along the energy": float(swept.conductance),
        "passage, steps": float(times.forth),
        "error at most": float(jnp.maximum(times.forth_error, times.back_error)),
        "asymmetry": abs(float(times.forth / times.back) - 1),
    }


def main():
    everything = "--all" in sys.argv
    rows, claims = [], []
    for n, *most, memory in SHORT + LONG * everything:
        row = in_own_process("bottlenecks.py", "--one", n)
        rows.append(row)
        for name, seconds in zip(NAMES, most, strict=True):
            label = f"{n} units, {name}: seconds, at most {seconds}"
            claims.append(claim(label, row[f"{name} s"], most=seconds))
        label = f"{n} units: GiB, at most {memory}"
        claims.append(claim(label, row["peak GiB"], most=memory))
        label = f"{n} units: certified error of passage times"
        claims.append(claim(label, row["error at most"], most=1e-8))
        label = f"{n} units: difference between mirror images"
        claims.append(claim(label, row["asymmetry"], most=1e-9))
    finish(__file__, rows, claims)


if __name__ == "__main__":
    if "--one" in sys.argv:
        print(json.dumps(one_size(int(sys.argv[-1]))))
    else:
        main()
