"""What solvers that iterate have in common: when they stop, and what that is worth."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import AbstractSolver, SolveOptions, columns_in


class AbstractIteration(AbstractSolver):
    """A solver that iterates until the residual of every right-hand side is small."""

    rtol: eqx.AbstractVar[float]
    atol: eqx.AbstractVar[float]
    max_steps: eqx.AbstractVar[int]
    block: eqx.AbstractVar[int | None]
    memory: eqx.AbstractVar[float]

    def target(
        self, b: Float[Array, "n k"], options: SolveOptions
    ) -> Float[Array, " k"]:
        """The norm of the residual at which each column stops."""
        norm = jnp.linalg.norm(b, axis=0)
        wanted = self._rtol(b.dtype) * jnp.maximum(norm, options.floor)
        target = jnp.maximum(wanted, self.atol)
        # The last column tells how slow the slowest mode is, of which it has a part of
        # about 1/√n: a few per cent of that are enough.
        return target.at[-1].set(norm[-1] / (32 * math.sqrt(b.shape[0])))

    def _rtol(self, dtype: Any) -> float:
        return max(self.rtol, 32 * float(jnp.finfo(dtype).eps))

    def accuracy(self, dtype: Any) -> float:
        # Convergence is judged on the scaled system, whose norm is another.
        wanted = max(100 * self._rtol(dtype), self.atol)
        return max(math.sqrt(float(jnp.finfo(dtype).eps)), min(wanted, 0.5))

    def tolerance(self, dtype: Any) -> float:
        # Of the default, 1e-7.
        wanted = 1e4 * max(self._rtol(dtype), self.atol)
        return max(super().tolerance(dtype), min(wanted, 0.5))

    def columns_at_once(self, n_states: int, n_columns: int, dtype: Any) -> int:
        if self.block is not None:
            return min(self.block, n_columns)
        return columns_in(self.memory, n_states, n_columns, dtype)


def check_iteration(
    solver: AbstractSolver,
    rtol: float,
    atol: float,
    max_steps: int,
    block: int | None,
    memory: float,
) -> None:
    """Raise a `ValueError` for an argument of an iteration that is out of range."""
    kind = type(solver).__name__
    for name, value, low in (
        ("rtol", rtol, 0),
        ("atol", atol, 0),
        ("max_steps", max_steps, 1),
        ("block", 1 if block is None else block, 1),
        ("memory", memory, 0),
    ):
        if not (math.isfinite(value) and value >= low):
            raise ValueError(
                f"{name} of a `{kind}` is a finite number of at least "
                f"{low}, but {value!r} was given."
            )
    if rtol == atol == 0:
        raise ValueError(
            f"A `{kind}` with rtol = 0 and atol = 0 never stops: give one of them."
        )
