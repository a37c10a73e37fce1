"""How often the confidence intervals of sampled numbers hold the exact ones."""

import jax
import numpy as np
from measure import claim, finish

import trainq as tq
from trainq import sampling


TRIALS, CONFIDENCE = 500, 0.9
PLANS, KEPT = 200, 0.95


def main():
    model = tq.RBM(0.7 * jax.random.normal(jax.random.key(0), (3, 2)))
    data = tq.visible_distribution(
        tq.RBM(0.7 * jax.random.normal(jax.random.key(1), (3, 2)))
    )
    gradient = tq.kl_gradient(model, data)
    rows, claims = [], []

    def record(what, exact, intervals):
        low, high = np.array(intervals).T
        inside = float(np.mean((low <= exact) & (exact <= high)))
        width = float(np.median(high / np.maximum(low, 1e-300)))
        row = {"interval": what, "nominal": CONFIDENCE, "coverage": inside}
        rows.append(row | {"upper over lower": width})
        # Three binomial deviations of the trials, and two percent for asymptotics.
        spread = 3 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / TRIALS) + 0.02
        claims.append(
            claim(what, inside, least=CONFIDENCE - spread, most=CONFIDENCE + spread)
        )

    keys = jax.random.split(jax.random.key(2), TRIALS)
    for name, kernel, window in (
        ("Gibbs", tq.RandomScanGibbs(), 200),
        ("alternating", tq.AlternatingBlockGibbs(), 40),
    ):
        exact = tq.QOperational(kernel, window)(model, data)
        estimate = sampling.QSampled(kernel, window, replicates=64)
        known = [
            estimate(key, model, data, gradient=gradient).interval(CONFIDENCE)
            for key in keys
        ]
        record(f"Q by 64 replicates, {name}", float(exact.q), known)
        start = tq.Stationary()
        stationary = tq.QOperational(kernel, window, start=start)(model, data)
        estimate = sampling.QSampled(kernel, window, start=start, replicates=64)
        unknown = [
            estimate(key, model, data, gradient="sampled").interval(CONFIDENCE)
            for key in keys
        ]
        record(f"the same, gradient unknown, {name}", float(stationary.q), unknown)

        sokal = tq.QStruct(kernel, window)(model, data)
        times = []
        for key in keys:
            state = sampling.start_chains(key, model, 4)
            state = sampling.run(kernel, model, state, 200).state
            run = sampling.run(kernel, model, state, 4000, keep=True)
            assert run.values is not None
            times.append(sampling.sampled_time(run.values).interval(CONFIDENCE))
        record(f"T_O from 4 chains of 4000, {name}", float(sokal.t_o), times)

        target, most = 10.0, 1000
        exactly = sampling.exact_errors(kernel, model, data, max_steps=most)
        best = tq.plan_budget(exactly, target)
        kept, costs = [], []
        for key in keys[:PLANS]:
            table = sampling.calibrated_errors(
                key, kernel, model, data, max_steps=most, gradient="sampled"
            )
            plan = tq.plan_budget(table, target)
            estimate = tq.QOperational(
                kernel, plan.window, plan.burn_in, n_chains=plan.n_chains
            )
            kept.append(estimate(model, data).q >= target)
            costs.append(plan.cost / best.cost)
        what = f"calibrated plans that reach their target, {name}"
        reached = float(np.mean(kept))
        cost = float(np.median(costs))
        row = {"interval": what, "nominal": KEPT, "coverage": reached}
        rows.append(row | {"cost over best": cost})
        spread = 3 * np.sqrt(KEPT * (1 - KEPT) / PLANS)
        claims.append(claim(what, reached, least=KEPT - spread))
    finish(__file__, rows, claims)


if __name__ == "__main__":
    main()
