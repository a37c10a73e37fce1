"""Absorbing chains, which have no stationary law, from their matrix."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from .._checks import require_concrete, tell_precision
from .._show import AbstractShown
from ..solvers import eliminate, solve_eliminated, solve_eliminated_transposed
from .chains import check_dense


class Absorption(AbstractShown):
    """When and where a chain is absorbed, from each of its states."""

    times: Float[Array, " states"]
    """The expected number of steps until the chain is absorbed: zero in an absorbing
    state."""
    probabilities: Float[Array, "states ends"]
    """The probability to be absorbed in each of the absorbing states, in their order:
    rows sum to one."""


def absorption(
    matrix: Float[Array, "states states"], absorbing: Bool[np.ndarray | Array, " states"]
) -> Absorption:
    """Expected times until a chain is absorbed, and the probabilities of where.

    A chain that is absorbed has no positive stationary law, and is no
    [`trainq.markov.DenseChain`][]; here only the rates between different states are
    looked at, and no law is needed. With `Q` the matrix on the other states and `R` the
    rates from these to the absorbing ones,

        (I - Q) τ = 1,        (I - Q) B = R,

    which elimination without subtraction solves: no entry loses digits, however long it
    takes and however rare an end is. Differentiable to any order.

    Several states may be one end: sum their columns. A closed class of several states
    is absorbing if all of them are said to be.

    **Arguments:**

    - `matrix`: `(states, states)` transition matrix, rows summing to one. The rows of
        absorbing states are not looked at: it may be the matrix of any chain, of which
        one asks what it finds first.
    - `absorbing`: `(states,)` booleans, true where the chain is absorbed.

    **Returns:** [`trainq.markov.Absorption`][].

    **Raises:** `ValueError` for a wrong shape, more than 2**13 states, a traced or
    empty set; a run-time error if the matrix is not stochastic, or some state does not
    lead to an absorbing one.

    ??? cite "Source"

        Kemeny and Snell, *Finite Markov Chains*, 1960, chapter 3; Grassmann, Taksar and
        Heyman, *Regenerative analysis and steady state distributions for Markov
        chains*, Oper. Res. 33, 1107, 1985.

    !!! example

        ```python
        fair = jnp.array([[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1]])
        ends = tq.markov.absorption(fair, jnp.array([True, False, True]))
        print(ends.times, ends.probabilities)  # [0 1 0], the middle row 1/2 and 1/2
        ```
    """
    matrix = jnp.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(
            f"A transition matrix is square, but the shape {matrix.shape} was given."
        )
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        matrix = matrix.astype(jnp.result_type(float))
    tell_precision(matrix.dtype)
    n = len(matrix)
    check_dense(n)
    require_concrete("The number of ends", absorbing=absorbing)
    ends = np.asarray(absorbing)
    if ends.shape != (n,) or ends.dtype != bool:
        raise ValueError(
            f"absorbing has one boolean for each of the {n} states, but an array of "
            f"shape {ends.shape} and dtype {ends.dtype} was given."
        )
    if not ends.any():
        raise ValueError("absorbing has no state in it: where is the chain absorbed?")
    return _absorption(matrix, tuple(np.flatnonzero(ends).tolist()))


@eqx.filter_jit
def _absorption(matrix: Float[Array, "n n"], ends: tuple[int, ...]) -> Absorption:
    n = len(matrix)
    inside = np.setdiff1d(np.arange(n), ends)
    rows = matrix[inside]
    into = rows[:, np.array(ends)]
    times = jnp.zeros(n, matrix.dtype)
    probabilities = jnp.zeros((n, len(ends)), matrix.dtype)
    probabilities = probabilities.at[np.array(ends), np.arange(len(ends))].set(1)
    if not len(inside):
        return Absorption(times, probabilities)
    on = jnp.arange(len(inside))
    rates = jnp.where(on[:, None] == on[None, :], 0, rows[:, inside])
    tolerance = float(jnp.finfo(matrix.dtype).eps) ** 0.5
    stochastic = jnp.abs(jnp.sum(rows, axis=1) - 1) <= tolerance
    rates = eqx.error_if(
        rates,
        ~(jnp.all(rows >= 0) & jnp.all(stochastic)),
        "The matrix is not stochastic: its entries must be at least 0 and each row "
        "must sum to 1.",
    )
    leaving = jnp.sum(rates, axis=1) + jnp.sum(into, axis=1)
    fixed_rates, fixed_into = lax.stop_gradient((rates, into))
    factors = eliminate(fixed_rates, jnp.sum(fixed_into, axis=1), on)
    b = jnp.concatenate([jnp.ones_like(into[:, :1]), into], axis=1)
    b = eqx.error_if(
        b,
        ~factors.is_regular,
        "Some state does not lead to an absorbing one, or the rates there are too "
        "small for floating point: the expected time from it is infinite. Say that the "
        "closed class it leads to is absorbing, too.",
    )
    # Differentiated by the rule of a linear solve, with the same factors.
    x = lax.custom_linear_solve(
        lambda x: leaving[:, None] * x - rates @ x,
        b,
        lambda _, b: solve_eliminated(factors, b),
        lambda _, b: solve_eliminated_transposed(factors, b),
    )
    return Absorption(
        times.at[inside].set(x[:, 0]), probabilities.at[inside].set(x[:, 1:])
    )
