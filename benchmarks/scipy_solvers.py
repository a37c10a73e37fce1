"""The noise of one model by NumPy and SciPy, dense and sparse: values without
gradients, against ours of the same chain with all its right-hand sides."""

from functools import partial

import jax
import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from measure import claim, finish, medians
from problems import model, states

import trainq as tq


def problem(m: int):
    """`I - P` as a sparse matrix, the law, and the centred observables."""
    x, weights = states(m), np.asarray(model(m).weights)
    energy = -np.sum((x[:, :m] @ weights) * x[:, m:], axis=1)
    law = np.exp(-energy - scipy.special.logsumexp(-energy))
    index, n_units = np.arange(4**m), 2 * m
    rows, columns, entries = [], [], []
    for i in range(n_units):
        flipped = index ^ (1 << (n_units - 1 - i))
        rows.append(index)
        columns.append(flipped)
        entries.append(-1 / (1 + np.exp(energy[flipped] - energy)) / n_units)
    entries.append(-np.sum(entries, axis=0))
    rows.append(index)
    columns.append(index)
    triples = np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))
    f = -(x[:, :m, None] * x[:, None, m:]).reshape(4**m, -1)
    return scipy.sparse.csr_array(triples), law, f - law @ f


def noise(law, f, solution) -> float:
    solution = solution - law @ solution
    return float(np.sum(law[:, None] * f * solution))


def dense(generator, law, f):
    system = generator.toarray() + law[None, :]
    return noise(law, f, scipy.linalg.solve(system, f))


def spsolve(generator, law, f):
    # One state is held at zero, which makes the system regular and keeps it sparse.
    rest = generator[1:, 1:].tocsc()
    solution = scipy.sparse.linalg.splu(rest).solve(f[1:])
    return noise(law, f, np.vstack([np.zeros(f.shape[1]), solution]))


def gmres(generator, law, f):
    columns = []
    for column in f.T:
        solution, info = scipy.sparse.linalg.gmres(
            generator, column, rtol=1e-11, restart=60
        )
        assert info == 0
        columns.append(solution)
    return noise(law, f, np.stack(columns, axis=1))


CASES = {5: (dense, spsolve, gmres), 6: (dense, spsolve, gmres), 7: (gmres,)}


def main():
    rows, claims = [], []
    for m, methods in CASES.items():
        generator, law, f = problem(m)
        predictor = tq.QStruct(tq.RandomScanGibbs(), 2)
        data = np.full(2**m, 0.5**m)
        ours = jax.jit(lambda w, p=predictor, d=data: p(tq.RBM(w), d).t_o)
        weights = model(m).weights
        value = float(ours(weights))
        for method in methods:
            run = partial(method, generator, law, f)
            times = medians({"ours": partial(ours, weights), "theirs": run}, 3.0)
            ratio = times["theirs"] / times["ours"]
            error = abs(run() / value - 1)
            rows.append(
                {
                    "units": 2 * m,
                    "method": method.__name__,
                    "trainq ms": 1e3 * times["ours"],
                    "theirs ms": 1e3 * times["theirs"],
                    "ratio": ratio,
                    "difference": error,
                }
            )
            name = f"{2 * m} units, {method.__name__}"
            claims.append(claim(f"{name}: times as fast, at least 5", ratio, least=5))
            claims.append(claim(f"{name}: relative difference", error, most=1e-9))
    finish(__file__, rows, claims)


if __name__ == "__main__":
    main()
