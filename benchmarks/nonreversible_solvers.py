"""Systems of a scan of four blocks in a fixed order, with a right-hand side for each
parameter: our `BiCGStab` against those of jax.scipy and lineax, vmapped."""

from functools import partial

import jax
import jax.numpy as jnp
import lineax as lx
from jax.scipy.sparse.linalg import bicgstab, gmres
from measure import claim, finish, medians

import trainq as tq
from trainq.markov.chains import Table
from trainq.solvers import BiCGStab, SolveOptions


N_UNITS, RTOL = 12, 1e-10


def problem(scale: float):
    """The system of the even sector, on a ring with three neighbours on each side."""
    pairs = [(i, (i + d) % N_UNITS) for i in range(N_UNITS) for d in (1, 2, 3)]
    edges = sorted(tuple(sorted(pair)) for pair in pairs)
    couplings = scale * jax.random.normal(jax.random.key(0), (len(edges),))
    model = tq.BoltzmannMachine(couplings, edges=edges)
    chain = tq.AlternatingBlockGibbs(model.colouring()).chain(model)
    (reduction,) = chain.reductions("even")
    at = chain.coordinates(Table(tq.observables(model)))
    system = reduction.generator.system()
    return system, system.restrict(reduction.sides(at, "diagonal").left)


def solvers(system, n: int):
    def one(y):
        return system.mv(y[:, None])[:, 0]

    def over_columns(solve):
        return lambda b: jax.vmap(solve, 1, 1)(b)

    def ours(b):
        # The last column is a probe, which is solved loosely.
        b = jnp.append(b, b[:, :1], axis=1)
        options = SolveOptions(None, jnp.zeros((), b.dtype))
        return BiCGStab(rtol=RTOL).compute(system, b, options)[0][:, :-1]

    operator = lx.FunctionLinearOperator(one, jax.ShapeDtypeStruct((n,), float))
    stabilised = lx.BiCGStab(rtol=RTOL, atol=1e-14, max_steps=1000)
    return {
        "trainq BiCGStab": ours,
        "jax.scipy bicgstab": over_columns(
            lambda b: bicgstab(one, b, tol=RTOL, maxiter=1000)[0]
        ),
        "jax.scipy gmres(20)": over_columns(
            lambda b: gmres(one, b, tol=RTOL, solve_method="incremental")[0]
        ),
        "lineax BiCGStab": over_columns(
            lambda b: lx.linear_solve(operator, b, stabilised, throw=False).value
        ),
    }


def main():
    rows, claims = [], []
    for scale in (0.3, 0.8, 1.5):
        system, b = problem(scale)
        contenders = {k: jax.jit(s) for k, s in solvers(system, len(b)).items()}
        times = medians({k: partial(s, b) for k, s in contenders.items()}, 2.0)
        for name, solve in contenders.items():
            left = jnp.linalg.norm(b - system.mv(solve(b)), axis=0)
            residual = float(jnp.max(left / jnp.linalg.norm(b, axis=0)))
            rows.append(
                {
                    "couplings": scale,
                    "solver": name,
                    "ms": 1e3 * times[name],
                    "residual": residual,
                }
            )
        ours = times.pop("trainq BiCGStab")
        ratio = min(times.values()) / ours
        claims.append(
            claim(f"couplings {scale}: times as fast as the next", ratio, least=1.5)
        )
        claims.append(
            claim(f"couplings {scale}: residual", rows[-4]["residual"], most=RTOL)
        )
    finish(__file__, rows, claims, "lineax")


if __name__ == "__main__":
    main()
