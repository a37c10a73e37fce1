"""One log Q with its gradient, alone in its process: time and memory, as JSON.

python benchmarks/one_case.py RandomScanGibbs 8 8
"""

import argparse
import json
import time

import equinox as eqx
import jax
from measure import peak_gib
from problems import WINDOW, data, model

import trainq as tq


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kernel")
    parser.add_argument("n_visible", type=int)
    parser.add_argument("n_hidden", type=int)
    parser.add_argument("--observables", type=int, help="how many, not all")
    parser.add_argument("--solver", default="Auto()")
    parser.add_argument("--once", action="store_true")
    args = parser.parse_args()
    solver = eval(f"tq.{args.solver}", {"tq": tq, "jnp": jax.numpy})
    machine, law = model(args.n_visible, args.n_hidden), data(args.n_visible)
    predictor = tq.QStruct(getattr(tq, args.kernel)(), WINDOW, solver=solver)

    def log_q(machine):
        if args.observables is None:
            snr = predictor(machine, law)
        else:
            axes = jax.numpy.eye(args.observables, machine.weights.size)
            snr = predictor.along(machine, law, axes)
        return snr.log_q, snr.stats

    fn = eqx.filter_jit(eqx.filter_value_and_grad(log_q, has_aux=True))
    start = time.perf_counter()
    compiled = fn.lower(machine).compile()
    compiling = time.perf_counter() - start
    times = []
    for _ in range(1 if args.once else 3):
        start = time.perf_counter()
        (value, stats), grads = jax.block_until_ready(compiled(machine))
        times.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "kernel": args.kernel,
                "units": machine.n_units,
                "right-hand sides": stats.residual.size,
                "compile s": compiling,
                "seconds": min(times),
                "peak GiB": peak_gib(),
                "iterations": int(stats.iterations.max()),
                "residual": float(stats.residual.max()),
                "value": float(value),
                "slope": float(jax.numpy.linalg.norm(grads.weights)),
            }
        )
    )


if __name__ == "__main__":
    main()
