"""Strategies for the linear systems of a chain, and what each of them costs."""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from . import _lapack
from ._systems import AbstractSystem


RESULTS = (
    "successful",
    "the number of iterations reached max_steps",
    "the residual is large, or the chain so slow that the solution is not known",
)
"""What the codes in `SolverStats.result` mean, in order."""


class SolverStats(eqx.Module):
    """How well each right-hand side was solved, and at what price.

    Right-hand sides are in the order of the observables. `residual` is
    `‖b - A y‖ / (‖b‖ + 2 ‖y‖)` of the symmetrised system `A = L + φφᵀ`, whose norm is
    at most two: how much has to be changed for `y` to be exact. It is computed from the
    solution and not from a recurrence, and a column `b` that is zero but for rounding
    is compared with the others instead. `iterations` is zero for a factorisation.
    `result` is an index into [`trainq.solvers.RESULTS`][], zero for success, which is
    earned: `‖b - A y‖` is at most `√ε ‖b‖`, with `ε` the machine epsilon, or 100 times
    the tolerance asked for if that is more; and the solution is known to `ε^0.45`, 1e-7
    in double precision and 1e-3 in single precision, by an estimate from the smallest
    eigenvalue of the system and from the rounding errors of the right-hand side.
    """

    residual: Float[Array, "*batch n_columns"]
    iterations: Int[Array, "*batch n_columns"]
    result: Int[Array, "*batch n_columns"]

    @property
    def ok(self) -> Bool[Array, "*batch"]:
        """Whether every right-hand side was solved."""
        return jnp.all(self.result == 0, axis=-1)

    def __str__(self) -> str:
        lines = [
            f"{int((self.result == code).sum()):6d}  {text}"
            for code, text in enumerate(RESULTS)
            if (self.result == code).any()
        ]
        return "\n".join(
            [
                f"{self.result.size} right-hand sides, at most "
                f"{int(self.iterations.max(initial=0))} iterations, relative residual "
                f"at most {float(self.residual.max(initial=0)):.1e}",
                *lines,
            ]
        )


def worst(stats: Sequence[SolverStats]) -> SolverStats:
    """The statistics of right-hand sides that were solved in several parts."""
    return SolverStats(
        jnp.max(jnp.stack([s.residual for s in stats]), axis=0),
        sum((s.iterations for s in stats[1:]), stats[0].iterations),
        jnp.max(jnp.stack([s.result for s in stats]), axis=0),
    )


class AbstractStrategy(eqx.Module):
    """How to solve `A y = b` with many right-hand sides."""

    throw: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def select(self, system: AbstractSystem, n_columns: int) -> "AbstractSolver":
        """The solver for the system at hand.

        **Raises:** `ValueError` if it cannot solve this system.
        """


def checked_strategy(solver: Any) -> AbstractStrategy:
    """Return a strategy, `Auto()` for None; a `TypeError` for anything else."""
    if solver is None:
        return Auto()
    if isinstance(solver, AbstractStrategy):
        return solver
    given = solver.__name__ if isinstance(solver, type) else repr(solver)
    raise TypeError(
        "solver is a strategy such as `Auto()`, `Direct()` or `ConjugateGradient()`, "
        f"or None, but {given} was given."
    )


class AbstractSolver(AbstractStrategy):
    """A strategy that is a solver itself."""

    @abc.abstractmethod
    def prepare(self, system: AbstractSystem) -> Any:
        """What all right-hand sides share, as a tree of arrays."""

    @abc.abstractmethod
    def solve(
        self,
        system: AbstractSystem,
        prepared: Any,
        b: Float[Array, "n k"],
        guess: Float[Array, "n k"] | None,
        floor: Float[Array, ""],
        transpose: bool,
    ) -> tuple[Float[Array, "n k"], Int[Array, " k"]]:
        """The solutions, and the number of iterations for each. Right-hand sides
        smaller than `floor` are zero but for rounding."""

    @abc.abstractmethod
    def error(
        self,
        system: AbstractSystem,
        b: Float[Array, "n k"],
        y: Float[Array, "n k"],
        smallest: Float[Array, ""],
        floor: Float[Array, ""],
    ) -> Float[Array, " k"]:
        """The relative error of each solution in the norm `√⟨y, A y⟩`, from the
        `smallest` eigenvalue of the system. That of a form `⟨b, y⟩` is of the same
        order, or of the second one."""

    @abc.abstractmethod
    def accuracy(self, dtype: Any) -> float:
        """The largest relative residual of a success."""

    def tolerance(self, dtype: Any) -> float:
        """The largest `error` of a success: 1e-7 in double precision, 1e-3 in single
        precision."""
        return float(jnp.finfo(dtype).eps) ** 0.45

    @abc.abstractmethod
    def block_size(self, n_states: int, n_columns: int, dtype: Any) -> int:
        """How many right-hand sides to hold at once, each a vector of `n_states`."""


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
    """

    plain_autodiff: bool = eqx.field(static=True, default=False)
    max_states: int = eqx.field(static=True, default=2**13)
    throw: bool = eqx.field(static=True, default=True)

    def select(self, system: AbstractSystem, n_columns: int) -> "Direct":
        del n_columns
        n = system.n_states
        if n > self.max_states:
            raise ValueError(
                f"A direct solve of {n} states is too large: at most {self.max_states} "
                "are allowed. Use `ConjugateGradient()`, which needs no matrix, or a "
                "block kernel, whose chain lives on one layer; or raise "
                "`Direct(max_states=...)` if there is memory for matrices of "
                f"{8 * n * n / 2**30:.1f} GiB."
            )
        return self

    def prepare(self, system: AbstractSystem) -> Any:
        if system.is_symmetric:
            return _lapack.cholesky(system.dense())
        return _lapack.lu(system.dense())

    def solve(self, system, prepared, b, guess, floor, transpose):
        del guess, floor
        if system.is_symmetric:
            y = _lapack.cholesky_solve(prepared, b)
        elif transpose:
            y = _lapack.lu_solve_transposed(*prepared, b)
        else:
            y = _lapack.lu_solve(*prepared, b)
        return y, jnp.zeros(b.shape[1], int)

    def error(self, system, b, y, smallest, floor):
        # A factor is that of a matrix which differs by some ε from the one meant.
        eps = float(jnp.finfo(b.dtype).eps)
        known = smallest > 0
        error = jnp.where(known, 8 * eps / jnp.where(known, smallest, 1), jnp.inf)
        return jnp.broadcast_to(error, b.shape[1:])

    def accuracy(self, dtype: Any) -> float:
        return math.sqrt(float(jnp.finfo(dtype).eps))

    def block_size(self, n_states: int, n_columns: int, dtype: Any) -> int:
        return n_columns


Direct.__init__.__doc__ = """**Arguments:**

- `plain_autodiff`: differentiate straight through a dense solve of the unreduced system
    instead of using the custom rule. Slower, and it allows forward mode; it is the test
    of the rule.
- `max_states`: refuse larger matrices than this, of `8 max_states²` bytes each.
- `throw`: raise where a solution is bad. Otherwise it is returned as it is, and the
    statistics of the solver tell.
"""


class ConjugateGradient(AbstractSolver):
    """Solve by conjugate gradients, without a matrix.

    On single flips one iteration costs `2 N n` multiplications for each right-hand
    side, with `n` the states that the chain's reductions leave (see
    [`trainq.Direct`][]), and the memory is that of about 8 vectors of `n` for each
    right-hand side of a block, `2 N n` numbers for the chain, and the solutions, which
    the backward pass needs. Layers of block kernels cost two products with a matrix
    per iteration. The number of iterations grows as the square root of the condition
    number: tens for weights of ordinary size, thousands in the cold.

    The system is scaled to a unit diagonal, and even-odd elimination both halves it and
    halves the iterations. Every right-hand side stops for itself, and the best iterate
    is what it returns. One more is solved for loosely, to learn how slow the slowest
    mode is, and so how well the others are known.

    ??? cite "Source"

        Hestenes and Stiefel, *Methods of conjugate gradients for solving linear
        systems*, J. Res. Natl. Bur. Stand. 49, 409, 1952; DeGrand and Rossi,
        *Conditioning techniques for dynamical fermions*, Comput. Phys. Commun. 60, 211,
        1990.
    """

    rtol: float = eqx.field(static=True)
    atol: float = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    block: int | None = eqx.field(static=True)
    memory: float = eqx.field(static=True)
    throw: bool = eqx.field(static=True)
    inner_dtype: Any = eqx.field(static=True)

    def __init__(
        self,
        rtol: float = 1e-11,
        atol: float = 0.0,
        max_steps: int = 10_000,
        *,
        block: int | None = None,
        memory: float = 4.0,
        throw: bool = True,
        inner_dtype: Any = None,
    ):
        """**Arguments:**

        - `rtol`, `atol`: stop when the residual is below `rtol ‖b‖` or `atol`, in the
            norm of the scaled system. The error of a noise `⟨u, L⁺u⟩` is of second
            order in it, that of a gradient of first order. No residual below 32 times
            the machine epsilon is asked for.
        - `max_steps`: largest number of iterations; a right-hand side that takes as
            many counts as failed. With `inner_dtype`, of each inner solve.
        - `block`: how many right-hand sides to solve at once; by default as many as fit
            in the memory, and at most 64.
        - `memory`: GiB that the vectors of one block may take.
        - `throw`: raise if a right-hand side is not solved.
        - `inner_dtype`: `jnp.float32` to iterate in single precision and refine in
            double, which moves half as many bytes.

        **Raises:** `ValueError` for a value out of range.
        """
        for name, value, low in (
            ("rtol", rtol, 0),
            ("atol", atol, 0),
            ("max_steps", max_steps, 1),
            ("block", 1 if block is None else block, 1),
            ("memory", memory, 0),
        ):
            if not (math.isfinite(value) and value >= low):
                raise ValueError(
                    f"{name} of a `ConjugateGradient` is a finite number of at least "
                    f"{low}, but {value!r} was given."
                )
        if rtol == atol == 0:
            raise ValueError(
                "A `ConjugateGradient` with rtol = 0 and atol = 0 never stops: give "
                "one of them."
            )
        self.rtol = rtol
        self.atol = atol
        self.max_steps = max_steps
        self.block = block
        self.memory = memory
        self.throw = throw
        self.inner_dtype = None if inner_dtype is None else jnp.dtype(inner_dtype)

    def select(self, system: AbstractSystem, n_columns: int) -> "ConjugateGradient":
        del n_columns
        if not system.is_symmetric:
            raise ValueError(
                "Conjugate gradients need a symmetric system, and this chain, a "
                "`DenseChain` that is not reversible, has none. Use `Direct()`."
            )
        return self

    def prepare(self, system: AbstractSystem) -> None:
        return None

    def solve(self, system, prepared, b, guess, floor, transpose):
        del prepared, transpose
        norm = jnp.linalg.norm(b, axis=0)
        target = jnp.maximum(self._rtol(b.dtype) * jnp.maximum(norm, floor), self.atol)
        # The last column tells how slow the slowest mode is, of which it has a part of
        # about 1/√n: a few per cent of that are enough.
        target = target.at[-1].set(norm[-1] / (32 * math.sqrt(system.n_states)))
        if self.inner_dtype is None or self.inner_dtype == b.dtype:
            return _conjugate_gradients(system.mv, b, guess, target, self.max_steps)
        return self._refined(system, b, guess, target)

    def _refined(self, system, b, guess, target):
        # Each round gains what float32 can: the residual is that of float64, the
        # correction is solved for in float32.
        def low(x):
            return x.astype(self.inner_dtype) if eqx.is_inexact_array(x) else x

        inner = jax.tree.map(low, system)
        gain = math.sqrt(float(jnp.finfo(self.inner_dtype).eps)) / 4

        def unfinished(state):
            _, residual, norm, steps, previous = state
            progress = jnp.any((norm > target) & (norm < previous / 2))
            return progress & (jnp.max(steps) < self.max_steps)

        def refine(state):
            x, residual, norm, steps, _ = state
            unit = jnp.where(norm > 0, norm, 1)
            goal = low(jnp.maximum(gain, target / unit / 2))
            goal = jnp.where(low(norm) > low(target), goal, jnp.inf)
            change, more = _conjugate_gradients(
                inner.mv, low(residual / unit[None]), None, goal, self.max_steps
            )
            x = x + unit[None] * change.astype(x.dtype)
            residual = b - system.mv(x)
            new = jnp.linalg.norm(residual, axis=0)
            return x, residual, new, steps + more, norm

        x = jnp.zeros_like(b) if guess is None else guess
        residual = b if guess is None else b - system.mv(x)
        norm = jnp.linalg.norm(residual, axis=0)
        zero = jnp.zeros(b.shape[1], int)
        start = (x, residual, norm, zero, jnp.full_like(norm, jnp.inf))
        x, residual, _, steps, _ = lax.while_loop(unfinished, refine, start)
        # What float32 could not do, if anything.
        rest, more = _conjugate_gradients(
            system.mv, residual, None, target, self.max_steps
        )
        return x + rest, steps + more

    def _rtol(self, dtype: Any) -> float:
        return max(self.rtol, 32 * float(jnp.finfo(dtype).eps))

    def error(self, system, b, y, smallest, floor):
        # ⟨r, A⁻¹ r⟩ ≤ ‖r‖² / λ for a residual r.
        residual = jnp.linalg.norm(b - system.mv(y), axis=0)
        least = jnp.maximum(floor**2, jnp.finfo(b.dtype).tiny)
        form = jnp.sqrt(jnp.maximum(jnp.sum(b * y, axis=0), least))
        known = smallest > 0
        root = jnp.sqrt(jnp.where(known, smallest, 1))
        return jnp.where(known, residual / root / form, jnp.inf)

    def accuracy(self, dtype: Any) -> float:
        # Convergence is judged on the scaled system, whose norm is another.
        wanted = max(100 * self._rtol(dtype), self.atol)
        return max(math.sqrt(float(jnp.finfo(dtype).eps)), min(wanted, 0.5))

    def tolerance(self, dtype: Any) -> float:
        # Of the default, 1e-7.
        wanted = 1e4 * max(self._rtol(dtype), self.atol)
        return max(super().tolerance(dtype), min(wanted, 0.5))

    def block_size(self, n_states: int, n_columns: int, dtype: Any) -> int:
        if self.block is not None:
            return min(self.block, n_columns)
        # The observable and two copies of it on all states, and the vectors of the
        # iteration on a quarter or a half of them.
        bytes_each = 6 * n_states * jnp.dtype(dtype).itemsize
        return max(1, min(n_columns, 64, int(self.memory * 2**30 / bytes_each)))


class Auto(AbstractStrategy):
    """Factorise where that is cheaper than iterating, and where the matrix fits.

    With `k` right-hand sides and `n` states left, [`trainq.Direct`][] takes `n³/3`
    multiplications, `n³` more for the matrix of a block kernel, and
    [`trainq.ConjugateGradient`][] is taken to need 64 applications of the operator to
    each right-hand side. Those of a sparse operator count tenfold, as memory limits
    them. So single flips are factorised up to 12 units and block kernels up to 14 units
    in the smaller layer.
    """

    memory: float = eqx.field(static=True, default=4.0)
    throw: bool = eqx.field(static=True, default=True)

    def select(self, system: AbstractSystem, n_columns: int) -> AbstractSolver:
        n = system.n_states
        sparse = system.products < n * n
        factorised = system.assembly + n**3 / 3
        iterated = 64 * system.products * max(n_columns, 16) * (10 if sparse else 1)
        fits = 4 * 8 * n * n <= self.memory * 2**30
        if not system.is_symmetric or (fits and factorised <= iterated):
            return Direct(throw=self.throw).select(system, n_columns)
        return ConjugateGradient(memory=self.memory, throw=self.throw)


Auto.__init__.__doc__ = """**Arguments:**

- `memory`: GiB that a matrix and its factor, or the vectors of a block of right-hand
    sides, may take.
- `throw`: raise if a right-hand side is not solved.
"""


def _conjugate_gradients(
    mv: Callable[[Array], Array],
    b: Float[Array, "n k"],
    guess: Float[Array, "n k"] | None,
    target: Float[Array, " k"],
    max_steps: int,
) -> tuple[Float[Array, "n k"], Int[Array, " k"]]:
    """Iterate until every column has a residual of at most its `target`."""

    # Residuals of conjugate gradients rise and fall, and in finite precision those of a
    # system too close to singular rise without end: what is kept is the best iterate,
    # and a column stops when it is worse than that by half of all digits.
    growth = 1 / float(jnp.finfo(b.dtype).eps)

    def active(state):
        _, _, _, squared, (_, least), step, _ = state
        moving = (squared > target**2) & (squared <= growth * least)
        return moving & (step < max_steps)

    def iterate(state):
        x, r, p, squared, (best, least), step, count = state
        moves = active(state)
        q = mv(p)
        curvature = jnp.sum(p * q, axis=0)
        # Columns that have converged stand still.
        moves &= curvature > 0
        alpha = jnp.where(moves, squared / jnp.where(moves, curvature, 1), 0)
        x = x + alpha[None] * p
        r = r - alpha[None] * q
        new = jnp.where(moves, jnp.sum(r * r, axis=0), squared)
        beta = jnp.where(moves, new / jnp.where(moves, squared, 1), 0)
        better = new < least
        kept = (jnp.where(better[None], x, best), jnp.where(better, new, least))
        p = r + beta[None] * p
        return x, r, p, new, kept, step + 1, count + moves.astype(int)

    x = jnp.zeros_like(b) if guess is None else guess
    r = b if guess is None else b - mv(x)
    squared = jnp.sum(r * r, axis=0)
    count = jnp.zeros(b.shape[1], int)
    start = (x, r, r, squared, (x, squared), jnp.asarray(0), count)
    state = lax.while_loop(lambda state: jnp.any(active(state)), iterate, start)
    return state[4][0], state[-1]
