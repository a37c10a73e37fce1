"""What solvers that iterate have in common: when they stop, and what that is worth."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import AbstractSolver, SolveOptions, columns_in
from ._systems import AbstractSystem


class AbstractIteration(AbstractSolver):
    """A solver that iterates until the residual of every right-hand side is small."""

    rtol: float = eqx.field(static=True, default=1e-11)
    atol: float = eqx.field(static=True, default=0.0)
    max_steps: int = eqx.field(static=True, default=10_000)
    block: int | None = eqx.field(static=True, default=None, kw_only=True)
    memory: float = eqx.field(static=True, default=4.0, kw_only=True)
    throw: bool = eqx.field(static=True, default=True, kw_only=True)

    def __check_init__(self):
        kind, block = type(self).__name__, 1 if self.block is None else self.block
        for name, value, low in (
            ("rtol", self.rtol, 0),
            ("atol", self.atol, 0),
            ("max_steps", self.max_steps, 1),
            ("block", block, 1),
            ("memory", self.memory, 0),
        ):
            if not (math.isfinite(value) and value >= low):
                raise ValueError(
                    f"{name} of a `{kind}` is a finite number of at least {low}, but "
                    f"{value!r} was given."
                )
        if self.rtol == self.atol == 0:
            raise ValueError(
                f"A `{kind}` with rtol = 0 and atol = 0 never stops: give one of them."
            )

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

    def columns_at_once(
        self, system: AbstractSystem, n_states: int, n_columns: int, dtype: Any
    ) -> int:
        if self.block is not None:
            return min(self.block, n_columns)
        # A product with a matrix is the faster by column the more of them there are; of
        # a sparse one, a few fill the cache.
        if system.is_sparse:
            n_columns = min(n_columns, 64)
        return columns_in(self.memory, n_states, n_columns, dtype)
