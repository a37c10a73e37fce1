"""Units in a fixed order, in blocks: the sampler, the exact chain, its reductions."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import oracle
import pytest
from helpers import (
    DIFFERENCES,
    DIRECT,
    IDENTITY,
    SIGMAS,
    assert_close,
    central_difference,
    draw,
    energies,
    excess,
    flatten,
    grid,
    machine,
    neural,
    random_law,
    rbm,
    slow_except,
)

import trainq as tq


# A model, and blocks for it: two that interleave, the layers, three, one by one.
CASES = {
    "grid": (grid(), ((0, 2, 4), (1, 3, 5))),
    "grid, symmetric": (grid(biased=False), ((1, 3, 5), (4, 0, 2))),
    "layers": (rbm(3, 2), ((0, 1, 2), (3, 4))),
    "layers, hidden first": (rbm(3, 2, biased=True), ((4, 3), (2, 0, 1))),
    "three": (grid(), ((2, 4), (0,), (5, 1, 3))),
    "one by one": (machine(4, 2, biased=True), ((2,), (0,), (3,), (1,))),
    "neural": (neural(2, 2), ((0,), (1,), (2,), (3,))),
}


@pytest.fixture(
    params=slow_except(
        CASES, "grid", "grid, symmetric", "three", "layers, hidden first"
    ),
    scope="module",
)
def case(request):
    model, blocks = CASES[request.param]
    return model, tq.AlternatingBlockGibbs(blocks)


def reference(model, kernel):
    """The law, and the product of one matrix a unit, in the order of the scan."""
    pi = oracle.law(energies(model))
    n = model.n_units
    matrix = np.eye(2**n)
    for unit in sum(kernel.blocks, ()):
        redraw = np.zeros((2**n, 2**n))
        for x in range(2**n):
            pair = [x & ~(1 << (n - 1 - unit)), x | 1 << (n - 1 - unit)]
            redraw[x, pair] = pi[pair] / pi[pair].sum()
        matrix = matrix @ redraw
    return pi, matrix


@pytest.mark.quick(1)
def test_the_matrix_and_the_law_are_those_of_the_product(case):
    model, kernel = case
    pi, matrix = reference(model, kernel)
    chain = kernel.chain(model)
    assert_close(chain.matrix(), matrix, IDENTITY)
    assert_close(chain.stationary, pi, IDENTITY)
    f = jr.normal(jr.key(0), (len(pi), 2))
    assert_close(chain.apply(f), matrix @ np.asarray(f), IDENTITY)
    law = random_law(model.n_units)
    twice = np.asarray(law) @ matrix @ matrix
    assert_close(chain.push(law, 2), twice, IDENTITY)


@pytest.mark.quick(1)
def test_what_is_solved_on_it_agrees_with_dense_solves(case):
    model, kernel = case
    pi, matrix = reference(model, kernel)
    chain = kernel.chain(model)
    f = np.asarray(jr.normal(jr.key(3), (len(pi), 3)))
    assert_close(
        tq.markov.resolvent(chain, jnp.asarray(f)),
        oracle.resolvent(matrix, pi, f),
        DIRECT,
    )
    target = np.arange(len(pi)) % 3 == 0
    assert_close(
        tq.markov.hitting_times(chain, jnp.asarray(target)),
        oracle.hitting_times(matrix, target),
        DIRECT,
    )
    data = random_law(model.n_visible)
    observables = np.asarray(tq.observables(model))
    noise = np.diag(oracle.noise_matrix(matrix, pi, observables))
    snr = tq.QStruct(kernel, 100)(model, data)
    assert_close(snr.parameter_mse, 2 / 100 * noise, DIRECT)
    gradient = oracle.kl_gradient(pi, model.n_visible, np.asarray(data), observables)
    assert_close(snr.parameter_signal, gradient**2, DIRECT)


def test_windows_agree_with_powers_of_the_matrix(case):
    model, kernel = case
    pi, matrix = reference(model, kernel)
    f = np.asarray(tq.observables(model))
    f = f - pi @ f
    window, power, expected = 7, np.eye(len(pi)), 0
    for lag in range(window):
        covariance = pi @ (f * (power @ f))
        expected += (1 if lag == 0 else 2) * (window - lag) * covariance
        power = power @ matrix
    data = random_law(model.n_visible)
    snr = tq.QOperational(kernel, window, start=tq.Stationary())(model, data)
    assert_close(snr.parameter_variance, expected / window**2, DIRECT)


@pytest.mark.quick(1)
def test_one_sweep_has_the_frequencies_of_the_matrix(case, key):
    model, kernel = case
    _, matrix = reference(model, kernel)
    start = jnp.asarray(oracle.states(model.n_units)[1])
    assert excess(draw(kernel, model, start, key), matrix[1]) < SIGMAS
    # The same blocks in the opposite order are another chain.
    other = tq.AlternatingBlockGibbs(kernel.blocks[::-1])
    counts = draw(other, model, start, key)
    assert excess(counts, matrix[1]) > SIGMAS


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["grid, symmetric", "three"])
def test_the_gradient_of_the_noise(name):
    model, blocks = CASES[name]
    kernel, data = tq.AlternatingBlockGibbs(blocks), random_law(model.n_visible)
    flat, rebuild = flatten(model)

    @eqx.filter_jit
    def value(flat):
        return tq.QStruct(kernel, 100)(rebuild(flat), data).log_q

    direction = jr.normal(jr.key(7), flat.shape)
    expected = central_difference(value, flat, direction)
    found = eqx.filter_jit(eqx.filter_grad(value))(flat) @ direction
    assert_close(found, expected, DIFFERENCES)


@pytest.mark.slow
def test_two_blocks_solve_a_system_of_the_smaller_one():
    # 16 spins on a square: 65,536 states, of which no matrix exists.
    unit = np.arange(16).reshape(4, 4)
    across = np.stack([unit[:, :-1].ravel(), unit[:, 1:].ravel()], axis=1)
    down = np.stack([unit[:-1].ravel(), unit[1:].ravel()], axis=1)
    edges = np.concatenate([across, down])
    model = tq.BoltzmannMachine(jnp.full(len(edges), 0.3), edges=edges)
    kernel = tq.AlternatingBlockGibbs(model.colouring())
    data = tq.visible_distribution(model.tempered(1.2))
    structural = tq.QStruct(kernel, 10_000, convention="sokal")(model, data)
    exact = tq.QOperational(kernel, 10_000, start=tq.Stationary())(model, data)
    assert 0 < structural.q < jnp.inf
    # The chain forgets within some ten sweeps: what is left is of order (10 / K)².
    np.testing.assert_allclose(structural.q, exact.q, rtol=1e-3)


def test_blocks_that_interact_are_refused(key):
    model = grid()
    kernel = tq.AlternatingBlockGibbs([(0, 1, 2), (3, 4, 5)])
    # Also where all of it is compiled: edges are structure.
    for use in (
        lambda: kernel.step(key, model, jnp.ones(6)),
        lambda: tq.QStruct(kernel, 10)(model, random_law(4)),
        lambda: eqx.filter_jit(kernel.step)(key, model, jnp.ones(6)),
        lambda: kernel.chain(model),
        lambda: kernel.stepper(model),
    ):
        with pytest.raises(ValueError, match="units of one block interact, 0 and 1: "):
            use()
    for model, blocks, pair in (
        (neural(2, 2), [(0, 2), (1, 3)], "0 and 2"),
        (rbm(2, 2), [(0, 1, 3), (2,)], "0 and 3"),
        (neural(2, 1).tempered(2.0), [(0,), (2, 1)], "1 and 2"),
    ):
        kernel = tq.AlternatingBlockGibbs(blocks)
        with pytest.raises(ValueError, match=f"block interact, {pair}: "):
            kernel.step(key, model, jnp.ones(model.n_units))


BLOCKS = {
    "at least one block, but none": [],
    "at least one unit by number": [(0, 1), ()],
    "unit 1 is there twice": [(0, 1), (1, 2)],
    "unit 1 is missing": [(0, 2)],
    "there is a unit -1": [(-1, 0)],
    r"but \[0, 1\] was given": [0, 1],
}


@pytest.mark.parametrize("message", BLOCKS)
def test_blocks_that_do_not_hold_every_unit_once_are_refused(message, as_for_users):
    with pytest.raises(ValueError, match=message):
        tq.AlternatingBlockGibbs(BLOCKS[message])


def test_a_model_is_not_blocks(as_for_users):
    with pytest.raises(ValueError, match="but a model was given"):
        tq.AlternatingBlockGibbs(grid())


def test_a_model_of_another_size_is_refused(key):
    kernel = tq.AlternatingBlockGibbs([(0, 1), (2, 3)])
    for use in (
        lambda: kernel.step(key, rbm(3, 2), jnp.ones(5)),
        lambda: kernel.chain(rbm(3, 2)),
        lambda: kernel.site_updates(rbm(3, 2)),
    ):
        with pytest.raises(ValueError, match="has 4 units in its blocks"):
            use()


def test_a_scan_says_how_large_it_is_and_not_what():
    kernel = tq.AlternatingBlockGibbs([range(5000), range(5000, 9000)])
    assert repr(kernel) == "AlternatingBlockGibbs(2 blocks, of [5000, 4000] units)"
    assert kernel == tq.AlternatingBlockGibbs([range(5000), range(5000, 9000)])
