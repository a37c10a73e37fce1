"""The tolerances, written once, and the tables that the tests are parametrised over."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from jax.flatten_util import ravel_pytree

import trainq as tq
from trainq._spins import state_index


IDENTITY = 1e-12  # identities, detailed balance
DIRECT = 1e-10  # direct solves
AUTODIFF = 1e-9  # a custom rule against plain autodiff
DIFFERENCES = 1e-6  # against central differences
SIGMAS = 5  # statistics, in standard errors


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry of `expected`, which must have the same shape."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert np.isfinite(actual).all() and np.isfinite(expected).all()
    scale = max(np.max(np.abs(expected), initial=0), 1e-300)
    error = np.max(np.abs(actual - expected), initial=0) / scale
    assert error <= tolerance, f"relative error {error:.2e} above {tolerance:.0e}"


KERNELS = {
    "gibbs": tq.RandomScanGibbs(),
    "metropolis": tq.RandomScanMetropolis(),
    "random": tq.RandomScanBlockGibbs(),
    "palindromic": tq.PalindromicBlockGibbs(),
    "alternating": tq.AlternatingBlockGibbs(),
}

# Those that are made for a model, whose blocks are its colours and not its layers.
COLOURED = {
    "coloured random": tq.RandomScanBlockGibbs,
    "coloured palindromic": tq.PalindromicBlockGibbs,
    "coloured alternating": tq.AlternatingBlockGibbs,
}


def kernel_of(name, model):
    """The kernel of that name, of either table, for a model."""
    return COLOURED[name](model.colouring()) if name in COLOURED else KERNELS[name]


STARTS = {
    "stationary": tq.Stationary(),
    "uniform": tq.Uniform(),
    "data": tq.FromData(),
}

REVERSIBLE = [name for name, kernel in KERNELS.items() if kernel.is_reversible]


def slow_except(names, *fast):
    """Parameters, of which all but the `fast` ones are for the complete tests only."""
    slow = pytest.mark.slow
    return [
        name
        if name in fast
        else pytest.param(*(name if isinstance(name, tuple) else [name]), marks=slow)
        for name in names
    ]


class NeuralEnergy(tq.AbstractEnergyModel):
    """A model of a user's own: no closed form, no symmetry."""

    mlp: eqx.nn.MLP
    n_visible: int = eqx.field(static=True)
    n_hidden: int = eqx.field(static=True)

    def energy(self, x):
        return self.mlp(x)


def neural(n_visible, n_hidden, seed=0):
    mlp = eqx.nn.MLP(n_visible + n_hidden, "scalar", 6, 1, jnp.tanh, key=jr.key(seed))
    return NeuralEnergy(mlp, n_visible, n_hidden)


def rbm(m, n, *, biased=False, scale=0.7, seed=0):
    weights, a, b = jr.split(jr.key(seed), 3)
    if not biased:
        return tq.RBM(scale * jr.normal(weights, (m, n)))
    return tq.RBM(
        scale * jr.normal(weights, (m, n)),
        scale * jr.normal(a, (m,)),
        scale * jr.normal(b, (n,)),
    )


def machine(n, n_visible=None, *, biased=False, scale=0.5, seed=0):
    couplings, bias = jr.split(jr.key(seed))
    upper = jnp.triu(scale * jr.normal(couplings, (n, n)), 1)
    fields = scale * jr.normal(bias, (n,)) if biased else None
    return tq.BoltzmannMachine(upper + upper.T, fields, n_visible)


def grid(*, biased=True):
    """Six spins on a 2×3 grid, which no order of units makes contiguous blocks of."""
    edges = [(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)]
    couplings, bias = jr.normal(jr.key(1), (7,)), 0.5 * jr.normal(jr.key(2), (6,))
    return tq.BoltzmannMachine(
        0.7 * couplings, bias if biased else None, 4, edges=edges
    )


def ring(n, n_visible):
    edges = [(i, (i + 1) % n) for i in range(n)]
    couplings = 0.7 * jr.normal(jr.key(3), (n,))
    return tq.BoltzmannMachine(couplings, n_visible=n_visible, edges=edges)


# Every shape of model that takes another path: symmetric or not, an even or an odd
# number of units, a smaller visible or hidden layer, any energy, no hidden units, a
# sparse graph of two colours or of three.
MODELS = {
    "rbm 2x2": rbm(2, 2),
    "rbm 3x2": rbm(3, 2),
    "rbm 2x4": rbm(2, 4),
    "rbm 3x3": rbm(3, 3),
    "biased rbm 2x3": rbm(2, 3, biased=True),
    "biased rbm 3x3": rbm(3, 3, biased=True),
    "machine 4+2": machine(6, 4),
    "biased machine 3+2": machine(5, 3, biased=True),
    "visible machine 4": machine(4),
    "biased grid 4+2": grid(),
    "ring 3+2": ring(5, 3),
    "neural 3+2": neural(3, 2),
    "tempered neural 2+2": neural(2, 2).tempered(1.7),
}


# Coloured kernels on two colours, on three, and on blocks of one unit each. That of a
# fixed order is in the fast tests of test_scan.
REVERSIBLE_ON_COLOURS = [
    ("coloured random", "ring 3+2"),
    ("coloured palindromic", "biased grid 4+2"),
]
ON_COLOURS = slow_except(
    [(k, m) for m in ("biased grid 4+2", "ring 3+2", "neural 3+2") for k in COLOURED],
    *REVERSIBLE_ON_COLOURS,
)

# Every kernel with two models, and every model with one kernel; the rest is for the
# complete tests.
PAIRS = (
    slow_except(
        [(kernel, model) for kernel in KERNELS for model in MODELS],
        *((kernel, "biased rbm 2x3") for kernel in KERNELS),
        *((kernel, "rbm 2x4") for kernel in KERNELS),
        *(("gibbs", m) for m in ("rbm 3x2", "machine 4+2", "biased grid 4+2")),
        *(("gibbs", m) for m in ("ring 3+2", "neural 3+2", "visible machine 4")),
        *(("alternating", m) for m in ("rbm 2x2", "rbm 3x3", "biased rbm 3x3")),
        *(("alternating", m) for m in ("biased machine 3+2", "tempered neural 2+2")),
    )
    + ON_COLOURS
)


def energies(model):
    """The energies of all states, one call a state."""
    return np.array(
        [float(model.energy(jnp.asarray(x))) for x in oracle.states(model.n_units)]
    )


def dense(kernel_name, model):
    """The stationary law and the transition matrix, from the oracle."""
    pi, m = oracle.law(energies(model)), model.n_visible
    layers = range(m), range(m, model.n_units)
    blocks = model.colouring() if kernel_name in COLOURED else layers
    kernel_name = kernel_name.removeprefix("coloured ")
    return pi, oracle.transition(kernel_name, pi, blocks)


def random_law(n_visible, seed=0):
    return jax.nn.softmax(jr.normal(jr.key(seed), (2**n_visible,)))


def flatten(model):
    """The parameters as one vector, and the way back."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(params)
    return flat, lambda x: eqx.combine(unravel(x), static)


def central_difference(fn, x, direction, step=1e-4):
    """The derivative of `fn` along a direction, to fourth order in the step, which
    stays clear of the kinks of Metropolis at equal energies."""
    at = [fn(x + k * step * direction) for k in (-2, -1, 1, 2)]
    return (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * step)


def excess(counts, probabilities):
    """How many standard deviations chi-square lies above its mean."""
    expected = counts.sum() * probabilities
    # A test of frequencies needs a few counts in every bin: pool the rare ones.
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    degrees = max(len(expected) - 1, 1)
    chi_square = np.sum((observed - expected) ** 2 / expected)
    return (chi_square - degrees) / np.sqrt(2 * degrees)


def draw(kernel, model, start, key):
    """How often each state follows `start`, in 40,000 steps."""
    x = jnp.broadcast_to(start, (40_000, model.n_units))
    new = state_index(kernel.step(key, model, x))
    return np.bincount(np.asarray(new), minlength=2**model.n_units)
