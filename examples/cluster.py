"""Chains on every device of every machine, in rounds that are saved: a job that is
stopped, at whatever moment, goes on from the last one, on as many devices as it then
has.

    python examples/cluster.py --out results/cluster

Under Slurm start one process for each GPU by `srun`; docs/large.md has the script, and
says what to change for a model of your own. On CPUs the states do not depend on the
number of devices, to the last bit, and sums over all chains do not up to rounding.
"""

import argparse
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

import trainq as tq


KERNEL = tq.AlternatingBlockGibbs()
LAGS = 16  # of autocovariances, which are summed up while chains run


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--units", type=int, default=64, help="of each layer")
    parser.add_argument("--chains", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=1000, help="of a round")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if args.chains <= max(2 * args.units, 32):
        parser.error("--chains is more than the number of units, and than 32")
    return args


def by_path(tree):
    """The arrays of a tree by their paths, as Orbax saves them."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def main():
    args = parse()
    jax.config.update("jax_enable_x64", True)  # for long sums; float32 does for chains
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        jax.distributed.initialize()  # the others are in the variables of Slurm
    mesh = jax.make_mesh((jax.device_count(),), ("chains",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    talks = jax.process_index() == 0

    def layout(x):
        axes = ("chains" if size == args.chains else None for size in x.shape)
        return NamedSharding(mesh, PartitionSpec(*axes))

    n = args.units
    model = tq.RBM(jax.random.normal(jax.random.key(0), (n, n)) / n**0.5)

    @jax.jit
    def functions(x):
        """The energy of each chain, and the mean of its spins."""
        return jnp.stack([model.energy(x), x.mean(axis=-1)], axis=1)

    @jax.jit
    def begin():
        state = tq.start_chains(jax.random.key(1), model, args.chains)
        moments = tq.sampling.Moments.begin((args.chains, 2), jnp.dtype(float), LAGS)
        return state, moments

    @jax.jit(out_shardings=everywhere)
    def summary(moments):
        return moments.mean.mean(axis=0), tq.sampling.r_hat(moments).max()

    shapes = jax.eval_shape(begin)
    layouts = jax.tree.map(layout, shapes)
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    # One of other sizes is another run.
    name = f"{n}_units_{args.chains}_chains_{args.steps}_steps"
    directory = args.out.absolute() / name
    with ocp.CheckpointManager(directory, options=options) as manager:
        done = manager.latest_step() or 0
        if done:
            wanted = jax.tree.map(
                lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
                shapes,
                layouts,
            )
            how = ocp.args.StandardRestore(by_path(wanted))
            saved = manager.restore(done, args=how)
            leaves = [saved[path] for path in by_path(shapes)]
            state, moments = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        else:
            state, moments = jax.device_put(begin(), layouts)
        if talks:
            processes, devices = jax.process_count(), jax.device_count()
            print(f"{devices} devices, {processes} processes, {done} rounds are done")
        for now in range(done + 1, args.rounds + 1):
            found = tq.run(
                KERNEL, model, state, args.steps, functions=functions, moments=moments
            )
            state, moments = found.state, found.moments
            # Beside the next round: every process writes its own part, and the first
            # one names the whole when all are there.
            manager.save(now, args=ocp.args.StandardSave(by_path((state, moments))))
            (energy, spin), r_hat = summary(moments)
            if talks:
                print(
                    f"round {now}: energy {energy:.6f}, spin {spin:.6f}, R-hat "
                    f"{r_hat:.6f}",
                    flush=True,
                )
            if manager.reached_preemption(now):  # SIGTERM has come to one of us
                break


if __name__ == "__main__":
    main()
