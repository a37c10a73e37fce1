"""What states before and after a step say of the chain that the step claims to be."""

from itertools import combinations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from .._spins import spins, state_index
from ..markov import AbstractKernel
from ..models import AbstractEnergyModel
from ._redraws import bernstein


def products(n_units: int) -> tuple[tuple[int, ...], ...]:
    """The units of every product of at most two spins, the constant one first."""
    return tuple(u for size in (0, 1, 2) for u in combinations(range(n_units), size))


@eqx.filter_jit
def transition_deviations(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    before: Num[Array, "draws n_units"],
    after: Num[Array, "draws n_units"],
) -> tuple[Float[Array, "weights functions"], ...]:
    """How far steps are from the chain of a kernel, in standard errors; and the means
    of weights times functions over all steps, as seen and as the chain has them.

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
    weights, new = values(before), values(after)[:, 1:]
    total = weights.T @ (new - mean)
    # Rounded, a mean may be above one.
    variance = jnp.sum(jnp.maximum(1 - mean**2, 0), axis=0)
    deviations = bernstein(total, jnp.broadcast_to(variance, total.shape), 2.0)
    n = before.shape[0]
    return deviations, weights.T @ new / n, weights.T @ mean / n


def best_temperature(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    before: Num[Array, "draws n_units"],
    after: Num[Array, "draws n_units"],
    beta: float,
    error: float,
) -> float:
    """The largest deviation from the chain at the inverse temperature, within some
    errors of one, that makes it smallest."""
    from scipy.optimize import minimize_scalar

    def largest(beta: float) -> float:
        other = model.tempered(beta)
        return float(jnp.max(transition_deviations(kernel, other, before, after)[0]))

    around = (beta - 4 * error, beta + 4 * error)
    found = minimize_scalar(largest, bounds=around, options={"maxiter": 20})
    return float(found.fun)
