"""What states before and after a step say of the chain that the step claims to be."""

from itertools import combinations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from .._spins import spins, state_index
from ..markov import AbstractKernel
from ..models import AbstractEnergyModel
from ._redraws import bernstein


def products(n_units: int) -> tuple[tuple[int, ...], ...]:
    """The units of every product of at most two spins, the constant one first."""
    return tuple(u for size in (0, 1, 2) for u in combinations(range(n_units), size))


def furthest(
    n_units: int, deviations: Float[np.ndarray, "weights functions"] | None
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The weight and the function of the largest deviation."""
    if deviations is None:
        return None
    of = products(n_units)
    weight, function = np.unravel_index(np.argmax(deviations), deviations.shape)
    return of[int(weight)], of[1 + int(function)]


@eqx.filter_jit
def transition_deviations(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    before: Num[Array, "draws n_units"],
    after: Num[Array, "draws n_units"],
) -> Float[Array, "weights functions"]:
    """How far steps are from the chain of a kernel, in standard errors.

    A function `f` of the state after a step from `x` has the mean `(P f)(x)`, whatever
    led to `x`: for every weight `g` the sum of `g(x) (f(y) - (P f)(x))` over steps is
    a martingale. Functions and weights are the products of at most two spins, of which
    a constant function says nothing. Their squares are one, and so `f(y)` has the
    variance `1 - (P f)(x)²`.
    """

    def values(x):
        at = products(model.n_units)
        each = [jnp.prod(x[:, jnp.asarray(u, int)], axis=1) for u in at]
        return jnp.stack(each, axis=1).astype(model.dtype)

    functions = values(spins(model.n_units))[:, 1:]
    mean = kernel.chain(model).apply(functions)[state_index(before)]
    total = values(before).T @ (values(after)[:, 1:] - mean)
    # Rounded, a mean may be above one.
    variance = jnp.sum(jnp.maximum(1 - mean**2, 0), axis=0)
    return bernstein(total, jnp.broadcast_to(variance, total.shape), 2.0)
