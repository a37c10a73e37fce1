"""How many burn-in steps, steps and chains an estimate of the gradient needs."""

from collections.abc import Callable, Iterable, Mapping
from typing import SupportsIndex

import numpy as np

from .._checks import positive_number
from .._show import AbstractShown, Table
from ..markov import AbstractKernel
from ._error_table import Budget, BudgetError, ErrorTable


# Numbers of chains around whose cheapest budgets a table is refined, and how much finer
# it gets at a time.
_CENTRES = 16
_FINER = 4


def plan_budget(
    table: ErrorTable, target_q: float, max_chains: SupportsIndex | None = None
) -> Budget:
    """The cheapest burn-in, window and number of chains whose gradient reaches a `Q`.

    From an exact table it is refined down to single steps around the best of its grid.
    From a calibration it is one of the entries of the table, and reaches the target
    with a confidence of 95 %.

    **Arguments:**

    - `table`: what [`trainq.sampling.exact_errors`][] returns for a model of up to 14
        units, or [`trainq.sampling.calibrated_errors`][] for any model.
    - `target_q`: the `Q` to reach.
    - `max_chains`: the largest number of chains, if there is one.

    **Returns:** a [`trainq.sampling.Budget`][].

    **Raises:** [`trainq.sampling.BudgetError`][], a `ValueError`, if the target cannot
    be reached, saying what stands in the way.

    !!! example

        ```python
        kernel = tq.AlternatingBlockGibbs()
        table = tq.sampling.exact_errors(kernel, model, data)
        print(tq.plan_budget(table, target_q=10))
        ```
    """
    found = table.cheapest_by_chains(target_q, max_chains)
    if table.finer is None:
        return found[0]
    # For some number of chains M the cost, M (burn-in + window), is least at one place,
    # and smooth around it but for whole steps: it is found by looking around the best
    # so far, at distances that shrink down to one step. That has to be done for several
    # M, since a grid of times does not tell which of them wins between its times: their
    # costs are nearly the same, and M is whole.
    stride = max(max(b.burn_in, b.window) for b in found[:_CENTRES])
    while stride > 1:
        stride = -(-stride // _FINER)
        finer = table.finer(*_around(found, stride, int(table.steps.max())))
        found = _best_by_chains(
            [*found, *finer.cheapest_by_chains(target_q, max_chains)]
        )
    return found[0]


def _around(
    budgets: list[Budget], stride: int, max_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Burn-ins and windows up to four strides away from those of some budgets."""
    # As many of them, always: a table of another size is compiled anew.
    centres = (budgets * _CENTRES)[:_CENTRES]
    near = stride * np.arange(-_FINER, _FINER + 1)
    burn_ins = np.add.outer([b.burn_in for b in centres], near).clip(0, max_steps)
    windows = np.add.outer([b.window for b in centres], near).clip(1, max_steps)
    return np.sort(burn_ins, axis=None), np.sort(windows, axis=None)


def _best_by_chains(budgets: Iterable[Budget]) -> list[Budget]:
    """The cheapest for each number of chains, the cheapest of all first; of equal costs
    the one with the larger `Q`."""
    best: dict[int, Budget] = {}
    for budget in sorted(budgets, key=lambda b: (b.cost, -b.q)):
        best.setdefault(budget.n_chains, budget)
    return list(best.values())


class Comparison(AbstractShown):
    """What kernels need for the same target, and the `Q` that each of them reaches for
    the cost of the cheapest. A kernel that does not reach it has a reason."""

    target_q: float
    """The `Q` to reach."""
    cost: float
    """What the cheapest kernel needs, in single-unit updates."""
    budgets: dict[str, Budget | str]
    """What each kernel needs, by name, or why it does not reach the target."""
    at_equal_cost: dict[str, Budget | str]
    """The best that each kernel does for `cost`, by name, or why it does nothing."""

    def _shown(self) -> list[str | Table]:
        rows: Table = [("kernel", "cheapest", "cost", "at equal cost", "Q")]
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
        why = [f"{k}: {b}" for k, b in self.budgets.items() if isinstance(b, str)]
        title = (
            f"Q = {self.target_q:g}, on a grid of steps; at equal cost, at most "
            f"{self.cost:.4g} unit updates"
        )
        return [title, rows, *why]


def compare_budgets(
    kernels: Mapping[str, AbstractKernel],
    errors: Callable[[AbstractKernel], ErrorTable],
    target_q: float,
    max_chains: SupportsIndex | None = None,
) -> Comparison:
    """Kernels side by side: what each of them needs to reach a `Q`, and the `Q` that it
    reaches for what the cheapest of them costs. All numbers are entries of the tables.

    **Arguments:**

    - `kernels`: kernels by name.
    - `errors`: takes a kernel and returns its table of errors. A kernel whose table is
        refused, as that of a calibration which has not mixed, is out of reach.
    - `target_q`, `max_chains`: as for [`trainq.plan_budget`][].

    **Returns:** a [`trainq.sampling.Comparison`][].

    **Raises:** [`trainq.sampling.BudgetError`][] if none of them reaches the target;
    `ValueError` for kernels without names.

    !!! example

        ```python
        kernels = {
            "single": tq.RandomScanGibbs(),
            "blocks": tq.AlternatingBlockGibbs(),
        }


        def errors(kernel):
            return tq.sampling.exact_errors(kernel, model, data)


        print(tq.sampling.compare_budgets(kernels, errors, target_q=10))
        ```
    """
    if not isinstance(kernels, Mapping) or not kernels:
        raise ValueError(
            'kernels are given by name, as in {"Gibbs": tq.RandomScanGibbs()}, but '
            f"{kernels!r} was given."
        )
    target_q = positive_number("target_q", target_q)
    tables: dict[str, ErrorTable] = {}
    budgets: dict[str, Budget | str] = {}
    for name, kernel in kernels.items():
        try:
            tables[name] = errors(kernel)
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
