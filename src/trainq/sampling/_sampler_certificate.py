"""Certificates of samplers that are not trainq's."""

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from .._show import Table, count
from ..markov import AbstractCertificate, Check


class SamplerCertificate(AbstractCertificate):
    """What [`trainq.certify_sampler`][] found: every check by name, and the temperature
    and the fields that the sampler has.

    A residual is a deviation in standard errors, the largest of all that a check looks
    at, and its tolerance is where the share of false alarms is what it should be.
    """

    checks: dict[str, Check]
    """`"motion"`, `"moments"`, `"temperature"`, `"fields"` and `"reversibility"`, each
    a [`trainq.markov.Check`][]."""
    n_starts: int
    """How many states were moved."""
    n_steps: int
    """By how many steps each."""
    false_alarm: float
    """The largest probability with which a sound sampler fails any of the checks."""
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
    _trouble: ClassVar[str] = "A sampler failed its certificate"
    _causes: ClassVar[str] = (
        "parameters that have not reached the sampler, as the arrays of a program that "
        "was built before they changed; a sign, or a factor of two between spins and "
        "bits; another temperature; units that interact and are redrawn at once; "
        "starts that are not from the law of the model"
    )

    @property
    def worst(self) -> tuple[int, int] | None:
        """The unit, and the column of `excess`, that is most standard errors off; None
        if no estimates were asked for."""
        if self.excess is None or self.excess_error is None:
            return None
        sizes = abs(self.excess) / self.excess_error
        unit, column = np.unravel_index(np.argmax(sizes), sizes.shape)
        return int(unit), int(column)

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
            f"largest excess: of the field on unit {unit} by {by}, {off:+.3f} ± "
            f"{error:.2g}",
            *self._why,
        ]
