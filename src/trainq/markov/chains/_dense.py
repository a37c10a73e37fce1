"""Any chain, from its transition matrix."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from ..._checks import tell_precision
from ...solvers import (
    Factors,
    eliminate,
    log_stationary_law,
    solve_eliminated,
    solve_eliminated_transposed,
)
from ._base import AbstractChain, off_diagonal
from ._reductions import AbstractReduction, Sector, scale


class DenseChain(AbstractChain):
    """Any chain, from its transition matrix."""

    transition: Float[Array, "states states"]
    log_stationary: Float[Array, " states"]
    is_reversible: bool = eqx.field(static=True)

    def __init__(
        self, matrix: Any, stationary: Any = None, *, is_reversible: bool | None = None
    ):
        """**Arguments:**

        - `matrix`: `(states, states)` transition matrix, rows summing to one.
        - `stationary`: `(states,)` stationary law, positive. Computed from the matrix
            by default.
        - `is_reversible`: whether detailed balance holds. Found out by default, which
            needs concrete values: say it when the matrix is traced.

        What the rates between different states say is right in every entry, by
        elimination without subtraction (Grassmann, Taksar and Heyman, 1985); the
        diagonal is only checked.

        **Raises:** `ValueError` for wrong shapes; a run-time error if the matrix is not
        stochastic, the law is not positive and stationary in every entry, or the chain
        is said to be reversible and is not.
        """
        matrix = jnp.asarray(matrix)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
            raise ValueError(
                f"A transition matrix is square, but the shape {matrix.shape} was "
                "given."
            )
        if not jnp.issubdtype(matrix.dtype, jnp.floating):
            matrix = matrix.astype(jnp.result_type(float))
        tell_precision(matrix.dtype)
        n, eps = matrix.shape[0], float(jnp.finfo(matrix.dtype).eps)
        tolerance = eps**0.5
        sums = jnp.sum(matrix, axis=1)
        matrix = eqx.error_if(
            matrix,
            ~(jnp.all(matrix >= 0) & jnp.all(jnp.abs(sums - 1) <= tolerance)),
            "The matrix is not stochastic: its entries must be at least 0 and each row "
            "must sum to 1.",
        )
        fixed = lax.stop_gradient(matrix)
        factors = eliminate(fixed, None, jnp.arange(n))
        log_own = log_stationary_law(factors)
        is_irreducible = factors.is_regular & jnp.all(jnp.isfinite(log_own))
        if stationary is None:
            log_law = _log_law(matrix, factors, log_own)
            holds = is_irreducible
        else:
            stationary = jnp.asarray(stationary)
            if stationary.shape != (n,):
                raise ValueError(
                    f"The stationary law has shape ({n},), but {stationary.shape} was "
                    "given."
                )
            stationary = stationary.astype(matrix.dtype)
            # Where the matrix has one law, the one given is that, in every entry; where
            # it has many, what leaves each state is what comes in.
            given = lax.stop_gradient(stationary)
            holds = jnp.all(given > 0) & (jnp.abs(jnp.sum(given) - 1) <= tolerance)
            log_law = jnp.log(stationary)
            same = jnp.all(jnp.abs(jnp.log(given) - log_own) <= tolerance)
            rates = off_diagonal(fixed)
            leaves, enters = given * jnp.sum(rates, axis=1), given @ rates
            balanced = jnp.all(jnp.abs(leaves - enters) <= tolerance * leaves)
            holds &= jnp.where(is_irreducible, same, balanced)
        log_law = eqx.error_if(
            log_law,
            ~holds,
            "The law is not a positive stationary law of the matrix. Leave it out to "
            "have it computed; a chain with transient states has none, and one that "
            "falls apart into several has many.",
        )
        law = jnp.exp(lax.stop_gradient(log_law))
        flow = scale(law, off_diagonal(fixed))
        if is_reversible is None:
            largest = jnp.maximum(flow, flow.T)
            balanced = jnp.all(jnp.abs(flow - flow.T) <= 1e3 * eps * largest)
            if isinstance(balanced, Tracer):
                raise ValueError(
                    "Whether a traced matrix is reversible cannot be found out: give "
                    "`is_reversible=True` or `False`."
                )
            is_reversible = bool(balanced)
        elif is_reversible:
            # What nearly no flow goes through may be no more than rounding errors.
            through = jnp.sum(flow, axis=1)
            least = jnp.minimum(through[:, None], through[None, :])
            log_law = eqx.error_if(
                log_law,
                ~jnp.all(jnp.abs(flow - flow.T) <= tolerance * least),
                "The matrix is not reversible, though `is_reversible=True` was given: "
                "the flow between two states is not the same in both directions.",
            )
        self.transition = matrix
        self.log_stationary = log_law
        self.is_reversible = is_reversible

    def apply(self, f: Float[Array, "states *obs"]) -> Float[Array, "states *obs"]:
        return self.transition @ f

    def matrix(self) -> Float[Array, "states states"]:
        return self.transition

    def window_reductions(
        self, sector: Sector | None = None
    ) -> tuple[AbstractReduction, ...] | None:
        return self.reductions(sector) if self.is_reversible else None

    def jumps(self) -> tuple[Float[Array, " states"], Callable[[Array], Array]]:
        rates = off_diagonal(self.transition)
        return jnp.sum(rates, axis=1), lambda f: rates @ f


def _log_law(
    matrix: Float[Array, "n n"], factors: Factors, log_law: Float[Array, " n"]
) -> Float[Array, " n"]:
    """The stationary law of a matrix, which is known, with its derivative.

    `π (I - P) = 0` and `Σ π = 1`, so that `π (I - P + 1 1ᵀ) = 1ᵀ`: a regular system.
    For any other right-hand side `c` of it, `Σ x` follows from the sum over both sides,
    and `x` is a solution without the second term plus a multiple of `π`.
    """
    law = jnp.exp(log_law)

    def mv(x):
        return x - x @ matrix + jnp.sum(x)

    def solve_left(_, c):
        total = jnp.mean(c)
        x = solve_eliminated_transposed(factors, (c - total)[:, None])[:, 0]
        return x + (total - jnp.sum(x)) * law

    def solve_right(_, c):
        total = law @ c
        x = solve_eliminated(factors, (c - total)[:, None])[:, 0]
        return x + (total - jnp.sum(x)) / len(x)

    moving = lax.custom_linear_solve(
        mv, jnp.ones_like(law), solve_left, transpose_solve=solve_right
    )
    # The value is in logarithms, where nothing underflows, and d log π = dπ / π.
    change = moving - lax.stop_gradient(moving)
    return log_law + change / jnp.maximum(law, jnp.finfo(law.dtype).tiny)
