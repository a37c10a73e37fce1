"""Solutions by conjugate gradients."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ._base import SolveOptions
from ._iteration import AbstractIteration
from ._systems import AbstractSystem


class ConjugateGradient(AbstractIteration):
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

    inner_dtype: Any = eqx.field(
        static=True,
        default=None,
        kw_only=True,
        converter=lambda dtype: None if dtype is None else jnp.dtype(dtype),
    )

    def init(self, system: AbstractSystem) -> AbstractSystem:
        if not system.is_self_adjoint:
            raise ValueError(
                "Conjugate gradients need a self-adjoint system, and that of a chain "
                "which is not reversible is none. Use `Direct()`, or `BiCGStab()`."
            )
        return system.held(self.memory)

    def compute(
        self, state: AbstractSystem, b: Float[Array, "n k"], options: SolveOptions
    ) -> tuple[Float[Array, "n k"], Int[Array, " k"]]:
        target = self.target(b, options)
        if self.inner_dtype is None or self.inner_dtype == b.dtype:
            return _iterate(state.mv, b, options.guess, target, self.max_steps)
        return self._refined(state, b, options.guess, target)

    def _refined(
        self,
        system: AbstractSystem,
        b: Float[Array, "n k"],
        guess: Float[Array, "n k"] | None,
        target: Float[Array, " k"],
    ) -> tuple[Float[Array, "n k"], Int[Array, " k"]]:
        # Each round gains what the inner precision can: the residual is that of the
        # outer one, the correction is solved for in the inner one.
        def low(x):
            return x.astype(self.inner_dtype) if eqx.is_inexact_array(x) else x

        inner = jax.tree.map(low, system)
        gain = math.sqrt(float(jnp.finfo(self.inner_dtype).eps)) / 4

        def at(x: Array, count: Array, previous: Array) -> _Refined:
            residual = b - system.mv(x)
            return _Refined(
                x, residual, jnp.linalg.norm(residual, axis=0), previous, count
            )

        def unfinished(now: _Refined) -> Array:
            progress = jnp.any((now.norm > target) & (now.norm < now.previous / 2))
            return progress & (jnp.max(now.iterations) < self.max_steps)

        def refine(now: _Refined) -> _Refined:
            unit = jnp.where(now.norm > 0, now.norm, 1)
            goal = low(jnp.maximum(gain, target / unit / 2))
            goal = jnp.where(low(now.norm) > low(target), goal, jnp.inf)
            scaled = low(now.residual / unit[None])
            change, more = _iterate(inner.mv, scaled, None, goal, self.max_steps)
            x = now.x + unit[None] * change.astype(now.x.dtype)
            return at(x, now.iterations + more, now.norm)

        x = jnp.zeros_like(b) if guess is None else guess
        start = at(x, jnp.zeros(b.shape[1], int), jnp.full_like(target, jnp.inf))
        found = lax.while_loop(unfinished, refine, start)
        # What the inner precision could not do, if anything.
        rest, more = _iterate(system.mv, found.residual, None, target, self.max_steps)
        return found.x + rest, found.iterations + more


ConjugateGradient.__init__.__doc__ = """**Arguments:**

- `rtol`, `atol`: stop when the residual is below `rtol ‖b‖` or `atol`, in the norm of
    the scaled system. The error of a noise `⟨u, L⁺u⟩` is of second order in it, that of
    a gradient of first order. No residual below 32 times the machine epsilon is asked
    for.
- `max_steps`: largest number of iterations; a right-hand side that takes as many counts
    as failed. With `inner_dtype`, of each inner solve.
- `block`: how many right-hand sides to solve at once; by default as many as fit in the
    memory, and at most 64.
- `memory`: GiB that the vectors of one block may take.
- `throw`: raise if a right-hand side is not solved.
- `inner_dtype`: `jnp.float32` to iterate in single precision and refine in double,
    which moves half as many bytes.

**Raises:** `ValueError` for a value out of range.
"""


class _Refined(NamedTuple):
    """Solutions, their residuals and the norms of these, the norms a round before, and
    how many iterations it took."""

    x: Float[Array, "n k"]
    residual: Float[Array, "n k"]
    norm: Float[Array, " k"]
    previous: Float[Array, " k"]
    iterations: Int[Array, " k"]


class _Iterates(NamedTuple):
    """Solutions, residuals and directions of conjugate gradients, the squared norms of
    the residuals, the best solutions so far with theirs, the step, and the number of
    steps in which each column moved."""

    x: Float[Array, "n k"]
    residual: Float[Array, "n k"]
    direction: Float[Array, "n k"]
    squared: Float[Array, " k"]
    best: Float[Array, "n k"]
    least: Float[Array, " k"]
    step: Int[Array, ""]
    iterations: Int[Array, " k"]


def _iterate(
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

    def moving(now: _Iterates) -> Array:
        unfinished = (now.squared > target**2) & (now.squared <= growth * now.least)
        return unfinished & (now.step < max_steps)

    def move(now: _Iterates) -> _Iterates:
        product = mv(now.direction)
        curvature = jnp.sum(now.direction * product, axis=0)
        # Columns that have converged stand still.
        moves = moving(now) & (curvature > 0)
        alpha = jnp.where(moves, now.squared / jnp.where(moves, curvature, 1), 0)
        x = now.x + alpha[None] * now.direction
        residual = now.residual - alpha[None] * product
        squared = jnp.where(moves, jnp.sum(residual * residual, axis=0), now.squared)
        beta = jnp.where(moves, squared / jnp.where(moves, now.squared, 1), 0)
        better = squared < now.least
        return _Iterates(
            x=x,
            residual=residual,
            direction=residual + beta[None] * now.direction,
            squared=squared,
            best=jnp.where(better[None], x, now.best),
            least=jnp.where(better, squared, now.least),
            step=now.step + 1,
            iterations=now.iterations + moves.astype(int),
        )

    x = jnp.zeros_like(b) if guess is None else guess
    r = b if guess is None else b - mv(x)
    squared = jnp.sum(r * r, axis=0)
    start = _Iterates(
        x=x,
        residual=r,
        direction=r,
        squared=squared,
        best=x,
        least=squared,
        step=jnp.asarray(0),
        iterations=jnp.zeros(b.shape[1], int),
    )
    found = lax.while_loop(lambda now: jnp.any(moving(now)), move, start)
    return found.best, found.iterations
