"""Whether the interval of Q holds at the step at which `run_until` stopped."""

import jax.random as jr
import numpy as np
from measure import claim, finish

import trainq as tq
from trainq import sampling


RUNS, CONFIDENCE = 500, 0.95
LOOKS = 5
MAX_STEPS = 128 * 2 ** (LOOKS - 1)
KERNELS = {
    "RandomScanGibbs": tq.RandomScanGibbs(),
    "RandomScanMetropolis": tq.RandomScanMetropolis(),
    "AlternatingBlockGibbs": tq.AlternatingBlockGibbs(),
}
# What makes a run stop, and the number of chains. The target of Q, in multiples of what
# it is at the second look, is met by chance at one look or another.
TARGETS = {"q": 0.7, "settled": 0.15, "r_hat": 1.02}
CASES = [("q", 8), ("q", 32), ("r_hat", 32), ("settled", 32)]


def exact_q(kernel, model, data, n_chains):
    """Q at each look: about the expectation, which has no bias from exact draws."""
    windows = [128 * 2**look for look in range(LOOKS)]

    def q(window):
        predictor = tq.QOperational(
            kernel, window, start=tq.Stationary(), n_chains=n_chains
        )
        return float(predictor(model, data).q)

    return {window: q(window) for window in windows}


def coverage(kernel, model, data, n_chains, stop):
    """The share of runs whose interval holds Q where they stopped: as the result has
    it, and as it would be if there were one look alone."""
    exact = exact_q(kernel, model, data, n_chains)
    aim = TARGETS[stop] * (exact[256] if stop == "q" else 1)
    x = model.draw(jr.key(3), RUNS * n_chains).reshape(RUNS, n_chains, -1)
    inside, alone, steps = [], [], []
    for run in range(RUNS):
        state = sampling.ChainState.begin(x[run], jr.fold_in(jr.key(2), run))
        found = sampling.run_until(
            kernel,
            model,
            state,
            data,
            q=aim if stop == "q" else None,
            r_hat=aim if stop == "r_hat" else None,
            settled=aim if stop == "settled" else None,
            lags=8,
            max_steps=MAX_STEPS,
            confidence=CONFIDENCE,
        )
        n = int(found.steps[-1])
        assert found.estimate is not None
        one_look = found.estimate.interval(CONFIDENCE)
        for holds, (low, high) in ((inside, found.interval()), (alone, one_look)):
            holds.append(float(low) <= exact[n] <= float(high))
        steps.append(n)
    return float(np.mean(inside)), float(np.mean(alone)), float(np.mean(steps))


def main():
    weights = 0.5 * jr.normal(jr.key(0), (4, 3))
    model = tq.RBM(weights)
    data = tq.visible_distribution(tq.planted_rbm(jr.key(1), 4, 2, 2.0))
    rows = []
    for name, kernel in KERNELS.items():
        for stop, n_chains in CASES:
            found = coverage(kernel, model, data, n_chains, stop)
            rows.append(
                {
                    "kernel": name,
                    "stop": stop,
                    "chains": n_chains,
                    "runs": RUNS,
                    "steps": found[2],
                    "coverage": found[0],
                    "coverage of one look": found[1],
                }
            )
            print(rows[-1], flush=True)
    # Less three standard errors of so many runs.
    least = CONFIDENCE - 3 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / RUNS)
    worst = min(row["coverage"] for row in rows)
    finish(__file__, rows, [claim("coverage where runs stop", worst, least=least)])


if __name__ == "__main__":
    main()
