"""Why a run has stopped, and what it leaves."""

import itertools
import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._show import AbstractShown, Table, count, number
from ._chain_state import ChainState
from ._estimate import GradientEstimate
from ._moments import Moments
from ._statistics import check_confidence


UNTIL_STATUS = {
    0: "reached: all targets are met",
    1: "stopped by max_steps: a target is missed, and the next look, at twice the "
    "steps, would be past max_steps",
    2: "frozen: a chain has never moved, so that nothing that chains agree in counts",
    3: "apart: chains sit in different modes, though the functions agree",
}
"""What the codes in `Until.status` mean."""
REACHED, MAX_STEPS, FROZEN, APART = UNTIL_STATUS
# An R-hat of the units above this is that of chains which sit in different places.
SEPARATE = 1.1

_WHAT = {
    "q": "lower end of the interval of Q",
    "resolved": "share of times that are resolved",
    "r_hat": "largest R-hat",
    "settled": "change of T_O in each of two doublings",
}
_TRY = {
    "q": "more chains, which Q is proportional to; or `plan_budget`",
    "resolved": "a kernel with shorter times, or a larger `every`",
    "r_hat": "a burn-in before, or a kernel that crosses barriers, such as "
    "`ParallelTempering`",
    "settled": "a longer run, or more chains, which make T_O less noisy",
}


_SHORT = (
    "Q is there, but its window is short: it has to hold 10 independent states of each "
    "chain."
)


def of_each(confidence: float, n_looks: int) -> float:
    """The confidence of each look, for one of all of them together (Bonferroni)."""
    check_confidence(confidence)
    return 1 - (1 - confidence) / n_looks


def what_is_missed(
    targets: dict[str, float], history: dict[str, list[float]], long: bool
) -> tuple[str, ...]:
    """The targets that are not reached at the last look, where the window of the
    gradient is long, or is not."""
    met = {
        "q": lambda row, aim: row[-1] >= aim and long,
        "resolved": lambda row, aim: row[-1] >= aim,
        "r_hat": lambda row, aim: row[-1] <= aim,
        "settled": has_settled,
    }
    return tuple(k for k, aim in targets.items() if not met[k](history[k], aim))


def has_settled(values: list[float], share: float) -> bool:
    """Whether the last two doublings have each changed the value by less than this
    share of it."""
    return last_change(values) < share


def last_change(values: list[float]) -> float:
    """The larger change in the last two doublings, as a share of the later value;
    infinity before there are two, and of values that have no share."""
    last = values[-3:]
    if len(last) < 3 or not all(map(math.isfinite, last)) or 0 in last[1:]:
        return math.inf
    return max(abs(1 - old / new) for old, new in itertools.pairwise(last))


def status_of(missed: tuple[str, ...], frozen: bool, apart: bool) -> int:
    """The status of a run that stops now."""
    if frozen:
        return FROZEN
    if missed:
        return MAX_STEPS
    return APART if apart else REACHED


class Until(AbstractShown):
    """What [`trainq.sampling.run_until`][] leaves, and why it stopped."""

    state: ChainState
    """Where the chains stand: to go on from."""
    moments: Moments
    """Means, variances and autocovariances of the functions, for each chain."""
    estimate: GradientEstimate | None
    """The gradient averaged over the run, with its Q, if there are data. The interval
    that it has of its own knows of no looks: use that of this result."""
    status: int = eqx.field(static=True)
    """A key of [`trainq.sampling.UNTIL_STATUS`][], zero if all targets are reached."""
    missed: tuple[str, ...] = eqx.field(static=True)
    """The names of the targets that are not met. Those that are met count only if
    chains are neither frozen nor apart: see `status`."""
    targets: dict[str, float] = eqx.field(static=True)
    """What was asked for."""
    history: dict[str, Float[Array, " looks"]]
    """What each target's quantity was at each look: the lower end of the interval of
    `Q`, the share of times that are resolved, the largest R-hat, and `T_O` in
    records, for `settled`."""
    steps: Int[Array, " looks"]
    """The number of kernel steps at each look."""
    frozen: Bool[Array, " chains"]
    """The chains in which no unit has ever changed."""
    frozen_units: Bool[Array, " units"]
    """The units that have never changed in any chain."""
    units_r_hat: Float[Array, ""]
    """The largest R-hat of a unit."""
    mirrored: bool = eqx.field(static=True)
    """Whether the chains sit in different modes that are images of each other by the
    global flip, for even functions, which do not tell them apart."""
    n_looks: int = eqx.field(static=True)
    """The number of looks that there would have been up to `max_steps`."""
    confidence: float = eqx.field(static=True)
    """What the interval of `Q` was to promise."""

    @property
    def ok(self) -> bool:
        """Whether all targets are reached."""
        return self.status == REACHED

    def interval(self, confidence: float | None = None) -> Float[Array, " 2"]:
        """A confidence interval for the `Q` of `estimate` that holds at all looks
        together, and so at the one at which the run stopped.

        **Raises:** `ValueError` without data, or for a confidence that is not between 0
        and 1.
        """
        if self.estimate is None:
            raise ValueError("There is no Q without data: give them to `run_until`.")
        confidence = self.confidence if confidence is None else confidence
        return self.estimate.interval(of_each(confidence, self.n_looks))

    def _shown(self) -> list[str | Table]:
        n_steps = int(self.steps[-1])
        name, _, why = UNTIL_STATUS[self.status].partition(":")
        rows: Table = [("target", "asked for", "found", "")]
        counts = self.status in (REACHED, MAX_STEPS)
        for key, aim in self.targets.items():
            met = "reached" if counts else "met, but does not count"
            met = "missed" if key in self.missed else met
            row = self.history[key]
            found = number(row[-1])
            if key == "settled":
                found = f"{last_change(row.tolist()):.4g}"
            rows.append((_WHAT[key], f"{aim:.8g}", found, met))
        lines: list[str | Table] = [
            f"{name} after {count(n_steps, 'step')} of "
            f"{count(self.state.n_chains, 'chain')}, at look {self.steps.size} of "
            f"{self.n_looks}:{why}",
            rows,
        ]
        if self.estimate is not None:
            low, high = self.interval()
            lines.append(
                f"Q is {low:.4g} to {high:.4g} with {100 * self.confidence:.4g} % "
                "confidence at all looks together, any bias left out"
            )
        n_frozen = int(jnp.sum(self.frozen))
        if n_frozen:
            lines.append(
                f"{count(n_frozen, 'chain')} never moved. Try another start, a higher "
                "temperature, or `ParallelTempering`."
            )
        n_still = int(jnp.sum(self.frozen_units))
        if n_still and not jnp.all(self.frozen):
            lines.append(
                f"{n_still} of {count(self.frozen_units.size, 'unit')} never moved in "
                "any chain: what they do elsewhere is not in any number here."
            )
        if self.mirrored:
            lines.append(
                "Chains sit in modes that are images of each other by the global flip, "
                "which even functions do not tell apart: right for these, and for no "
                "others."
            )
        elif self.units_r_hat > SEPARATE:
            lines.append(
                "Chains sit in different modes: the largest R-hat of a unit is "
                f"{float(self.units_r_hat):.4g}. Try `ParallelTempering`, or a longer "
                "run."
            )
        for key in self.missed:
            reached = key == "q" and self.history["q"][-1] >= self.targets["q"]
            what = f"{_WHAT[key]} is missed: try {_TRY[key]}."
            lines.append(_SHORT if reached else what)
        if self.missed:
            lines.append(
                f"Or go on from `state` with `max_steps={2 * n_steps}` or more: these "
                "steps are then a burn-in, and counting starts anew."
            )
        return lines
