"""Run by test_sharding in processes of its own, since JAX counts its devices once.

Prints log Q with its gradient, and what the compiled program holds, as JSON.
"""

import argparse
import json
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import trainq as tq


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=1, help="of this process")
    parser.add_argument("--units", type=int, default=12)
    parser.add_argument("--biased", action="store_true")
    parser.add_argument("--process", type=int, help="which of the two, if there are")
    parser.add_argument("--port", type=int)
    args = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", args.devices)
    if args.process is not None:
        jax.distributed.initialize(f"127.0.0.1:{args.port}", 2, args.process)

    m = args.units // 2
    keys = jr.split(jr.key(0), 3)
    weights = 0.9 / m**0.5 * jr.normal(keys[0], (m, args.units - m))
    bias = 0.3 * jr.normal(keys[1], (m,)) if args.biased else None
    model = tq.RBM(weights, bias)
    data = jax.nn.softmax(jr.normal(keys[2], (2**m,)))
    solver = tq.ConjugateGradient(block=9)
    predictor = tq.QStruct(tq.RandomScanGibbs(), 100, solver=solver)
    fn: Any = eqx.filter_jit(  # whose stubs have no `lower`
        eqx.filter_value_and_grad(lambda model: predictor(model, data).log_q)
    )
    mesh = jax.make_mesh(
        (jax.device_count(),), ("states",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    with jax.set_mesh(mesh):
        compiled = fn.lower(model).compile().compiled
        value, grads = fn(model)
    operations = r" (all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\("
    report = {
        "devices": jax.device_count(),
        "value": float(value),
        "grads": jnp.ravel(grads.weights).tolist(),
        "bytes": compiled.memory_analysis().temp_size_in_bytes,
        "operations": sorted(set(re.findall(operations, compiled.as_text()))),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
