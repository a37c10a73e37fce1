"""Hitting times and the spectral gap by deeptime, on the same matrix: what the two have
in common."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from deeptime.markov.msm import MarkovStateModel
from measure import claim, finish, medians
from problems import model

import trainq as tq


def main():
    rows, claims = [], []
    for m in (3, 5):
        machine = model(m)
        chain = tq.RandomScanGibbs().chain(machine)
        matrix, law = np.asarray(chain.matrix()), np.asarray(chain.stationary)
        target = jnp.zeros(4**m, bool).at[0].set(True)
        everywhere = np.arange(4**m)
        msm = MarkovStateModel(matrix, stationary_distribution=law)

        def theirs_hitting(msm=msm, law=law, everywhere=everywhere):
            # From everywhere, weighted by the law: one number from one solve.
            return msm.mfpt(everywhere[1:], [0]) * law[1:].sum()

        def theirs_gap(matrix=matrix, law=law):
            fresh = MarkovStateModel(matrix, stationary_distribution=law)
            return 1 - np.sort(np.real(fresh.eigenvalues(2)))[-2]

        hitting = jax.jit(
            lambda w, t=target: (
                lambda c: c.stationary @ tq.markov.hitting_times(c, t)
            )(tq.RandomScanGibbs().chain(tq.RBM(w)))
        )
        gap = jax.jit(
            lambda w: tq.markov.spectral_gap(tq.RandomScanGibbs().chain(tq.RBM(w)))
        )
        for name, ours, theirs, least in (
            ("mean hitting time", hitting, theirs_hitting, 1),
            ("spectral gap", gap, theirs_gap, 1),
        ):
            times = medians(
                {"ours": partial(ours, machine.weights), "theirs": theirs}, 2.0
            )
            error = abs(float(theirs()) / float(ours(machine.weights)) - 1)
            ratio = times["theirs"] / times["ours"]
            rows.append(
                {
                    "units": 2 * m,
                    "quantity": name,
                    "trainq ms": 1e3 * times["ours"],
                    "deeptime ms": 1e3 * times["theirs"],
                    "ratio": ratio,
                    "difference": error,
                }
            )
            label = f"{2 * m} units, {name}"
            claims.append(claim(f"{label}: times as fast", ratio, least=least))
            claims.append(claim(f"{label}: relative difference", error, most=1e-8))
    finish(__file__, rows, claims, "deeptime")


if __name__ == "__main__":
    main()
