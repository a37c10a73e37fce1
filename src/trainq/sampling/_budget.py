"""How many burn-in steps, steps and chains an estimate of the gradient needs."""

from collections.abc import Mapping
from typing import Any, SupportsIndex

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Key, Num

from ..markov import AbstractKernel
from ..models import AbstractEnergyModel
from ..predictors._qoperational import Start
from ._error_table import Budget, BudgetError, ErrorTable, checked_target
from ._tabulate import checked_sizes, error_table, exact_table, is_named


# Numbers of chains around whose cheapest budgets the grid is refined.
_STARTS = 16


def plan_budget(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: Float[Array, " visible_states"] | Num[Array, "samples n_visible"],
    target_q: float,
    *,
    start: Start | Num[Array, " start"] = "uniform",
    batch: SupportsIndex | None = None,
    max_steps: SupportsIndex = 10_000,
    max_chains: SupportsIndex | None = None,
    key: Key[Array, ""] | None = None,
    replicates: SupportsIndex = 256,
    progress: bool = False,
) -> Budget:
    """The cheapest burn-in, window and number of chains whose gradient reaches a `Q`.

    Exactly, for a model of up to 14 units: on a grid of burn-ins and windows, refined
    down to single steps around its best for several numbers of chains. With a key, for
    any model, from a calibration run, on the grid alone: the target is then reached
    with a confidence of 95 %.

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
    target_q, max_chains = checked_target(target_q, max_chains)
    max_steps, batch = checked_sizes(max_steps, batch)
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
    found = table.cheapest_by_chains(target_q, max_chains)
    if key is not None:
        return found[0]
    # Between the times of the grid, finer and finer, around the best of each number of
    # chains that may still win.
    stride = max(max(b.burn_in, b.window) for b in found[:_STARTS])
    while stride > 1:
        stride = -(-stride // 4)
        # As many times, always: a table of another size is compiled anew.
        centres = (found * _STARTS)[:_STARTS]
        near = stride * np.arange(-4, 5)
        burn_ins = np.add.outer([b.burn_in for b in centres], near).clip(0, max_steps)
        windows = np.add.outer([b.window for b in centres], near).clip(1, max_steps)
        if is_named(start, "stationary"):
            burn_ins = np.zeros(1, int)
        finer = exact_table(
            kernel,
            model,
            data,
            start,
            batch,
            np.sort(burn_ins, axis=None),
            np.sort(windows, axis=None),
            max_steps,
        )
        best: dict[int, Budget] = {}
        for budget in [*found, *finer.cheapest_by_chains(target_q, max_chains)]:
            other = best.setdefault(budget.chains, budget)
            best[budget.chains] = min(budget, other, key=_cost)
        found = sorted(best.values(), key=_cost)
    return found[0]


def _cost(budget: Budget) -> tuple[float, float]:
    """What budgets are sorted by: of equal costs, the larger `Q` comes first."""
    return budget.cost, -budget.q


class Comparison(eqx.Module):
    """What kernels need for the same target, and the `Q` that each of them reaches for
    the cost of the cheapest. A kernel that does not reach it has a reason."""

    target_q: float
    cost: float
    budgets: dict[str, Budget | str]
    at_equal_cost: dict[str, Budget | str]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = []
        rows.append(("kernel", "cheapest", "cost", "at equal cost", "Q"))
        for name, budget in self.budgets.items():
            equal = self.at_equal_cost[name]
            row = (name, "out of reach", "-")
            if isinstance(budget, Budget):
                row = (name, budget.plan, f"{budget.cost:.4g}")
            spent = ("-", "-")
            if isinstance(equal, Budget):
                low = "" if equal.q_low is None else f" (at least {equal.q_low:.4g})"
                spent = (equal.plan, f"{equal.q:.4g}{low}")
            rows.append(row + spent)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            for row in rows
        ]
        why = [f"{k}: {b}" for k, b in self.budgets.items() if isinstance(b, str)]
        title = (
            f"Q = {self.target_q:g}, on a grid of steps; at equal cost, at most "
            f"{self.cost:.4g} unit updates"
        )
        return "\n".join([title, *(line.rstrip() for line in lines), *why])


def compare_budgets(
    kernels: Mapping[str, AbstractKernel],
    model: AbstractEnergyModel,
    data: Float[Array, " visible_states"] | Num[Array, "samples n_visible"],
    target_q: float,
    *,
    max_chains: SupportsIndex | None = None,
    **options: Any,
) -> Comparison:
    """Kernels side by side: what each of them needs to reach a `Q`, and the `Q` that it
    reaches for what the cheapest of them costs.

    **Arguments:** `kernels` by name; the rest as for [`trainq.plan_budget`][]. All
    numbers are those of the grid of [`trainq.sampling.error_table`][].

    **Raises:** [`trainq.sampling.BudgetError`][] if none of them reaches the target.
    """
    if not isinstance(kernels, Mapping) or not kernels:
        raise ValueError(
            'kernels are given by name, as in {"Gibbs": tq.RandomScanGibbs()}, but '
            f"{kernels!r} was given."
        )
    target_q, max_chains = checked_target(target_q, max_chains)
    tables: dict[str, ErrorTable] = {}
    budgets: dict[str, Budget | str] = {}
    for name, kernel in kernels.items():
        try:
            tables[name] = error_table(kernel, model, data, **options)
            budgets[name] = tables[name].cheapest(target_q, max_chains)
        except BudgetError as error:
            budgets[name] = str(error)
    costs = [budget.cost for budget in budgets.values() if isinstance(budget, Budget)]
    if not costs:
        why = "\n".join(f"{name}: {reason}" for name, reason in budgets.items())
        raise BudgetError(f"No kernel reaches Q = {target_q:.4g}.\n{why}")
    equal = dict(budgets)  # of a kernel without a table, its reason
    for name, table in tables.items():
        try:
            equal[name] = table.best(min(costs), max_chains)
        except BudgetError as error:
            equal[name] = str(error)
    return Comparison(target_q, min(costs), budgets, equal)
