"""How many burn-in steps, steps and chains an estimate of the gradient needs."""

import math

import equinox as eqx
import numpy as np
from jaxtyping import Float


class BudgetError(ValueError):
    """No number of steps and chains within the limits reaches the target."""


class Budget(eqx.Module):
    """A number of burn-in steps, a window and a number of chains; the `Q` of the
    gradient estimated from them, and their cost in single-unit updates."""

    burn_in: int = eqx.field(static=True)
    window: int = eqx.field(static=True)
    chains: int = eqx.field(static=True)
    q: float = eqx.field(static=True)
    cost: float = eqx.field(static=True)

    def __str__(self) -> str:
        return (
            f"{self.burn_in} burn-in steps, a window of {self.window} and "
            f"{self.chains} chains: Q = {self.q:.4g} for {self.cost:.4g} unit updates"
        )


class ErrorTable(eqx.Module):
    """The error of an estimate of the gradient for many windows and burn-ins: with
    `M` chains it is `E‖ĝ - g‖² = bias2 + variance / M + data_variance`.

    It is exact, or estimated from a calibration run; then small biases are not told
    from zero.
    """

    burn_ins: tuple[int, ...] = eqx.field(static=True)
    windows: tuple[int, ...] = eqx.field(static=True)
    bias2: Float[np.ndarray, "burn_ins windows"]
    variance: Float[np.ndarray, "burn_ins windows"]
    signal: float = eqx.field(static=True)
    data_variance: float = eqx.field(static=True)
    site_updates: float = eqx.field(static=True)

    @property
    def steps(self) -> np.ndarray:
        """The steps of one chain, burn-in and window."""
        return np.add.outer(self.burn_ins, self.windows)

    def _best(self, chains: np.ndarray, score: np.ndarray) -> Budget:
        row, column = np.unravel_index(np.argmin(score), score.shape)
        m = int(chains[row, column])
        error = self.bias2[row, column] + self.variance[row, column] / m
        return Budget(
            self.burn_ins[row],
            self.windows[column],
            m,
            q=self.signal / (error + self.data_variance),
            cost=float(m * self.steps[row, column] * self.site_updates),
        )

    def cheapest(self, target_q: float, max_chains: int | None = None) -> Budget:
        """The budget of the least cost that reaches a target.

        **Raises:** [`trainq.BudgetError`][] if there is none, saying why.
        """
        if not (math.isfinite(target_q) and target_q > 0):
            raise ValueError(
                f"target_q is a positive number, but {target_q} was given."
            )
        if self.signal <= 0:
            raise BudgetError(
                "The gradient is zero, or not told from zero: its Q is zero for any "
                "number of samples."
            )
        allowed = self.signal / target_q - self.data_variance
        if allowed <= 0:
            raise BudgetError(
                f"The batch of data alone limits Q to "
                f"{self.signal / self.data_variance:.4g}, below {target_q:.4g}: no "
                "number of chains or steps helps. Use a larger batch."
            )
        left = allowed - self.bias2
        chains = np.ceil(self.variance / np.where(left > 0, left, np.inf))
        chains = np.maximum(chains, 1)
        possible = left > 0
        if not possible.any():
            best = self.signal / (self.bias2.min() + self.data_variance)
            raise BudgetError(
                f"The bias of the start limits Q to {best:.4g}, below {target_q:.4g}, "
                f"within {self.burn_ins[-1]} burn-in steps and a window of "
                f"{self.windows[-1]}: more chains do not help. Allow more steps, or "
                "use a kernel that mixes faster."
            )
        if max_chains is not None:
            possible &= chains <= max_chains
            if not possible.any():
                error = self.bias2 + self.variance / max_chains + self.data_variance
                raise BudgetError(
                    f"{max_chains} chains reach Q = {self.signal / error.min():.4g}, "
                    f"below {target_q:.4g}, within {self.burn_ins[-1]} burn-in steps "
                    f"and a window of {self.windows[-1]}. Allow more chains, or more "
                    "steps."
                )
        return self._best(chains, np.where(possible, chains * self.steps, np.inf))

    def best(self, cost: float, max_chains: int | None = None) -> Budget:
        """The budget of the largest `Q` for at most some cost, in unit updates.

        **Raises:** [`trainq.BudgetError`][] if that does not pay for one chain.
        """
        chains = np.floor(cost / (self.steps * self.site_updates))
        if max_chains is not None:
            chains = np.minimum(chains, max_chains)
        if chains.max() < 1:
            raise BudgetError(
                f"{cost:.4g} unit updates do not pay for one chain of "
                f"{self.steps.min()} steps, which takes "
                f"{self.steps.min() * self.site_updates:.4g}."
            )
        error = self.bias2 + self.variance / np.maximum(chains, 1)
        return self._best(chains, np.where(chains >= 1, error, np.inf))
