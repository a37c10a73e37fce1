"""Programs of thrml: as steps, and whether they hold the parameters of their model."""

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key, Num
from thrml import AbstractNode
from thrml.block_sampling import (
    BlockGibbsSpec,
    BlockSamplingProgram,
    sample_blocks,
)
from thrml.models import IsingEBM
from thrml.models.discrete_ebm import DiscreteEBMInteraction, SpinGibbsConditional

from .._checks import require_concrete
from .._show import Table
from ..markov import AbstractCertificate, Check


def program_step(
    program: BlockSamplingProgram, ebm: IsingEBM
) -> Callable[[Key[Array, ""], Num[Array, "chains n_units"]], Array]:
    """One iteration of a program as a step of spins, for [`trainq.certify_sampler`][].

    It runs what the program holds, whatever the model is.

    **Arguments:**

    - `program`: a program without clamped blocks.
    - `ebm`: the model, whose nodes are the units, in order.

    **Returns:** a function of a key and of `(chains, n_units)` spins. Of a program with
    other numbers and the same nodes it compiles nothing anew.

    **Raises:** `ValueError` for a program with clamped blocks, or with other nodes.
    """
    spec = program.gibbs_spec
    unit = {node: i for i, node in enumerate(ebm.nodes)}
    nodes = [node for block in spec.free_blocks for node in block]
    if spec.clamped_blocks or set(nodes) != set(unit) or len(nodes) != len(unit):
        raise ValueError(
            f"A step moves every one of the {len(unit)} nodes of the model once, but "
            f"the program has {len(nodes)} free ones and {len(spec.clamped_blocks)} "
            "clamped blocks. `certify_program` takes any program."
        )
    known = _Spec(spec, tuple(tuple(unit[n] for n in b) for b in spec.free_blocks))
    alike = eqx.tree_at(lambda p: p.gibbs_spec, program, known)
    return lambda key, x: _moved(alike, key, x)


class _Spec:
    """The blocks of a program, equal to others of the same units in the same order:
    thrml's own are equal to themselves alone, and every program would be compiled."""

    def __init__(self, spec: BlockGibbsSpec, blocks: tuple[tuple[int, ...], ...]):
        self.spec, self.blocks = spec, blocks
        self.order = tuple(map(tuple, spec.sampling_order))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Spec):
            return NotImplemented
        return (self.blocks, self.order) == (other.blocks, other.order)

    def __hash__(self) -> int:
        return hash((self.blocks, self.order))


@eqx.filter_jit
def _moved(
    program: BlockSamplingProgram, key: Array, x: Num[Array, "chains n_units"]
) -> Num[Array, "chains n_units"]:
    # The arrays of a program are traced: one with other weights compiles nothing.
    known: Any = program.gibbs_spec
    program = eqx.tree_at(lambda p: p.gibbs_spec, program, known.spec)
    units = [np.asarray(block) for block in known.blocks]

    def one(key, x):
        free = [x[block] > 0 for block in units]
        memory = [sampler.init() for sampler in program.samplers]
        new, _ = sample_blocks(key, free, [], program, memory)
        for block, up in zip(units, new, strict=True):
            x = x.at[block].set(jnp.where(up, 1, -1).astype(x.dtype))
        return x

    return jax.vmap(one)(jr.split(key, x.shape[0]), x)


class ProgramCertificate(AbstractCertificate):
    """What [`trainq.interop.thrml.certify_program`][] found: every check by name, and
    the numbers that the program holds."""

    checks: dict[str, Check]
    """`"couplings"`, `"fields"`, `"interactions"`, `"units"`, `"blocks"` and
    `"samplers"`, each a [`trainq.markov.Check`][]: the largest difference of a number,
    or how many things are wrong."""
    held: Float[np.ndarray, "n_units columns"]
    """What the program adds to the field on each unit, a row, for each other unit and,
    in the last column, always; times `beta`."""
    expected: Float[np.ndarray, "n_units columns"]
    """The same of the model."""
    _trouble: ClassVar[str] = "A program does not run its model"
    _causes: ClassVar[str] = (
        "a program that was built before the parameters of the model changed: build it "
        "anew after every change; edges or blocks of another graph"
    )

    @property
    def worst(self) -> tuple[int, int]:
        """The unit, and the column of `held`, that differs most from the model."""
        difference = abs(self.held - self.expected)
        unit, column = np.unravel_index(np.argmax(difference), difference.shape)
        return int(unit), int(column)

    def _shown(self) -> list[str | Table]:
        unit, column = self.worst
        by = "its bias" if column == len(self.held) else f"unit {column}"
        return [
            self._table("difference", "allowed", ".2g"),
            f"largest difference: of the field on unit {unit} by {by}, "
            f"{self.held[self.worst]:.4g} in the program and "
            f"{self.expected[self.worst]:.4g} in the model",
        ]


def certify_program(
    program: BlockSamplingProgram, ebm: IsingEBM, *, tolerance: float | None = None
) -> ProgramCertificate:
    """Check that the arrays of a program are those of a model: nothing is sampled.

    A program copies the parameters of its model when it is built. If the model is
    trained after that, the program goes on with those it has, and says nothing.

    Looked at is what the samplers are given: *couplings* from either end of every edge,
    and *fields*, each times `beta`; *interactions* that no Ising model has; *units*
    that are not redrawn or clamped exactly once, or are strange to the model; *blocks*
    with pairs of units that interact and are redrawn at once; and *samplers* that are
    not thrml's heat bath of spins.

    **Arguments:**

    - `program`: an `IsingSamplingProgram`, or any other.
    - `ebm`: the model that it should run.
    - `tolerance`: the largest difference of a number that passes; by default 8
        roundings of the largest parameter.

    **Returns:** a [`trainq.interop.thrml.ProgramCertificate`][]. `print` it, read
    `.ok`, or halt with `.require()`.

    **Raises:** `ValueError` under `jax.jit` and its like, or for another thing than a
    program and a model.

    !!! example

        ```python
        from thrml.models import IsingSamplingProgram
        from trainq.interop import thrml

        machine = tq.BoltzmannMachine(jnp.ones((3, 3)) - jnp.eye(3))
        scan = tq.AlternatingBlockGibbs(machine.colouring())
        ebm, blocks = thrml.to_thrml(machine, scan)
        program = IsingSamplingProgram(ebm, blocks, [])
        thrml.certify_program(program, ebm).require()
        ```
    """
    if not isinstance(program, BlockSamplingProgram) or not isinstance(ebm, IsingEBM):
        raise ValueError(
            "A program of thrml and an `IsingEBM` are needed, in this order, but a "
            f"{type(program).__name__} and a {type(ebm).__name__} were given."
        )
    require_concrete("A certificate of a program", program=program, ebm=ebm)
    unit = {node: i for i, node in enumerate(ebm.nodes)}
    n_units, beta = len(unit), np.asarray(ebm.beta)
    expected = np.zeros((n_units, n_units + 1))
    expected[:, -1] = beta * np.asarray(ebm.biases)
    for (first, second), weight in zip(ebm.edges, ebm.weights, strict=True):
        i, j = unit[first], unit[second]
        expected[i, j] += beta * float(weight)
        expected[j, i] += beta * float(weight)
    held, strange = _held(program, unit)

    spec = program.gibbs_spec
    seen = Counter(node for b in spec.free_blocks + spec.clamped_blocks for node in b)
    wrong_units = sum(seen[node] != 1 for node in unit)
    wrong_units += sum(node not in unit for node in seen)
    # Of a clamped unit nothing is redrawn, and the program holds no field on it.
    clamped = [unit[n] for b in spec.clamped_blocks for n in b if n in unit]
    expected[clamped] = held[clamped] = 0
    at_once = 0
    for block in spec.superblocks:
        inside = [unit[node] for part in block for node in part if node in unit]
        pairs = (expected[:, :-1] != 0) | (held[:, :-1] != 0)
        at_once += int(pairs[np.ix_(inside, inside)].sum()) // 2
    if tolerance is None:
        eps = float(jnp.finfo(ebm.weights.dtype).eps)
        tolerance = 8 * eps * float(abs(expected).max(initial=1e-300))
    difference = abs(held - expected)
    others = sum(not isinstance(s, SpinGibbsConditional) for s in program.samplers)

    def check(number: float | int, allowed: float = 0.0) -> Check:
        return Check(jnp.asarray(float(number)), allowed)

    checks = {
        "couplings": check(difference[:, :-1].max(initial=0), tolerance),
        "fields": check(difference[:, -1].max(initial=0), tolerance),
        "interactions": check(strange),
        "units": check(wrong_units),
        "blocks": check(at_once),
        "samplers": check(others),
    }
    return ProgramCertificate(checks, held, expected)


def _held(
    program: BlockSamplingProgram, unit: dict[AbstractNode, int]
) -> tuple[Float[np.ndarray, "n_units columns"], int]:
    """What a program adds to every field, as its samplers read it, and how many of its
    interactions are of another kind."""
    spec, n_units = program.gibbs_spec, len(unit)
    node_at = {place: node for node, place in spec.node_global_location_map.items()}
    held, strange = np.zeros((n_units, n_units + 1)), 0
    per_block = zip(
        spec.free_blocks,
        program.per_block_interactions,
        program.per_block_interaction_active,
        program.per_block_interaction_global_inds,
        program.per_block_interaction_global_slices,
        strict=True,
    )
    for block, *interactions in per_block:
        for interaction, active, where, slices in zip(*interactions, strict=True):
            pairwise = isinstance(interaction, DiscreteEBMInteraction)
            weights = np.asarray(getattr(interaction, "weights", active), float)
            if not pairwise or len(where) > 1 or weights.ndim != 2:
                strange += int(np.sum(np.asarray(active)))
                continue
            for row, term in np.argwhere(np.asarray(active)):
                head = unit.get(block[int(row)], -1)
                column = n_units  # a field
                if where:
                    place = (where[0], int(np.asarray(slices[0])[row, term]))
                    column = unit.get(node_at[place], -1)
                if head < 0 or column < 0:
                    strange += 1
                else:
                    held[head, column] += weights[row, term]
    return held, strange
