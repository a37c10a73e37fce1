"""The figures of the gallery: every function of `trainq.plot`, on one small model.

    python examples/gallery.py docs/gallery

Seeds are fixed and nothing in a file depends on the day, so that the same versions
write the same files. Read it from top to bottom: each part between two marks is shown
on the page beside the figure that it makes.
"""

import sys
from pathlib import Path

import equinox as eqx
import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import trainq as tq
from trainq import plot


FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "results/gallery")

jax.config.update("jax_enable_x64", True)
matplotlib.use("Agg")
# Five inches on a page of 420 pixels: letters are as large as those of the text.
matplotlib.rcParams |= {
    "figure.figsize": (5, 3.5),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "svg.hashsalt": "trainq",
}


def save(name: str) -> None:
    """The figure that was made last."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    plt.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    plt.close()
    print(FOLDER / f"{name}.svg", flush=True)


# --8<-- [start:setup]
teacher = tq.planted_rbm(jax.random.key(0), 4, 2, beta=2.0)
data = tq.visible_distribution(teacher)
weights = 0.7 * jax.random.normal(jax.random.key(1), (4, 3))
model = tq.RBM(weights)
kernel = tq.RandomScanGibbs()
# --8<-- [end:setup]

# --8<-- [start:couplings]
predictor = tq.QStruct(kernel, window=300)
ax = plot.couplings(model, predictor(model, data))
# --8<-- [end:couplings]
save("couplings")

# --8<-- [start:spectrum]
chain = kernel.chain(model)
modes = tq.markov.modes(chain, tq.observables(model))
ax = plot.spectrum(modes)
# --8<-- [end:spectrum]
save("spectrum")

# --8<-- [start:basins]
glass = tq.sherrington_kirkpatrick(jax.random.key(0), 10, beta=4)
ax = plot.basins(tq.markov.basins(kernel.chain(glass)))
# --8<-- [end:basins]
save("basins")

# --8<-- [start:ladder]
ladder = tq.markov.ladder(glass, lowest=0.1)
exact = tq.markov.swap_acceptance(glass, ladder.betas)
shares = {"predicted": ladder.acceptance, "exact": exact}
ax = plot.ladder(ladder.betas, shares)
# --8<-- [end:ladder]
save("ladder")

# --8<-- [start:windows]
steps = np.unique(np.geomspace(1, 1000, 40).astype(int))
starts = {
    "stationary": tq.Stationary(),
    "uniform": tq.Uniform(),
    "all spins up": tq.At(np.ones(7)),
}
ax = plot.windows(kernel, model, data, steps, start=starts)
# --8<-- [end:windows]
save("windows")

# --8<-- [start:kernels]
some = {
    "random-scan Gibbs": tq.RandomScanGibbs(),
    "random-scan Metropolis": tq.RandomScanMetropolis(),
    "random two-block": tq.RandomScanBlockGibbs(),
    "palindromic": tq.PalindromicBlockGibbs(),
    "alternating": tq.AlternatingBlockGibbs(),
}
ax = plot.kernels(some, model, data)
# --8<-- [end:kernels]
save("kernels")

# --8<-- [start:sampled]
exact, found = [], []
for window in (10, 30, 100, 300, 1000):
    key = jax.random.key(window)
    exact.append(tq.QOperational(kernel, window)(model, data))
    found.append(tq.QSampled(kernel, window)(key, model, data))
ax = plot.sampled(found, exact)
# --8<-- [end:sampled]
save("sampled")

# --8<-- [start:autocorrelation]
state = tq.start_chains(jax.random.key(2), model, n_chains=8)
run = tq.run(kernel, model, state, 2000, keep=True)
names = ["coupling 0, 0", "coupling 3, 2"]
values = np.asarray(run.values)[..., [0, 11]]
ax = plot.autocorrelation(values, names=names)
# --8<-- [end:autocorrelation]
save("autocorrelation")


# --8<-- [start:trajectories]
@eqx.filter_jit
def step(model, dose):
    def loss(model):
        kl = tq.kl_divergence(model, data)
        snr = predictor(model, data)
        return kl - dose * snr.log_q, (kl, snr.q)

    gradient, record = eqx.filter_grad(loss, has_aux=True)(model)
    return tq.RBM(model.weights - 0.05 * gradient.weights), record


kl, q = {}, {}
for dose in (0.0, 0.05):
    student, rows = model, []
    for _ in range(200):
        student, row = step(student, dose)
        rows.append(row)
    kl[f"λ = {dose:g}"], q[f"λ = {dose:g}"] = np.array(rows).T
_, (top, ax) = plt.subplots(2, sharex=True, figsize=(5, 5.5))
plot.trajectories(kl, ax=top)
plot.trajectories(kl, q, ax=ax)
top.label_outer()
# --8<-- [end:trajectories]
save("trajectories")
