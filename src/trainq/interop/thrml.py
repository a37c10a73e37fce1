"""Ising models and block-sampling programs of thrml, and back."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Num
from thrml import AbstractNode, Block, SpinNode
from thrml.models import IsingEBM

from ..markov import AlternatingBlockGibbs
from ..models import AbstractEnergyModel, BoltzmannMachine, Tempered
from ._thrml_programs import (
    ProgramCertificate as ProgramCertificate,
    certify_program as certify_program,
    program_step as program_step,
)


SuperBlocks = Sequence[Block | tuple[Block, ...]]


def from_thrml(
    ebm: IsingEBM,
    free_blocks: SuperBlocks,
    n_visible: int | None = None,
    *,
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
    - `with_biases`: whether the biases are parameters. An `IsingEBM` always has them;
        where all of them are zero, False makes a model without, so that their noise is
        no part of Q, and the model is symmetric under the global flip.

    **Returns:** the model, a [`trainq.BoltzmannMachine`][] where `beta` is one, and a
    [`trainq.AlternatingBlockGibbs`][].

    **Raises:** `ValueError` if the blocks do not hold every node once (clamped nodes
    are not supported), if nodes of a block interact, or for biases that are left out
    and not zero.
    """
    if not isinstance(ebm, IsingEBM):
        raise ValueError(
            "ebm is an `IsingEBM`, and comes first, but a "
            f"{type(ebm).__name__} was given."
        )
    unit = {node: i for i, node in enumerate(ebm.nodes)}
    pairs = [[unit.get(node, -1) for node in edge] for edge in ebm.edges]
    blocks = [
        tuple(block) if isinstance(block, list | tuple) else (block,)
        for block in free_blocks
    ]
    if not all(isinstance(part, Block) for block in blocks for part in block):
        raise ValueError(
            "free_blocks is a list of `thrml.Block`, or of tuples of them, as for "
            "`IsingSamplingProgram`, but something else stands in it."
        )
    units = [[unit.get(node, -1) for b in block for node in b] for block in blocks]
    if sorted(sum(units, [])) != list(range(len(unit))) or -1 in sum(pairs, []):
        raise ValueError(
            f"The free blocks hold each of the {len(unit)} nodes of the model once, "
            f"and its edges join these, but blocks with {sum(map(len, units))} nodes, "
            f"{sum(units, []).count(-1)} of them strange to it, were given. Clamped "
            "nodes are not supported: add their fields to the biases of an `IsingEBM` "
            "without them."
        )
    edges = np.asarray(pairs, int).reshape(-1, 2)
    biases = ebm.biases if with_biases else None
    if biases is None and (isinstance(ebm.biases, Tracer) or np.any(ebm.biases)):
        raise ValueError(
            "with_biases=False leaves biases out that are zero, but those of this "
            "`IsingEBM` are not, or are traced."
        )
    model = BoltzmannMachine(
        ebm.weights, biases, n_visible, edges=edges, n_units=len(unit)
    )
    kernel = AlternatingBlockGibbs(units)
    kernel.stepper(model)  # which checks that the units of a block do not interact
    if isinstance(ebm.beta, Tracer):
        return model.tempered(ebm.beta), kernel
    return (model if ebm.beta == 1 else Tempered(model, ebm.beta)), kernel


def to_thrml(
    model: AbstractEnergyModel, kernel: AlternatingBlockGibbs
) -> tuple[IsingEBM, list[Block]]:
    """The `IsingEBM` of a model, and the blocks of a kernel for
    `IsingSamplingProgram(ebm, blocks, [])`: the inverse of
    [`trainq.interop.thrml.from_thrml`][], but for one thing. An `IsingEBM` has biases
    always: a model without them comes back with biases of zero, which are parameters
    with gradients of their own, and without the symmetry of the global flip.

    **Arguments:**

    - `model`: a [`trainq.BoltzmannMachine`][], or one with a temperature.
    - `kernel`: the kernel.

    **Returns:** the model, whose weights are the couplings of ours, the same array, and
    the list of its free blocks.

    **Raises:** `ValueError` for any other model, or a kernel with other units.
    """
    machine, beta = model, 1.0
    if isinstance(model, Tempered):
        machine, beta = model.model, model.beta
    if not isinstance(machine, BoltzmannMachine):
        raise ValueError(
            "thrml has Ising models: a `BoltzmannMachine` is needed, but a "
            f"{type(machine).__name__} was given."
        )
    blocks = _blocks_of(kernel)
    kernel.site_updates(machine)  # which checks the number of units
    nodes: list[AbstractNode] = [SpinNode() for _ in range(machine.n_units)]
    dtype = machine.couplings.dtype
    bias = jnp.zeros(len(nodes), dtype) if machine.bias is None else machine.bias
    edges = [(nodes[i], nodes[j]) for i, j in machine.edges]
    ebm = IsingEBM(nodes, edges, bias, machine.couplings, jnp.asarray(beta, dtype))
    return ebm, [Block([nodes[i] for i in block]) for block in blocks]


def _blocks_of(kernel: AlternatingBlockGibbs) -> tuple[tuple[int, ...], ...]:
    if not isinstance(kernel, AlternatingBlockGibbs) or kernel.blocks is None:
        raise ValueError(
            "thrml scans blocks in a fixed order: `AlternatingBlockGibbs(blocks)` is "
            f"needed, but {kernel!r} was given."
        )
    return kernel.blocks


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
    return [x[..., np.asarray(block)] > 0 for block in _blocks_of(kernel)]


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
    blocks = _blocks_of(kernel)
    order = np.argsort(np.concatenate([np.asarray(block) for block in blocks]))
    up = jnp.concatenate(states, axis=-1)[..., order]
    return jnp.where(up, 1.0, -1.0)
