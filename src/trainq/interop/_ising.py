"""What a model of trainq and an `IsingEBM` of thrml are to each other."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Num

from .._checks import needed_for
from ..markov import AlternatingBlockGibbs
from ..models import AbstractEnergyModel, BoltzmannMachine, Clamped, Tempered


with needed_for("trainq.interop.thrml", "thrml"):
    from thrml import AbstractNode, Block, SpinNode
    from thrml.models import IsingEBM

SuperBlocks = Sequence[Block | tuple[Block, ...]]


def nodes_of(name: str, blocks: SuperBlocks) -> list[list[AbstractNode]]:
    """The nodes of each block; those in a tuple are one."""
    parts = [
        tuple(block) if isinstance(block, list | tuple) else (block,)
        for block in blocks
    ]
    if not all(isinstance(part, Block) for block in parts for part in block):
        raise ValueError(
            f"{name} is a list of `thrml.Block`, or of tuples of them, as for "
            "`IsingSamplingProgram`, but something else stands in it."
        )
    return [[node for part in block for node in part] for block in parts]


def model_of(
    ebm: IsingEBM,
    nodes: Sequence[AbstractNode],
    blocks: Sequence[Sequence[AbstractNode]],
    n_visible: int | None,
    with_biases: bool,
) -> AbstractEnergyModel:
    """The model of an `IsingEBM`, with its nodes in an order, having checked that the
    blocks hold all of them."""
    unit = {node: i for i, node in enumerate(nodes)}
    pairs = [[unit.get(node, -1) for node in edge] for edge in ebm.edges]
    units = [unit.get(node, -1) for block in blocks for node in block]
    if sorted(units) != list(range(len(unit))) or -1 in sum(pairs, []):
        raise ValueError(
            f"The free and the clamped blocks together hold each of the {len(unit)} "
            "nodes of the model once, and its edges join these, but blocks with "
            f"{len(units)} nodes, {units.count(-1)} of them strange to it, were given."
        )
    biases = ebm.biases if with_biases else None
    if biases is None and (isinstance(ebm.biases, Tracer) or np.any(ebm.biases)):
        raise ValueError(
            "with_biases=False leaves biases out that are zero, but those of this "
            "`IsingEBM` are not, or are traced."
        )
    place = {node: i for i, node in enumerate(ebm.nodes)}
    order = [place[node] for node in nodes]
    if biases is not None and order != list(range(len(order))):
        biases = biases[np.asarray(order)]
    edges = np.asarray(pairs, int).reshape(-1, 2)
    model = BoltzmannMachine(
        ebm.weights, biases, n_visible, edges=edges, n_units=len(unit)
    )
    if isinstance(ebm.beta, Tracer):
        return model.tempered(ebm.beta)
    return model if ebm.beta == 1 else Tempered(model, ebm.beta)


def kernel_of(
    blocks: Sequence[Sequence[AbstractNode]], nodes: Sequence[AbstractNode]
) -> AlternatingBlockGibbs:
    unit = {node: i for i, node in enumerate(nodes)}
    return AlternatingBlockGibbs([[unit[node] for node in block] for block in blocks])


def spins_of(
    blocks: Sequence[Sequence[AbstractNode]],
    states: Sequence[Bool[Array | np.ndarray, " block"]],
) -> Num[Array, " nodes"]:
    arrays = [jnp.asarray(state) for state in states]
    shapes = [(len(block),) for block in blocks]
    if [a.shape for a in arrays] != shapes or any(a.dtype != bool for a in arrays):
        raise ValueError(
            "clamped_values has an array of booleans for each of the clamped blocks, "
            f"of shapes {shapes}, but arrays of shapes {[a.shape for a in arrays]} "
            f"and dtypes {[str(a.dtype) for a in arrays]} were given."
        )
    return jnp.where(jnp.concatenate(arrays), 1, -1)


def ebm_of(model: AbstractEnergyModel) -> IsingEBM:
    """The `IsingEBM` of a model, or of the whole of a clamped one."""
    machine, beta, _ = machine_of(model)
    nodes: list[AbstractNode] = [SpinNode() for _ in range(machine.n_units)]
    dtype = machine.couplings.dtype
    bias = jnp.zeros(len(nodes), dtype) if machine.bias is None else machine.bias
    edges = [(nodes[i], nodes[j]) for i, j in machine.edges]
    return IsingEBM(nodes, edges, bias, machine.couplings, jnp.asarray(beta, dtype))


def machine_of(
    model: AbstractEnergyModel,
) -> tuple[BoltzmannMachine, float | Array, Clamped | None]:
    """The machine, its temperature, and what clamps units of it."""
    inner, beta, held = model, 1.0, None
    if isinstance(inner, Tempered):
        inner, beta = inner.model, inner.beta
    if isinstance(inner, Clamped):
        inner, held = inner.model, inner
    if not isinstance(inner, BoltzmannMachine):
        raise ValueError(
            "thrml has Ising models: a `BoltzmannMachine` is needed, but a "
            f"{type(inner).__name__} was given."
        )
    return inner, beta, held


def blocks_of(kernel: AlternatingBlockGibbs) -> tuple[tuple[int, ...], ...]:
    if not isinstance(kernel, AlternatingBlockGibbs) or kernel.blocks is None:
        raise ValueError(
            "thrml scans blocks in a fixed order: `AlternatingBlockGibbs(blocks)` is "
            f"needed, but {kernel!r} was given."
        )
    return kernel.blocks
