"""Any chain, from its transition matrix."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from . import _lapack
from ._chains import (
    AbstractChain,
    EigenProblem,
    Sector,
    dense_generator,
    off_diagonal,
    scale,
)
from ._forms import Form, Pairing, bilinear_form, solver_of
from ._functions import AbstractFunctions
from ._generators import DenseGenerator, inverse_root
from ._polynomials import Contraction, WindowPolynomial, polynomial_form
from ._solvers import AbstractStrategy, SolverStats


class DenseChain(AbstractChain):
    """Any chain, from its transition matrix."""

    transition: Float[Array, "states states"]
    log_stationary: Float[Array, " states"]
    is_reversible: bool = eqx.field(static=True)
    is_symmetric = False

    def __init__(
        self, matrix: Any, stationary: Any = None, *, is_reversible: bool | None = None
    ):
        """**Arguments:**

        - `matrix`: `(states, states)` transition matrix, rows summing to one.
        - `stationary`: `(states,)` stationary law, positive. Computed from the matrix
            by default.
        - `is_reversible`: whether detailed balance holds. Found out by default, which
            needs concrete values: say it when the matrix is traced.

        **Raises:** `ValueError` for wrong shapes; a run-time error if the matrix is not
        stochastic, or the law is not positive and stationary.
        """
        matrix = jnp.asarray(matrix)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
            raise ValueError(
                f"A transition matrix is square, but the shape {matrix.shape} was "
                "given."
            )
        if not jnp.issubdtype(matrix.dtype, jnp.floating):
            matrix = matrix.astype(jnp.result_type(float))
        n, tolerance = matrix.shape[0], jnp.sqrt(jnp.finfo(matrix.dtype).eps)
        ones = jnp.ones(n, matrix.dtype)
        stochastic = jnp.all(matrix >= 0) & jnp.all(
            jnp.abs(matrix @ ones - 1) <= tolerance
        )
        matrix = eqx.error_if(
            matrix,
            ~stochastic,
            "The matrix is not stochastic: its entries must be at least 0 and each row "
            "must sum to 1.",
        )
        if stationary is None:
            # π (I - P) = 0 and π · 1 = 1, so π (I - P + 1 1ᵀ) = 1ᵀ.
            system = jnp.eye(n, dtype=matrix.dtype) - matrix + 1
            stationary = _lapack.solve(system.T, ones[:, None])[:, 0]
        stationary = jnp.asarray(stationary, matrix.dtype)
        if stationary.shape != (n,):
            raise ValueError(
                f"The stationary law has shape ({n},), but {stationary.shape} was "
                "given."
            )
        holds = jnp.all(stationary > 0) & (
            jnp.abs(jnp.sum(stationary) - 1) <= tolerance
        )
        holds &= jnp.max(jnp.abs(stationary @ matrix - stationary)) <= tolerance
        stationary = eqx.error_if(
            stationary,
            ~holds,
            "The law is not a positive stationary law of the matrix. Leave it out to "
            "have it computed; a chain with transient states has none.",
        )
        if is_reversible is None:
            flow = stationary[:, None] * matrix
            balanced = (
                jnp.max(jnp.abs(flow - flow.T)) <= 1e3 * jnp.finfo(flow.dtype).eps
            )
            if isinstance(balanced, Tracer):
                raise ValueError(
                    "Whether a traced matrix is reversible cannot be found out: give "
                    "`is_reversible=True` or `False`."
                )
            is_reversible = bool(balanced)
        self.transition = matrix
        self.log_stationary = jnp.log(stationary)
        self.is_reversible = is_reversible

    def stepper(self) -> Callable[[Array], Array]:
        return lambda f: self.transition @ f

    def _generator(
        self, target: Bool[Array, " states"] | None = None
    ) -> DenseGenerator:
        return dense_generator(
            self.transition, self.log_stationary, self.is_reversible, target
        )

    def resolvent_form(
        self,
        f: AbstractFunctions,
        *,
        pairing: Pairing,
        solver: AbstractStrategy,
        sector: Sector | None,
        guess: Any = None,
    ) -> Form:
        self.sectors(sector)
        centred = self.centre(f.table())
        return bilinear_form(
            self._generator(),
            scale(self.root, centred),
            pairing=pairing,
            solver=solver,
            bulk=self.bulk(centred),
            guess=guess,
        )

    def window_variance(
        self, f: AbstractFunctions, window: int, sector: Sector | None = None
    ) -> Float[Array, " n_obs"]:
        self.sectors(sector)
        centred = self.centre(f.table())
        if not self.is_reversible:
            return self.stationary @ self.window_moments(centred, window)[1]
        contraction = Contraction(generator=self._generator(), lowest=-1)
        u = scale(self.root, centred)
        return polynomial_form(contraction, WindowPolynomial(window), u)

    def resolvent(
        self, f: Float[Array, "states n_obs"], *, solver: AbstractStrategy
    ) -> tuple[Float[Array, "states n_obs"], SolverStats]:
        solve = solver_of(self._generator(), solver, f.shape[1])
        y, stats, _ = solve(scale(self.root, f), bulk=self.bulk(f))
        x = self.relax(scale(inverse_root(self.log_stationary), y), f)
        return self.centre(x), stats

    def jumps(self) -> tuple[Float[Array, " states"], Callable[[Array], Array]]:
        rates = off_diagonal(self.transition)
        return jnp.sum(rates, axis=1), lambda f: rates @ f

    def killed_generator(self, target: Bool[Array, " states"]) -> DenseGenerator:
        return self._generator(target)

    def eigen_problem(self, sector: Sector | None) -> EigenProblem:
        self.sectors(sector)
        return EigenProblem(self._generator(), lambda value, y: value, lambda y: y)
