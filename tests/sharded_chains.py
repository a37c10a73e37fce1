"""Run by test_sharding in a process of its own, since JAX counts its devices once.

Runs every kernel with its chains on one device, and spread over meshes with automatic
and with explicit axes, and prints as JSON whether the states that came out are the
same, to the last bit, and laid out as they went in.
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
        raise NotImplementedError

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


def cases():
    rng = np.random.default_rng(0)
    rbm = tq.RBM(rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(size=2))
    edges = [(0, i) for i in range(1, 30)]
    hub = tq.BoltzmannMachine(rng.normal(size=29), n_visible=15, edges=edges)
    neural = Neural(jnp.asarray(rng.normal(size=(4, 5)))).tempered(1.3)
    gibbs, scan = tq.RandomScanGibbs(), tq.SystematicScanGibbs
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
                case = f"{name}, {type(kernel).__name__}, {spec}, {kind}"
                found[case] = moved and same and (kept or kind == AxisType.Auto)
    print(json.dumps(found))


if __name__ == "__main__":
    if "--fast" in sys.argv:
        main(3, [AxisType.Explicit], [P("chains")])
    else:
        main(None, [AxisType.Auto, AxisType.Explicit], [P("chains"), P(None, "chains")])
