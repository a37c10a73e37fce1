"""Why a chain is slow, for single flips beyond dense matrices: seconds of the slowest
modes with what they weigh, of both gaps and of a certificate, compiling included, each
size in a process of its own. And, of few units, both gaps alone against all modes, from
warm to so cold that a gap is beyond what a dense eigenproblem knows.

    python benchmarks/modes.py          # 16 units: seconds
    python benchmarks/modes.py --all    # and 18 and 20 units: minutes
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
from measure import claim, finish, in_own_process, peak_gib
from problems import model

import trainq as tq


# Units, and the most seconds for all of it together, and GiB.
SHORT = [(16, 40, 6)]
LONG = [(18, 60, 8), (20, 400, 14)]
MODES = 8  # of each sector
ALONE = [(12, 1.0), (10, 4.0)]  # units and inverse temperature


def one(n_units):
    """Seconds of each question, asked of one model."""
    kernel, rbm = tq.RandomScanGibbs(), model(n_units // 2)
    chain = jax.block_until_ready(kernel.chain(rbm))
    row = {"units": n_units}
    f = tq.markov.EnergyGradients(rbm)
    start = time.perf_counter()
    found = tq.markov.modes(chain, f, MODES, sector="even")
    row["share of T_O"] = float(1 - found.rest_noise_share)
    row["modes s"] = time.perf_counter() - start
    start = time.perf_counter()
    gaps = tq.markov.parity_gaps(chain)
    row["gap, even"], row["gap, odd"] = float(gaps.even), float(gaps.odd)
    row["gaps s"] = time.perf_counter() - start
    row["agreement"] = abs(float(found.gap[0]) / row["gap, even"] - 1)
    start = time.perf_counter()
    row["certified"] = bool(tq.certify(kernel, rbm).ok)
    row["certificate s"] = time.perf_counter() - start
    row["peak GiB"] = peak_gib()
    print(json.dumps(row))


def alone(n_units, beta):
    """Seconds of both gaps, which need no list of modes, and of all of them."""
    rbm = model(n_units // 2).tempered(beta)
    chain = jax.block_until_ready(tq.RandomScanGibbs().chain(rbm))
    f = jnp.ones(2**n_units)
    row = {"units": n_units, "beta": beta}
    row["gaps alone s"] = min(times(lambda: tq.markov.parity_gaps(chain)))
    row["all modes s"] = min(times(lambda: tq.markov.modes(chain, f)))
    row["gap, odd"] = float(tq.markov.spectral_gap(chain, "odd"))
    print(json.dumps(row))


def times(question):
    """Seconds of several calls, compiled before."""
    jax.block_until_ready(question())
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(question())
        yield time.perf_counter() - start


def main():
    if "--one" in sys.argv:
        return one(int(sys.argv[-1]))
    if "--alone" in sys.argv:
        return alone(int(sys.argv[-2]), float(sys.argv[-1]))
    rows, claims = [], []
    for n_units, beta in ALONE:
        row = in_own_process("modes.py", "--alone", n_units, beta)
        rows.append(row)
        ratio = row["all modes s"] / row["gaps alone s"]
        name = f"{n_units} units, beta {beta:g}: all modes against gaps alone"
        claims.append(claim(name, ratio, least=1.5))
    for n_units, seconds, memory in SHORT + LONG * ("--all" in sys.argv):
        row = in_own_process("modes.py", "--one", n_units)
        rows.append(row)
        total = sum(row[key] for key in ("modes s", "gaps s", "certificate s"))
        name = f"{n_units} units"
        claims += [
            claim(f"{name}: seconds, at most {seconds}", total, most=seconds),
            claim(f"{name}: GiB, at most {memory}", row["peak GiB"], most=memory),
            claim(f"{name}: certified", row["certified"], least=1),
            claim(
                f"{name}: the gap of a list of modes is that found alone",
                row["agreement"],
                most=1e-9,
            ),
        ]
    finish(__file__, rows, claims)


if __name__ == "__main__":
    main()
