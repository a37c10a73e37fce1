"""How often `certify_sampler` finds a planted fault, and how often it fails a sampler
that is sound.

    python benchmarks/sampler_power.py                # about ten minutes
    python benchmarks/sampler_power.py --short        # a quick look

A biased RBM of 5 + 4 units, and a Boltzmann machine on a 3×3 grid with a diagonal, each
sampled by a sweep of its blocks in a fixed order and by single units at random: with
the kernel declared, and as a step of which nothing is known.
"""

import argparse
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from measure import claim, finish

import trainq as tq


RATE = 0.01
RBM = tq.RBM(
    0.6 * jax.random.normal(jax.random.key(0), (5, 4)),
    0.3 * jax.random.normal(jax.random.key(1), (5,)),
    0.3 * jax.random.normal(jax.random.key(2), (4,)),
)
EDGES = np.array(
    [(i, i + 1) for i in range(9) if i % 3 < 2]
    + [(i, i + 3) for i in range(6)]
    + [(0, 4)]
)
GRID = tq.BoltzmannMachine(
    0.6 * jax.random.normal(jax.random.key(3), (len(EDGES),)),
    0.3 * jax.random.normal(jax.random.key(4), (9,)),
    edges=EDGES,
)


def stale(model: Any, key: Any) -> Any:
    """Every parameter as it was some steps of training before: a tenth away."""
    return tq.scatter(key, model, offset=0.1)


def without_an_edge(model: Any, key: Any) -> Any:
    """Without a coupling, drawn at random among those above 0.2."""
    leaf = (lambda m: m.weights) if isinstance(model, tq.RBM) else lambda m: m.couplings
    values = leaf(model)
    large = jnp.flatnonzero(jnp.abs(values.ravel()) > 0.2)
    flat = values.ravel().at[jax.random.choice(key, large)].set(0)
    return eqx.tree_at(leaf, model, flat.reshape(values.shape))


FAULTS: dict[str, Callable[[Any, Any], Any]] = {
    "sound": lambda model, key: model,
    "stale weights": stale,
    "wrong sign": lambda model, key: model.tempered(-1),
    "beta 5 % too large": lambda model, key: model.tempered(1.05),
    "beta 5 % too small": lambda model, key: model.tempered(0.95),
    "one edge missing": without_an_edge,
}


# ------------------------------------------------------------------------- the samplers

LAYERS = (tuple(range(5)), tuple(range(5, 9)))
CHECKERBOARD = ((0, 2, 4, 6, 8), (1, 3, 5, 7))  # on which 0 and 4 interact


def redrawn(key, model, x, units):
    units = jnp.asarray(units)
    up = jax.nn.sigmoid(2 * model.local_fields(x, units))
    flips = jax.random.uniform(key, up.shape) < up
    return x.at[:, units].set(jnp.where(flips, 1.0, -1.0))


def sweep(blocks):
    @eqx.filter_jit
    def step(key, model, x):
        keys = jax.random.split(key, len(blocks))
        for one, block in zip(keys, blocks, strict=True):
            x = redrawn(one, model, x, block)
        return x

    return step


@eqx.filter_jit
def single(key, model, x):
    """One unit of each chain, at random."""
    chosen, coin = jax.random.split(key)
    new = redrawn(coin, model, x, range(model.n_units))
    unit = jax.random.randint(chosen, (len(x), 1), 0, model.n_units)
    return jnp.where(jnp.arange(model.n_units)[None] == unit, new, x)


COLOURS = tuple(tuple(b.tolist()) for b in GRID.colouring())
AT_ONCE = "blocks that interact at once"
# The model, a step, one that redraws too much at once, the kernel that is declared, and
# how many states are moved by how many steps.
SIZES = {"n_starts": 4096, "n_steps": 10}
LARGE = {"n_starts": 16384, "n_steps": 10}
ALL = (tuple(range(9)),)
COLD = RBM.tempered(4.0)
CASES: dict[str, tuple[Any, ...]] = {
    "RBM, layers, declared": (
        *(RBM, sweep(LAYERS), sweep(ALL), tq.AlternatingBlockGibbs(), SIZES),
    ),
    # Of which no redraw can be told: only the chain says more than the law.
    "RBM, two sweeps as one, declared": (
        *(RBM, sweep(LAYERS + LAYERS), sweep(ALL + ALL)),
        *(tq.Power(tq.AlternatingBlockGibbs(), 2), SIZES),
    ),
    "RBM, layers, not declared": (*(RBM, sweep(LAYERS), sweep(ALL), None, SIZES),),
    "the same, 4 times the states": (*(RBM, sweep(LAYERS), sweep(ALL), None, LARGE),),
    "grid, colours, declared": (
        *(GRID, sweep(COLOURS), sweep(CHECKERBOARD)),
        *(tq.AlternatingBlockGibbs(COLOURS), SIZES),
    ),
    "grid, one unit, declared": (GRID, single, None, tq.RandomScanGibbs(), SIZES),
    "the same, declared, 60 steps": (
        *(GRID, single, None, tq.RandomScanGibbs(), {"n_starts": 4096, "n_steps": 60}),
    ),
    "grid, one unit, not declared": (GRID, single, None, None, SIZES),
    "the same, 60 steps": (
        *(GRID, single, None, None, {"n_starts": 4096, "n_steps": 60}),
    ),
    # Where flips against the field are rare, and few states are looked at.
    "cold RBM, 200 states, 1 step": (
        *(COLD, sweep(LAYERS), None),
        *(tq.AlternatingBlockGibbs(), {"n_starts": 200, "n_steps": 1}),
    ),
    "the same, not declared": (
        *(COLD, sweep(LAYERS), None, None, {"n_starts": 200, "n_steps": 1}),
    ),
}
# Whose power is claimed; the others show how it depends on what is known and spent.
CLAIMED = {
    "RBM, layers, declared",
    "RBM, two sweeps as one, declared",
    "the same, 4 times the states",
    "grid, colours, declared",
    "the same, declared, 60 steps",
}


def failures(case: str, fault: str, runs: int, seed: int) -> dict[str, float]:
    """The share of runs in which each check fails, and any of them."""
    model, sound, at_once, kernel, sizes = CASES[case]
    step = at_once if fault == AT_ONCE else sound
    found: list[tuple[str, ...]] = []
    for key in jax.random.split(jax.random.key(seed), runs):
        own, key = jax.random.split(key)
        device = FAULTS.get(fault, FAULTS["sound"])(model, own)
        found.append(
            tq.certify_sampler(
                key,
                lambda key, x, device=device: step(key, device, x),
                model,
                kernel=kernel,
                false_alarm=RATE,
                estimates=False,
                **sizes,
            ).failed
        )
    names = ("transitions", "moments", "temperature", "fields", "reversibility")
    shares = {name: float(np.mean([name in f for f in found])) for name in names}
    return {"any": float(np.mean([bool(f) for f in found])), **shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--short", action="store_true", help="a tenth of the runs")
    parser.add_argument("--only", choices=list(CASES), help="one of the samplers")
    parser.add_argument("--all", action="store_true", help="the same as without")
    args = parser.parse_args()
    sound_runs, fault_runs = (100, 20) if args.short else (1000, 100)
    rows, claims = [], []
    for number, (case, (_, _, at_once, _, _)) in enumerate(CASES.items()):
        if args.only not in (None, case):
            continue
        faults = [*FAULTS, *([AT_ONCE] if at_once else [])]
        for fault in ["sound"] if CASES[case][0] is COLD else faults:
            runs = sound_runs if fault == "sound" else fault_runs
            shares = failures(case, fault, runs, number)
            print(f"{case:30} {fault:30} {runs:5}", shares, flush=True)
            rows.append({"sampler": case, "fault": fault, "runs": runs, **shares})
            if fault == "sound":
                # The rate is a bound, and three binomial deviations above it chance.
                most = RATE + 3 * (RATE / runs) ** 0.5
                claims.append(claim(f"false alarms: {case}", shares["any"], most=most))
            elif case in CLAIMED:
                claims.append(claim(f"{fault}: {case}", shares["any"], least=0.9))
    finish(__file__, rows, claims)


if __name__ == "__main__":
    main()
