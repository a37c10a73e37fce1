"""Kernels that redraw blocks of units: the two layers, or the colours of a graph."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int, Key, Num

from ..._random import draw_spins, split
from ..._spins import MAX_BLOCK, MAX_PAIRED, check_enumerable
from ...models import AbstractEnergyModel, log_stationary
from ..chains import (
    AbstractChain,
    AbstractLayers,
    AbstractScan,
    Colours,
    EnergyLayers,
    FixedOrder,
    Layers,
    PalindromicOrder,
    RandomOrder,
    ScanChain,
    TwoLayerChain,
)
from ._base import AbstractKernel, Stepper, on_any_mesh
from ._visits import Visit, visits_of


Blocks = tuple[tuple[int, ...], ...]
# Up to so many units a table of all states is kept: 32 MiB in float64.
_MAX_JOINT = 22
# What `blocks` is given as.
SomeBlocks = Iterable[Sequence[int] | Int[Any, " _"]]
# From a key and states, those after one block has been redrawn.
Redraw = Callable[[Key[Array, ""], Num[Array, "..."]], Num[Array, "..."]]


class AbstractBlockGibbs(AbstractKernel):
    """Redraw blocks of units, each from its law given all other units, in the order of
    a scan.

    The blocks are the two layers, unless others are given, whose units must not
    interact: the colours of a graph, as [`trainq.BoltzmannMachine.colouring`][] finds
    them. The chain of two blocks reduces to the smaller one, at least for the scans
    that come with the library; that of more is solved on all states, without a matrix.
    """

    scan: eqx.AbstractVar[AbstractScan]
    blocks: eqx.AbstractVar[Blocks | None]

    @property
    def n_blocks(self) -> int:
        """How many blocks there are: two layers, or those given."""
        return 2 if self.blocks is None else len(self.blocks)

    @property
    def is_reversible(self) -> bool:
        """Whether the scan is, with so many blocks."""
        return self.scan.is_reversible(self.n_blocks)

    def __repr__(self) -> str:
        given = [repr(self.scan)] if "scan" in vars(self) else []
        if self.blocks is not None:
            sizes = [len(block) for block in self.blocks]
            given.append(f"{len(sizes)} blocks, of {sizes} units")
        return f"{type(self).__name__}({', '.join(given)})"

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        if self.blocks is None:
            layers = [_layer(model, "visible"), _layer(model, "hidden")]
            return _scanned(self.scan, layers, units=-1)
        check_blocks(self.blocks, model)
        orders = self.scan.checked_orders(self.n_blocks)
        if len(orders) == 1 and max(map(len, self.blocks)) == 1:
            units = [self.blocks[block] for block in orders[0].blocks]
            move = _one_by_one(model, jnp.asarray(units, jnp.int32))
        else:
            colours = [_colour(model, block) for block in self.blocks]
            move = _scanned(self.scan, colours, units=0)

        # States go along the last axis in here: what moves then are rows.
        def step(key, x):
            return move(key, x.reshape(-1, model.n_units).T).T.reshape(x.shape)

        return step

    def chain(self, model: AbstractEnergyModel) -> AbstractChain:
        partition = _partition(self.blocks, model)
        reduced = self.scan.on_two_layers
        if isinstance(partition, AbstractLayers) and reduced is not None:
            return TwoLayerChain(partition, reduced, model.is_symmetric)
        return ScanChain(partition, self.scan, model.is_symmetric)

    def visits(self, model: AbstractEnergyModel) -> tuple[Visit, ...] | None:
        blocks = self.blocks
        if blocks is None:
            m, n = model.n_visible, model.n_units
            blocks = tuple(tuple(b) for b in (range(m), range(m, n)) if b)
        check_size(blocks, model)
        # Units that interact within a block are not drawn independently.
        if model.conflict(_colours(blocks)) is not None or len(blocks) < self.n_blocks:
            return None
        return visits_of(self.scan.checked_orders(self.n_blocks), blocks)

    def adjoint(self) -> AbstractKernel:
        if self.is_reversible:
            return self
        return self.rescanned(lambda scan: scan.reversed())

    def rescanned(self, change: Callable[[AbstractScan], AbstractScan]) -> "BlockGibbs":
        return BlockGibbs(change(self.scan), self.blocks)

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        sizes = [model.n_visible, model.n_hidden]
        if self.blocks is not None:
            check_size(self.blocks, model)
            sizes = [len(block) for block in self.blocks]
        total = sum(
            probability * sum(sizes[block] for block in blocks)
            for probability, blocks in self.scan.checked_orders(self.n_blocks)
        )
        return round(total) if abs(total - round(total)) < 1e-9 else total


class RandomScanBlockGibbs(AbstractBlockGibbs):
    """Block Gibbs sampling in random order: `P = ½ (E_V + E_H)` for two layers, and
    `P = (1/n) Σ_b E_b` for `n` blocks.

    A step redraws one block given all other units; each chain chooses for itself.
    Reversible, and positive semi-definite. A step is `n_units / n` site updates on
    average.

    !!! example

        ```python
        kernel = tq.RandomScanBlockGibbs()
        window = kernel.steps(model, sweeps=250)
        print(tq.QStruct(kernel, window)(model, data))
        ```

    ??? cite "Source"

        Liu, Wong and Kong, *Covariance structure and convergence rate of the Gibbs
        sampler with various scans*, J. R. Stat. Soc. B 57, 157, 1995.
    """

    blocks: Blocks | None = eqx.field(static=True)
    scan: ClassVar[AbstractScan] = RandomOrder()

    def __init__(self, blocks: SomeBlocks | None = None):
        """**Arguments:**

        - `blocks`: as for [`trainq.markov.BlockGibbs`][].

        **Raises:** as [`trainq.markov.BlockGibbs`][].
        """
        self.blocks = checked_blocks(blocks)


class PalindromicBlockGibbs(AbstractBlockGibbs):
    """Block Gibbs sampling in order and back again: visible–hidden–visible,
    `P = E_V E_H E_V`, for two layers.

    Reversible, and positive semi-definite. A step is `2 n_visible + n_hidden` site
    updates.

    !!! example

        ```python
        kernel = tq.PalindromicBlockGibbs()
        chains = jnp.ones((8, model.n_units))
        chains = kernel.step(key, model, chains)
        ```

    ??? cite "Source"

        Liu, Wong and Kong, *Covariance structure and convergence rate of the Gibbs
        sampler with various scans*, J. R. Stat. Soc. B 57, 157, 1995.
    """

    blocks: Blocks | None = eqx.field(static=True)
    scan: ClassVar[AbstractScan] = PalindromicOrder()

    def __init__(self, blocks: SomeBlocks | None = None):
        """**Arguments:**

        - `blocks`: as for [`trainq.markov.BlockGibbs`][].

        **Raises:** as [`trainq.markov.BlockGibbs`][].
        """
        self.blocks = checked_blocks(blocks)


class AlternatingBlockGibbs(AbstractBlockGibbs):
    """Block Gibbs sampling in a fixed order: visible then hidden, `P = E_V E_H`, for
    two layers; block after block for the colours of a graph (the chromatic sampler).

    What block-Gibbs hardware, thrml and contrastive divergence run, and how models with
    tens of thousands of units are sampled. It leaves the law invariant but is **not
    reversible**: it has no real spectrum, no gap and no Cheeger bound, and functions
    that need these raise. A step is one sweep, `n_units` site updates. A layer without
    a closed form is drawn by enumeration, and a model without hidden units is then
    drawn independently in every step, at no honest cost.

    !!! example

        ```python
        kernel = tq.AlternatingBlockGibbs(model.colouring())
        ```

    ??? cite "Source"

        Hinton, *Training products of experts by minimizing contrastive divergence*,
        Neural Computation 14, 1771, 2002; Gonzalez, Low, Gretton and Guestrin,
        *Parallel Gibbs sampling: from colored fields to thin junction trees*, AISTATS
        2011.
    """

    blocks: Blocks | None = eqx.field(static=True)
    scan: ClassVar[AbstractScan] = FixedOrder()

    def __init__(self, blocks: SomeBlocks | None = None):
        """**Arguments:**

        - `blocks`: as for [`trainq.markov.BlockGibbs`][].

        **Raises:** as [`trainq.markov.BlockGibbs`][].
        """
        self.blocks = checked_blocks(blocks)


class BlockGibbs(AbstractBlockGibbs):
    """Block Gibbs sampling in the order of a scan of your own."""

    scan: AbstractScan
    blocks: Blocks | None = eqx.field(static=True)

    def __init__(self, scan: AbstractScan, blocks: SomeBlocks | None = None):
        """**Arguments:**

        - `scan`: the order.
        - `blocks`: the units of each block, in the order of the scan. Together they are
            all units of the model, each of them once, as in
            [`trainq.BoltzmannMachine.colouring`][]. The visible units and the hidden
            ones, by default.

        **Raises:** `ValueError` for blocks that are empty, or do not hold every unit
        once. Using the kernel raises a `ValueError` for a model with another number of
        units, or if two units of a block interact.
        """
        self.scan = scan
        self.blocks = checked_blocks(blocks)


def _scanned(scan: AbstractScan, redraws: Sequence[Redraw], units: int) -> Stepper:
    """A step of a scan, of states with their units along the axis `units`. Every chain
    draws its own order, if there are several."""
    orders = scan.checked_orders(len(redraws))

    def run(key, x, blocks):
        for one, block in zip(split(key, len(blocks)), blocks, strict=True):
            x = redraws[block](one, x)
        return x

    def step(key, x):
        if len(orders) == 1:
            return run(key, x, orders[0].blocks)
        coin, *keys = split(key, 1 + len(orders))
        moved = [run(k, x, o.blocks) for k, o in zip(keys, orders, strict=True)]
        shape = list(x.shape)
        shape[units] = 1
        draw = jr.uniform(coin, shape)
        # The first order whose share of [0, 1) is not yet passed.
        ends = np.cumsum([order.probability for order in orders])
        out = moved[-1]
        for end, new in zip(ends[-2::-1], moved[-2::-1], strict=True):
            out = jnp.where(draw < end, new, out)
        return out

    return step


def _layer(model: AbstractEnergyModel, layer: Literal["visible", "hidden"]) -> Redraw:
    closed = model.equivalent or model
    draws = type(closed).sample_block is not AbstractEnergyModel.sample_block
    if not draws and closed.interacts(layer):
        check_enumerable(
            model.n_visible if layer == "visible" else model.n_hidden,
            MAX_BLOCK,
            f"{layer} block",
            "Give the kernel blocks of units that do not interact, as in "
            "`AlternatingBlockGibbs(model.colouring())`.",
        )
    return lambda key, x: model.sample_block(key, x, layer)


def _colour(model: AbstractEnergyModel, block: Sequence[int]) -> Redraw:
    units = jnp.asarray(block, jnp.int32)
    return lambda key, rows: _redrawn(model, key, rows, units)


def _one_by_one(model: AbstractEnergyModel, units: Int[Array, "steps 1"]) -> Stepper:
    """Blocks of one unit each: too many to write out."""

    def step(key, rows):
        keys = split(key, len(units))

        def redraw(rows, now):
            return _redrawn(model, now[0], rows, now[1]), None

        return jax.lax.scan(redraw, rows, (keys, units))[0]

    return step


def _redrawn(
    model: AbstractEnergyModel, key: Array, rows: Array, units: Int[Array, " some"]
) -> Num[Array, "n_units chains"]:
    spins = draw_spins(key, model.local_fields(rows.T, units).T, axis=0)
    return rows.at[units].set(spins.astype(rows.dtype))


def _partition(
    blocks: Blocks | None, model: AbstractEnergyModel
) -> AbstractLayers | Colours:
    if blocks is not None:
        check_blocks(blocks, model)
        if len(blocks) != 2:
            return Colours(log_stationary(model), blocks)
        first, second = (tuple(sorted(block)) for block in blocks)
        in_order = first + second == tuple(range(model.n_units))
        if not in_order or len(first) != model.n_visible:
            return Layers.of_blocks(log_stationary(model), first, second)
    check_enumerable(model.n_units, MAX_PAIRED, "pairs of states of two layers")
    layers = EnergyLayers(model)
    if model.n_units > _MAX_JOINT:
        return layers
    return Layers(_log_joint(layers), layers.log_visible, layers.log_hidden)


_log_joint = eqx.filter_jit(lambda layers: layers.log_joint)


def checked_blocks(blocks: SomeBlocks | None) -> Blocks | None:
    """Return blocks as tuples; a `ValueError` if they do not hold every unit once."""
    if blocks is None:
        return None
    if isinstance(blocks, AbstractEnergyModel):
        raise ValueError(
            "blocks are sequences of units, but a model was given: use "
            "`blocks=model.colouring()`."
        )
    arrays = [np.asarray(block) for block in blocks]
    if any(b.ndim != 1 or b.size == 0 or b.dtype.kind not in "iu" for b in arrays):
        raise ValueError(
            "blocks is a sequence of blocks, each a sequence of at least one unit by "
            f"number, as `model.colouring()` makes them, but {blocks!r} was given."
        )
    if not arrays:
        raise ValueError("A scan has at least one block, but none was given.")
    units, counts = np.unique(np.concatenate(arrays), return_counts=True)
    missing = np.setdiff1d(np.arange(units[-1] + 1), units)
    wrong = [f"unit {unit} is missing" for unit in missing[:3]]
    wrong += [f"unit {unit} is there twice" for unit in units[counts > 1][:3]]
    if wrong or units[0] < 0:
        raise ValueError(
            "The blocks of a scan hold every unit from 0 on once, but in those given "
            f"{', '.join(wrong) or f'there is a unit {units[0]}'}. "
            "`model.colouring()` makes such blocks."
        )
    return tuple(tuple(block.tolist()) for block in arrays)


def check_size(blocks: Blocks, model: AbstractEnergyModel) -> None:
    """Raise a `ValueError` if the blocks are those of another model."""
    n_units = sum(map(len, blocks))
    if n_units != model.n_units:
        raise ValueError(
            f"This scan has {n_units} units in its blocks, but the model has "
            f"{model.n_units}. Use `blocks=model.colouring()`."
        )


def check_blocks(blocks: Blocks, model: AbstractEnergyModel) -> None:
    """Raise a `ValueError` if two units of a block interact."""
    check_size(blocks, model)
    conflict = model.conflict(_colours(blocks))
    if conflict is not None:
        raise ValueError(
            f"Two units of one block interact, {conflict[0]} and {conflict[1]}: "
            "they cannot be redrawn at once. Blocks that can are those of "
            "`model.colouring()`."
        )


def _colours(blocks: Blocks) -> Int[np.ndarray, " n_units"]:
    """The number of the block of every unit."""
    colours = np.empty(sum(map(len, blocks)), int)
    for colour, block in enumerate(blocks):
        colours[list(block)] = colour
    return colours
