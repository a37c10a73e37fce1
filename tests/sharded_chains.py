"""Run by test_sharding in a process of its own, since JAX counts its devices once.

Runs every kernel with its chains on one device, and spread over meshes with automatic
and with explicit axes, and prints as JSON whether the states that came out are the
same, to the last bit, and laid out as they went in. So it does for runs, with their
moments and values.
"""

import itertools
import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import trainq as tq
from trainq import sampling
from trainq.sampling import ChainState


class Neural(tq.AbstractEnergyModel):
    layer: jax.Array
    n_visible: int = eqx.field(static=True, default=3)
    n_hidden: int = eqx.field(static=True, default=2)

    def energy(self, x):
        return jnp.sum(jnp.tanh(self.layer @ x))


class Flip(tq.markov.AbstractKernel):
    """A user's own, who has never heard of a mesh: flip one unit of every chain."""

    is_reversible = True

    def stepper(self, model):
        def step(key, x):
            flat = x.reshape(-1, model.n_units)
            units = jr.randint(key, flat.shape[:1], 0, model.n_units)
            return flat.at[jnp.arange(len(flat)), units].multiply(-1).reshape(x.shape)

        return step

    def chain(self, model):
        states = np.arange(2**model.n_units)
        matrix = np.zeros((states.size, states.size))
        for unit in range(model.n_units):
            matrix[states, states ^ (1 << unit)] = 1 / model.n_units
        return tq.markov.DenseChain(matrix)

    def site_updates(self, model):
        return 1


@eqx.filter_jit
def steps(kernel, key, model, x):
    """Two steps: one checked, one of a loop."""
    x = kernel.step(key, model, x)
    if isinstance(kernel, Flip):
        return x
    move = kernel.stepper(model)
    return jax.lax.scan(lambda x, key: (move(key, x), None), x, jr.split(key, 1))[0]


def mean_of_two(x):
    """Functions that gather, which explicit axes take as little as a step's."""
    return jnp.stack([x[:, jnp.array([0, 1])].mean(axis=1), x[:, 2]], axis=1)


def runs(kernel, model, x, functions):
    """What two runs in a row leave, of more values than a block of moments has."""
    state, moments, found = ChainState.begin(x, jr.key(1)), None, []
    for n_steps, lags in ((150, 8), (50, None)):
        run = sampling.run(
            kernel,
            model,
            state,
            n_steps,
            functions=functions,
            keep=True,
            lags=lags,
            moments=moments,
            chunk=100,
        )
        state, moments = run.state, run.moments
        found += [state.x, moments.mean, moments.variance, run.values]
    # Chains are an axis further behind.
    lagged = moments.autocovariances
    found.append(jnp.moveaxis(lagged.recent, 2, 0))
    return [*found, *(jnp.moveaxis(x, 2, 0) for x in lagged.sums.products)]


def same_runs(model, kernel, functions, kind):
    x = jr.rademacher(jr.key(0), (8, model.n_units), float)
    expected = runs(kernel, model, x, functions)
    mesh = jax.make_mesh((4,), ("chains",), axis_types=(kind,))
    layout = NamedSharding(mesh, P("chains"))
    spread, arrays = jax.device_put(
        (x, eqx.filter(model, eqx.is_array)), (layout, NamedSharding(mesh, P()))
    )
    found = [runs(kernel, eqx.combine(arrays, model), spread, functions)]
    with jax.set_mesh(mesh):
        found.append(runs(kernel, model, spread, functions))
    return all(
        np.array_equal(new, old)
        and (kind == AxisType.Auto or new.sharding.is_equivalent_to(layout, new.ndim))
        for one in found
        for new, old in zip(one, expected, strict=True)
    )


def cases():
    rng = np.random.default_rng(0)
    rbm = tq.RBM(rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(size=2))
    edges = [(0, i) for i in range(1, 30)]
    hub = tq.BoltzmannMachine(rng.normal(size=29), n_visible=15, edges=edges)
    neural = Neural(jnp.asarray(rng.normal(size=(4, 5)))).tempered(1.3)
    gibbs, scan = tq.RandomScanGibbs(), tq.AlternatingBlockGibbs
    yield "rbm", rbm, gibbs
    yield "rbm", rbm, tq.AlternatingBlockGibbs()
    yield "rbm", rbm, Flip()
    yield "rbm", rbm, tq.RandomScanMetropolis()
    yield "rbm", rbm, tq.RandomScanBlockGibbs()
    yield "rbm", rbm, tq.PalindromicBlockGibbs()
    yield "rbm", rbm, scan(rbm.colouring())
    yield "hub", hub, gibbs
    yield "hub", hub, scan(hub.colouring())
    yield "neural", neural, gibbs
    yield "neural", neural, tq.RandomScanBlockGibbs()
    yield "neural", neural, scan(neural.colouring())


def main(n_cases, kinds, specs):
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_disable_most_optimizations", True)
    found = {}
    for name, model, kernel in itertools.islice(cases(), n_cases):
        for spec in specs:
            shape = (*(8, 4)[: len(spec)], model.n_units)
            x, key = jr.rademacher(jr.key(0), shape, float), jr.key(1)
            expected = np.asarray(steps(kernel, key, model, x))
            moved = bool((expected != np.asarray(x)).any())
            for kind in kinds:
                mesh = jax.make_mesh((4,), ("chains",), axis_types=(kind,))
                layout = NamedSharding(mesh, spec)
                spread, arrays = jax.device_put(
                    (x, eqx.filter(model, eqx.is_array)),
                    (layout, NamedSharding(mesh, P())),
                )
                # With a model that is on every device, and with one that is on none.
                new = [steps(kernel, key, eqx.combine(arrays, model), spread)]
                with jax.set_mesh(mesh):
                    new.append(steps(kernel, key, model, spread))
                same = all(np.array_equal(one, expected) for one in new)
                kept = all(one.sharding.is_equivalent_to(layout, x.ndim) for one in new)
                case = f"{name}, {kernel!r}, {spec}, {kind}"
                found[case] = moved and same and (kept or kind == AxisType.Auto)
    _, model, kernel = next(cases())
    for functions in (None, mean_of_two):
        for kind in kinds:
            case = f"run, {functions and functions.__name__}, {kind}"
            found[case] = same_runs(model, kernel, functions, kind)
    _, _, own = list(cases())[2]
    found["run, a kernel of a user's"] = same_runs(model, own, mean_of_two, kinds[-1])
    # States of the model, which every replica begins with.
    replicas = tq.ParallelTempering(kernel, [1.0, 0.6, 0.3])
    found["run, replicas"] = same_runs(model, replicas, mean_of_two, kinds[-1])
    print(json.dumps(found))


if __name__ == "__main__":
    if "--fast" in sys.argv:
        main(3, [AxisType.Explicit], [P("chains")])
    else:
        main(None, [AxisType.Auto, AxisType.Explicit], [P("chains"), P(None, "chains")])
