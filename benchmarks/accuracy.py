"""How many digits of what is returned are right, at any temperature.

Random machines from warm to frozen, in double and in single precision, against ball
arithmetic of 1000 bits. A number may be refused, but what is returned must be right:
the largest relative error is shown for each decade of the spectral gap.

`--all` takes more machines, and larger ones.
"""

import sys

import equinox as eqx
import exact
import jax
import jax.numpy as jnp
import numpy as np
from flint import arb
from measure import claim, finish

import trainq as tq
from trainq.markov._spectrum import find_slowest


KERNELS = {
    "gibbs": tq.RandomScanGibbs(),
    "metropolis": tq.RandomScanMetropolis(),
    "random": tq.RandomScanBlockGibbs(),
    "palindromic": tq.PalindromicBlockGibbs(),
    "alternating": tq.AlternatingBlockGibbs(),
}
WINDOW = 10
SOLVER = tq.Direct(throw=False)
BOUNDS = {np.float64: 1e-7, np.float32: 1e-2}


def machines(number, dtype, larger):
    rng = np.random.default_rng(0)
    for i in range(number):
        m, n = (3, 2) if larger and i % 4 == 0 else (2, 2)
        scale = np.exp(rng.uniform(np.log(0.3), np.log(20)))
        weights = scale * rng.normal(size=(m, n))
        biased = i % 3 != 0
        # Small fields leave the wells of about the same depth.
        fields = 10 ** rng.uniform(-2, 1) * rng.normal(size=m + n)
        a, b = (fields[:m], fields[m:]) if biased else (None, None)
        yield tuple(None if x is None else x.astype(dtype) for x in (weights, a, b))


@eqx.filter_jit
def found(kernel, model):
    """What trainq says, and which of it is refused."""
    data = jnp.full(2**model.n_visible, 0.5**model.n_visible, model.dtype)
    predictor = tq.QStruct(kernel, 2, solver=SOLVER)

    def noise(model):
        snr = predictor(model, data)
        return jnp.sum(snr.parameter_mse), snr

    (_, snr), gradient = eqx.filter_value_and_grad(noise, has_aux=True)(model)
    assert snr.stats is not None  # it was solved, and not summed
    exactly = tq.QOperational(kernel, WINDOW, start=tq.Stationary())(model, data)
    out = {
        "T_O": (snr.parameter_mse, snr.stats.result == 0),
        "gradient": (gradient, snr.stats.ok),
        "window": (exactly.parameter_variance, True),
    }
    if kernel.is_reversible:
        gap = find_slowest(kernel.chain(model), throw=False).gap
        out["gap"] = (gap, jnp.isfinite(gap))
    return out


@eqx.filter_jit
def hitting(kernel, model, target):
    return tq.markov.hitting_times(kernel.chain(model), target, solver=SOLVER)


def slope(weights, a, b, name, direction):
    """The derivative of the noise along a direction, by differences in 1000 bits."""
    values = []
    step = arb(2) ** -250
    for sign in (1, -1):
        moved = exact.law(weights, a, b, direction, sign * step)
        m, n = weights.shape
        p = exact.transition(moved, m, name)
        f = exact.observables(m, n, a is not None)
        values.append(sum(exact.times(moved, p, f), arb(0)))
    return (values[0] - values[1]) / (2 * step)


def errors(weights, a, b, name):
    """Relative errors of what is returned, NaN for what is refused, and the gap."""
    m, n = weights.shape
    kernel = KERNELS[name]
    model = tq.RBM(weights, a, b)
    pi = exact.law(weights, a, b)
    p = exact.transition(pi, m, name)
    f = exact.observables(m, n, a is not None)
    size = len(pi)
    reversible = exact.transition(pi, m, "palindromic") if name == "alternating" else p
    gap = exact.gap(pi, reversible)
    out = {}

    def compare(what, values, expected, known):
        values, known = np.broadcast_arrays(np.asarray(values, np.float64), known)
        wrong = [
            abs(float(arb(float(x)) / y - 1)) if ok else np.nan
            for x, y, ok in zip(values.ravel(), expected, known.ravel(), strict=True)
        ]
        out[what] = wrong

    ours = found(kernel, model)
    noise, known = ours["T_O"]
    compare("T_O", noise, exact.times(pi, p, f), known)
    window, known = ours["window"]
    compare("window", window, exact.window_variances(pi, p, f, WINDOW), known)
    gradient, known = ours["gradient"]
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(gradient)]
    norm = np.sqrt(sum(np.sum(x**2) for x in leaves))
    if known and np.isfinite(norm) and norm > 0:
        direction = [x / norm for x in leaves]
        exactly = slope(weights, a, b, name, direction)
        compare("gradient", norm, [exactly], True)
    else:
        out["gradient"] = [np.nan]
    if "gap" in ours:
        compare("gap", ours["gap"][0], [gap], ours["gap"][1])
    target = np.arange(size) == int(np.argmax([float(x) for x in pi]))
    try:
        times = np.asarray(hitting(kernel, model, jnp.asarray(target)))
    except eqx.EquinoxRuntimeError:
        out["hitting"] = [np.nan]
    else:
        expected = exact.hitting_times(p, target)
        outside = [s for s in range(size) if not target[s]]
        compare("hitting", times[outside], [expected[s] for s in outside], True)
    return out, float(gap)


def main():
    larger = "--all" in sys.argv
    number = 160 if larger else 24
    rows, claims = [], []
    for dtype, bound in BOUNDS.items():
        cells: dict = {}
        worst: dict = {}
        for weights, a, b in machines(number, dtype, larger):
            for name in KERNELS:
                out, gap = errors(weights, a, b, name)
                decade = int(np.floor(np.log10(gap)))
                decade = max(decade - decade % 3, -30)
                cells.setdefault(decade, {}).setdefault(name, []).extend(
                    sum(out.values(), [])
                )
                for what, wrong in out.items():
                    worst.setdefault(what, []).extend(wrong)
        for decade in sorted(cells, reverse=True):
            row = {"precision": np.dtype(dtype).name, "gap from": f"1e{decade}"}
            for name in KERNELS:
                wrong = np.array(cells[decade].get(name, []))
                if not wrong.size:
                    row[name] = ""
                    continue
                refused = np.mean(np.isnan(wrong))
                text = "refused" if refused == 1 else f"{np.nanmax(wrong):.0e}"
                row[name] = (
                    f"{text} ({refused:.0%} refused)" if 0 < refused < 1 else text
                )
            rows.append(row)
        for what, wrong in worst.items():
            text = f"{np.dtype(dtype).name}: error of what is returned, {what}"
            claims.append(claim(text, float(np.nanmax(wrong)), most=bound))
            share = float(np.mean(~np.isnan(wrong)))
            text = f"{np.dtype(dtype).name}: share that is returned, {what}"
            claims.append(claim(text, share, least=0.5))
    finish(__file__, rows, claims, "python-flint")


if __name__ == "__main__":
    main()
