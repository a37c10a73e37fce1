"""The first value and gradient of log Q in a process, of an RBM with five units in each
layer, single flips, nothing in a cache: tracing it, and compiling it."""

import json
import os
import subprocess
import sys

import numpy as np
from measure import finish


CODE = """if True:
    import json, time
    import jax, jax.numpy as jnp
    from trainq import RBM, QStruct, RandomScanGibbs
    jax.config.update("jax_enable_x64", True)
    weights = jax.random.normal(jax.random.key(0), (5, 5)) / 2
    data, predictor = jnp.full(2**5, 2.0**-5), QStruct(RandomScanGibbs(), 2500)
    fn = jax.jit(jax.value_and_grad(lambda w: jnp.log(predictor(RBM(w), data).q)))
    start = time.perf_counter()
    lowered = fn.lower(weights)
    traced = time.perf_counter()
    jax.block_until_ready(lowered.compile()(weights))
    print(json.dumps([traced - start, time.perf_counter() - traced]))
"""
SETTINGS = {
    "as it is": {},
    "EQX_ON_ERROR=nan": {"EQX_ON_ERROR": "nan"},
    "XLA's older emitters": {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"},
}


def seconds(settings: dict[str, str]) -> list[float]:
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, check=True, capture_output=True, env=env | settings)
    return json.loads(done.stdout)


def main():
    rows = []
    for name, settings in SETTINGS.items():
        trace, rest = np.median([seconds(settings) for _ in range(3)], axis=0)
        row = {"what": name, "trace s": trace, "compile and run s": rest}
        rows.append(row | {"in all s": trace + rest})
    finish(__file__, rows, [])


if __name__ == "__main__":
    main()
