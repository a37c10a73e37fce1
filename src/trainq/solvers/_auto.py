"""The choice of a solver."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Int, PyTree

from ._base import AbstractSolver, SolveOptions
from ._bicgstab import BiCGStab
from ._conjugate_gradient import ConjugateGradient
from ._direct import Direct
from ._systems import AbstractSystem


class Auto(AbstractSolver):
    """Factorise where that is cheaper than iterating, and where the matrix fits.

    With `k` right-hand sides and `n` states left, [`trainq.Direct`][] takes `n³/3`
    multiplications, `n³` more for the matrix of a block kernel, and
    [`trainq.ConjugateGradient`][] is taken to need 64 applications of the operator to
    each right-hand side. Those of a sparse operator count tenfold, as memory limits
    them. So single flips are factorised up to 12 units, block kernels up to 14 units in
    the smaller layer, and scans of more blocks up to 10 units or 11. Systems that are
    not self-adjoint are iterated by [`trainq.solvers.BiCGStab`][].

    !!! example

        ```python
        solver = tq.Auto(memory=1.0)  # GiB
        kernel = tq.RandomScanGibbs()
        predictor = tq.QStruct(kernel, window=1000, solver=solver)
        print(predictor(model, data).stats)
        ```
    """

    memory: float = eqx.field(static=True, default=4.0)
    throw: bool = eqx.field(static=True, default=True)

    def select(self, system: AbstractSystem, n_columns: int) -> AbstractSolver:
        n = system.n_states
        factorised = system.assembly + n**3 / 3
        iterated = 64 * system.products * max(n_columns, 16)
        if system.is_sparse:
            iterated *= 10
        fits = 4 * 8 * n * n <= self.memory * 2**30
        if fits and factorised <= iterated:
            return Direct(throw=self.throw)
        if not system.is_self_adjoint:
            iterate = BiCGStab(memory=self.memory, throw=self.throw)
            return iterate if system.is_sparse else Direct(throw=self.throw)
        return ConjugateGradient(memory=self.memory, throw=self.throw)

    def init(self, system: AbstractSystem) -> "Selected":
        solver = self.select(system, 1)
        return Selected(solver, solver.init(system))

    def compute(
        self, state: "Selected", b: Float[Array, "n k"], options: SolveOptions
    ) -> tuple[Float[Array, "n k"], Int[Array, " k"]]:
        return state.solver.compute(state.state, b, options)

    def transpose(self, state: "Selected") -> "Selected":
        return Selected(state.solver, state.solver.transpose(state.state))


class Selected(eqx.Module):
    """A solver that was selected, and what its `init` returned."""

    solver: AbstractSolver
    state: PyTree


Auto.__init__.__doc__ = """**Arguments:**

- `memory`: GiB that a matrix and its factor, or the vectors of a block of right-hand
    sides, may take.
- `throw`: raise if a right-hand side is not solved.
"""


def checked_solver(solver: Any) -> AbstractSolver:
    """Return a solver, `Auto()` for None.

    **Raises:** `TypeError` for anything else.
    """
    if solver is None:
        return Auto()
    if isinstance(solver, AbstractSolver):
        return solver
    given = solver.__name__ if isinstance(solver, type) else repr(solver)
    raise TypeError(
        "solver is a solver such as `Auto()`, `Direct()` or `ConjugateGradient()`, "
        f"or None, but {given} was given."
    )
