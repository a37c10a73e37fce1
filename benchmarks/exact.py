"""The right answers, in ball arithmetic of 1000 bits: plain sums over dense matrices
that share no code with trainq.

Parameters are taken as the exact binary numbers that they are, so that nothing is lost
at any temperature.
"""

import itertools
from typing import Any

from flint import arb, arb_mat, ctx


ctx.prec = 1000


def states(n):
    return list(itertools.product((-1, 1), repeat=n))


def law(weights, visible_bias=None, hidden_bias=None, direction=None, step: Any = 0):
    """The probabilities of all states of an RBM, whose parameters may be moved by a
    step along a direction, in the same order."""
    m, n = weights.shape
    given = (weights, visible_bias, hidden_bias)
    given = [x for x in given if x is not None]
    moves = direction or [0 * x for x in given]
    moved = [
        [
            arb(float(x)) + step * arb(float(d))
            for x, d in zip(p.flat, move.flat, strict=True)
        ]
        for p, move in zip(given, moves, strict=True)
    ]
    w = [moved[0][i * n : (i + 1) * n] for i in range(m)]
    a, b = moved[1:] if len(moved) == 3 else ([arb(0)] * m, [arb(0)] * n)
    raw = []
    for x in states(m + n):
        v, h = x[:m], x[m:]
        total = arb(0)
        for i, j in itertools.product(range(m), range(n)):
            total += v[i] * h[j] * w[i][j]
        for field, spin in zip([*a, *b], x, strict=True):
            total += field * spin
        raw.append(total.exp())
    z = sum(raw, arb(0))
    return [x / z for x in raw]


def observables(m, n, biased):
    """Columns `-v_i h_j`, then `-v_i` and `-h_j`."""
    rows = []
    for x in states(m + n):
        row = [-x[i] * x[m + j] for i in range(m) for j in range(n)]
        rows.append(row + ([-s for s in x] if biased else []))
    return arb_mat(rows)


def transition(pi, m, kernel):
    """The matrix of a kernel by name."""
    size = len(pi)
    n = size.bit_length() - 1
    zero = arb(0)
    if kernel in ("gibbs", "metropolis"):
        p = [[zero] * size for _ in range(size)]
        for x in range(size):
            out = zero
            for i in range(n):
                y = x ^ (1 << i)
                if kernel == "gibbs":
                    accept = pi[y] / (pi[x] + pi[y])
                else:
                    accept = arb(1) if pi[y] > pi[x] else pi[y] / pi[x]
                p[x][y] = accept / n
                out += p[x][y]
            p[x][x] = 1 - out
        return arb_mat(p)
    hidden = 1 << (n - m)
    # E_V redraws the visible units, E_H the hidden ones.
    by_h = [
        sum((pi[v * hidden + h] for v in range(1 << m)), zero) for h in range(hidden)
    ]
    by_v = [
        sum((pi[v * hidden + h] for h in range(hidden)), zero) for v in range(1 << m)
    ]
    e_v = arb_mat(
        [
            [
                pi[y] / by_h[y % hidden] if x % hidden == y % hidden else 0
                for y in range(size)
            ]
            for x in range(size)
        ]
    )
    e_h = arb_mat(
        [
            [
                pi[y] / by_v[y // hidden] if x // hidden == y // hidden else 0
                for y in range(size)
            ]
            for x in range(size)
        ]
    )
    if kernel == "random":
        return (e_v + e_h) / 2
    if kernel == "palindromic":
        return e_v * e_h * e_v
    if kernel == "alternating":
        return e_v * e_h
    raise ValueError(kernel)


def times(pi, p, f):
    """`⟨f̃_a, R f̃_a⟩` of every column."""
    size, k = f.nrows(), f.ncols()
    row = arb_mat([pi])
    ones = arb_mat([[1]] * size)
    centred = f - ones * (row * f)
    identity = arb_mat(
        size, size, [int(i == j) for i in range(size) for j in range(size)]
    )
    x = (identity - p + ones * row).solve(centred)
    return [
        sum((pi[s] * centred[s, a] * x[s, a] for s in range(size)), arb(0))
        for a in range(k)
    ]


def window_variances(pi, p, f, window):
    """The variance of the average of each column over a window, from the law."""
    size, k = f.nrows(), f.ncols()
    row, ones = arb_mat([pi]), arb_mat([[1]] * size)
    centred = f - ones * (row * f)
    total, power = [arb(0)] * k, centred
    for lag in range(window):
        weight = arb(window if lag == 0 else 2 * (window - lag))
        for a in range(k):
            covariance = sum(
                (pi[s] * centred[s, a] * power[s, a] for s in range(size)), arb(0)
            )
            total[a] += weight * covariance
        power = p * power
    return [x / window**2 for x in total]


def gap(pi, p):
    """The spectral gap of a reversible chain: one over the largest eigenvalue of the
    resolvent, from its power of 2**50."""
    size = len(pi)
    root = [x.sqrt() for x in pi]
    null = arb_mat([root])
    identity = arb_mat(
        size, size, [int(i == j) for i in range(size) for j in range(size)]
    )
    scaled = [[root[i] * p[i, j] / root[j] for j in range(size)] for i in range(size)]
    along = null.transpose() * null
    inverse = (identity - arb_mat(scaled) + along).inv() - along
    power = inverse
    for _ in range(50):
        power = (power * (1 / power.trace())).mid()
        power = power * power
    # Any column is the mode; Rayleigh's quotient is right to the second order.
    mode = power * arb_mat([[arb(i + 1).sqrt()] for i in range(size)])
    moved = inverse * mode
    return (mode.transpose() * mode)[0, 0] / (mode.transpose() * moved)[0, 0]


def hitting_times(p, target):
    """The mean number of steps to the target from every state."""
    out = [s for s, inside in enumerate(target) if not inside]
    system = arb_mat([[arb(int(i == j)) - p[i, j] for j in out] for i in out])
    solved = system.solve(arb_mat([[1]] * len(out)))
    found = {s: solved[i, 0] for i, s in enumerate(out)}
    return [found.get(s, arb(0)) for s in range(len(target))]
