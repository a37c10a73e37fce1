"""One log Q with its gradient, alone in its process: time and memory, as JSON.

python benchmarks/one_case.py RandomScanGibbs 8 8
"""

import argparse
import json
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from measure import peak_gib
from problems import WINDOW, data, model, naive_log_q

import trainq as tq


def naive(m):
    log_q = naive_log_q(m)
    return lambda machine: (log_q(machine.weights), None)


def summary(stats):
    return {
        "iterations": int(stats.iterations.max()),
        "residual": float(stats.residual.max()),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kernel", help="its name, or `naive`")
    parser.add_argument("n_visible", type=int)
    parser.add_argument("n_hidden", type=int)
    parser.add_argument("--solver", default="Auto()")
    parser.add_argument("--once", action="store_true")
    args = parser.parse_args()
    machine, law = model(args.n_visible, args.n_hidden), data(args.n_visible)
    if args.kernel == "naive":
        log_q = naive(args.n_visible)
    else:
        solver = eval(f"tq.{args.solver}", {"tq": tq, "jnp": jnp})
        predictor = tq.QStruct(getattr(tq, args.kernel)(), WINDOW, solver=solver)

        def log_q(machine):
            snr = predictor(machine, law)
            return snr.log_q, snr.stats

    fn: Any = eqx.filter_jit(eqx.filter_value_and_grad(log_q, has_aux=True))
    start = time.perf_counter()
    compiled = fn.lower(machine).compile()  # which Equinox's stubs do not have
    compiling = time.perf_counter() - start

    def once():
        start = time.perf_counter()
        found = jax.block_until_ready(compiled(machine))
        return time.perf_counter() - start, found

    seconds, ((value, stats), grads) = once()
    for _ in range(0 if args.once else 2):
        seconds = min(seconds, once()[0])
    print(
        json.dumps(
            {
                "kernel": args.kernel,
                "units": machine.n_units,
                "right-hand sides": machine.weights.size,
                "compile s": compiling,
                "seconds": seconds,
                "peak GiB": peak_gib(),
                **({} if stats is None else summary(stats)),
                "value": float(value),
                "slope": float(jnp.linalg.norm(grads.weights)),
            }
        )
    )


if __name__ == "__main__":
    main()
