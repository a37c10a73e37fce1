"""Tables of the error of the gradient, and budgets read off them."""

import math
from collections.abc import Callable
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from .._checks import positive_number, whole_number
from .._show import AbstractShown, Table, count, number
from ._statistics import jackknife_error, student_quantile


# With which a calibration reaches its target.
_CONFIDENCE = 0.95
_GROWTH = 4 / 3


class BudgetError(ValueError):
    """No number of steps and chains within the limits reaches the target."""


class Budget(AbstractShown):
    """Numbers of burn-in steps, steps of the window and chains; the `Q` of the gradient
    estimated from them; and their cost in single-unit updates.

    If they come from a calibration run, `Q` is known with a confidence.
    """

    burn_in: int
    """Kernel steps of each chain that are dropped."""
    window: int
    """Kernel steps of each chain that are averaged over."""
    n_chains: int
    """The number of independent chains."""
    q: float
    """The `Q` of the gradient."""
    cost: float
    """Single-unit updates, of all chains together."""
    q_low: float | None = None
    """What `Q` is at least, with a confidence of 95 %; None where `q` is exact."""

    @property
    def plan(self) -> str:
        """The numbers in words."""
        chains = count(self.n_chains, "chain")
        return f"burn-in {self.burn_in}, window {self.window}, {chains}"

    def _shown(self) -> list[str | Table]:
        text = f"{self.plan}: Q = {self.q:.4g} for {self.cost:.4g} unit updates"
        if self.q_low is not None:
            text += f" (calibrated: at least {self.q_low:.4g} with 95 % confidence)"
        return [text]


class TableJackknife(AbstractShown):
    """What a calibration finds without one of its replicates, for each of them: the
    scatter of whatever is computed from these is the error of the same from the whole
    table."""

    bias2: Float[np.ndarray, "replicates candidates"]
    """The squared bias of the start, without each replicate."""
    variance: Float[np.ndarray, "replicates candidates"]
    """The variance from one chain, without each replicate."""
    signal: Float[np.ndarray, " replicates"]
    """`‖g‖²`, without each replicate."""


class ErrorTable(AbstractShown):
    """The error of an estimate of the gradient for many burn-ins and windows: with `M`
    chains it is `E‖ĝ - g‖² = bias2 + variance / M + data_variance`.

    From a calibration run every entry is an estimate, and `bias2` one on the large
    side: what its chains can tell.
    """

    burn_in: Int[np.ndarray, " candidates"]
    """Kernel steps that are dropped."""
    window: Int[np.ndarray, " candidates"]
    """Kernel steps that are averaged over."""
    bias2: Float[np.ndarray, " candidates"]
    """The squared bias of the start, and of the device if there is one."""
    variance: Float[np.ndarray, " candidates"]
    """The variance from one chain."""
    signal: float
    """`‖g‖²`."""
    data_variance: float
    """The variance from the batch of data."""
    site_updates: float
    """Single-unit updates in one kernel step."""
    finer: (
        Callable[
            [Int[np.ndarray, " burn_ins"], Int[np.ndarray, " windows"]], "ErrorTable"
        ]
        | None
    ) = None
    """Of an exact table, makes one for other burn-ins and windows, `(burn_ins,)` and
    `(windows,)` kernel steps in increasing order."""
    jackknife: TableJackknife | None = None
    """Of a calibration, what gives the errors of its entries."""
    device_bias2: float = 0.0
    """The squared bias that no burn-in and no window takes away, because what runs is
    not the model; of a calibration an estimate without bias, or zero where that is
    negative."""

    @property
    def q_limit(self) -> float:
        """What `Q` cannot exceed in the long run, because of the device: infinite
        without one."""
        return self.signal / self.device_bias2 if self.device_bias2 else math.inf

    def _shown(self) -> list[str | Table]:
        how = "exact" if self.jackknife is None else "from a calibration"
        text = (
            f"errors for {len(self.steps)} pairs of burn-in and window of up to "
            f"{self.steps.max()} steps, {how}: signal {self.signal:.4g}, variance of "
            f"the data {self.data_variance:.4g}; of one chain squared bias "
            f"{number(self.bias2)}, variance {number(self.variance)}"
        )
        if self.device_bias2:
            about = "" if self.jackknife is None else "about "
            text += f"; on this device Q cannot exceed {about}{self.q_limit:.4g}"
            text += " in the long run"
        return [text]

    @property
    def steps(self) -> Int[np.ndarray, " candidates"]:
        """The steps of one chain, burn-in and window."""
        return self.burn_in + self.window

    def cheapest(
        self, target_q: float, max_chains: SupportsIndex | None = None
    ) -> Budget:
        """The budget of the least cost that reaches a target, among the entries of the
        table: in a calibration, with `q_low`.

        **Arguments:**

        - `target_q`: the `Q` to reach.
        - `max_chains`: the largest number of chains, if there is one.

        **Returns:** a [`trainq.sampling.Budget`][].

        **Raises:** [`trainq.sampling.BudgetError`][] if there is none, saying why.
        """
        return self.cheapest_by_chains(target_q, max_chains)[0]

    def cheapest_by_chains(
        self, target_q: float, max_chains: SupportsIndex | None = None
    ) -> list[Budget]:
        """The budget of the least cost that reaches a target for each number of chains
        that one does, the cheapest first.

        **Raises:** as `cheapest`.
        """
        target_q = positive_number("target_q", target_q)
        max_chains = _checked_limit(max_chains)
        self._require_signal()
        left = self.signal / target_q - self.data_variance
        if left <= 0:
            raise BudgetError(
                "The batch of data alone limits Q to "
                f"{self.signal / self.data_variance:.4g}, below {target_q:.4g}: use a "
                "larger batch."
            )
        chains = self._needed(target_q)
        if np.isinf(chains).all():
            low = self._lower(np.full(len(self.steps), np.inf))
            if self.signal <= target_q * (self.device_bias2 + self.data_variance):
                raise BudgetError(
                    "The device is not the model: its bias limits Q to "
                    f"{self.q_limit:.4g} in the long run, and Q = {target_q:.4g} is "
                    f"out of reach within {self.steps.max()} steps. No window and no "
                    "number of chains helps: mend the device, or ask for less."
                    + self._advice
                )
            raise BudgetError(
                f"The bias of the start limits Q to {low.max():.4g} within "
                f"{self.steps.max()} steps, below {target_q:.4g}, and more chains do "
                "not help: allow more steps, or use a kernel that mixes faster."
                + self._advice
            )
        if max_chains is not None and chains.min() > max_chains:
            low = self._lower(np.full(len(self.steps), float(max_chains)))
            raise BudgetError(
                f"max_chains={max_chains} limits Q to {low.max():.4g}, below "
                f"{target_q:.4g}, within {self.steps.max()} steps: allow more of "
                "either." + self._advice
            )
        if max_chains is not None:
            chains = np.where(chains <= max_chains, chains, np.inf)
        # Of equal costs, the one with the smallest error.
        order = np.lexsort((self._errors(chains), chains * self.steps))
        _, first = np.unique(chains[order], return_index=True)
        best = order[np.sort(first)]
        return [
            self._budget(i, chains) for i in best.tolist() if np.isfinite(chains[i])
        ]

    def best(self, cost: float, max_chains: SupportsIndex | None = None) -> Budget:
        """The budget of the largest `Q` for at most some cost.

        **Arguments:**

        - `cost`: what may be spent, in single-unit updates.
        - `max_chains`: the largest number of chains, if there is one.

        **Returns:** a [`trainq.sampling.Budget`][].

        **Raises:** [`trainq.sampling.BudgetError`][] if it does not pay for one chain.
        """
        cost = positive_number("cost", cost, "unit updates")
        max_chains = _checked_limit(max_chains)
        self._require_signal()
        chains = np.floor(cost / (self.steps * self.site_updates) * (1 + 1e-12))
        if max_chains is not None:
            chains = np.minimum(chains, max_chains)
        if chains.max() < 1:
            least = self.steps.min() * self.site_updates
            raise BudgetError(
                f"{cost:.4g} unit updates do not pay for one chain, which takes at "
                f"least {least:.4g}."
            )
        error = np.where(chains >= 1, self._errors(np.maximum(chains, 1)), np.inf)
        return self._budget(int(np.argmin(error)), chains)

    def _require_signal(self) -> None:
        signals = [] if self.jackknife is None else self.jackknife.signal
        if min([self.signal, *signals]) <= 0:
            raise BudgetError(
                "The gradient is zero, or not told from zero: Q is then zero for any "
                "number of samples." + self._advice
            )

    @property
    def _advice(self) -> str:
        if self.jackknife is None:
            return ""
        return " This comes from a calibration, and more replicates tell more."

    def _errors(self, chains: np.ndarray) -> np.ndarray:
        return self.bias2 + self.variance / chains + self.data_variance

    def _q(self, chains: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return self.signal / self._errors(chains)

    def _lower(self, chains: np.ndarray) -> np.ndarray:
        """What the `Q` of each candidate with its number of chains is at least: one
        side of an interval by Student's `t` on the logarithm."""
        q = self._q(chains)
        if self.jackknife is None:
            return q
        without = self.jackknife
        error = without.bias2 + without.variance / chains + self.data_variance
        # Where a replicate says that there is no error at all, nothing is known of it.
        known = np.all(error > 0, axis=0)
        log_q = np.log(without.signal)[:, None] - np.log(np.where(known, error, 1))
        reach = student_quantile(_CONFIDENCE, len(without.signal) - 1)
        return np.where(known, q, 0) * np.exp(-reach * jackknife_error(log_q))

    def _needed(self, target_q: float) -> np.ndarray:
        """The smallest number of chains with which each candidate reaches a target;
        infinite if none does."""
        # M chains reach Q where signal / Q >= bias² + variance / M + data variance. In
        # a calibration the lower end of the interval has to reach it, and so Q itself
        # has to be above by their ratio. This depends on M, but little: some rounds
        # settle it.
        target = np.full(len(self.steps), target_q)
        chains = low = np.zeros(len(self.steps))
        for _ in range(1 if self.jackknife is None else 20):
            spare = self.signal / target - self.data_variance - self.bias2
            needed = self.variance / np.where(spare > 0, spare, 1)
            needed = np.ceil(needed * (1 - 1e-12))  # rounding asks for no chain more
            chains = np.where(spare > 0, np.maximum(needed, 1), np.inf)
            low = self._lower(chains)
            above = np.where(low > 0, self._q(chains), np.inf)
            target = target_q * above / np.where(low > 0, low, 1)
        return np.where(low >= target_q * (1 - 1e-9), chains, np.inf)

    def _budget(self, i: int, chains: np.ndarray) -> Budget:
        """The budget of one candidate."""
        n_chains = int(chains[i])
        chains = np.maximum(chains, 1)
        low = None if self.jackknife is None else float(self._lower(chains)[i])
        return Budget(
            burn_in=int(self.burn_in[i]),
            window=int(self.window[i]),
            n_chains=n_chains,
            q=float(self._q(chains)[i]),
            cost=float(n_chains * self.steps[i] * self.site_updates),
            q_low=low,
        )


def _checked_limit(max_chains: SupportsIndex | None) -> int | None:
    return None if max_chains is None else whole_number("max_chains", max_chains)


def checked_sizes(
    max_steps: SupportsIndex, batch: SupportsIndex | None
) -> tuple[int, int | None]:
    """Return the numbers that set the size of a table as Python numbers, having checked
    them."""
    max_steps = whole_number("max_steps", max_steps, of="kernel steps")
    if max_steps >= 2**31:
        raise ValueError(f"max_steps is below 2**31, but {max_steps} was given.")
    return max_steps, None if batch is None else whole_number("batch", batch)


def time_grid(max_steps: int) -> Int[np.ndarray, " times"]:
    """Times from 1 to `max_steps` that grow by about a third."""
    powers = _GROWTH ** np.arange(math.ceil(math.log(max_steps, _GROWTH)) + 1)
    times = np.append(np.round(powers), max_steps).astype(int)
    return np.unique(times[times <= max_steps])
