"""What results are compared with: dense, naive NumPy, sharing no code with trainq."""

import functools
import itertools

import numpy as np


def states(n_units):
    """All spin states, one a row, in the order of `itertools.product`."""
    rows = list(itertools.product((-1.0, 1.0), repeat=n_units))
    return np.array(rows).reshape(2**n_units, n_units)


def rbm_energies(weights, visible_bias=None, hidden_bias=None):
    """`-vᵀWh - aᵀv - bᵀh`, state by state."""
    m, n = weights.shape
    a = np.zeros(m) if visible_bias is None else visible_bias
    b = np.zeros(n) if hidden_bias is None else hidden_bias
    return np.array(
        [-x[:m] @ weights @ x[m:] - a @ x[:m] - b @ x[m:] for x in states(m + n)]
    )


def pair_energies(couplings, bias=None):
    """`-½ xᵀJx - bᵀx`, state by state, for a symmetric `J` with zero diagonal."""
    n = couplings.shape[0]
    b = np.zeros(n) if bias is None else bias
    return np.array([-x @ couplings @ x / 2 - b @ x for x in states(n)])


def rbm_observables(m, n, biased=False):
    """`-v_i h_j`, then `-v_i` and `-h_j`."""
    x = states(m + n)
    products = [x[:, i] * x[:, m + j] for i in range(m) for j in range(n)]
    return -np.stack([*products, *(x.T if biased else [])], axis=1)


def law(energies):
    """`exp(-E) / Z`."""
    weights = np.exp(-(energies - energies.min()))
    return weights / weights.sum()


def single_flip(pi, rule):
    """Random scan over units, `rule` being `"gibbs"` or `"metropolis"`."""
    n_states = len(pi)
    n_units = n_states.bit_length() - 1
    matrix = np.zeros((n_states, n_states))
    for x in range(n_states):
        for unit in range(n_units):
            y = x ^ (1 << unit)
            accept = (
                pi[y] / (pi[x] + pi[y]) if rule == "gibbs" else min(1, pi[y] / pi[x])
            )
            matrix[x, y] += accept / n_units
            matrix[x, x] += (1 - accept) / n_units
    return matrix


def redraw(pi, block):
    """One block drawn from its law given all other units."""
    n_states = len(pi)
    n_units = n_states.bit_length() - 1
    inside = sum(1 << (n_units - 1 - unit) for unit in block)
    states, matrix = np.arange(n_states), np.zeros((n_states, n_states))
    for x in range(n_states):
        same = states[(states ^ x) & ~inside == 0]
        matrix[x, same] = pi[same] / pi[same].sum()
    return matrix


def scanned(pi, blocks, scan):
    """`scan` is `"random"`, `"palindromic"` or `"alternating"`."""
    redraws = [redraw(pi, [int(unit) for unit in block]) for block in blocks]
    if scan == "random":
        return np.mean(redraws, axis=0)
    if scan == "palindromic":
        redraws += redraws[-2::-1]
    return functools.reduce(np.matmul, redraws)


def transition(kernel, pi, blocks):
    """The transition matrix of any kernel, in these blocks if it has some."""
    if kernel in ("gibbs", "metropolis"):
        return single_flip(pi, kernel)
    return scanned(pi, blocks, kernel)


def resolvent(matrix, pi, f):
    """`R f`, by a dense solve."""
    centred = f - pi @ f
    system = np.eye(len(pi)) - matrix + pi[None, :]
    return np.linalg.solve(system, centred)


def noise_matrix(matrix, pi, f):
    """`⟨f̃_a, R f̃_b⟩_π` for all pairs."""
    centred = f - pi @ f
    return centred.T @ (pi[:, None] * resolvent(matrix, pi, f))


def eigenvalues(matrix, pi):
    """Of a reversible chain, from the largest."""
    root = np.sqrt(pi)
    symmetrised = root[:, None] * matrix / root[None, :]
    return np.linalg.eigvalsh((symmetrised + symmetrised.T) / 2)[::-1]


def conductance(matrix, pi, subset):
    """The flow out of a set over the smaller of its mass and the rest's."""
    flow = (pi[:, None] * matrix)[np.ix_(subset, ~subset)].sum()
    return flow / min(pi[subset].sum(), pi[~subset].sum())


def hitting_times(matrix, target):
    """Expected steps until the target, by a dense solve outside of it."""
    outside = ~target
    times = np.zeros(len(target))
    system = np.eye(outside.sum()) - matrix[np.ix_(outside, outside)]
    times[outside] = np.linalg.solve(system, np.ones(outside.sum()))
    return times


def kl_gradient(pi, m, data, f):
    """`E_data[f] - E_π[f]`, with the hidden units drawn from the model."""
    joint = pi.reshape(2**m, -1)
    data_law = data[:, None] * joint / joint.sum(axis=1, keepdims=True)
    return data_law.reshape(-1) @ f - pi @ f
