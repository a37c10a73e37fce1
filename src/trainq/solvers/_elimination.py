"""Elimination without subtraction: right in every digit, however slowly a chain mixes.

A system `(I - P) x = f` is given here by the rates `P(i, j)` between different states
and the rates at which states leak out of the system; the diagonal, which is what all of
these add up to, is never formed. Eliminating state `i`, with `s_i` the sum of its rates
to the states that are left and out of the system, censors the chain: the others get

    P(j, l) + P(j, i) P(i, l) / s_i,        leak(j) + P(j, i) leak(i) / s_i,

and the next pivot is again a sum. All numbers are positive and none is subtracted, so
that every entry of the factors has a small relative error, at any temperature and for
any chain, reversible or not. Ordinary elimination knows pivots up to an absolute error
of `ε`, and a chain that mixes more slowly than that is singular to it.

States are eliminated from the rarest one to the most frequent, where `x` is zero if
nothing leaks.

Sources: Grassmann, Taksar and Heyman, *Regenerative analysis and steady state
distributions for Markov chains*, Oper. Res. 33, 1107, 1985; O'Cinneide, *Entrywise
perturbation theory and error analysis for Markov chains*, Numer. Math. 65, 109, 1993.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ._lapack import one_by_one


# States eliminated by vector operations between two matrix products.
_BLOCK = 32
# Up to so many it is vector operations alone: slower, but compiled in half the time.
_FEW = 512


class Factors(NamedTuple):
    """`I - P = (I - lower) diag(pivots) (I - upper)`, of the states in `order`."""

    lower: Float[Array, "n n"]
    upper: Float[Array, "n n"]
    pivots: Float[Array, " n"]
    order: Int[Array, " n"]
    is_regular: Bool[Array, ""]


@one_by_one
def eliminate(
    rates: Float[Array, "n n"],
    leak: Float[Array, " n"] | None,
    order: Int[Array, " n"],
) -> Factors:
    """The factors of `I - P`.

    **Arguments:**

    - `rates`: `P(i, j)`; the diagonal is not looked at.
    - `leak`: the rate out of the system from each state, or None if nothing leaks.
    - `order`: in which the states are eliminated.

    **Returns:** the factors. They are not regular if some states cannot be left for
    those after them, and nothing that is computed with them is then of use.
    """
    n = rates.shape[0]
    if n <= _FEW:
        matrix = rates[order][:, order]
        out = jnp.zeros(n, matrix.dtype) if leak is None else leak[order]
        return _factors(*_eliminate_block(matrix, out), order, leak is None)
    block = _BLOCK
    size = -(-n // block) * block
    matrix = rates[order][:, order]
    out = jnp.zeros(n, matrix.dtype) if leak is None else leak[order]
    # The leak is one more column; states that fill up the last block do nothing else.
    matrix = jnp.pad(matrix, ((0, size - n), (0, size - n)))
    out = jnp.pad(out, (0, size - n), constant_values=1)
    matrix = jnp.concatenate([matrix, out[:, None]], axis=1)
    rows, columns = jnp.arange(size), jnp.arange(size + 1)
    identity = jnp.eye(block, dtype=matrix.dtype)

    def step(k, carry):
        matrix, pivots = carry
        first = k * block
        here = lax.dynamic_slice(matrix, (first, 0), (block, size + 1))
        beyond = jnp.where(columns[None, :] >= first + block, here, 0)
        inner = lax.dynamic_slice(here, (0, first), (block, block))
        lower, upper, found = _eliminate_block(inner, jnp.sum(beyond, axis=1))
        divisor = jnp.where(found > 0, found, 1)
        right = _solve(identity - lower, beyond, lower=True)
        below = lax.dynamic_slice(matrix, (0, first), (size, block))
        below = jnp.where(rows[:, None] >= first + block, below, 0)
        left = _solve((identity - upper).T, below.T, lower=True).T / divisor[None, :]
        matrix = matrix + left @ right
        # Factors are kept in place of what was eliminated.
        kept = jnp.where(columns[None, :] >= first + block, right, 0)
        kept = kept / divisor[:, None]
        kept = lax.dynamic_update_slice(kept, lower + upper, (0, first))
        old = jnp.where(columns[None, :] < first, here, kept)
        matrix = lax.dynamic_update_slice(matrix, old, (first, 0))
        tall = lax.dynamic_slice(matrix, (0, first), (size, block))
        tall = jnp.where(rows[:, None] >= first + block, left, tall)
        matrix = lax.dynamic_update_slice(matrix, tall, (0, first))
        return matrix, lax.dynamic_update_slice(pivots, found, (first,))

    carry = (matrix, jnp.zeros(size, matrix.dtype))
    matrix, pivots = lax.fori_loop(0, size // block, step, carry)
    square = matrix[:n, :n]
    lower, upper = jnp.tril(square, -1), jnp.triu(square, 1)
    return _factors(lower, upper, pivots[:n], order, leak is None)


def _eliminate_block(
    matrix: Float[Array, "n n"], out: Float[Array, " n"]
) -> tuple[Array, Array, Array]:
    """The lower and the upper factor, and the pivots, of some states in order, with the
    rates `out` to all others."""
    offsets = jnp.arange(out.shape[0])

    def one(i, carry):
        matrix, out, pivots = carry
        after = offsets > i
        row = jnp.where(after, matrix[i], 0)
        pivot = jnp.sum(row) + out[i]
        share = jnp.where(after, matrix[:, i], 0) / jnp.where(pivot > 0, pivot, 1)
        matrix = matrix + share[:, None] * row[None, :]
        return matrix, out + share * out[i], pivots.at[i].set(pivot)

    start = (matrix, out, jnp.zeros_like(out))
    matrix, _, pivots = lax.fori_loop(0, out.shape[0], one, start)
    divisor = jnp.where(pivots > 0, pivots, 1)
    lower = jnp.tril(matrix, -1) / divisor[None, :]
    return lower, jnp.triu(matrix, 1) / divisor[:, None], pivots


def _factors(
    lower: Array, upper: Array, pivots: Array, order: Array, is_closed: bool
) -> Factors:
    needed = pivots[:-1] if is_closed else pivots
    finite = jnp.all(jnp.isfinite(lower)) & jnp.all(jnp.isfinite(upper))
    return Factors(lower, upper, pivots, order, jnp.all(needed > 0) & finite)


def _solve(matrix: Array, b: Array, *, lower: bool, transpose: bool = False) -> Array:
    # Off the diagonal `matrix` is not positive: back substitution only adds.
    return jax.scipy.linalg.solve_triangular(
        matrix, b, trans=int(transpose), lower=lower, unit_diagonal=True
    )


def _parts(factors: Factors) -> tuple[Array, Array, Array]:
    """`I - lower`, `I - upper`, and one over the pivots: zero where there is none."""
    identity = jnp.eye(factors.order.shape[0], dtype=factors.lower.dtype)
    some = factors.pivots > 0
    inverse = jnp.where(some, 1 / jnp.where(some, factors.pivots, 1), 0)
    return identity - factors.lower, identity - factors.upper, inverse[:, None]


@one_by_one
def solve_eliminated(factors: Factors, f: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """The solution of `(I - P) x = f`.

    Where nothing leaks, `f` at the last state is taken to be what makes the system
    solvable, and `x` is zero there.
    """
    lower, upper, inverse = _parts(factors)
    x = inverse * _solve(lower, f[factors.order], lower=True)
    x = _solve(upper, x, lower=False)
    return jnp.zeros_like(x).at[factors.order].set(x)


@one_by_one
def solve_eliminated_transposed(
    factors: Factors, f: Float[Array, "n k"]
) -> Float[Array, "n k"]:
    """The solution of `(I - P)ᵀ x = f`, with the same conventions."""
    lower, upper, inverse = _parts(factors)
    x = inverse * _solve(upper, f[factors.order], lower=False, transpose=True)
    x = _solve(lower, x, lower=True, transpose=True)
    return jnp.zeros_like(x).at[factors.order].set(x)


@one_by_one
def log_stationary_law(factors: Factors) -> Float[Array, " n"]:
    """`log π` for the law `π = π P` of a chain that leaks nothing: the expected visits
    to each state between two visits to the last one, divided by their sum.

    In logarithms, because laws may span more than the range of numbers.
    """
    n = factors.order.shape[0]
    moves = jnp.log(factors.lower)
    start = jnp.full(n, -jnp.inf, moves.dtype).at[-1].set(0)

    def one(k, visits):
        i = n - 2 - k
        column = lax.dynamic_index_in_dim(moves, i, 1, keepdims=False)
        return visits.at[i].set(jax.nn.logsumexp(column + visits))

    visits = lax.fori_loop(0, n - 1, one, start)
    law = visits - jax.nn.logsumexp(visits)
    return jnp.zeros_like(law).at[factors.order].set(law)
