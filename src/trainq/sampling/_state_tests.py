"""What the states say that a sampler has moved: whether their law is still that of the
model. Sums are over independent groups of states, and every result is a number of
standard errors whose tail is known or, for many groups, bounded by `2 exp(-d²/2)`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ..models import AbstractEnergyModel
from ._redraws import as_redraws, bernstein


def moved_moments(
    model: AbstractEnergyModel,
    states: Num[Array, "times n_starts n_units"],
    groups: int,
) -> Float[np.ndarray, " functions"]:
    """How far the means of the observables and of the energy have moved from start to
    end."""
    return _self_normalised(*_moved(model, states, groups))


def flows(
    states: Num[Array, "times n_starts n_units"], groups: int
) -> Float[np.ndarray, " pairs"]:
    """How far `Σ_t x_i(t) x_j(t+1) - x_j(t) x_i(t+1)` is from zero, for every pair."""
    pairs = np.triu_indices(states.shape[-1], 1)
    return _self_normalised(*_flows(states, groups))[pairs]


def _self_normalised(total: Array, squares: Array) -> Float[np.ndarray, "..."]:
    """`|Σ_g D_g| / √(Σ_g D_g²)`, which is at most `√groups`.

    If `D` has a symmetric law, as what is odd under reversal of time has in equilibrium
    under a reversible sampler, it exceeds `d` with probability at most `2 exp(-d²/2)`:
    given the sizes only the signs are random (Efron 1969).
    """
    size, scale = abs(np.asarray(total)), np.asarray(squares)
    return size / np.sqrt(np.where(scale > 0, scale, 1))


@eqx.filter_jit
def _moved(
    model: AbstractEnergyModel,
    states: Num[Array, "times n_starts n_units"],
    groups: int,
) -> tuple[Float[Array, " functions"], Float[Array, " functions"]]:
    def of(x):
        energy = jax.vmap(model.energy)(x)
        return jnp.concatenate([model.observables(x), energy[:, None]], axis=1)

    return _in_groups(of(states[-1]) - of(states[0]), groups)


def _in_groups(values: Array, groups: int) -> tuple[Array, Array]:
    """The sum of all values, and the sum of the squares of those of each group."""
    sums = jnp.sum(values.reshape(groups, -1, *values.shape[1:]), axis=1)
    return jnp.sum(sums, axis=0), jnp.sum(sums**2, axis=0)


@eqx.filter_jit
def _flows(
    states: Num[Array, "times n_starts n_units"], groups: int
) -> tuple[Float[Array, "n_units n_units"], Float[Array, "n_units n_units"]]:
    times, _, n_units = states.shape
    by_group = states.reshape(times, groups, -1, n_units).swapaxes(0, 1)

    def add(sums, one):
        flow = jnp.einsum("tdi,tdj->ij", one[:-1], one[1:])
        flow = flow - flow.T
        return (sums[0] + flow, sums[1] + flow**2), None

    zeros = jnp.zeros((n_units, n_units), states.dtype)
    return jax.lax.scan(add, (zeros, zeros), by_group)[0]


@eqx.filter_jit
def law_deviations(
    model: AbstractEnergyModel, x: Num[Array, "states n_units"], groups: int
) -> tuple[Float[Array, "n_units columns"], Float[Array, ""]]:
    """How far states are from the law of the model: each unit, given all others, by
    each of these and by a field (the last column); and in the direction of another
    temperature.

    In the law of the model the score `x_j (y_i - σ(2 F_i))` has the mean zero given all
    units but `i`, and independent states make a sum for Bernstein's inequality. Those
    of a group are not independent, and the squares of its sums tell the variance; that
    of the model is taken where it is larger, for it knows of flips that are too rare to
    have been seen.
    """
    seen = as_redraws(model, x)
    rest, variance, _ = seen.parts()
    scores = -seen.spin * rest
    total = jnp.einsum("di,dj->ij", scores, seen.others)
    spread = jnp.broadcast_to(jnp.sum(variance, axis=0)[:, None], total.shape)
    if groups < x.shape[0]:
        by_group = [a.reshape(groups, -1, a.shape[1]) for a in (scores, seen.others)]

        def add(squares, group):
            return squares + jnp.einsum("di,dj->ij", *group) ** 2, None

        squares, _ = jax.lax.scan(add, jnp.zeros_like(total), tuple(by_group))
        spread = jnp.maximum(spread, squares)
    # A unit says nothing about itself: x_i² = 1 is the constant again.
    units = jnp.arange(model.n_units)
    each = bernstein(total, spread).at[units, units].set(0)
    # The units of one state are not independent of each other, and so its sum is what
    # is independent.
    along = -seen.spin * seen.field
    total, squares = _in_groups(jnp.sum(along * rest, axis=1), groups)
    spread = jnp.maximum(squares, jnp.sum(along**2 * variance))
    reach = jnp.max(jnp.sum(jnp.abs(along), axis=1))
    return each, bernstein(total, spread, reach)
