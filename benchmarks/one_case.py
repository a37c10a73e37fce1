"""One log Q with its gradient, alone in its process: time and memory, as JSON.

python benchmarks/one_case.py RandomScanGibbs 8 8
"""

import argparse
import json

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from measure import once_compiled, peak_gib
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


def measured(kernel, m, n, solver=None, probes=None, repeats=3):
    """The row of one case, with the noise of a few probes if their number is given."""
    machine, law = model(m, n), data(m)
    if kernel == "naive":
        log_q = naive(m)
    else:
        # Those of `tq` itself are not there before their first use.
        names = {**vars(tq.markov)}
        made = eval(kernel if kernel.endswith(")") else f"{kernel}()", names)
        predictor = tq.QStruct(made, WINDOW, solver=solver)

        def log_q(machine):
            if probes is None:
                snr = predictor(machine, law)
            else:
                snr = predictor.randomised(jr.key(2), machine, law, probes)
            return snr.log_q, snr.stats

    fn = eqx.filter_jit(eqx.filter_value_and_grad(log_q, has_aux=True))
    times, ((value, stats), grads) = once_compiled(fn, machine, repeats)
    return {
        "kernel": kernel,
        "units": machine.n_units,
        "right-hand sides": machine.weights.size if probes is None else probes,
        **times,
        "peak GiB": peak_gib(),
        **({} if stats is None else summary(stats)),
        "value": float(value),
        "slope": float(jnp.linalg.norm(grads.weights)),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kernel", help="it, in Python, or `naive`")
    parser.add_argument("n_visible", type=int)
    parser.add_argument("n_hidden", type=int)
    parser.add_argument("--solver", default="Auto()")
    parser.add_argument("--probes", type=int, help="of the noise, and not all of it")
    parser.add_argument("--once", action="store_true")
    args = parser.parse_args()
    solver = eval(f"tq.{args.solver}", {"tq": tq, "jnp": jnp})
    sizes = args.n_visible, args.n_hidden
    repeats = 1 if args.once else 3
    row = measured(args.kernel, *sizes, solver, args.probes, repeats)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
