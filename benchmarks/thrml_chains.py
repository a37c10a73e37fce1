"""Sampling by thrml, the same sweeps of the same chains: a restricted Boltzmann machine
and a square grid, 64 chains, 500 sweeps, in float32, which is all that thrml has."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from measure import claim, finish, medians
from thrml import SamplingSchedule, StateObserver, sample_with_observation
from thrml.models import IsingSamplingProgram

import trainq as tq
from trainq import sampling
from trainq.interop.thrml import to_blocks, to_thrml


CHAINS, SWEEPS = 64, 500


def grid(side: int, coupling: float, seed: int = 0) -> tq.BoltzmannMachine:
    """Spins on a square with random couplings and no biases."""
    unit = np.arange(side**2).reshape(side, side)
    edges = np.concatenate(
        [
            np.stack([unit[:, :-1].ravel(), unit[:, 1:].ravel()], axis=1),
            np.stack([unit[:-1].ravel(), unit[1:].ravel()], axis=1),
        ]
    )
    values = coupling * np.random.default_rng(seed).normal(size=len(edges))
    return tq.BoltzmannMachine(values.astype(np.float32), edges=edges)


def layers(m: int) -> tq.BoltzmannMachine:
    """The graph of a restricted Boltzmann machine."""
    edges = np.stack(np.meshgrid(np.arange(m), m + np.arange(m), indexing="ij"), -1)
    weights = np.random.default_rng(1).normal(size=m * m) / (2 * math.sqrt(m))
    return tq.BoltzmannMachine(weights.astype(np.float32), edges=edges.reshape(-1, 2))


def theirs(model, kernel):
    """All chains by thrml: `n_samples` calls of one sweep each, only the last kept."""
    ebm, blocks = to_thrml(model, kernel)
    program = IsingSamplingProgram(ebm, blocks, [])
    schedule = SamplingSchedule(SWEEPS, 1, 1)
    observer = StateObserver(blocks)

    @eqx.filter_jit
    def run(program, key, start):
        def one(key, start):
            found = sample_with_observation(
                key, program, schedule, start, [], observer.init(), observer
            )
            return [state[-1] for state in found[1]]

        return jax.vmap(one)(jr.split(key, CHAINS), start)

    start = sampling.start_chains(jr.key(0), model, CHAINS).x
    return partial(run, program, jr.key(1), to_blocks(kernel, start))


def nothing(x):
    return jnp.zeros((x.shape[0], 0), x.dtype)


def ours(model, kernel):
    state = sampling.start_chains(jr.key(0), model, CHAINS)

    def run():
        return sampling.run(
            kernel, model, state, SWEEPS, functions=nothing, every=SWEEPS
        ).state.x

    return run


def main():
    rows, claims = [], []
    machine = layers(64)
    rbm = tq.RBM(machine.couplings.reshape(64, 64))
    square = grid(64, 0.5)
    for name, model, kernel, thrml_model, least in (
        ("RBM 64x64", rbm, tq.AlternatingBlockGibbs(), machine, 2.5),
        ("grid 64x64", square, None, square, 1.2),
    ):
        scan = tq.SystematicScanGibbs(thrml_model.colouring())
        contenders = {
            "ours": ours(model, kernel or scan),
            "theirs": theirs(thrml_model, scan),
        }
        times = medians(contenders, 20.0)
        updates = CHAINS * SWEEPS * model.n_units
        ratio = times["theirs"] / times["ours"]
        rows.append(
            {
                "model": name,
                "trainq M updates/s": updates / times["ours"] / 1e6,
                "thrml M updates/s": updates / times["theirs"] / 1e6,
                "ratio": ratio,
            }
        )
        claims.append(claim(f"{name}: times as fast", ratio, least=least))
    finish(__file__, rows, claims, "thrml")


if __name__ == "__main__":
    main()
