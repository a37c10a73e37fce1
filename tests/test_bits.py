"""Units that are 0 and 1, against energies summed up in NumPy."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import DIFFERENCES, DIRECT, IDENTITY, KERNELS, assert_close, grid, rbm

import trainq as tq


RANDOM = np.random.default_rng(7)
WEIGHTS, A, B = RANDOM.normal(size=(3, 2)), RANDOM.normal(size=3), RANDOM.normal(size=2)
EDGES = [(0, 1), (3, 1), (2, 3), (0, 4)]


def energies_in_bits(matrix, fields):
    """`-½ bᵀWb - aᵀb` of all states of bits, in order."""
    n = len(fields)
    bits = np.array(list(itertools.product((0.0, 1.0), repeat=n)))
    return np.array([-b @ matrix @ b / 2 - fields @ b for b in bits])


def two_layers(weights, a, b):
    m, n = weights.shape
    matrix = np.zeros((m + n, m + n))
    matrix[:m, m:], matrix[m:, :m] = weights, weights.T
    return energies_in_bits(matrix, np.concatenate([a, b]))


def of_edges(couplings, fields):
    matrix = np.zeros((len(fields), len(fields)))
    for (i, j), w in zip(EDGES, couplings, strict=True):
        matrix[i, j] = matrix[j, i] = w
    return energies_in_bits(matrix, fields)


def energies(model):
    return np.asarray(jax.vmap(model.energy)(jnp.asarray(oracle.states(model.n_units))))


COUPLINGS, FIELDS = RANDOM.normal(size=4), RANDOM.normal(size=5)
CASES = {
    "rbm": (
        lambda: tq.RBM.from_bits(WEIGHTS, A, B),
        two_layers(WEIGHTS, A, B),
        (WEIGHTS, A, B),
    ),
    "rbm without biases": (
        lambda: tq.RBM.from_bits(WEIGHTS),
        two_layers(WEIGHTS, 0 * A, 0 * B),
        (WEIGHTS, 0 * A, 0 * B),
    ),
    "machine": (
        lambda: tq.BoltzmannMachine.from_bits(COUPLINGS, FIELDS, 3, EDGES),
        of_edges(COUPLINGS, FIELDS),
        (COUPLINGS, FIELDS),
    ),
    "machine without biases": (
        lambda: tq.BoltzmannMachine.from_bits(COUPLINGS, edges=EDGES),
        of_edges(COUPLINGS, 0 * FIELDS),
        (COUPLINGS, 0 * FIELDS),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_energies_are_those_of_bits_but_for_that_of_all_down(name):
    make, expected, given = CASES[name]
    model = make()
    found = energies(model)
    assert_close(found - found[0], expected, IDENTITY)
    assert_close(oracle.law(found), oracle.law(expected), IDENTITY)
    for back, one in zip(model.to_bits(), given, strict=True):
        assert np.abs(back - one).max() < IDENTITY


def test_sizes_and_edges_stay():
    model = tq.BoltzmannMachine.from_bits(COUPLINGS, FIELDS, 3, EDGES)
    assert (model.n_visible, model.n_hidden) == (3, 2)
    assert model.edges.tolist() == np.sort(EDGES).tolist()
    matrix = np.array([[0.0, 3.0], [3.0, 0.0]])
    assert_close(tq.BoltzmannMachine.from_bits(matrix).couplings, [0.75], IDENTITY)


@pytest.mark.parametrize("model", [rbm(3, 2), rbm(2, 3, biased=True), grid()])
def test_there_and_back(model):
    bits = model.to_bits()
    if isinstance(model, tq.RBM):
        back = tq.RBM.from_bits(*bits)
    else:
        back = tq.BoltzmannMachine.from_bits(*bits, model.n_visible, model.edges)
    # Where there are no fields, what comes back has those of zero.
    assert np.abs(energies(back) - energies(model)).max() < IDENTITY
    assert not back.is_symmetric


class BitRBM(tq.AbstractEnergyModel):
    """One whose parameters are those of bits: `docs/interop.md` has it."""

    weights: jax.Array
    visible_bias: jax.Array
    hidden_bias: jax.Array
    n_visible: int = eqx.field(static=True)
    n_hidden: int = eqx.field(static=True)

    @property
    def equivalent(self):
        return tq.RBM.from_bits(self.weights, self.visible_bias, self.hidden_bias)

    def energy(self, x):
        return self.equivalent.energy(x)


@pytest.mark.slow
def test_q_in_bits_is_that_of_the_gradient_of_bits():
    model = BitRBM(*map(jnp.asarray, (WEIGHTS, A, B)), 3, 2)
    spin = model.equivalent
    data = jnp.full(8, 1 / 8)
    kernel, window = KERNELS["gibbs"], 50
    snr = tq.QStruct(kernel, window)(model, data)
    # Dense: observables of bits, centred, in the chain of NumPy.
    x = oracle.states(5)
    bits = (1 + x) / 2
    products = [bits[:, i] * bits[:, 3 + j] for i in range(3) for j in range(2)]
    f = -np.stack([*products, *bits.T], axis=1)
    # The energy of spins has fields of its own: a quarter of the couplings are in them,
    # and the derivative of the constant is no part of an observable's fluctuation.
    pi = oracle.law(two_layers(WEIGHTS, A, B))
    matrix = oracle.single_flip(pi, "gibbs")
    centred = f - pi @ f
    resolvent = np.linalg.inv(np.eye(32) - matrix + np.outer(np.ones(32), pi))
    t_o = np.sum(pi @ (centred * (resolvent @ centred)))
    v = pi.reshape(8, 4).sum(axis=1)
    posterior = pi / np.repeat(v, 4)
    signal = np.sum((f.T @ (posterior / 8 - pi)) ** 2)
    assert_close(snr.signal, signal, DIRECT)
    assert_close(snr.q, window * signal / (2 * t_o), DIRECT)
    # A negative control: that of the spins' parameters is another number.
    other = tq.QStruct(kernel, window)(spin, data).q
    assert abs(other / snr.q - 1) > 0.01


def test_parameters_of_bits_have_derivatives():
    data = jnp.asarray(oracle.law(RANDOM.normal(size=8)))

    def loss(w):
        return tq.kl_divergence(tq.RBM.from_bits(w, A, B), data)

    gradient = eqx.filter_jit(jax.grad(loss))(jnp.asarray(WEIGHTS))
    step = np.zeros((3, 2))
    step[1, 1] = 1e-5
    slope = (loss(WEIGHTS + step) - loss(WEIGHTS - step)) / 2e-5
    assert_close(gradient[1, 1], slope, DIFFERENCES)
    couplings = jnp.asarray(COUPLINGS)

    def energy(w):
        model = tq.BoltzmannMachine.from_bits(w, edges=EDGES)
        return model.energy(jnp.ones(5)) - model.energy(-jnp.ones(5))

    # All bits are one: the energy is minus the sum of the couplings.
    assert_close(jax.jit(jax.grad(energy))(couplings), -np.ones(4), IDENTITY)
