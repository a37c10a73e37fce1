"""What all figures share: colours, axes that may be given, and numbers to draw.

Nothing here sets a default of Matplotlib: fonts, sizes and frames are the reader's.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .._checks import require_concrete


COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of Okabe and Ito, told apart by readers with any colour vision; yellow is
left out, which does not show on white."""
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
"""Dashes, in the order of the colours: in print they do the same."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
"""Markers, in the order of the colours."""
NEUTRAL = "#777777"


def style(index: int, **changes: Any) -> dict[str, Any]:
    """Colour, dashes and marker of a line.

    **Arguments:**

    - `index`: the number of the line. The first one is black; there are seven, and then
        those after the first come again.
    - `changes`: other keywords, which are added, or stand in their place.

    **Returns:** keywords of `Axes.plot`.

    !!! example

        ```python
        from trainq import plot

        assert plot.style(0)["c"] == "#000000"
        assert plot.style(7) == plot.style(1)
        ```
    """
    place = index and 1 + (index - 1) % (len(COLOURS) - 1)
    return {
        "c": COLOURS[place],
        "ls": DASHES[place],
        "marker": MARKERS[place],
        **changes,
    }


def axes(ax: Axes | None) -> Axes:
    """The given axes, or those of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # it chooses a backend, which only this needs

    return plt.subplots(layout="constrained")[1]


def finite(what: str, values: Any, hint: str = "") -> np.ndarray:
    """Numbers of NumPy, having checked that they are there, and finite."""
    require_concrete("A figure", **{what: values})
    values = np.asarray(values, float)
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"{what} has finite values, but {values[bad][0]} was given, as {bad.sum()} "
            f"of {values.size}. {hint}".rstrip()
        )
    return values


def positive(what: str, values: Any, hint: str = "") -> np.ndarray:
    """Numbers for a logarithmic axis, having checked that they are finite and
    positive."""
    values = finite(what, values, hint)
    if (values <= 0).any():
        raise ValueError(
            f"{what} is drawn on a logarithmic axis and is positive, but "
            f"{values[values <= 0][0]:g} was given. {hint}".rstrip()
        )
    return values


def q_values(what: str, values: Any, *, or_zero: bool = False) -> np.ndarray:
    """Signal-to-noise ratios for a logarithmic axis, having checked that they are."""
    hint = (
        "Q is zero where there is no signal, as for data that are the law of the "
        "model, and infinite where there is no noise."
    )
    return (finite if or_zero else positive)(what, values, hint)


def short(x: float) -> str:
    """A number in two digits, or all three of one in the hundreds."""
    return f"{x:.{3 if 99.5 <= x < 1000 else 2}g}"


def mark_one(ax: Axes) -> None:
    """A line at Q = 1, if that is in sight: above it one estimate points the right
    way."""
    low, high = ax.get_ylim()
    ax.axhline(1, color=NEUTRAL, lw=0.8, zorder=1)
    ax.set_ylim(low, high)
