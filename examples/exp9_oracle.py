"""Q once more, the slow and obvious way: the yardstick that exp9 is held to.

Plain NumPy in float64, on purpose without JAX, without trainq and without any of the
shortcuts that make trainq fast: no spin-flip symmetry, no elimination, no closed form
for the data phase. All `2**N` states are listed, the transition matrix is filled in
flip by flip, and one dense solve gives the resolvent. It stops being pleasant near
N = 12.
"""

from itertools import product

import numpy as np


def structural_q(
    weights: np.ndarray, visible_law: np.ndarray, window: float
) -> tuple[float, float]:
    """Signal and noise of one bias-free RBM under random-scan single-site Gibbs.

    **Arguments:**

    - `weights`: `(m, n)` couplings between `m` visible and `n` hidden units.
    - `visible_law`: `(2**m,)` probabilities of the data.
    - `window`: averaging window in single-site updates.

    **Returns:** `(‖g‖², 2 T_O / window)`. Their quotient is Q; to pool several models,
    sum both first.
    """
    m, n = weights.shape
    n_units, n_states = m + n, 2 ** (m + n)
    states = np.array(list(product((-1.0, 1.0), repeat=n_units)))
    visible, hidden = states[:, :m], states[:, m:]

    # Boltzmann law of the energy E = −vᵀWh, and the observables f_ij = −v_i h_j.
    energy = -np.sum((visible @ weights) * hidden, axis=1)
    law = np.exp(-(energy - energy.min()))
    law /= law.sum()
    observables = -(visible[:, :, None] * hidden[:, None, :]).reshape(n_states, m * n)

    # g = E_data[f] − E_π[f]; the data phase weighs p(h | v) by the data's law of v.
    conditional = law.reshape(2**m, 2**n)
    conditional = conditional / conditional.sum(axis=1, keepdims=True)
    data_law = (visible_law[:, None] * conditional).reshape(n_states)
    gradient = data_law @ observables - law @ observables

    # One step picks a unit uniformly and draws it from its conditional.
    transition = np.zeros((n_states, n_states))
    start = np.arange(n_states)
    for unit in range(n_units):
        flipped = start ^ (1 << (n_units - 1 - unit))
        rise = energy[flipped] - energy[start]
        transition[start, flipped] = np.exp(-np.logaddexp(0.0, rise)) / n_units
    transition[start, start] = 1.0 - transition.sum(axis=1)

    # (I − P) x = f − π(f) with π(x) = 0: adding 1πᵀ makes the system regular.
    centred = observables - law @ observables
    system = np.eye(n_states) - transition + law[None, :]
    solution = np.linalg.solve(system, centred)
    t_o = float(np.sum(law[:, None] * centred * solution))
    return float(gradient @ gradient), 2.0 * t_o / window


def pooled_structural_q(
    weights: np.ndarray, visible_laws: np.ndarray, window: float
) -> float:
    """Q pooled over a stack of models: the sum of signals over the sum of noises."""
    pairs = [
        structural_q(w, law, window)
        for w, law in zip(weights, visible_laws, strict=True)
    ]
    signal, noise = np.sum(pairs, axis=0)
    return float(signal / noise)
