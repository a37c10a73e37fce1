"""The same reduced operator by lineax, vmapped over right-hand sides: the noise with
its gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import lineax as lx
from measure import claim, finish, medians
from problems import model

import trainq as tq


def by_lineax(m: int, solver):
    def noise(weights):
        model = tq.RBM(weights)
        chain = tq.RandomScanGibbs().chain(model)
        generator = chain.generator("even")
        f = chain.centre(tq.observables(model))
        half = chain.n_states // 2
        u = 2**0.5 * (chain.root[:, None] * f)[:half]
        if isinstance(solver, lx.Cholesky):
            operator = lx.MatrixLinearOperator(
                generator.regular().matrix(), lx.positive_semidefinite_tag
            )
        else:
            operator = lx.FunctionLinearOperator(
                lambda y: generator.regular().mv(y[:, None])[:, 0],
                jax.ShapeDtypeStruct((half,), u.dtype),
                lx.positive_semidefinite_tag,
            )

        def solve(b):
            return lx.linear_solve(operator, b, solver).value

        return jnp.sum(u * jax.vmap(solve, 1, 1)(u))

    return jax.jit(jax.value_and_grad(noise))


def main():
    rows, claims = [], []
    for m, least in ((5, 2), (6, 4)):
        weights = model(m).weights

        def trace(weights, strategy):
            model = tq.RBM(weights)
            chain = tq.RandomScanGibbs().chain(model)
            return tq.markov.resolvent_trace(
                chain, tq.observables(model), sector="even", solver=strategy
            )

        for theirs, strategy in (
            (lx.Cholesky(), tq.Direct()),
            (lx.CG(rtol=1e-11, atol=1e-14), tq.ConjugateGradient()),
        ):
            ours = jax.jit(jax.value_and_grad(lambda w, s=strategy, t=trace: t(w, s)))
            other = by_lineax(m, theirs)
            times = medians(
                {"ours": partial(ours, weights), "theirs": partial(other, weights)},
                3.0,
            )
            ratio = times["theirs"] / times["ours"]
            slope, slopes = ours(weights)[1], other(weights)[1]
            error = float(jnp.max(jnp.abs(slope - slopes)) / jnp.max(jnp.abs(slopes)))
            name = f"m = {m}, {type(theirs).__name__}"
            rows.append(
                {
                    "m": m,
                    "method": type(theirs).__name__,
                    "trainq ms": 1e3 * times["ours"],
                    "lineax ms": 1e3 * times["theirs"],
                    "ratio": ratio,
                    "difference": error,
                }
            )
            claims.append(
                claim(f"{name}: times as fast, at least {least}", ratio, least=least)
            )
            claims.append(claim(f"{name}: relative difference", error, most=1e-8))
    finish(__file__, rows, claims, "lineax")


if __name__ == "__main__":
    main()
