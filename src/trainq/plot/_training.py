"""Runs of training, and where they have come equally far."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes

from ._style import NEUTRAL, axes, positive, q_values, style


# Runs may differ in their number of steps.
Curve = Float[Array | np.ndarray, " _"]
_CROSSINGS = ("o", "D", "^", "v", "P")


def trajectories(
    kl: Mapping[str, Curve],
    q: Mapping[str, Curve] | None = None,
    *,
    crossings: Sequence[float] = (0.5, 0.25),
    ax: Axes | None = None,
) -> Axes:
    """Runs of training, with marks at equal progress: where the divergence first falls
    to some fractions of its start. There `Q` can be compared, which after equally many
    steps it cannot: a model that has learnt more has less signal left.

    One call draws the divergence, another one, with `q`, draws `Q` and the same marks.

    **Arguments:**

    - `kl`: the divergence of each run, by its name: `(steps,)`, nats, the first before
        any update.
    - `q`: `Q` of each run, by the same names: `(steps,)`, not a number where it was not
        recorded. Without it the divergence is drawn.
    - `crossings`: fractions of the first divergence, each between 0 and 1. A run that
        does not reach one has no mark there, and where `Q` was not recorded at the
        crossing there is none either.
    - `ax`: the axes to draw on; a new figure by default.

    **Returns:** the axes. Steps are counted from 1, on a logarithmic axis.

    **Raises:** `ValueError` if there are no runs, too many crossings, or shapes or
    names that do not fit; for a divergence that is not finite and positive, or a `Q`
    that is zero or infinite.

    !!! example

        ```python
        import numpy as np
        from trainq import plot

        steps = np.arange(200)
        kl = {"slow": np.exp(-steps / 90), "fast": np.exp(-steps / 40)}
        q = {name: 3 * curve for name, curve in kl.items()}
        ax = plot.trajectories(kl, q)
        ```
    """
    if not kl or any(np.ndim(curve) != 1 or not len(curve) for curve in kl.values()):
        raise ValueError(
            "kl has a curve of shape (steps,) for each run, but shapes "
            f"{[np.shape(curve) for curve in kl.values()]} were given."
        )
    if q is not None and {k: np.shape(x) for k, x in q.items()} != {
        k: np.shape(x) for k, x in kl.items()
    }:
        raise ValueError(
            "q has the runs and the steps of kl, but "
            f"{ {k: np.shape(x) for k, x in q.items()} } was given for "
            f"{ {k: np.shape(x) for k, x in kl.items()} }. Where Q was not recorded it "
            "is not a number."
        )
    if len(crossings) > len(_CROSSINGS) or not all(0 < x < 1 for x in crossings):
        raise ValueError(
            f"crossings has at most {len(_CROSSINGS)} fractions between 0 and 1, but "
            f"{crossings} was given."
        )
    ax = axes(ax)
    for number, (name, divergence) in enumerate(kl.items()):
        divergence = positive(f"kl of {name}", divergence)
        y = divergence if q is None else np.asarray(q[name], float)
        there = ~np.isnan(y)
        q_values(f"q of {name}", y[there])
        look = style(number, marker="")
        step = 1 + np.arange(len(y))
        ax.plot(step[there], y[there], **look, label=name)
        for fraction, marker in zip(crossings, _CROSSINGS, strict=False):
            reached = divergence <= fraction * divergence[0]
            at = int(np.argmax(reached))
            if reached.any() and there[at]:
                mark = {"marker": marker, "mfc": "white", "zorder": 5}
                ax.plot(step[at], y[at], c=look["c"], **mark)
    for fraction, marker in zip(crossings, _CROSSINGS, strict=False):
        label = f"KL at {100 * fraction:g} % of its start"
        ax.plot([], [], c=NEUTRAL, ls="", marker=marker, mfc="white", label=label)
    ax.set(xscale="log", yscale="log", xlabel="training step, from 1")
    ax.set_ylabel(
        "KL divergence, nats" if q is None else "signal-to-noise of the gradient, Q"
    )
    ax.legend()
    return ax
