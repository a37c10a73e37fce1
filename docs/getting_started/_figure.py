"""The figure of the page "Getting started": Q against the window.

The model, the data and the kernel are those of the page: its program is run first. Run
`python docs/getting_started/_figure.py` after a change of either.
"""

import hashlib
import re
import sys
from functools import partial
from pathlib import Path

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import trainq as tq


HERE = Path(__file__).parent
PAGE = HERE.with_suffix(".md")
SWEEPS = np.geomspace(0.5, 500, 25)
SAMPLED = (1, 5, 25, 125, 500)


def program() -> str:
    """The first program of the page."""
    found = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert found is not None
    return found[1]


def draw(model: tq.RBM, kernel: tq.RandomScanGibbs, data: jax.Array) -> Figure:
    steps = [kernel.steps(model, sweeps) for sweeps in SWEEPS]
    x = np.array(steps) / model.n_units
    figure = Figure(figsize=(6.4, 3.8), layout="constrained", facecolor="white")
    axis = figure.subplots()
    sokal = partial(tq.QStruct, convention="sokal")
    lines = (
        (tq.QStruct, "--", "#D55E00", "predicted, noise 2 T_O / K"),
        (sokal, ":", "#E69F00", "predicted, noise (2 T_O − V) / K"),
        (tq.QOperational, "-", "black", "exact, uniform start"),
    )
    for predictor, style, colour, label in lines:
        q = [predictor(kernel, k)(model, data).q for k in steps]
        axis.plot(x, q, style, c=colour, label=label)
    for index, sweeps in enumerate(SAMPLED):
        estimate = tq.QSampled(kernel, kernel.steps(model, sweeps))
        found = estimate(jax.random.key(2), model, data)
        ends = np.abs(np.array(found.interval()) - found.q)[:, None]
        label = None if index else "sampled, 95 % intervals"
        axis.errorbar(sweeps, found.q, ends, fmt="o", c="#0072B2", ms=4, label=label)
    axis.set(xscale="log", yscale="log", xlabel="window K, in sweeps", ylabel="Q")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def main(out: Path) -> None:
    names: dict = {}
    exec(program(), names)
    figure = draw(names["model"], names["kernel"], names["data"])
    # The same bytes on every run; a test knows from the hash whose figure it is.
    made_by = hashlib.sha256(program().encode()).hexdigest()
    with matplotlib.rc_context({"svg.hashsalt": "trainq"}):
        figure.savefig(out, metadata={"Date": None, "Source": made_by})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "q_against_window.svg")
