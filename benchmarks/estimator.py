"""What `GradientEstimator` says of its own noise, against the exact error: variance,
bias and coverage for every kernel and start, from few chains and many."""

from itertools import product

import equinox as eqx
import jax
import numpy as np
from measure import claim, finish

import trainq as tq
from trainq import sampling


TRIALS, CONFIDENCE = 1000, 0.9
WINDOW, BURN_IN = 20, 5
KERNELS = {
    "Gibbs": tq.RandomScanGibbs(),
    "Metropolis": tq.RandomScanMetropolis(),
    "random blocks": tq.RandomScanBlockGibbs(),
    "palindromic": tq.PalindromicBlockGibbs(),
    "alternating": tq.AlternatingBlockGibbs(),
}
STARTS = {
    "persistent": None,
    "uniform": tq.Uniform(),
    "data": tq.FromData(),
}
CHAINS = (4, 32)


def rbm(m, n, scale, seed, biased=False):
    weights, a, b = jax.random.split(jax.random.key(seed), 3)
    biases = (
        (0.3 * jax.random.normal(a, (m,)), 0.3 * jax.random.normal(b, (n,)))
        if biased
        else ()
    )
    return tq.RBM(scale * jax.random.normal(weights, (m, n)), *biases)


# Far from the data and near to them, and a larger one with biases.
CASES = {
    "3+2": (rbm(3, 2, 0.7, 0), rbm(3, 2, 0.7, 1)),
    "3+2, near": (rbm(3, 2, 0.7, 0), rbm(3, 2, 0.7, 0).tempered(1.02)),
    "6+6, biased": (rbm(6, 6, 0.3, 2, True), rbm(6, 6, 0.4, 3, True)),
}


def study(model, data, kernel, start, n_chains):
    """Estimates of chains of their own: persistent ones have come to the law of the
    model."""
    estimator = sampling.GradientEstimator(kernel, WINDOW, BURN_IN, start, n_chains)

    def one(key):
        first = tq.Stationary() if start is None else start
        state = sampling.start_chains(key, model, n_chains, first, data)
        found = estimator(state, model, data)
        leaves = jax.tree.leaves(found.gradient)
        flat = jax.numpy.concatenate([x.ravel() for x in leaves])
        return flat, found.mse, found.signal, found.interval(CONFIDENCE)

    keys = jax.random.split(jax.random.key(7), TRIALS)
    found = eqx.filter_jit(jax.lax.map)(one, keys, batch_size=200)
    return tuple(map(np.asarray, found))


def main():
    rows, claims = [], []
    for case, (model, teacher) in CASES.items():
        data = tq.visible_distribution(teacher)
        gradient = tq.kl_gradient(model, data)
        for (name, kernel), (begin, start) in product(KERNELS.items(), STARTS.items()):
            law = tq.Stationary() if start is None else start
            exact = tq.QOperational(kernel, WINDOW, BURN_IN, law)(model, data)
            mean = np.asarray(gradient + exact.parameter_bias)
            for n_chains in CHAINS:
                flat, mse, signal, interval = study(
                    model, data, kernel, start, n_chains
                )
                # About the mean of the estimate: no scatter shows a bias.
                variance = float(exact.variance) / n_chains
                q = float(np.sum(mean**2)) / variance
                error = flat.std(axis=0, ddof=1) / np.sqrt(TRIALS)
                worst = np.max(abs(flat.mean(axis=0) - mean) / error)
                inside = np.mean((interval[:, 0] <= q) & (q <= interval[:, 1]))
                row = {"model": case, "kernel": name, "start": begin}
                row |= {"chains": n_chains, "Q": q, "coverage": float(inside)}
                row["noise over exact"] = float(mse.mean() / variance)
                row["its error"] = float(mse.std() / variance / np.sqrt(TRIALS))
                row["signal over exact"] = float(signal.mean() / np.sum(mean**2))
                row["worst mean, errors"] = float(worst)
                bias = float(exact.bias2) / (float(exact.bias2) + variance)
                row["share of the bias in the error"] = bias
                rows.append(row)
                print(
                    " ".join(
                        f"{v:.3g}" if isinstance(v, float) else str(v)
                        for v in row.values()
                    ),
                    flush=True,
                )
    noise = [abs(r["noise over exact"] - 1) / r["its error"] for r in rows]
    worst = [r["worst mean, errors"] for r in rows]
    claims.append(claim("noise, worst in standard errors", max(noise), most=5))
    claims.append(claim("gradient, worst in standard errors", max(worst), most=5))
    # Three binomial deviations, and three percent for asymptotics and few chains.
    # Where Q is small the interval is too wide.
    spread = 3 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / TRIALS) + 0.03
    for n_chains in CHAINS:
        some = [r["coverage"] for r in rows if r["chains"] == n_chains]
        what = f"least coverage of a {CONFIDENCE:.0%} interval, {n_chains} chains"
        claims.append(claim(what, min(some), least=CONFIDENCE - spread))
    finish(__file__, rows, claims)


if __name__ == "__main__":
    main()
