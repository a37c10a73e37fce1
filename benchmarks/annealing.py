"""How often annealed importance sampling holds the exact log Z, over 200 models."""

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from measure import claim, finish

import trainq as tq
from trainq import sampling


MODELS, CONFIDENCE = 200, 0.95
SHAPE = (16, 12)
# Steps from independent units to the model: too few for many models, and more.
LADDERS = (30, 300, 3000)


def models() -> tq.RBM:
    """Machines from warm ones to cold ones, with biases: a batch."""
    weights, visible, hidden, scale = jr.split(jr.key(0), 4)
    m, n = SHAPE
    scale = jr.uniform(scale, (MODELS,), minval=0.05, maxval=1.0)
    weights = scale[:, None, None] * jr.normal(weights, (MODELS, m, n))
    visible = 0.3 * jr.normal(visible, (MODELS, m))
    hidden = 0.3 * jr.normal(hidden, (MODELS, n))
    return eqx.filter_vmap(tq.RBM)(weights, visible, hidden)


def main():
    batch = models()
    exact = np.asarray(eqx.filter_vmap(tq.log_partition)(batch))
    rows, claims = [], []
    for betas in LADDERS:

        def estimate(key, model, betas=betas):
            found = sampling.annealed_importance(
                key, model, betas=betas, draws=tq.Stationary()
            )
            sides = found.interval(CONFIDENCE)
            bounds = found.log_partition, found.upper
            return *sides, *bounds, found.status, found.effective_chains

        keys = jr.split(jr.key(1), MODELS)
        found = jax.tree.map(np.asarray, eqx.filter_vmap(estimate)(keys, batch))
        low, high, below, above, status, effective = found
        inside = (low <= exact) & (exact <= high)
        good = status == 0
        rows.append(
            {
                "steps": betas,
                "nominal": CONFIDENCE,
                "coverage": float(inside.mean()),
                "coverage where bounded": float(inside[good].mean()),
                "models bounded": int(good.sum()),
                "median error": float(np.median(np.abs(below - exact))),
                "largest error": float(np.abs(below - exact).max()),
                "largest error where bounded": float(np.abs(below - exact)[good].max()),
                "mean of lower bounds less exact": float((below - exact).mean()),
                "mean of upper bounds less exact": float((above - exact).mean()),
                "median effective chains": float(np.median(effective)),
            }
        )
        # Three binomial deviations, and two per cent for asymptotics.
        n = int(good.sum())
        spread = 3 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / n) + 0.02
        what = f"coverage where bounded, {betas} steps, {n} models"
        claims.append(
            claim(what, float(inside[good].mean()), least=CONFIDENCE - spread)
        )
        # By Markov's inequality, one in twenty is as much as may be so far above.
        far = below > exact + np.log(20)
        what = f"lower bounds too high by log 20, {betas} steps"
        claims.append(claim(what, float(far.mean()), most=0.05))
        far = above < exact - np.log(20)
        what = f"upper bounds too low by log 20, {betas} steps"
        claims.append(claim(what, float(far.mean()), most=0.05))
    finish(__file__, rows, claims)


if __name__ == "__main__":
    main()
