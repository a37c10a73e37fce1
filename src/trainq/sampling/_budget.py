"""How many burn-in steps, steps and chains an estimate of the gradient needs."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Key, Num

from ..markov import AbstractKernel
from ..models import AbstractEnergyModel
from ..predictors._qoperational import Start
from ._error_table import Budget, BudgetError, error_table, exact_table, is_named


def plan_budget(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: Float[Array, " visible_states"] | Num[Array, "samples n_visible"],
    target_q: float,
    *,
    start: Start | Num[Array, " start"] = "uniform",
    batch: int | None = None,
    max_steps: int = 10_000,
    max_chains: int | None = None,
    key: Key[Array, ""] | None = None,
    replicates: int = 256,
    progress: bool = False,
) -> Budget:
    """The cheapest burn-in, window and number of chains whose gradient reaches a `Q`.

    Exactly, for a model of up to 14 units: numbers are searched for on a grid, and then
    one by one near the best of the grid, which may miss the cheapest of all by some
    percent. With a key, for any model, from a calibration
    run, on the grid alone.

    **Arguments:** those of [`trainq.sampling.error_table`][], and

    - `target_q`: the `Q` to reach.
    - `max_chains`: the largest number of chains, if there is one.

    **Returns:** a [`trainq.sampling.Budget`][].

    **Raises:** [`trainq.sampling.BudgetError`][], a `ValueError`, if the target cannot
    be reached, saying what stands in the way; and as `error_table`.

    !!! example

        ```python
        print(tq.plan_budget(tq.AlternatingBlockGibbs(), model, data, target_q=10))
        ```
    """
    table = error_table(
        kernel,
        model,
        data,
        start=start,
        batch=batch,
        max_steps=max_steps,
        key=key,
        replicates=replicates,
        progress=progress,
    )
    best = table.cheapest(target_q, max_chains)
    if key is not None:
        return best
    # Between the times of the grid, finer and finer.
    stride = max(best.burn_in, best.window)
    while stride > 1:
        stride = -(-stride // 4)
        burn_ins = _around(best.burn_in, stride, 0, max_steps)
        if is_named(start, "stationary"):
            burn_ins = np.zeros(1, int)
        windows = _around(best.window, stride, 1, max_steps)
        finer = exact_table(
            kernel, model, data, start, batch, burn_ins, windows, max_steps
        )
        found = finer.cheapest(target_q, max_chains)
        if found.cost < best.cost:
            best = found
    return best


class Comparison(eqx.Module):
    """What kernels need for the same target, and the `Q` that each of them reaches for
    the cost of the cheapest. A kernel that does not reach it has a reason."""

    target_q: float
    cost: float
    budgets: dict[str, Budget | str]
    at_equal_cost: dict[str, Budget | str]

    def __str__(self) -> str:
        head = ("kernel", "burn-in", "window", "chains", "cost", "Q at equal cost")
        rows: list[tuple[str, ...]] = [head]
        for name, budget in self.budgets.items():
            equal = self.at_equal_cost[name]
            q = f"{equal.q:.4g}" if isinstance(equal, Budget) else "-"
            if isinstance(budget, Budget):
                numbers = (budget.burn_in, budget.window, budget.chains)
                rows.append((name, *map(str, numbers), f"{budget.cost:.4g}", q))
            else:
                rows.append((name, "-", "-", "-", "out of reach", q))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            for row in rows
        ]
        why = [f"{k}: {b}" for k, b in self.budgets.items() if isinstance(b, str)]
        title = f"Q = {self.target_q:g}; equal cost is {self.cost:.4g} unit updates"
        return "\n".join([title, *(line.rstrip() for line in lines), *why])


def compare_budgets(
    kernels: Mapping[str, AbstractKernel],
    model: AbstractEnergyModel,
    data: Float[Array, " visible_states"] | Num[Array, "samples n_visible"],
    target_q: float,
    *,
    max_chains: int | None = None,
    **options: Any,
) -> Comparison:
    """Kernels side by side: what each of them needs to reach a `Q`, and the `Q` that it
    reaches for what the cheapest of them costs.

    **Arguments:** `kernels` by name; the rest as for [`trainq.plan_budget`][]. All
    numbers are those of the grid of [`trainq.sampling.error_table`][].

    **Raises:** [`trainq.sampling.BudgetError`][] if none of them reaches the target.
    """
    if not kernels:
        raise ValueError("At least one kernel is needed, but none was given.")
    tables = {k: error_table(v, model, data, **options) for k, v in kernels.items()}
    budgets: dict[str, Budget | str] = {}
    for name, table in tables.items():
        try:
            budgets[name] = table.cheapest(target_q, max_chains)
        except BudgetError as error:
            budgets[name] = str(error)
    costs = [budget.cost for budget in budgets.values() if isinstance(budget, Budget)]
    if not costs:
        why = "\n".join(f"{name}: {reason}" for name, reason in budgets.items())
        raise BudgetError(f"No kernel reaches Q = {target_q:.4g}.\n{why}")
    equal: dict[str, Budget | str] = {}
    for name, table in tables.items():
        try:
            equal[name] = table.best(min(costs), max_chains)
        except BudgetError as error:
            equal[name] = str(error)
    return Comparison(target_q, min(costs), budgets, equal)


def _around(centre: int, stride: int, least: int, most: int) -> np.ndarray:
    """Nine times, always: a table of another size is compiled anew."""
    return np.clip(centre + stride * np.arange(-4, 5), least, most)
