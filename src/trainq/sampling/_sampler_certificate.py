"""Certificates of samplers that are not trainq's."""

from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from .._show import Table, count
from ..markov import AbstractCertificate, Check


_SIGMAS = 5.0  # standard errors within which a temperature is one of some
AT_ONCE, TEMPERATURE = "at once", "temperature"
# In order, where nothing says more.
_CAUSES = {
    "parameters": "parameters that have not reached the sampler, as the arrays of a "
    "program that was built before they changed",
    "sign": "a sign, or a factor of two between spins and bits",
    TEMPERATURE: "another temperature",
    AT_ONCE: "units that interact and are redrawn at once",
    "starts": "starts that are not from the law of the model",
    "transitions": "a step and a chain that are two kernels, as by another share, "
    "proposal or acceptance",
    "coins": "random numbers that serve two decisions, or several chains",
}


class WorstTransition(NamedTuple):
    """Where steps are most standard errors off from a chain: the mean, over all steps,
    of a product of spins before a step times one after it.

    - `before`: the units before the step: up to two, or none.
    - `after`: the units after it: one or two.
    - `seen`: the mean of the steps.
    - `expected`: that of the chain, from the same states.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    seen: float
    expected: float


class SamplerCertificate(AbstractCertificate):
    """What [`trainq.certify_sampler`][] found: every check by name, and the temperature
    and the fields that the sampler has.

    A residual is a deviation in standard errors, the largest of all that a check looks
    at, and its tolerance is where the share of false alarms is what it should be.
    """

    checks: dict[str, Check]
    """`"motion"`, `"transitions"`, `"moments"`, `"temperature"`, `"fields"` and
    `"reversibility"`, each a [`trainq.markov.Check`][]."""
    n_starts: int
    """How many states were moved."""
    n_steps: int
    """By how many steps each."""
    false_alarm: float
    """The largest probability with which a sound sampler fails any of the checks."""
    worst_transition: WorstTransition | None = None
    """Where steps are most standard errors off from the chain; None if they were not
    compared with one."""
    beta: float | None = None
    """The inverse temperature of the sampler, in units of that of the model: 1 if it
    is sound. None if no estimates were asked for, as of all that follows."""
    beta_error: float | None = None
    """The standard error of `beta`."""
    excess: Float[np.ndarray, "n_units columns"] | None = None
    """What has to be added to the model's field on each unit, a row, for each other
    unit, its own last value (on the diagonal) and a constant (the last column): for a
    pairwise model the sampler's coupling less the model's. Zero if it is sound."""
    excess_error: Float[np.ndarray, "n_units columns"] | None = None
    """The standard errors of `excess`; infinite for what was not fitted."""
    explained_by: str | None = None
    """If a check failed, the one fault whose heat bath the states do follow:
    `"at once"` for all units redrawn given the states before the step, or
    `"temperature"`. None if neither, as where parameters are other ones."""
    _trouble: ClassVar[str] = "A sampler failed its certificate"
    _causes: ClassVar[str] = "; ".join(_CAUSES.values())

    @property
    def worst(self) -> tuple[int, int] | None:
        """The unit, and the column of `excess`, that is most standard errors off; None
        if no estimates were asked for."""
        if self.excess is None or self.excess_error is None:
            return None
        sizes = abs(self.excess) / self.excess_error
        unit, column = np.unravel_index(np.argmax(sizes), sizes.shape)
        return int(unit), int(column)

    @property
    def _furthest(self) -> str:
        assert self.worst_transition is not None
        before, after, seen, expected = self.worst_transition
        after, before = (" ".join(f"x{i}" for i in units) for units in (after, before))
        of = f"{after} after a step" + (f", times {before} before it," * bool(before))
        return f"the mean of {of} is {seen:.3f}, and should be {expected:.3f}"

    @property
    def _is_a_factor(self) -> bool:
        """Whether `beta` is what a sign, or bits taken for spins, would make of it."""
        assert self.beta is not None and self.beta_error is not None
        off = min(abs(self.beta - b) for b in (-2, -1, -0.5, 0.5, 2))
        return off <= _SIGMAS * self.beta_error

    @property
    def _why(self) -> list[str | Table]:
        if not self.failed:
            return []
        if "motion" in self.failed:
            return ["No state moved: the step returns what it was given."]
        causes, lines = dict(_CAUSES), []
        if "transitions" not in self.failed or self.explained_by is not None:
            del causes["transitions"], causes["coins"]
        else:
            lines = [
                f"The steps are not those of the kernel's chain: {self._furthest}. "
                "`trainq.certify` asks whether the chain has the law of the model."
            ]
        if self.explained_by == AT_ONCE:
            del causes[AT_ONCE]
            lines = [
                "Given the states before the step, all units follow the heat bath of "
                "the model: they are redrawn at once. Those that interact have to be "
                "redrawn one after the other."
            ]
        elif self.explained_by == TEMPERATURE:
            del causes["parameters"], causes[AT_ONCE]
            if not self._is_a_factor:
                del causes["sign"]
            lines = [
                f"At the inverse temperature {self.beta:.4g} of the model all units "
                "follow its heat bath."
            ]
        elif lines and not {"temperature", "fields"} & set(self.failed):
            likely = ("transitions", "coins", "parameters", TEMPERATURE)
            causes = {name: causes[name] for name in likely}
        elif self.beta is None:
            lines.append("With `estimates=True` two of these causes are looked at.")
        else:
            lines.append(
                "Neither another temperature alone nor all units redrawn at once is "
                "what the states show. `excess` tells more, if the step names its "
                "`kernel`: other parameters change it for both units of a pair, "
                "another order of redraws for one of them."
            )
        return [*lines, f"The likely causes, in order: {'; '.join(causes.values())}."]

    def _shown(self) -> list[str | Table]:
        shown: list[str | Table] = [
            f"{count(self.n_starts, 'state')} moved by {count(self.n_steps, 'step')}; "
            f"a sound sampler fails with a probability of at most {self.false_alarm:g}",
            self._table("deviation", "bar", ".2f"),
        ]
        worst = self.worst
        if worst is None or self.excess is None or self.excess_error is None:
            return [*shown, *self._why]
        unit, column = worst
        by = f"unit {column}"
        if column in (unit, len(self.excess)):
            by = "its own last value" if column == unit else "a constant"
        off, error = self.excess[worst], self.excess_error[worst]
        return [
            *shown,
            f"effective beta {self.beta:.4f} ± {self.beta_error:.2g}",
            f"largest of {np.isfinite(self.excess_error).sum()} excesses: of the field "
            f"on unit {unit} by {by}, {off:+.3f} ± {error:.2g}",
            *self._why,
        ]
