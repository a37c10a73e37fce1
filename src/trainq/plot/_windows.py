"""Q against the window: as predicted, as it is, and as sampled."""

from collections.abc import Mapping, Sequence
from typing import SupportsIndex, get_args

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes

from .._checks import whole_number
from ..markov import AbstractKernel, Convention
from ..models import AbstractEnergyModel, AbstractStart, Stationary, VisibleLaw
from ..predictors import GradientSNR, QOperational, QStruct
from ..sampling import SampledSNR
from ._style import COLOURS, axes, mark_one, q_values, style


def windows(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: VisibleLaw,
    windows: Sequence[SupportsIndex] | Int[np.ndarray, " n_windows"],
    *,
    start: AbstractStart | Mapping[str, AbstractStart] = Stationary(),
    burn_in: SupportsIndex = 0,
    ax: Axes | None = None,
) -> Axes:
    """`Q` of one chain against the length of its window: the two conventions of
    [`trainq.QStruct`][], which are straight lines, and the exact curve of
    [`trainq.QOperational`][]. A grey line is at `Q = 1`, where the signal is as large
    as the error.

    All windows are one program, and so is each kind of start; windows or burn-ins that
    pass 1023 steps or another power of 32 are one more. From another start than the
    stationary one a window takes as many products with the chain as it has steps.

    **Arguments:**

    - `kernel`: the kernel that samples the model.
    - `model`: the model.
    - `data`: `(2**n_visible,)`, the law of the data.
    - `windows`: lengths of the window, in kernel steps, such as
        `np.geomspace(1, 1000, 30).astype(int)`.
    - `start`: where the chain starts: by default from its stationary law, which is what
        the conventions assume. For several curves, a start for each name.
    - `burn_in`: kernel steps that are dropped before.
    - `ax`: the axes to draw on; a new figure by default.

    **Returns:** the axes.

    **Raises:** `ValueError` for no window or no start, or a `Q` that is zero, infinite
    or not a number; and as both predictors do.

    !!! example

        ```python
        import jax
        import trainq as tq
        from trainq import plot

        model = tq.RBM(jax.random.normal(jax.random.key(0), (3, 2)))
        data = tq.visible_distribution(model.tempered(2))
        starts = {"stationary": tq.Stationary(), "uniform": tq.Uniform()}
        kernel, steps = tq.RandomScanGibbs(), [1, 3, 10, 30, 100, 300]
        ax = plot.windows(kernel, model, data, steps, start=starts)
        ```
    """
    steps = [whole_number("windows", window, of="kernel steps") for window in windows]
    if not steps:
        raise ValueError("windows has one length at least, but it is empty.")
    starts = start if isinstance(start, Mapping) else {type(start).__name__: start}
    if not starts:
        raise ValueError("start has a start for each name, but it is empty.")
    curves = {}
    for convention in get_args(Convention):
        # In proportion to the window: one solution serves them all.
        of_one = QStruct(kernel, 1, convention)(model, data).q
        curves[f"structural, {convention}"] = np.asarray(of_one) * np.array(steps)
    for name, law in starts.items():
        curves[f"exact, start: {name}"] = np.stack(
            [QOperational(kernel, k, burn_in, law)(model, data).q for k in steps]
        )
    curves = {name: q_values("Q", curve) for name, curve in curves.items()}
    ax = axes(ax)
    # The first of the exact curves is the black one.
    order = [1, 2, 0, *range(3, len(COLOURS))]
    for number, (name, curve) in enumerate(curves.items()):
        look = style(order[number % len(order)], marker="")
        ax.plot(steps, curve, **look, label=name)
    ax.set(xscale="log", yscale="log", xlabel="window, kernel steps")
    ax.set_ylabel("signal-to-noise of the gradient, Q")
    mark_one(ax)
    ax.legend()
    return ax


def sampled(
    sampled: SampledSNR | Sequence[SampledSNR],
    exact: GradientSNR | Sequence[GradientSNR] = (),
    *,
    confidence: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Sampled `Q` with its confidence interval, against the window, and the exact `Q`
    beside it.

    **Arguments:**

    - `sampled`: what [`trainq.sampling.QSampled`][] returned, for one window or more.
    - `exact`: what [`trainq.QOperational`][] returned, for the same windows or others;
        nothing by default.
    - `confidence`: of the intervals, between 0 and 1.
    - `ax`: the axes to draw on; a new figure by default.

    **Returns:** the axes.

    **Raises:** `ValueError` if nothing is sampled, for a batch, for a confidence that
    is not between 0 and 1, or where `Q` or an end of its interval is zero, infinite or
    not a number: too few replicates tell nothing of `Q`.

    !!! example

        ```python
        import jax
        import trainq as tq
        from trainq import plot

        model = tq.RBM(jax.random.normal(jax.random.key(0), (3, 2)))
        data = tq.visible_distribution(model.tempered(2))
        kernel, key = tq.RandomScanGibbs(), jax.random.key(1)
        exact = [tq.QOperational(kernel, k)(model, data) for k in (10, 90)]
        found = [tq.QSampled(kernel, k)(key, model, data) for k in (10, 90)]
        ax = plot.sampled(found, exact)
        ```
    """
    found = [sampled] if isinstance(sampled, SampledSNR) else list(sampled)
    known = [exact] if isinstance(exact, GradientSNR) else list(exact)
    if not found:
        raise ValueError("sampled has one result at least, but it is empty.")
    for name, results in (("sampled", found), ("exact", known)):
        if shapes := [one.q.shape for one in results if one.q.shape]:
            raise ValueError(
                f"{name} holds results of one model each, but one of a batch of shape "
                f"{shapes[0]} was given. Take one of it, by "
                "`jax.tree.map(lambda x: x[0], snr)`."
            )
    q = q_values("Q", np.stack([one.q for one in found]))
    ends = np.stack([one.interval(confidence) for one in found], axis=1)
    ends = q_values("the interval of Q", ends)
    ax = axes(ax)
    if known:
        known.sort(key=lambda one: one.window)
        curve = q_values("the exact Q", np.stack([one.q for one in known]))
        windows = [one.window for one in known]
        ax.plot(windows, curve, **style(0, marker="_"), label="exact")
    ax.errorbar(
        [one.window for one in found],
        q,
        np.abs(ends - q),
        color=COLOURS[
            4
        ],  # none of `windows` for up to two starts, beside which it goes
        fmt="o",
        ms=4,
        capsize=3,
        label=f"sampled, {100 * confidence:g} % interval",
    )
    ax.set(xscale="log", yscale="log", xlabel="window, kernel steps")
    ax.set_ylabel("signal-to-noise of the gradient, Q")
    mark_one(ax)
    ax.legend()
    return ax
