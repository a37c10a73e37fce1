"""Solutions by one factorisation."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import _lapack
from ._base import AbstractSolver, SolveOptions
from ._systems import AbstractSystem


class Factors(eqx.Module):
    """The Cholesky factor of a self-adjoint system, without pivots; otherwise those of
    an LU factorisation."""

    factor: Float[Array, "n n"]
    pivots: Int[Array, " n"] | None
    is_transposed: bool = eqx.field(static=True)


@_lapack.one_by_one
def _cholesky(system: AbstractSystem) -> Float[Array, "n n"]:
    # With the matrix, so that those of a batch are made and factored one by one too,
    # each while it is in the cache.
    return _lapack.cholesky(system.matrix())


class Direct(AbstractSolver):
    """Solve by one factorisation, for all right-hand sides at once.

    The cost is that of a Cholesky factorisation of `n` states (LU for a chain that is
    not reversible), `n³/3` multiplications, and `n³` more for the matrix of a block
    kernel; it takes the memory of two to four matrices of `8 n²` bytes. The `n` is
    what the chain's own reductions leave: with `N` units, `2**(N - 2)` for single flips
    without biases and even `N`, `2**(N - 1)` for other single flips, and
    `2**(min(n_visible, n_hidden) - 1)` for two blocks without biases, `2**min(...)`
    with them.

    It does not depend on how cold the model is, until the chain of its jumps is so slow
    that a factorisation loses digits. Systems of up to 1024 states are then solved once
    more by an elimination without subtraction, slower and right at any gap: see
    [chains that hardly move](../mathematics.md#chains-that-hardly-move).

    !!! example

        ```python
        solver = tq.Direct(max_states=2**10)  # matrices of 8 MiB
        kernel = tq.RandomScanGibbs()
        predictor = tq.QStruct(kernel, window=1000, solver=solver)
        print(predictor(model, data).stats)
        ```
    """

    max_states: int = eqx.field(static=True, default=2**13)
    throw: bool = eqx.field(static=True, default=True)
    may_eliminate: ClassVar[bool] = True

    def init(self, system: AbstractSystem) -> "Factors":
        self.check_size(system)
        if system.is_self_adjoint:
            return Factors(_cholesky(system), None, False)
        factor, pivots = _lapack.lu(system.matrix())
        return Factors(factor, pivots, False)

    def check_size(self, system: AbstractSystem) -> None:
        """Raise a `ValueError` if the system is too large."""
        n = system.n_states
        if n > self.max_states:
            raise ValueError(
                f"A direct solve of {n} states is too large: at most {self.max_states} "
                "are allowed. Use `ConjugateGradient()`, which needs no matrix, or a "
                "block kernel, whose chain lives on one layer; or raise "
                "`Direct(max_states=...)` if there is memory for matrices of "
                f"{8 * n * n / 2**30:.1f} GiB."
            )

    def compute(
        self, state: "Factors", b: Float[Array, "n k"], options: SolveOptions
    ) -> tuple[Float[Array, "n k"], Int[Array, " k"]]:
        del options
        if state.pivots is None:
            y = _lapack.cholesky_solve(state.factor, b)
        elif state.is_transposed:
            y = _lapack.lu_solve_transposed(state.factor, state.pivots, b)
        else:
            y = _lapack.lu_solve(state.factor, state.pivots, b)
        return y, jnp.zeros(b.shape[1], int)

    def transpose(self, state: "Factors") -> "Factors":
        return Factors(state.factor, state.pivots, not state.is_transposed)

    def error(self, system, b, y, smallest, floor):
        # A factor is that of a matrix which differs by some ε from the one meant.
        eps = float(jnp.finfo(b.dtype).eps)
        known = smallest > 0
        error = jnp.where(known, 8 * eps / jnp.where(known, smallest, 1), jnp.inf)
        return jnp.broadcast_to(error, b.shape[1:])


Direct.__init__.__doc__ = """**Arguments:**

- `max_states`: refuse larger matrices than this, of `8 max_states²` bytes each.
- `throw`: raise where a solution is bad. Otherwise it is returned as it is, and the
    statistics of the solver tell.
"""


class PlainAutodiff(AbstractSolver):
    """Solve the unreduced system, and differentiate straight through its solution.

    Slower than the rule that the other solvers have, and it allows forward mode alone.
    It is the test of the rule.
    """

    throw: bool = eqx.field(static=True, default=True)
    is_differentiated_through: ClassVar[bool] = True

    def init(self, system: AbstractSystem) -> Float[Array, "n n"]:
        Direct().check_size(system)
        return system.matrix()

    def compute(
        self, state: Float[Array, "n n"], b: Float[Array, "n k"], options: SolveOptions
    ) -> tuple[Float[Array, "n k"], Int[Array, " k"]]:
        del options
        return jnp.linalg.solve(state, b), jnp.zeros(b.shape[1], int)

    def transpose(self, state: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return state.T

    def error(self, system, b, y, smallest, floor):
        return Direct().error(system, b, y, smallest, floor)


PlainAutodiff.__init__.__doc__ = """**Arguments:**

- `throw`: raise where a solution is bad.
"""
