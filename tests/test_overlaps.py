"""The matrix between two layers, as an array and by blocks from the energies."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import AUTODIFF, DIRECT, IDENTITY, MODELS, assert_close, energies, rbm

import trainq as tq
from trainq.markov import (
    EnergyGradients,
    EnergyLayers,
    TwoLayerChain,
    resolvent_form,
)
from trainq.solvers import DenseOverlap, _overlaps
from trainq.solvers._systems import GramSystem


KINDS = ("rbm 2x4", "biased rbm 2x3", "machine 4+2", "neural 3+2")
ALTERNATING = tq.AlternatingBlockGibbs()
SCANS = {
    "random": tq.RandomScanBlockGibbs(),
    "palindromic": tq.PalindromicBlockGibbs(),
    "alternating": ALTERNATING,
    "symmetrised": tq.Symmetrised(ALTERNATING),
}


def streamed(kernel, model, block=16):
    chain = kernel.chain(model)
    layers = EnergyLayers(model, block)
    return TwoLayerChain(layers, chain.scan, chain.is_symmetric)


def reference(model, sector, on_hidden):
    """`B`, on the orthonormal functions of a parity of each layer."""
    law = np.exp(-energies(model)).reshape(2**model.n_visible, -1)
    law = law / law.sum()
    overlap = law / np.sqrt(np.outer(law.sum(1), law.sum(0)))
    if sector is not None:
        sign = {"even": 1, "odd": -1}[sector]

        def basis(n):
            eye = np.eye(n)[:, : n // 2]
            return (eye + sign * eye[::-1]) / np.sqrt(2)

        overlap = basis(len(overlap)).T @ overlap @ basis(len(overlap.T))
    return overlap if on_hidden else overlap.T


CASES = [
    (kind, sector, on_hidden)
    for kind in KINDS
    for sector in (None, "even", "odd")
    for on_hidden in (True, False)
    if sector is None or MODELS[kind].is_symmetric
]


@pytest.mark.quick(6)
@pytest.mark.parametrize(("kind", "sector", "on_hidden"), CASES)
def test_an_overlap_by_blocks_is_that_of_numpy(kind, sector, on_hidden):
    model = MODELS[kind]
    expected = reference(model, sector, on_hidden)
    overlap = EnergyLayers(model, 25).overlap(sector, on_hidden)
    assert overlap.n_blocks > 1 and overlap.shape == expected.shape
    rows, n = expected.shape
    y, z = jr.normal(jr.key(0), (n, 3)), jr.normal(jr.key(1), (rows, 2))
    root = jr.uniform(jr.key(2), (n,), minval=0.5, maxval=2)
    products = expected.T @ expected / np.outer(root, root)
    size = np.abs(expected).T @ np.abs(z)

    def all_of(b):
        sizes = b.sum(lambda b, z: jnp.abs(b).T @ jnp.abs(z), z)
        return b.matrix(), b @ y, b.pull(z), b.gram(y), b.gram_matrix(root), sizes

    answers = (expected, expected @ y, expected.T @ z, expected.T @ (expected @ y))
    for one in (overlap, DenseOverlap(jnp.asarray(expected))):
        found = eqx.filter_jit(all_of)(one)
        for actual, answer in zip(found, (*answers, products, size), strict=True):
            assert_close(actual, answer, IDENTITY)
    whole = kernel_layers(model).overlap(sector, on_hidden, 0.25)
    assert_close(whole.matrix(), expected / 2, IDENTITY)
    part = EnergyLayers(model, 16).overlap(sector, on_hidden, 0.25)
    assert_close(part.matrix(), expected / 2, IDENTITY)


def kernel_layers(model):
    return SCANS["random"].chain(model).layers


def test_a_tall_overlap_adds_up_its_inner_products():
    model = rbm(6, 2)
    overlap = EnergyLayers(model, 16).overlap(None, True)
    rows, n = overlap.shape
    assert rows > 4 * n and overlap.n_blocks > 1
    expected = reference(model, None, True)
    assert_close(overlap.gram_matrix(), expected.T @ expected, IDENTITY)


@pytest.mark.parametrize("n", [5, 64, 72])
def test_inner_products_of_panels_are_all_of_them(n, monkeypatch):
    monkeypatch.setattr(_overlaps, "_WIDE", 64)
    a = np.asarray(jr.normal(jr.key(n), (7, n)))
    assert_close(_overlaps.inner_products(jnp.asarray(a)), a.T @ a, IDENTITY)


@pytest.mark.quick(2)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("solver", [tq.Direct(), tq.ConjugateGradient()], ids=repr)
def test_a_chain_by_blocks_is_the_chain_of_the_table(scan, biased, solver):
    model = rbm(3, 4, biased=biased)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def t_o(model, make):
        f = EnergyGradients(model)
        return resolvent_form(make(SCANS[scan], model), f, solver=solver).value.sum()

    value, slope = t_o(model, lambda kernel, model: kernel.chain(model))
    found, found_slope = t_o(model, streamed)
    assert_close(found, value, DIRECT)
    for one, other in zip(*map(jax.tree.leaves, (found_slope, slope)), strict=True):
        assert_close(one, other, AUTODIFF)


@pytest.mark.quick(2)
@pytest.mark.parametrize("scan", SCANS)
def test_windows_and_modes_are_those_of_the_table(scan):
    model = rbm(3, 3)
    f = tq.observables(model)
    table, blocks = SCANS[scan].chain(model), streamed(SCANS[scan], model)
    found = [tq.markov.window_moments(c, f, 20).mse for c in (blocks, table)]
    assert_close(*found, DIRECT)
    assert_close(blocks.log_stationary, table.log_stationary, IDENTITY)
    assert_close(blocks.matrix(), table.matrix(), IDENTITY)
    if table.is_reversible:
        gaps = [tq.markov.modes(c, f).gap for c in (blocks, table)]
        assert_close(*gaps, DIRECT)


def test_what_is_iterated_is_held_if_it_fits():
    model = rbm(3, 4)
    (reduction, _) = streamed(SCANS["random"], model).reductions()
    system = reduction.generator.system()
    y = jr.normal(jr.key(0), (system.n_states, 2))
    held = system.held(1.0)
    assert isinstance(system, GramSystem) and isinstance(held, GramSystem)
    assert held.overlap.n_blocks == 1 < system.overlap.n_blocks
    assert_close(held.mv(y), system.mv(y), IDENTITY)
    assert system.held(0.0) is system


def test_a_table_of_all_pairs_is_never_there():
    model, solver = rbm(12, 12), tq.ConjugateGradient(memory=0.01)

    def t_o(model):
        chain, f = streamed(SCANS["random"], model, 2**16), EnergyGradients(model)
        form = resolvent_form(chain, f, solver=solver, sector="even")
        return form.value.sum()

    slope: Any = eqx.filter_jit(eqx.filter_grad(t_o))  # whose stubs lack `lower`
    used = slope.lower(model).compile().compiled.memory_analysis()
    assert used.temp_size_in_bytes < 8 * 2**24 / 2  # half of it


def test_thirty_units_take_no_table():
    n, scale = 15, 0.1
    weights = scale * np.asarray(jr.normal(jr.key(0), (n, n)))
    chain = SCANS["random"].chain(tq.RBM(jnp.asarray(weights)))
    assert chain.n_states == 2**30
    even, _ = chain.reductions()
    overlap = even.generator.overlap
    assert overlap.shape == (2**14, 2**14)
    # One row of a block, by the laws of its states.
    block = np.asarray(overlap.block(3))
    spins = 2 * ((np.arange(2**n)[:, None] >> np.arange(n)[::-1]) & 1) - 1.0
    v = spins[3 * len(block) + 5]
    free_v = np.sum(np.log(2 * np.cosh(spins @ weights)), axis=1)
    free_h = np.sum(np.log(2 * np.cosh(spins @ weights.T)), axis=1)
    log_z = np.logaddexp.reduce(free_v)
    of_v = np.sum(np.log(2 * np.cosh(v @ weights))) - log_z
    row = np.exp(spins @ (v @ weights) - log_z - (of_v + free_h - log_z) / 2)
    half = 2 ** (n - 1)
    assert_close(block[5], row[:half] + row[::-1][:half], IDENTITY)
    with pytest.raises(ValueError, match="Cannot enumerate the states of 30 units"):
        print(chain.log_stationary)
