"""Sampling by thrml, the same sweeps of the same chains: a restricted Boltzmann machine
and a square grid, 64 chains, 500 sweeps, in float32.

The laws of both are checked against exact means, where there are few units.
"""

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
from trainq.interop.thrml import from_blocks, to_blocks, to_thrml


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


def theirs(model, kernel, n_chains, sweeps):
    """All chains by thrml: one call of so many sweeps, the last states kept."""
    ebm, blocks = to_thrml(model, kernel)
    program = IsingSamplingProgram(ebm, [*blocks], [])
    schedule = SamplingSchedule(sweeps, 1, 1)
    observer = StateObserver(blocks)

    @eqx.filter_jit
    def run(program, key, start):
        def one(key, start):
            found = sample_with_observation(
                key, program, schedule, start, [], observer.init(), observer
            )
            return [state[-1] for state in found[1]]

        return jax.vmap(one)(jr.split(key, n_chains), start)

    start = sampling.start_chains(jr.key(0), model, n_chains).x
    return partial(run, program, jr.key(1), to_blocks(kernel, start))


def nothing(x):
    return jnp.zeros((x.shape[0], 0), x.dtype)


def ours(model, kernel, n_chains, sweeps):
    state = sampling.start_chains(jr.key(0), model, n_chains)

    def run():
        return sampling.run(
            kernel, model, state, sweeps, functions=nothing, every=sweeps
        ).state.x

    return run


def deviations(graph, ours_model, ours_kernel, scan):
    """The largest deviation of a mean product over an edge from the exact one, in
    standard errors, ours and theirs: the last states of many chains, of few units."""
    n_chains, sweeps = 20_000, 200
    exact = np.asarray(tq.mean_observables(graph))
    found = {
        "ours": ours(ours_model, ours_kernel, n_chains, sweeps)(),
        "theirs": from_blocks(scan, theirs(graph, scan, n_chains, sweeps)()),
    }
    errors = np.sqrt((1 - exact**2) / n_chains)
    return {
        name: float(np.max(np.abs(graph.observables(x).mean(axis=0) - exact) / errors))
        for name, x in found.items()
    }


def problem(name, size):
    """The graph, for thrml; the model and the kernel, for us; the scan of both."""
    if name == "grid":
        graph = grid(size, 0.5)
        scan = tq.AlternatingBlockGibbs(graph.colouring())
        return graph, graph, scan, scan
    graph = layers(size)
    scan = tq.AlternatingBlockGibbs(graph.colouring())
    rbm = tq.RBM(graph.couplings.reshape(size, size))
    return graph, rbm, tq.AlternatingBlockGibbs(), scan


def main():
    rows, claims = [], []
    for name, least in (("RBM", 5.0), ("grid", 5.0)):
        graph, model, kernel, scan = problem(name, 64)
        contenders = {
            "ours": ours(model, kernel, CHAINS, SWEEPS),
            "theirs": theirs(graph, scan, CHAINS, SWEEPS),
        }
        times = medians(contenders, 20.0)
        updates = CHAINS * SWEEPS * model.n_units
        ratio = times["theirs"] / times["ours"]
        off = deviations(*problem(name, 4))
        rows.append(
            {
                "model": f"{name} 64x64",
                "trainq M updates/s": updates / times["ours"] / 1e6,
                "thrml M updates/s": updates / times["theirs"] / 1e6,
                "ratio": ratio,
                "trainq off, σ": off["ours"],
                "thrml off, σ": off["theirs"],
            }
        )
        claims.append(claim(f"{name} 64x64: times as fast", ratio, least=least))
        for who, sigmas in off.items():
            claims.append(
                claim(f"{name} 4x4, {who}: σ from the exact means", sigmas, most=5)
            )
    finish(__file__, rows, claims, "thrml")


if __name__ == "__main__":
    main()
