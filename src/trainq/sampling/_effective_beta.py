"""The inverse temperature that samples have."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from .._checks import require_concrete
from .._show import AbstractShown, Table, count
from .._spins import check_spins
from ..models import AbstractEnergyModel, checked, require_model
from ._redraws import Redraws, as_redraws, fit_temperature
from ._statistics import student_reach


class EffectiveBeta(AbstractShown):
    """The inverse temperature that samples have, in units of that of the model: 1 where
    they are its own."""

    beta: float
    """The estimate, by maximum pseudo-likelihood. Infinite if every spin points along
    its field, so that nothing bounds it."""
    error: float
    """Its standard error, from the scatter of independent groups of samples."""
    n_groups: int
    """How many independent groups there are: chains, or samples."""

    def interval(self, confidence: float = 0.95) -> Float[np.ndarray, " 2"]:
        """A confidence interval, by Student's `t`.

        **Raises:** `ValueError` for a confidence that is not between 0 and 1.
        """
        reach = student_reach(confidence, self.n_groups - 1)
        if not np.isfinite([self.beta, self.error]).all():
            return np.array([-np.inf, np.inf])
        return self.beta + reach * self.error * np.array([-1, 1])

    def _shown(self) -> list[str | Table]:
        low, high = self.interval()
        groups = count(self.n_groups, "independent group")
        return [
            f"effective beta {self.beta:.4g} ± {self.error:.2g}, {low:.4g} to "
            f"{high:.4g} with 95 % confidence, from {groups}"
        ]


def effective_beta(
    model: AbstractEnergyModel,
    x: Num[Array | np.ndarray, "*groups n_units"],
) -> EffectiveBeta:
    """The inverse temperature at which states would be samples of a model: that at
    which every spin given all others is most likely, `Σ_samples Σ_i log σ(2 β x_i F_i)`
    with the fields `F_i` of the model.

    It is about the temperature of the conditional laws. Chains that are stuck in one
    basin have that of their neighbourhood, and an estimate of 1 does not say that they
    have found the others.

    **Arguments:**

    - `model`: the model, of any energy.
    - `x`: `(samples, n_units)` independent states, or `(chains, draws, n_units)` states
        of independent chains, correlated as they may be within each.

    **Returns:** a [`trainq.sampling.EffectiveBeta`][].

    **Raises:** `ValueError` for a wrong shape, another value than ±1, or fewer than two
    samples or chains, and under `jax.jit` and its like.

    ??? cite "Source"

        Besag, *Statistical analysis of non-lattice data*, The Statistician 24, 179,
        1975; for annealers Raymond, Yarkoni and Andriyash, *Global warming:
        temperature estimation in annealers*, Front. ICT 3, 23, 2016. The error is the
        sandwich of Godambe, over groups.

    !!! example

        ```python
        state = tq.start_chains(key, model, 500, tq.Stationary())
        colder = model.tempered(0.9)  # fields a tenth smaller
        print(tq.sampling.effective_beta(colder, state.x))  # about 1.11
        ```
    """
    require_model(model)
    require_concrete("An effective temperature", model=model, x=x)
    states, groups = grouped(x, model.n_units)
    if groups < 2:
        raise ValueError(
            "An error bar takes at least two independent samples or chains, but one "
            "was given."
        )
    return of_groups(checked(model), states, groups)


def grouped(x: Any, n_units: int) -> tuple[Num[Array, "states n_units"], int]:
    """States in a row, and how many independent groups they come from, in order.

    **Raises:** `ValueError` for a wrong shape, or another value than ±1.
    """
    x = check_spins(jnp.asarray(x), n_units)
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise ValueError(
            f"States have shape (samples, {n_units}), of independent ones, or (chains, "
            f"draws, {n_units}), but {x.shape} was given."
        )
    return x.reshape(-1, n_units), x.shape[0]


def of_groups(
    model: AbstractEnergyModel, states: Num[Array, "states n_units"], groups: int
) -> EffectiveBeta:
    """The estimate from states in equal groups, which are independent."""
    seen = _as_redraws(model, states)
    beta, at = fit_temperature([seen])
    if not np.isfinite(beta):
        return EffectiveBeta(beta, np.inf, groups)
    scatter, information = _scores(seen, jnp.asarray(beta), groups), float(at(beta)[1])
    total = float(jnp.sum(scatter**2)) * groups / max(groups - 1, 1)
    error = np.sqrt(total) / information if information > 0 else np.inf
    return EffectiveBeta(beta, float(error), groups)


_as_redraws = eqx.filter_jit(as_redraws)


@eqx.filter_jit
def _scores(seen: Redraws, beta: Array, groups: int) -> Float[Array, " groups"]:
    """What each group contributes to the score of the temperature, which sums to zero
    at the estimate."""
    field = beta.astype(seen.field.dtype) * seen.field
    rest, _, _ = eqx.tree_at(lambda r: r.field, seen, field).parts()
    each = jnp.sum(-2 * seen.spin * seen.field * rest, axis=1)
    return jnp.sum(each.reshape(groups, -1), axis=1)
