"""Run by test_sharding in processes of its own, since JAX counts its devices once.

Compiles runs of chains that are spread over eight devices, for every kernel, and counts
what the devices tell each other, in loops and outside; and compares the results with
those of one device. Prints it all as JSON.
"""

import argparse
import json
import re
from collections import Counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import trainq as tq
from trainq import markov, sampling


# A number that no other axis of any array has: what has it has all chains.
N_CHAINS = 8 * 11
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
OPERATIONS = (
    "all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|"
    "ragged-all-to-all|reduce-scatter"
)


class Neural(tq.AbstractEnergyModel):
    layer: jax.Array
    # A device has other numbers of chains times states of a layer than of all chains.
    n_visible: int = eqx.field(static=True, default=4)
    n_hidden: int = eqx.field(static=True, default=1)

    def energy(self, x):
        return jnp.sum(jnp.tanh(self.layer @ x))


class Talking(tq.RandomScanGibbs):
    """Negative controls: chains that look at each other, or that are all drawn on
    every device."""

    together: bool = eqx.field(static=True)

    @markov.kernels.on_any_mesh
    def stepper(self, model):
        step = tq.RandomScanGibbs().stepper(model)

        def talking(key, x):
            if not self.together:
                return jnp.roll(step(key, x), 1, axis=0)
            flips = jr.rademacher(key, (x.size,), x.dtype).reshape(x.shape[::-1])
            return x * flips.T

        return talking


def messages(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """How many of each kind a compiled program has, in its loops and outside."""
    found = re.findall(r"^(?:ENTRY )?%?(\S+) \([^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    bodies = dict(found)
    assert bodies

    def named(pattern, body):
        groups = re.findall(rf"\b(?:{pattern})=(\{{[^}}]*\}}|%?[\w.\-]+)", body)
        return {name for group in groups for name in re.findall(r"[\w.\-]+", group)}

    inside: set[str] = set()
    new = {name for body in bodies.values() for name in named("body|condition", body)}
    called = r"body|condition|calls|to_apply|\w+_computations?"
    while new:
        inside |= new
        new = {n for name in new for n in named(called, bodies[name])} - inside
    counts = Counter(), Counter()
    for name, body in bodies.items():
        kinds = re.findall(rf" ({OPERATIONS})(?:-start)?\(", body)
        counts[name not in inside].update(kinds)
    return dict(counts[0]), dict(counts[1])


def gibbs(blocks=None):
    return tq.AlternatingBlockGibbs(blocks)


def kernels():
    rng = np.random.default_rng(0)
    rbm = tq.RBM(rng.normal(size=(4, 3)), rng.normal(size=4), rng.normal(size=3))
    edges = [(0, i) for i in range(1, 30)]
    hub = tq.BoltzmannMachine(rng.normal(size=29), n_visible=15, edges=edges)
    neural = Neural(jnp.asarray(rng.normal(size=(4, 5))))
    single, betas = tq.RandomScanGibbs(), [1.0, 0.6, 0.3]
    yield rbm, single
    yield rbm, gibbs()
    yield rbm, gibbs(rbm.colouring())
    yield rbm, tq.Symmetrised(gibbs())
    yield rbm, tq.ParallelTempering(gibbs(), betas)
    # The others, for the slow test.
    yield rbm, tq.RandomScanMetropolis()
    yield rbm, markov.RandomScan(markov.chains.HeatBath())
    yield rbm, tq.RandomScanBlockGibbs()
    yield rbm, tq.PalindromicBlockGibbs()
    yield rbm, markov.BlockGibbs(markov.chains.RandomOrder(), rbm.colouring())
    yield rbm, tq.Symmetrised(gibbs(), shared=False)
    yield rbm, tq.Palindrome(gibbs(rbm.colouring()))
    yield rbm, tq.Mixture([single, gibbs()])
    yield rbm, tq.Mixture([single, gibbs()], shared=False)
    yield rbm, tq.Power(single, 7)
    yield rbm, tq.Lazy(single, shared=False)
    yield rbm, tq.ParallelTempering(single, betas, shared=False)
    yield (
        rbm,
        tq.ParallelTempering(gibbs(rbm.colouring()), betas, markov.EvenOddSwaps()),
    )
    yield hub, single
    yield hub, gibbs(hub.colouring())
    yield neural, single
    yield neural, gibbs()
    yield neural, gibbs(neural.colouring())
    yield neural, tq.RandomScanBlockGibbs()


def runs(kernel, lags):
    def run(model, state, samples):
        del samples
        found = sampling.run(kernel, model, state, 40, every=2, keep=True, lags=lags)
        r_hat = None if lags is None else sampling.r_hat(found.moments)
        return found.state.x, found.moments.mean, found.values, r_hat

    return run


def studies():
    """What else runs chains: a name, and a function of a model, a state and samples."""
    kernel = tq.RandomScanGibbs()
    tempering = tq.ParallelTempering(gibbs(), [1.0, 0.5])
    for one in (kernel, tempering):
        for start in (None, tq.Uniform()):

            def estimate(model, state, samples, one=one, start=start):
                found = tq.GradientEstimator(one, window=30, start=start)(
                    state, model, samples
                )
                gradient = jnp.ravel(found.gradient.weights)
                return found.state.x, gradient, found.q, found.interval()

            yield f"estimator, {type(one).__name__}, {start}", estimate

        def sampled(model, state, samples, one=one):
            sizes = {"replicates": N_CHAINS // 2, "n_chains": 2}
            predictor = tq.QSampled(one, 20, 10, batch=4, **sizes)
            found = predictor(state.key, model, samples)
            return state.x, found.q, found.interval()

        yield f"QSampled, {type(one).__name__}", sampled

    def swaps(model, state, samples):
        del samples
        found = sampling.swap_statistics(tempering, model, state, 30)
        return found.state.x, found.round_trips, found.flow, found.acceptance

    yield "swaps", swaps


def alike(found, expected):
    """States to the last bit, and all other numbers to rounding."""
    return np.array_equal(found[0], expected[0]) and all(
        np.allclose(x, y, rtol=2e-4, atol=2e-5)
        for x, y in zip(*map(jax.tree.leaves, (found[1:], expected[1:])), strict=True)
    )


def counted(kind: str, fast: bool) -> dict[str, dict[str, Any]]:
    """What each program says, what of it is as large as all chains, and whether it
    finds what one device finds."""
    cases = [(f"run, {k!r}, {m.n_units} units", m, runs(k, None)) for m, k in kernels()]
    rbm, single = next(kernels())
    others = [("lags", rbm, runs(single, 8))]
    others += [(name, rbm, study) for name, study in studies()]
    for together in (False, True):
        others.append((f"control {together}", rbm, runs(Talking(together), None)))
    if fast:
        cases, others = cases[:2], others[-2:-1]
    samples = jr.rademacher(jr.key(3), (16, 4), float)
    report = {}
    for name, model, study in cases + others:
        x = jr.rademacher(jr.key(0), (N_CHAINS, model.n_units), float)
        fn: Any = eqx.filter_jit(study)  # whose stubs have no `lower`
        expected = fn(model, sampling.ChainState.begin(x, jr.key(1)), samples)
        mesh = jax.make_mesh((8,), ("chains",), axis_types=(KINDS[kind],))
        spread = jax.device_put(x, NamedSharding(mesh, P("chains")))
        with jax.set_mesh(mesh):
            given = model, sampling.ChainState.begin(spread, jr.key(1)), samples
            compiled = fn.lower(*given).compile()
            found = compiled(*given)
        text = compiled.compiled.as_text()
        inside, outside = messages(text)
        whole = re.findall(rf"\w+\[(?:\d+,)*{N_CHAINS}(?:,\d+)*\]", text)
        report[name] = {
            "inside": inside,
            "outside": outside,
            "whole": sorted(set(whole)),
            "same": alike(found, expected),
        }
    return report


def judged() -> dict[str, Any]:
    """What is said of the chains of all devices, of all processes."""
    mesh = jax.make_mesh((jax.device_count(),), ("chains",))
    model, kernel = next(kernels())[0].tempered(0.4), gibbs()
    samples = jr.rademacher(jr.key(3), (16, 4), float)
    with jax.set_mesh(mesh):
        state = sampling.start_chains(jr.key(1), model, N_CHAINS)
        found = sampling.run(kernel, model, state, 400, lags=8)
        time = sampling.sampled_time(found.moments)
        estimate = tq.GradientEstimator(kernel, 50)(found.state, model, samples)
        snr = tq.QSampled(kernel, 50, 50)(jr.key(2), model, samples)
        until = tq.run_until(kernel, model, state, samples, r_hat=1.0001, max_steps=256)
        numbers = {
            "up": jnp.mean(found.state.x, axis=0),
            "r_hat": sampling.r_hat(found.moments),
            "times": sampling.autocorrelation_time(found.moments).value,
            "T_O": time.interval(),
            "Q": estimate.interval(),
            "Q of replicates": snr.interval(),
            "until": until.history["r_hat"],
        }
        report = {name: np.asarray(x).tolist() for name, x in numbers.items()}
    mine = len(state.x.addressable_shards) / len(state.x.sharding.device_set)
    return {"devices": jax.device_count(), "share": mine, "numbers": report}


def study_of_models() -> dict[str, dict[str, Any]]:
    """Programs of many models, each device with its own of them."""
    samples, law = jr.rademacher(jr.key(3), (16, 4), float), jnp.full(16, 1 / 16)
    keys = jr.split(jr.key(0), 16)
    models = jax.vmap(lambda key: tq.RBM(0.5 * jr.normal(key, (4, 3))))(keys)

    def sampled(model, key):
        predictor = tq.QSampled(gibbs(), 20, 10, n_chains=2)
        return predictor(key, model, samples).log_q

    def exact(model, key):
        del key
        solver = tq.ConjugateGradient(block=4)
        return tq.QStruct(tq.RandomScanGibbs(), 100, solver=solver)(model, law).log_q

    mesh = jax.make_mesh((8,), ("models",))
    spread = jax.device_put((models, keys), NamedSharding(mesh, P("models")))
    report = {}
    for study in (sampled, exact):
        mapped = jax.vmap(study)
        local = jax.shard_map(
            mapped,
            mesh=mesh,
            in_specs=P("models"),
            out_specs=P("models"),
            check_vma=False,
        )
        with jax.set_mesh(mesh):
            compiled = jax.jit(local).lower(*spread).compile()
            found = compiled(*spread)
        inside, outside = messages(compiled.as_text())
        expected = jax.jit(mapped)(models, keys)
        report[study.__name__] = {
            "inside": inside,
            "outside": outside,
            "same": bool(np.allclose(found, expected, rtol=1e-4, atol=1e-5)),
            "differ": bool(np.ptp(expected) > 0.1),
        }
    return report


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", choices=["models", *KINDS])
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--devices", type=int, default=8, help="of this process")
    parser.add_argument("--process", type=int, help="which of the two, if there are")
    parser.add_argument("--port", type=int)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)
    if args.process is not None:
        jax.distributed.initialize(f"127.0.0.1:{args.port}", 2, args.process)
    if args.count is None:
        report = judged()
    elif args.count == "models":
        report = study_of_models()
    else:
        # Of the code for a processor: messages are there before.
        jax.config.update("jax_disable_most_optimizations", True)
        report = counted(args.count, args.fast)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
