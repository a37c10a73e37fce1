"""Redraws of units, as states before and after show them: their likelihood under the
heat bath of a model, how far they are from it, and what fits them better.

A unit with the spin `s` in the field `F`, which a step comes to with probability `p`,
is seen flipped with probability `μ = p σ(Δ)`, `Δ = -2 s F`, whatever state the step
began in: the redraw is told the other units, and nothing else. With `p = 1` this is a
logistic regression of the new spin on the others, and the model says what its
coefficients are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from ..markov import Visit
from ..models import AbstractEnergyModel


# The standard deviation of the fields that a fit thinks likely beforehand: far more
# than any fit finds, but for one of units that hardly move, which has no end else.
_WIDE = 10.0
# Draws times columns that a fit of one unit looks at.
_ENOUGH = 2_000_000


class Redraws(eqx.Module):
    """Redraws of units that were given the same, with what that was."""

    spin: Float[Array, "draws block"]
    flipped: Bool[Array, "draws block"]
    field: Float[Array, "draws block"]
    others: Float[Array, "draws columns"]  # all units, and the constant one
    visit: Visit = eqx.field(static=True)

    def parts(self) -> tuple[Array, Array, Array]:
        """`w (y - μ)`, `w² μ (1 - μ)` and `a`, of each redraw: the score of the field
        but for a factor `-2 s`, its variance, and the probability `a = σ(Δ)`."""
        # By Δ, log(p a) has the derivative 1 - a and log(1 - p a) that of
        # -p a (1 - a) / (1 - p a): together w (y - μ), with w = (1 - a) / (1 - p a),
        # which is at most one.
        p = self.visit.probability
        a = jax.nn.sigmoid(-2 * self.spin * self.field)
        mean = p * a
        weight = jnp.ones_like(a) if p == 1 else (1 - a) / (1 - mean)
        flips = self.flipped.astype(a.dtype)
        return weight * (flips - mean), weight**2 * mean * (1 - mean), a


def alike(visits: Sequence[Visit]) -> tuple[tuple[Visit, tuple[int, ...]], ...]:
    """Visits that are given the same as one of all of their units, and the number of
    the visit that each unit is of: what is computed for all units at once."""
    found: dict[tuple[float, tuple[int, ...]], tuple[list[int], list[int]]] = {}
    for number, (units, probability, renewed) in enumerate(visits):
        all_units, numbers = found.setdefault((probability, renewed), ([], []))
        all_units += units
        numbers += [number] * len(units)
    return tuple(
        (Visit(tuple(units), probability, renewed), tuple(numbers))
        for (probability, renewed), (units, numbers) in found.items()
    )


def redraws(
    model: AbstractEnergyModel,
    visit: Visit,
    before: Num[Array, "draws n_units"],
    after: Num[Array, "draws n_units"],
) -> Redraws:
    """What steps show of one block: the model's fields, and which units flipped."""
    units = jnp.asarray(visit.units)
    renewed = np.isin(np.arange(model.n_units), visit.renewed)
    given = jnp.where(renewed[None], after, before).astype(model.dtype)
    spin = before[:, units].astype(model.dtype)
    one = jnp.ones((given.shape[0], 1), given.dtype)
    return Redraws(
        spin=spin,
        flipped=after[:, units] != before[:, units],
        field=model.local_fields(given, units),
        others=jnp.concatenate([given, one], axis=1),
        visit=visit,
    )


def as_redraws(
    model: AbstractEnergyModel, states: Num[Array, "states n_units"]
) -> Redraws:
    """States as what they would be had every unit just been redrawn from its law given
    all others: from -1, so that those that are up have flipped."""
    units = tuple(range(model.n_units))
    return redraws(model, Visit(units, 1.0, units), -jnp.ones_like(states), states)


def bernstein(
    total: Float[Array, "*shape"], variance: Float[Array, "*shape"], largest: Any = 1.0
) -> Float[Array, "*shape"]:
    """How far a sum is from zero, in standard errors of which the tail is known.

    Of independent or martingale differences of mean zero, no larger than `largest`, the
    sum exceeds `t` either way with probability at most `2 exp(-d²/2)`, where
    `d² = t² / (variance + largest t / 3)` (Bernstein; Freedman 1975). For many draws
    `d` is the number of standard errors; for few of them, or rare flips, it is less.
    """
    size = jnp.abs(total)
    scale = variance + largest * size / 3
    return size / jnp.sqrt(jnp.where(scale > 0, scale, 1))


@eqx.filter_jit
def deviations(
    model: AbstractEnergyModel,
    visits: tuple[Visit, ...],
    before: Num[Array, "draws n_units"],
    after: Num[Array, "draws n_units"],
) -> tuple[Float[Array, "n_units columns"], Float[Array, ""]]:
    """How far redraws are from the heat bath, in standard errors: of each unit by each
    other one, by its own last value and by a field (the last column); and in the
    direction of another temperature."""
    n = model.n_units
    each = jnp.zeros((n, n + 1), model.dtype)
    score = jnp.zeros((), model.dtype)
    mean = second = jnp.zeros(before.shape[0], model.dtype)
    within = largest = jnp.zeros((), model.dtype)
    for visit, numbers in alike(visits):
        seen, p = redraws(model, visit, before, after), visit.probability
        rest, variance, a = seen.parts()
        # Spins are ±1: the variance is the same for all columns.
        total = jnp.einsum("db,dc->bc", -seen.spin * rest, seen.others)
        spread = jnp.broadcast_to(jnp.sum(variance, axis=0)[:, None], total.shape)
        each = each.at[jnp.asarray(visit.units)].set(bernstein(total, spread))
        # The score of the temperature is Σ g (y - μ), with g = -s w F. A step that
        # comes to one block of several has one of them redrawn: given which, the units
        # are independent, and which it is has a variance of its own.
        weight = jnp.ones_like(a) if p == 1 else (1 - a) / (1 - p * a)
        g = -seen.spin * weight * seen.field
        score = score + jnp.sum(-seen.spin * seen.field * rest)
        of = (np.asarray(numbers)[:, None] == np.unique(numbers)).astype(g.dtype)
        inside, hoped = jnp.sum(g**2 * a * (1 - a), axis=1), (g * a) @ of
        within = within + jnp.sum(inside)
        mean = mean + p * jnp.sum(hoped, axis=1)
        second = second + p * (inside + jnp.sum(hoped**2, axis=1))
        reach = jnp.abs(g) if p == 1 else 2 * (jnp.abs(g) @ of)
        largest = jnp.maximum(largest, jnp.max(reach))
    exclusive = any(visit.probability < 1 for visit in visits)
    variance = jnp.sum(second - mean**2) if exclusive else within
    return each, bernstein(score, variance, largest)


def fit_temperature(
    seen: Sequence[Redraws],
) -> tuple[float, Callable[[float], tuple[Array, Array]]]:
    """The inverse temperature whose fields, times it, make the redraws most likely, and
    its score and information at any: infinite if the likelihood has no maximum."""
    from scipy.optimize import root_scalar

    def at(beta):
        score, information = _temperature(tuple(seen), jnp.asarray(beta))
        return score, information

    def score(beta):
        return float(at(beta)[0])

    if score(1.0) == 0:
        return 1.0, at
    # It decreases: a bracket that grows until the sign changes.
    low, high = 0.5, 2.0
    while score(low) < 0 and low > -1e3:
        low = low - 2 * (1 - low)
    while score(high) > 0 and high < 1e3:
        high = 2 * high
    if score(low) < 0 or score(high) > 0:
        return (-np.inf if score(low) < 0 else np.inf), at
    beta = float(root_scalar(score, bracket=(low, high), xtol=1e-10).root)
    # Where every spin is along its field the score does not change sign: it vanishes.
    known = float(at(beta)[1]) > 1e-9 * float(at(0.0)[1])
    return beta if known else float(np.copysign(np.inf, beta)), at


@eqx.filter_jit
def _temperature(
    seen: tuple[Redraws, ...], beta: Array
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    score = information = jnp.zeros((), seen[0].field.dtype)
    for one in seen:
        at = eqx.tree_at(
            lambda r: r.field, one, beta.astype(one.field.dtype) * one.field
        )
        rest, variance, _ = at.parts()
        score = score + jnp.sum(-2 * one.spin * one.field * rest)
        information = information + jnp.sum(4 * one.field**2 * variance)
    return score, information


def fit_fields(
    seen: Redraws, place: int, memory: bool
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
    """What has to be added to the field of one unit of a block, for each of the other
    units and a constant, to make its redraws most likely; and the standard errors.

    Without `memory` a unit knows nothing of its own last value: that column is left
    out, with an error of infinity.
    """
    from scipy.optimize import minimize

    unit, columns = seen.visit.units[place], seen.others.shape[1]
    kept = np.ones(columns, bool)
    kept[unit] = memory
    every = max(1, seen.others.shape[0] * columns // _ENOUGH)
    rows = (
        *(x[::every, place] for x in (seen.spin, seen.flipped, seen.field)),
        seen.others[::every][:, kept],
    )
    # One jitted function of arrays: another unit of as many draws compiles nothing.
    args = (*rows, jnp.asarray(seen.visit.probability))
    found = minimize(
        lambda e: float(_loss(e, *args)),
        np.zeros(int(kept.sum())),
        jac=lambda e: np.asarray(_slope(e, *args)),
        hess=lambda e: np.asarray(_curvature(e, *args)),
        method="trust-exact",
        options={"gtol": 1e-6 * len(rows[0])},
    )
    excess, error = np.zeros(columns), np.full(columns, np.inf)
    excess[kept] = found.x
    inverse = np.linalg.inv(np.asarray(_curvature(found.x, *args)))
    error[kept] = np.sqrt(np.maximum(np.diag(inverse), 0))
    return excess, error


def _negative_log_likelihood(
    excess: Float[Array, " columns"],
    spin: Float[Array, " draws"],
    flipped: Bool[Array, " draws"],
    field: Float[Array, " draws"],
    others: Float[Array, "draws columns"],
    probability: Float[Array, ""],
) -> Float[Array, ""]:
    change = -2 * spin * (field + others @ excess.astype(others.dtype))
    # 1 - p a = (1 + (1 - p) exp(Δ)) / (1 + exp(Δ)).
    rest = jnp.log1p(-probability.astype(change.dtype))
    log_stay = jax.nn.softplus(change + rest) - jax.nn.softplus(change)
    likely = jnp.sum(jnp.where(flipped, -jax.nn.softplus(-change), log_stay))
    return jnp.sum(excess**2) / (2 * _WIDE**2) - likely.astype(excess.dtype)


_loss = jax.jit(_negative_log_likelihood)
_slope = jax.jit(jax.grad(_negative_log_likelihood))
_curvature = jax.jit(jax.hessian(_negative_log_likelihood))
