"""Ising models and block-sampling programs of thrml, and back."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Num

from ..markov import AlternatingBlockGibbs
from ..models import AbstractEnergyModel
from ._ising import (  # first, since it says what is needed
    Block,
    IsingEBM,
    SuperBlocks,
    blocks_of,
    ebm_of,
    kernel_of,
    machine_of,
    model_of,
    nodes_of,
    spins_of,
)
from ._thrml_programs import (
    ProgramCertificate as ProgramCertificate,
    certify_program as certify_program,
    program_step as program_step,
)
from ._training import (
    TrainingPhases as TrainingPhases,
    from_training_spec as from_training_spec,
    to_training_spec as to_training_spec,
)


def from_thrml(
    ebm: IsingEBM,
    free_blocks: SuperBlocks,
    n_visible: int | None = None,
    *,
    clamped_blocks: Sequence[Block] = (),
    clamped_values: Sequence[Bool[Array | np.ndarray, " block"]] = (),
    with_biases: bool = True,
) -> tuple[AbstractEnergyModel, AlternatingBlockGibbs]:
    """The model of an `IsingEBM`, and the kernel that thrml runs on it: the blocks in
    the order given, each redrawn given the others. One step is one iteration of thrml.

    The weights and the biases of the model *are* those of `ebm`, the same arrays, in
    the same order, and the energy has the factor `beta` of `ebm` in front. Only where
    `beta` is traced are they multiplied by it.

    **Arguments:**

    - `ebm`: the model. Its nodes become the units, in order.
    - `free_blocks`: what `IsingSamplingProgram` is given. Blocks in a tuple are one.
    - `n_visible`: how many of the units are visible, which come first in `ebm.nodes`.
        All, by default.
    - `clamped_blocks`: what `IsingSamplingProgram` is given, if some nodes are clamped:
        the model is then that of the free nodes, [clamped](../conditional.md) to these.
    - `clamped_values`: their states, one array of booleans for each clamped block: what
        thrml's samplers are given as `state_clamp`. They may be traced.
    - `with_biases`: whether the biases are parameters. An `IsingEBM` always has them;
        where all of them are zero, False makes a model without, so that their noise is
        no part of Q, and the model is symmetric under the global flip.

    **Returns:** the model, a [`trainq.BoltzmannMachine`][] where `beta` is one and no
    node is clamped, and a [`trainq.AlternatingBlockGibbs`][] of its units.

    **Raises:** `ValueError` if the blocks do not hold every node once, if nodes of a
    block interact, for clamped blocks without their states, or for biases that are left
    out and not zero.
    """
    if not isinstance(ebm, IsingEBM):
        raise ValueError(
            "ebm is an `IsingEBM`, and comes first, but a "
            f"{type(ebm).__name__} was given."
        )
    free = nodes_of("free_blocks", free_blocks)
    clamped = nodes_of("clamped_blocks", clamped_blocks)
    nodes = list(ebm.nodes)
    model = model_of(ebm, nodes, [*free, *clamped], n_visible, with_biases)
    unit = {node: i for i, node in enumerate(nodes)}
    held = {node: unit[node] for block in clamped for node in block}
    if held:
        values = spins_of(clamped, clamped_values)
        model = model.clamp(list(held.values()), values)
    kernel = kernel_of(free, [node for node in nodes if node not in held])
    kernel.stepper(model)  # which checks that the units of a block do not interact
    return model, kernel


def to_thrml(
    model: AbstractEnergyModel, kernel: AlternatingBlockGibbs
) -> tuple[IsingEBM, list[Block]]:
    """The `IsingEBM` of a model, and the blocks of a kernel for
    `IsingSamplingProgram(ebm, blocks, [])`: the inverse of
    [`trainq.interop.thrml.from_thrml`][], but for one thing. An `IsingEBM` has biases
    always: a model without them comes back with biases of zero, which are parameters
    with gradients of their own, and without the symmetry of the global flip.

    Of a clamped model it is the `IsingEBM` of all units, in order, and the blocks are
    those of the free ones; [`trainq.interop.thrml.to_clamped`][] has the others.

    **Arguments:**

    - `model`: a [`trainq.BoltzmannMachine`][], or one with a temperature or with
        clamped units.
    - `kernel`: the kernel.

    **Returns:** the model, whose weights are the couplings of ours, the same array, and
    the list of its free blocks.

    **Raises:** `ValueError` for any other model, or a kernel with other units.
    """
    _, _, held = machine_of(model)
    blocks = blocks_of(kernel)
    kernel.site_updates(model)  # which checks the number of units
    ebm = ebm_of(model)
    free = ebm.nodes if held is None else [ebm.nodes[i] for i in held.free]
    return ebm, [Block([free[i] for i in block]) for block in blocks]


def to_clamped(
    model: AbstractEnergyModel, ebm: IsingEBM
) -> tuple[list[Block], list[Bool[Array, " block"]]]:
    """The clamped blocks of a model, and their states, for
    `IsingSamplingProgram(ebm, free_blocks, clamped_blocks)` and for the `state_clamp`
    of what runs it.

    **Arguments:**

    - `model`: what [`trainq.interop.thrml.to_thrml`][] was given.
    - `ebm`: what it returned.

    **Returns:** a list of one block and a list of its state; two empty lists where no
    unit is clamped.

    **Raises:** `ValueError` for another model.

    !!! example

        ```python
        from trainq.interop.thrml import to_clamped, to_thrml

        ring = tq.BoltzmannMachine(
            jnp.ones(4), edges=[(0, 1), (1, 2), (2, 3), (3, 0)]
        )
        given = ring.clamp([1], [-1])
        kernel = tq.AlternatingBlockGibbs(given.colouring())
        ebm, free = to_thrml(given, kernel)
        clamped, states = to_clamped(given, ebm)
        assert clamped[0][0] is ebm.nodes[1] and not states[0].any()
        ```
    """
    machine, _, held = machine_of(model)
    if len(ebm.nodes) != machine.n_units:
        raise ValueError(
            f"The model has {machine.n_units} units, clamped ones included, but an "
            f"`IsingEBM` with {len(ebm.nodes)} nodes was given. `to_thrml` makes one."
        )
    if held is None:
        return [], []
    return [Block([ebm.nodes[i] for i in held.units])], [held.values > 0]


def to_blocks(
    kernel: AlternatingBlockGibbs, x: Num[Array, "*batch n_units"]
) -> list[Bool[Array, "*batch block"]]:
    """The states of the blocks, as thrml has them.

    **Arguments:**

    - `kernel`: the kernel, which knows the blocks.
    - `x`: ±1 spins of shape `(..., n_units)`.

    **Returns:** booleans of shape `(..., units of the block)` for each block.

    **Raises:** `ValueError` for a kernel without blocks.
    """
    return [x[..., np.asarray(block)] > 0 for block in blocks_of(kernel)]


def from_blocks(
    kernel: AlternatingBlockGibbs, states: Sequence[Bool[Array, "*batch block"]]
) -> Num[Array, "*batch n_units"]:
    """Spins from the states of the blocks.

    **Arguments:**

    - `kernel`: the kernel, which knows the blocks.
    - `states`: booleans of shape `(..., units of the block)` for each block.

    **Returns:** ±1 spins of shape `(..., n_units)`.

    **Raises:** `ValueError` for a kernel without blocks.
    """
    blocks = blocks_of(kernel)
    order = np.argsort(np.concatenate([np.asarray(block) for block in blocks]))
    up = jnp.concatenate(states, axis=-1)[..., order]
    return jnp.where(up, 1.0, -1.0)
