"""The two phases of a training specification of thrml, and back."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num
from thrml import Block, SamplingSchedule
from thrml.models import IsingTrainingSpec

from .._checks import whole_number
from .._show import count
from ..markov import AlternatingBlockGibbs
from ..models import AbstractEnergyModel
from ._ising import blocks_of, ebm_of, kernel_of, model_of, nodes_of


class TrainingPhases(eqx.Module):
    """The two phases of an `IsingTrainingSpec`: a model whose visible units are those
    of the data and, after them, those that the model is conditioned on; and the kernels
    that draw the other units in each phase.

    The model learns the law of the data given the conditioning units: its signal is
    `trainq.kl_gradient(phases.negative_model(conditioning), data)`.
    """

    model: AbstractEnergyModel
    """The model of all units, none of them clamped."""
    positive: AlternatingBlockGibbs | None
    """The kernel of the hidden units, given all others; None where there are none."""
    negative: AlternatingBlockGibbs
    """The kernel of the data units and the hidden ones, given the conditioning."""
    n_conditioning: int = eqx.field(static=True, default=0)
    """How many of the visible units, the last of them, the model is conditioned on."""

    def __check_init__(self):
        n = whole_number("n_conditioning", self.n_conditioning, 0, "units")
        if n >= self.model.n_visible:
            raise ValueError(
                f"n_conditioning is less than the {self.model.n_visible} visible units "
                f"of the model, but {n} was given: some are of the data."
            )
        # A kernel checks its units, and that those of a block do not interact.
        ones = np.ones(self.n_data), np.ones(n)
        self.negative.stepper(self.negative_model(ones[1]))
        if self.positive is not None:
            self.positive.stepper(self.positive_model(*ones))

    @property
    def n_data(self) -> int:
        """The number of units of the data, which come first."""
        return self.model.n_visible - self.n_conditioning

    def negative_model(
        self, conditioning: Num[Array | np.ndarray, " n_conditioning"] | Sequence = ()
    ) -> AbstractEnergyModel:
        """What the negative phase samples: the law of data units and hidden ones.

        **Arguments:**

        - `conditioning`: `(n_conditioning,)` spins ±1. They may be traced.

        **Returns:** the model of these units.
        """
        units = range(self.n_data, self.model.n_visible)
        return self.model.clamp(list(units), conditioning)

    def positive_model(
        self,
        data: Num[Array | np.ndarray, " n_data"] | Sequence,
        conditioning: Num[Array | np.ndarray, " n_conditioning"] | Sequence = (),
    ) -> AbstractEnergyModel:
        """What the positive phase samples: the law of the hidden units given one sample
        of the data.

        **Arguments:**

        - `data`: `(n_data,)` spins ±1. They may be traced: map over a batch.
        - `conditioning`: as for `negative_model`.

        **Returns:** the model of these units, none of which is visible.

        **Raises:** `ValueError` if there are no hidden units.
        """
        given = [jnp.asarray(part, self.model.dtype) for part in (data, conditioning)]
        units = range(self.model.n_visible)
        return self.model.clamp(list(units), jnp.concatenate(given))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({count(self.n_data, 'unit')} of data, "
            f"{self.n_conditioning} of conditioning, {self.model.n_hidden} hidden; "
            f"positive {self.positive}, negative {self.negative})"
        )


TrainingPhases.__init__.__doc__ = """**Arguments:**

- `model`: a [`trainq.BoltzmannMachine`][], or one with a temperature.
- `positive`: the kernel of the hidden units, by their numbers among themselves; None
    where there are none.
- `negative`: the kernel of the units of the data and then the hidden ones.
- `n_conditioning`: how many of the visible units are conditioned on.

**Raises:** `ValueError` for kernels of other units, or whose blocks interact.
"""


def from_training_spec(
    spec: IsingTrainingSpec, *, with_biases: bool = True
) -> TrainingPhases:
    """The two phases of an `IsingTrainingSpec`, as models and kernels.

    Units are in the order of the data blocks, of the conditioning blocks, and then of
    `spec.ebm.nodes`. Weights are those of `spec.ebm`, the same array; biases too, if
    its nodes are in that order, and otherwise sorted by it. `n_warmup` and `n_samples`
    of a schedule are burn-in and window in kernel steps, if its `steps_per_sample` is
    one; otherwise a window is of so many steps of `Power(kernel, steps_per_sample)`.

    **Arguments:**

    - `spec`: the specification. What its programs hold is not looked at: they are taken
        to be those of `spec.ebm`.
    - `with_biases`: as for [`trainq.interop.thrml.from_thrml`][].

    **Returns:** a [`trainq.interop.thrml.TrainingPhases`][].

    **Raises:** as [`trainq.interop.thrml.from_thrml`][]; also `ValueError` if the
    phases are conditioned on different nodes.
    """
    positive, negative = (
        program.gibbs_spec for program in (spec.program_positive, spec.program_negative)
    )
    # In order, as the keys of dictionaries.
    held = dict.fromkeys(node for b in negative.clamped_blocks for node in b)
    given = dict.fromkeys(node for b in positive.clamped_blocks for node in b)
    if not held.keys() <= given.keys():
        raise ValueError(
            "Both phases are conditioned on the same nodes, but the negative one is on "
            f"{len(held.keys() - given.keys())} which the positive one draws."
        )
    data = [node for node in given if node not in held]
    drawn = [node for node in spec.ebm.nodes if node not in given]
    nodes = [*data, *held, *drawn]
    free = nodes_of("blocks", negative.superblocks)
    hidden = nodes_of("blocks", positive.superblocks)
    if sorted(map(id, sum(hidden, []))) != sorted(map(id, drawn)):
        raise ValueError(
            "The positive phase draws each node once that is neither of the data nor "
            "conditioned on, but other blocks were given."
        )
    model = model_of(spec.ebm, nodes, [*free, [*held]], len(given), with_biases)
    return TrainingPhases(
        model,
        kernel_of(hidden, drawn) if drawn else None,
        kernel_of(free, [*data, *drawn]),
        len(held),
    )


def to_training_spec(
    phases: TrainingPhases,
    schedule_positive: SamplingSchedule,
    schedule_negative: SamplingSchedule,
) -> IsingTrainingSpec:
    """The `IsingTrainingSpec` of two phases: the inverse of
    [`trainq.interop.thrml.from_training_spec`][]. The nodes of its `ebm` are our units,
    in order; data and conditioning are one block each.

    **Arguments:**

    - `phases`: the phases.
    - `schedule_positive`, `schedule_negative`: how long thrml samples in each.

    **Returns:** the specification.

    **Raises:** as [`trainq.interop.thrml.to_thrml`][].
    """
    ebm, n_data, n_visible = ebm_of(phases.model), phases.n_data, phases.model.n_visible
    data, held, hidden = (
        ebm.nodes[part]
        for part in (
            slice(n_data),
            slice(n_data, n_visible),
            slice(n_visible, None),
        )
    )
    free = [*data, *hidden]
    positive = () if phases.positive is None else blocks_of(phases.positive)
    return IsingTrainingSpec(
        ebm,
        [Block(data)],
        [Block(held)] if held else [],
        [Block([hidden[i] for i in b]) for b in positive],
        [Block([free[i] for i in b]) for b in blocks_of(phases.negative)],
        schedule_positive,
        schedule_negative,
    )
