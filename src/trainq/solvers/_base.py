"""What a solver of the linear systems of a chain is, and what it reports."""

import abc
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._show import AbstractShown, Table, count
from ._systems import AbstractSystem, column_norms


RESULTS = (
    "successful",
    "the number of iterations reached max_steps",
    "the residual is large, or the chain so slow that the solution is not known",
)
"""What the codes in `SolverStats.result` mean, in order."""


class SolverStats(AbstractShown):
    """How well each right-hand side was solved, and at what price.

    Right-hand sides are in the order of the observables. Success is earned:
    `‖b - A y‖` is at most `√ε ‖b‖`, with `ε` the machine epsilon, or 100 times the
    tolerance asked for if that is more; and the solution is known to `ε^0.45`, 1e-7 in
    double precision and 1e-3 in single precision, by an estimate from the smallest
    eigenvalue of the system and from the rounding errors of the right-hand side.
    """

    residual: Float[Array, "*batch n_columns"]
    """`‖b - A y‖ / (‖b‖ + 2 ‖y‖)` of the symmetrised system `A = L + φφᵀ`, whose norm
    is at most two: how much has to be changed for `y` to be exact. It is computed from
    the solution and not from a recurrence, and a column `b` that is zero but for
    rounding is compared with the others instead."""
    iterations: Int[Array, "*batch n_columns"]
    """The number of iterations; zero for a factorisation."""
    result: Int[Array, "*batch n_columns"]
    """An index into [`trainq.solvers.RESULTS`][], zero for success."""

    @property
    def ok(self) -> Bool[Array, "*batch"]:
        """Whether every right-hand side was solved."""
        return jnp.all(self.result == 0, axis=-1)

    def _shown(self) -> list[str | Table]:
        rows: Table = [("number", "result")]
        for code, text in enumerate(RESULTS):
            if (self.result == code).any():
                rows.append((str(int((self.result == code).sum())), text))
        return [
            f"{count(self.result.size, 'right-hand side')}, at most "
            f"{count(int(self.iterations.max(initial=0)), 'iteration')}, relative "
            f"residual at most {float(self.residual.max(initial=0)):.1e}",
            rows,
        ]


def worst(stats: Sequence[SolverStats]) -> SolverStats:
    """The statistics of right-hand sides that were solved in several parts."""
    return SolverStats(
        jnp.max(jnp.stack([s.residual for s in stats]), axis=0),
        sum((s.iterations for s in stats[1:]), stats[0].iterations),
        jnp.max(jnp.stack([s.result for s in stats]), axis=0),
    )


class SolveOptions(NamedTuple):
    """What a solver may make use of, and need not.

    - `guess`: `(n, k)`, solutions to start an iteration from, or None.
    - `floor`: a column of a smaller norm than this is zero but for rounding, and need
        not be solved to an accuracy of its own.

    The last column is a probe, of which a few per cent are enough: what it has along
    the slowest mode tells how well the others are known.
    """

    guess: Float[Array, "n k"] | None
    floor: Float[Array, ""]


class AbstractSolver(eqx.Module):
    """How to solve `A y = b` with many right-hand sides.

    A solver of your own has three methods: `init` prepares what all right-hand sides
    share, `compute` solves, and `transpose` turns what `init` returned into that of the
    transposed system. It is differentiated by a rule of its own, never through, and
    what it returns is judged by the residual and by `error`: a solver that is wrong
    raises, or says so in the statistics.
    """

    throw: eqx.AbstractVar[bool]
    """Whether to raise where a solution is bad."""

    is_differentiated_through: ClassVar[bool] = False
    """Whether to differentiate the operations of `compute` in place of the rule."""

    may_eliminate: ClassVar[bool] = False
    """Whether small systems that are nearly singular are solved once more, by
    elimination without subtraction."""

    @abc.abstractmethod
    def init(self, system: AbstractSystem) -> PyTree:
        """What all right-hand sides share, as a tree of arrays and systems.

        **Raises:** `ValueError` if it cannot solve this system.
        """

    @abc.abstractmethod
    def compute(
        self, state: PyTree, b: Float[Array, "n k"], options: SolveOptions
    ) -> tuple[Float[Array, "n k"], Int[Array, " k"]]:
        """Solve.

        **Arguments:**

        - `state`: what `init` returned.
        - `b`: right-hand sides, one a column.
        - `options`: what may be made use of.

        **Returns:** the solutions, and the number of iterations for each.
        """

    def transpose(self, state: PyTree) -> PyTree:
        """What `init` would return for the transposed system. Systems that are
        self-adjoint are never transposed; those of chains that are not reversible are,
        and need this method.

        **Raises:** `ValueError` if the solver does not have it.
        """
        raise ValueError(
            f"{type(self).__name__} has no `transpose`, which chains that are not "
            "reversible need. Write it, or use `Direct()`."
        )

    def select(self, system: AbstractSystem, n_columns: int) -> "AbstractSolver":
        """The solver to use, when a choice depends on the system.

        **Arguments:**

        - `system`: the system.
        - `n_columns`: number of right-hand sides.

        **Returns:** a solver; itself, by default.
        """
        del system, n_columns
        return self

    def error(
        self,
        system: AbstractSystem,
        b: Float[Array, "n k"],
        y: Float[Array, "n k"],
        smallest: Float[Array, ""],
        floor: Float[Array, ""],
    ) -> Float[Array, " k"]:
        """How well the solutions are known.

        **Arguments:**

        - `system`: the system.
        - `b`, `y`: right-hand sides and solutions, one a column.
        - `smallest`: the smallest eigenvalue of the system; the smallest singular
            value, if it is not self-adjoint.
        - `floor`: as in [`trainq.solvers.SolveOptions`][].

        **Returns:** the relative error of each solution in the norm `√⟨y, A y⟩`; in the
        norm `‖y‖`, if the system is not self-adjoint. That of a form `⟨b, y⟩` is of the
        same order, or of the second one.
        """
        residual = column_norms(b - system.mv(y))
        least = jnp.maximum(floor**2, jnp.finfo(b.dtype).tiny)
        known = smallest > 0
        smallest = jnp.where(known, smallest, 1)
        if system.is_self_adjoint:
            # ⟨r, A⁻¹ r⟩ ≤ ‖r‖² / λ for a residual r.
            form = jnp.sqrt(jnp.maximum(jnp.sum(b * y, axis=0), least))
            error = residual / jnp.sqrt(smallest) / form
        else:
            # ‖A⁻¹ r‖ ≤ ‖r‖ / σ, and ⟨b, y⟩ may be anything.
            size = jnp.sqrt(jnp.maximum(jnp.sum(y * y, axis=0), least))
            error = residual / smallest / size
        # The operator itself is known up to ε. One that is singular, as that of a
        # reducible chain, may have a small residual: what is added along its null
        # vector is arbitrary.
        error = jnp.maximum(error, jnp.finfo(b.dtype).eps / smallest)
        return jnp.where(known, error, jnp.inf)

    def accuracy(self, dtype: Any) -> float:
        """The largest relative residual of a success."""
        return math.sqrt(float(jnp.finfo(dtype).eps))

    def tolerance(self, dtype: Any) -> float:
        """The largest `error` of a success: 1e-7 in double precision, 1e-3 in single
        precision."""
        return float(jnp.finfo(dtype).eps) ** 0.45

    def columns_at_once(
        self, system: AbstractSystem, n_states: int, n_columns: int, dtype: Any
    ) -> int:
        """How many right-hand sides to hold at once.

        **Arguments:**

        - `system`: the system.
        - `n_states`: length of each of them.
        - `n_columns`: how many there are.
        - `dtype`: their dtype.

        **Returns:** a number up to `n_columns`; all of them, by default.
        """
        del system, n_states, dtype
        return n_columns


def columns_in(memory: float, n_states: int, n_columns: int, dtype: Any) -> int:
    """How many functions of `n_states` to hold at once in some GiB: each with two
    copies, and what an iteration on half of the states needs."""
    bytes_each = 6 * n_states * jnp.dtype(dtype).itemsize
    return max(1, min(n_columns, int(memory * 2**30 / bytes_each)))
