"""What spreading the states over devices does to the memory and the messages of one
program, single flips, 8 right-hand sides at a time. The devices share this machine's
processor, so that times say nothing here.
"""

import argparse
import json
import re
from typing import Any

import equinox as eqx
import jax
from measure import claim, finish, in_own_process
from problems import WINDOW, data, model

import trainq as tq


BLOCK = 8


def one(units: int, devices: int) -> dict:
    jax.config.update("jax_num_cpu_devices", devices)
    machine, law = model(units // 2), data(units // 2)
    solver = tq.ConjugateGradient(block=BLOCK)
    predictor = tq.QStruct(tq.RandomScanGibbs(), WINDOW, solver=solver)
    axis_type = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((devices,), ("states",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        fn = eqx.filter_value_and_grad(lambda machine: predictor(machine, law).log_q)
        jitted: Any = eqx.filter_jit(fn)  # whose stubs have no `lower`
        compiled = jitted.lower(machine).compile().compiled
    text = compiled.as_text()
    # The product that every iteration takes twice is the smallest computation that
    # exchanges anything.
    computations = re.findall(r"^%?\S+ \([^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    exchanges = [
        len(re.findall(r" collective-permute(?:-start)?\(", c)) for c in computations
    ]
    return {
        "units": units,
        "devices": devices,
        "MiB a device": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "vectors of 2^N": compiled.memory_analysis().temp_size_in_bytes
        * devices
        / (8 * 2**units),
        "exchanges a product": min((n for n in exchanges if n), default=0),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--all", action="store_true", help="as without")
    args = parser.parse_args()
    if args.units is not None:
        print(json.dumps(one(args.units, args.devices)))
        return
    rows = [
        in_own_process("sharding.py", "--units", units, "--devices", devices)
        for units in (12, 14, 16)
        for devices in (1, 2, 4, 8)
    ]
    by_case = {(row["units"], row["devices"]): row["MiB a device"] for row in rows}
    ratio = by_case[16, 1] / by_case[16, 8]
    text = "16 units: memory of one device over that of one in eight, at least 6"
    finish(__file__, rows, [claim(text, ratio, least=6)])


if __name__ == "__main__":
    main()
