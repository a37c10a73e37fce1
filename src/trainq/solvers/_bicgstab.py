"""Solutions by stabilised biconjugate gradients."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ._base import SolveOptions
from ._iteration import AbstractIteration
from ._systems import AbstractSystem


class BiCGStab(AbstractIteration):
    """Solve by stabilised biconjugate gradients, without a matrix: for chains that are
    not reversible, such as a scan of three or more blocks in a fixed order.

    One iteration takes two products with the chain. All right-hand sides go through
    them at once, each stops for itself, and the best iterate is what it returns. Where
    the residual that is carried along is no longer that of the solution, or the method
    breaks down, it starts anew from there.

    !!! example

        ```python
        edges = [(0, 1), (1, 2), (2, 0), (2, 3)]
        machine = tq.BoltzmannMachine.from_edges(edges, jnp.full(4, 0.3))
        kernel = tq.AlternatingBlockGibbs(machine.colouring())
        solver = tq.solvers.BiCGStab()
        predictor = tq.QStruct(kernel, window=250, solver=solver)
        print(predictor(machine, jnp.full(16, 1 / 16)).stats)
        ```

    ??? cite "Source"

        van der Vorst, *Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG for
        the solution of nonsymmetric linear systems*, SIAM J. Sci. Stat. Comput. 13,
        631, 1992.
    """

    def init(self, system: AbstractSystem) -> AbstractSystem:
        return system

    def transpose(self, state: AbstractSystem) -> AbstractSystem:
        return state.transposed()

    def compute(
        self, state: AbstractSystem, b: Float[Array, "n k"], options: SolveOptions
    ) -> tuple[Float[Array, "n k"], Int[Array, " k"]]:
        target = self.target(b, options)

        def at(x: Array, count: Array, previous: Array) -> _Round:
            residual = b - state.mv(x)
            norm = jnp.linalg.norm(residual, axis=0)
            return _Round(x, residual, norm, previous, count)

        def unfinished(now: _Round) -> Array:
            progress = jnp.any((now.norm > target) & (now.norm < now.previous / 2))
            return progress & (jnp.max(now.iterations) < self.max_steps)

        def again(now: _Round) -> _Round:
            goal = jnp.where(now.norm > target, target, jnp.inf)
            left = self.max_steps - jnp.max(now.iterations)
            change, count = _iterate(state.mv, now.residual, goal, left)
            found = at(now.x + change, now.iterations + count, now.norm)
            # Never worse than it was.
            worse = ~(found.norm < now.norm)
            return _Round(
                x=jnp.where(worse[None], now.x, found.x),
                residual=jnp.where(worse[None], now.residual, found.residual),
                norm=jnp.where(worse, now.norm, found.norm),
                previous=now.norm,
                iterations=found.iterations,
            )

        x = jnp.zeros_like(b) if options.guess is None else options.guess
        none = jnp.zeros(b.shape[1], int)
        found = lax.while_loop(
            unfinished, again, at(x, none, jnp.full_like(target, jnp.inf))
        )
        return found.x, found.iterations


BiCGStab.__init__.__doc__ = """**Arguments:**

- `rtol`, `atol`, `max_steps`, `block`, `memory`, `throw`: as for
    [`trainq.ConjugateGradient`][].

**Raises:** `ValueError` for a value out of range.
"""


class _Round(NamedTuple):
    """Solutions, their true residuals and the norms of these, the norms a round before,
    and how many iterations it took."""

    x: Float[Array, "n k"]
    residual: Float[Array, "n k"]
    norm: Float[Array, " k"]
    previous: Float[Array, " k"]
    iterations: Int[Array, " k"]


class _Iterates(NamedTuple):
    """Solutions, residuals and directions with their images, the three numbers of the
    recurrence, the squared norms of the residuals, the best solutions so far with
    theirs, which columns move, the step, and how often each column has moved."""

    x: Float[Array, "n k"]
    residual: Float[Array, "n k"]
    direction: Float[Array, "n k"]
    image: Float[Array, "n k"]
    rho: Float[Array, " k"]
    alpha: Float[Array, " k"]
    omega: Float[Array, " k"]
    squared: Float[Array, " k"]
    best: Float[Array, "n k"]
    least: Float[Array, " k"]
    moves: Bool[Array, " k"]
    step: Int[Array, ""]
    iterations: Int[Array, " k"]


def _iterate(
    mv: Callable[[Array], Array],
    b: Float[Array, "n k"],
    target: Float[Array, " k"],
    max_steps: Int[Array, ""],
) -> tuple[Float[Array, "n k"], Int[Array, " k"]]:
    """Iterate from zero until every column has a residual of at most its `target`, or
    has broken down."""
    growth = 1 / float(jnp.finfo(b.dtype).eps)

    def dot(a: Array, c: Array) -> Array:
        return jnp.sum(a * c, axis=0)

    def ratio(a: Array, c: Array) -> Array:
        return jnp.where(c != 0, a / jnp.where(c != 0, c, 1), 0)

    def unfinished(now: _Iterates) -> Array:
        return jnp.any(now.moves) & (now.step < max_steps)

    def move(now: _Iterates) -> _Iterates:
        # The shadow residual is the first one, b.
        rho = dot(b, now.residual)
        beta = ratio(rho, now.rho) * ratio(now.alpha, now.omega)
        conjugate = now.direction - now.omega[None] * now.image
        direction = now.residual + beta[None] * conjugate
        image = mv(direction)
        alpha = ratio(rho, dot(b, image))
        half = now.residual - alpha[None] * image
        onto = mv(half)
        omega = ratio(dot(onto, half), dot(onto, onto))
        x = now.x + alpha[None] * direction + omega[None] * half
        residual = half - omega[None] * onto
        squared = dot(residual, residual)
        # A column that has stopped, or is no longer a number, stands still.
        moved = now.moves & jnp.isfinite(squared)
        better = moved & (squared < now.least)
        least = jnp.where(better, squared, now.least)
        alive = moved & (alpha != 0) & (omega != 0) & (squared <= growth * least)

        def kept(new: Array, old: Array) -> Array:
            moving = moved if new.ndim == 1 else moved[None]
            return jnp.where(moving, new, old)

        return _Iterates(
            x=kept(x, now.x),
            residual=kept(residual, now.residual),
            direction=kept(direction, now.direction),
            image=kept(image, now.image),
            rho=kept(rho, now.rho),
            alpha=kept(alpha, now.alpha),
            omega=kept(omega, now.omega),
            squared=kept(squared, now.squared),
            best=jnp.where(better[None], x, now.best),
            least=least,
            moves=alive & (squared > target**2),
            step=now.step + 1,
            iterations=now.iterations + now.moves.astype(int),
        )

    zero, one = jnp.zeros_like(b), jnp.ones_like(target)
    squared = dot(b, b)
    start = _Iterates(
        x=zero,
        residual=b,
        direction=zero,
        image=zero,
        rho=one,
        alpha=one,
        omega=one,
        squared=squared,
        best=zero,
        least=squared,
        moves=squared > target**2,
        step=jnp.asarray(0),
        iterations=jnp.zeros(b.shape[1], int),
    )
    found = lax.while_loop(unfinished, move, start)
    return found.best, found.iterations
