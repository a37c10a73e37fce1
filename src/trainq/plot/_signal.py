"""Where a gradient has its signal, and what kernels make of it at equal cost."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from ..markov import AbstractKernel, Convention
from ..models import (
    RBM,
    AbstractEnergyModel,
    BoltzmannMachine,
    Tempered,
    VisibleLaw,
    require_model,
)
from ..predictors import GradientSNR, QStruct
from ._style import COLOURS, axes, q_values, short


# Above it the numbers in the cells are too small to be read.
_MOST_NUMBERS = 8


def couplings(
    model: RBM | BoltzmannMachine | Tempered,
    snr: GradientSNR,
    *,
    ax: Axes | None = None,
) -> Axes:
    """The signal-to-noise ratio `Q_a = g_a² / E(ĝ_a - g_a)²` of each coupling, as a
    heat map on the matrix of weights.

    Colours are logarithmic. A line on the colour bar marks `Q_a = 1`, if it is in
    range: above it the signal of this coupling is larger than the error of one
    estimate. Cells of small matrices have their number in them. Grey is a coupling
    without a signal, and nothing is drawn where there is no coupling. Biases are left
    out.

    **Arguments:**

    - `model`: a [`trainq.RBM`][], with visible units as rows and hidden ones as
        columns, or a [`trainq.BoltzmannMachine`][], with its symmetric matrix; or one
        of these with a temperature.
    - `snr`: the [`trainq.GradientSNR`][] of this model, from any predictor.
    - `ax`: the axes to draw on; a new figure by default.

    **Returns:** the axes. The colour bar has axes of its own, in the same figure.

    **Raises:** `TypeError` for another model; `ValueError` if `snr` is a batch or has
    another number of parameters, or if a `Q_a` is infinite or not a number.

    !!! example

        ```python
        import jax
        import trainq as tq
        from trainq import plot

        model = tq.RBM(jax.random.normal(jax.random.key(0), (3, 2)))
        data = tq.visible_distribution(model.tempered(2))
        predictor = tq.QStruct(tq.RandomScanGibbs(), window=500)
        ax = plot.couplings(model, predictor(model, data))
        ax.figure.savefig("couplings.svg")
        ```
    """
    values = _matrix(model, snr)
    some = values[np.isfinite(values) & (values > 0)]
    low, high = (some.min(), some.max()) if some.size else (1.0, 1.0)
    if low == high:
        low, high = low / 2, high * 2
    rows, columns = values.shape
    is_new, ax = ax is None, axes(ax)
    if is_new:  # squares, and the names of the axes and a bar beside them
        side = min(0.7, 6 / columns, 4.5 / rows)
        figure: Any = ax.figure
        figure.set_size_inches(side * columns + 1.9, side * rows + 0.9)
    ax.set_facecolor("white")
    silent = np.where(values == 0, 0.0, np.nan)
    ax.pcolormesh(silent, cmap="Greys", vmin=-1, vmax=2)
    shown = np.where(values > 0, values, np.nan)
    mesh = ax.pcolormesh(shown, cmap="viridis", norm=LogNorm(low, high))
    ax.set_xticks(np.arange(columns) + 0.5, map(str, range(columns)))
    ax.set_yticks(np.arange(rows) + 0.5, map(str, range(rows)))
    ax.tick_params(length=0)
    ax.grid(False)
    ax.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
    if len(values) != model.n_units:
        ax.set(xlabel="hidden unit", ylabel="visible unit")
    else:
        ax.set(xlabel="unit", ylabel="unit")
    if max(rows, columns) <= _MOST_NUMBERS:
        for (i, j), q in np.ndenumerate(values):
            if np.isfinite(q):
                # Viridis ends in yellow: dark text in its upper half.
                dark = q == 0 or q >= np.sqrt(low * high)
                ax.text(
                    j + 0.5,
                    i + 0.5,
                    short(q),
                    color="black" if dark else "white",
                    ha="center",
                    va="center",
                    fontsize="small",
                )
    # As high as the map, whose shape is its own.
    beside = ax.inset_axes((1 + 0.2 / columns, 0, 0.25 / columns, 1))
    bar = ax.figure.colorbar(mesh, cax=beside, label="Q of each coupling")
    # Not 256 rectangles, between which a viewer may show seams.
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    if low < 1 < high:
        bar.ax.axhline(1, color="black", lw=1.5)
    return ax


def _matrix(
    model: AbstractEnergyModel, snr: GradientSNR
) -> Float[np.ndarray, "rows columns"]:
    """The ratio of each coupling, and not a number where there is none."""
    require_model(model)
    if isinstance(model, Tempered):
        return _matrix(model.model, snr)
    if not isinstance(model, RBM | BoltzmannMachine):
        raise TypeError(
            "model is a `trainq.RBM` or a `trainq.BoltzmannMachine`, whose couplings "
            f"are a matrix, but a {type(model).__name__} was given. For one that "
            "computes its couplings, give the machine that it makes to both."
        )
    if isinstance(model, RBM):
        parts = (model.weights, model.visible_bias, model.hidden_bias)
    else:
        parts = (model.couplings, model.bias)
    n_couplings, *n_biases = (part.size for part in parts if part is not None)
    size = n_couplings + sum(n_biases)
    if snr.parameter_q.shape != (size,):
        raise ValueError(
            f"snr has the {size} parameters of the model, but its `parameter_q` has "
            f"shape {snr.parameter_q.shape}. Of a batch take one, by "
            "`jax.tree.map(lambda x: x[0], snr)`; projections of a gradient, by "
            "`along`, belong to no coupling."
        )
    values = q_values("parameter_q", snr.parameter_q[:n_couplings], or_zero=True)
    if isinstance(model, RBM):
        return values.reshape(model.weights.shape)
    matrix = np.full((model.n_units, model.n_units), np.nan)
    first, second = model.edges.T
    matrix[first, second] = matrix[second, first] = values
    return matrix


def kernels(
    kernels: Mapping[str, AbstractKernel],
    model: AbstractEnergyModel,
    data: VisibleLaw,
    *,
    quantity: Literal["q", "noise"] = "q",
    convention: Convention = "sokal",
    ax: Axes | None = None,
) -> Axes:
    """Kernels at equal cost: what each makes of one update of a single unit.

    A step of one kernel is an update of one unit, a step of another one of a whole
    layer or of all of them. For long windows `Q` grows in proportion to the number of
    updates, so that `Q` per update compares them: with 1000 updates it is 1000 times as
    large. The noise is `E‖ĝ - g‖²` times the number of updates.

    **Arguments:**

    - `kernels`: a kernel for each name.
    - `model`: the model.
    - `data`: `(2**n_visible,)`, the law of the data.
    - `quantity`: `"q"`, more of which is better, or `"noise"`, less of which is.
    - `convention`: that of [`trainq.QStruct`][]. `"sokal"` is right for long windows;
        `"resolvent"` adds a noise that kernels with long steps get more of.
    - `ax`: the axes to draw on; a new figure by default.

    **Returns:** the axes.

    **Raises:** `ValueError` if no kernel is given, for another quantity, or a `Q` that
    is zero, infinite or not a number; and as [`trainq.QStruct`][] does.

    !!! example

        ```python
        import jax
        import trainq as tq
        from trainq import plot

        model = tq.RBM(jax.random.normal(jax.random.key(0), (3, 2)))
        data = tq.visible_distribution(model.tempered(2))
        some = {"Gibbs": tq.RandomScanGibbs()}
        some["two layers"] = tq.AlternatingBlockGibbs()
        ax = plot.kernels(some, model, data)
        ```
    """
    if not kernels:
        raise ValueError("kernels has a kernel for each name, but it is empty.")
    if quantity not in ("q", "noise"):
        raise ValueError(f'quantity is "q" or "noise", but {quantity!r} was given.')
    found = []
    for kernel in kernels.values():
        snr = QStruct(kernel, 1, convention)(model, data)
        cost = kernel.site_updates(model)
        found.append(snr.q / cost if quantity == "q" else snr.mse * cost)
    values = q_values("Q" if quantity == "q" else "the noise", np.stack(found))
    ax = axes(ax)
    bars = ax.barh(list(kernels), values, height=0.6, color=COLOURS[2])
    ax.bar_label(bars, labels=[*map(short, values)], padding=4)
    ax.invert_yaxis()
    ax.margins(x=0.25)
    ax.ticklabel_format(axis="x", scilimits=(-3, 4), useMathText=True)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(
        "Q per site update"
        if quantity == "q"
        else "noise E‖ĝ − g‖² × number of site updates"
    )
    return ax
