"""The figure of the page "Conditional models": a denoising layer against its step.

Model, data and kernels are those of the page: its program is run first. Run
`python docs/conditional/_figure.py` after a change of either.
"""

import hashlib
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import trainq as tq


HERE = Path(__file__).parent
PAGE = HERE.with_suffix(".md")
STEPS = np.geomspace(0.05, 6, 13)
ORANGE, BLUE = "#D55E00", "#0072B2"


def program() -> str:
    """The program of the page that has the layer."""
    for found in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S):
        if "class DenoisingLayer" in found:
            return found
    raise ValueError(f"No program of {PAGE} has a `DenoisingLayer`.")


def averages(names: dict) -> np.ndarray:
    """The gap, and `‖g‖²` and `E‖ĝ - g‖²` of a gradient given one `x_t`, averaged over
    the law of `x_t`, for each step."""
    states, clean = names["states"].astype(float), names["clean"]

    def at(coupling):
        # Traced, the forward coupling is a parameter, which comes last.
        layer = names["DenoisingLayer"](names["weights"], coupling, 10, 2)

        def each(noisier):
            back = layer.clamp(range(5, 10), noisier)
            posterior = clean * jnp.exp(coupling * (states @ noisier))
            snr = names["predictor"](back, posterior / posterior.sum())
            gap = tq.markov.spectral_gap(names["single"].chain(back))
            signal, mse = snr.parameter_signal[:-1], snr.parameter_mse[:-1]
            return jnp.array([gap, signal.sum(), mse.sum()])

        law = jax.nn.softmax(coupling * (states @ states.T), axis=0) @ clean
        return law @ jax.vmap(each)(states)

    couplings = jnp.asarray(names["forward_coupling"](STEPS))
    return np.asarray(jax.jit(lambda c: jax.lax.map(at, c))(couplings))


def draw(names: dict) -> Figure:
    gap, signal, mse = averages(names).T
    whole = tq.RBM(names["weights"])
    alone = names["predictor"](whole, names["clean"])
    single = float(tq.markov.spectral_gap(names["single"].chain(whole)))
    figure = Figure(figsize=(7.2, 3.2), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    left.plot(STEPS, gap, "o-", c=BLUE, ms=4, label="clamped to $x_t$")
    left.axhline(single, ls="--", c="black", lw=1, label="the whole law")
    left.set(ylabel="gap, 1 / step", ylim=0)
    right.plot(STEPS, signal / mse, "o-", c=BLUE, ms=4, label="$Q$")
    right.plot(STEPS, mse, "s-", c=ORANGE, ms=4, label="noise")
    right.axhline(float(alone.q), ls="--", c=BLUE, lw=1)
    right.axhline(float(alone.mse), ls="--", c=ORANGE, lw=1)
    right.set(ylabel="of one condition", ylim=0)
    for axis in (left, right):
        axis.set(xscale="log", xlabel="λΔt")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    return figure


def main(out: Path) -> None:
    names: dict = {}
    exec(program(), names)
    figure = draw(names)
    # The same bytes on every run; a test knows from the hash whose figure it is.
    made_by = hashlib.sha256(program().encode()).hexdigest()
    with matplotlib.rc_context({"svg.hashsalt": "trainq"}):
        figure.savefig(out, metadata={"Date": None, "Source": made_by})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "denoising.svg")
