"""Stored values from an independent dense oracle, for every kernel."""

import json
import pathlib

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIRECT, IDENTITY, KERNELS, assert_close

import trainq as tq


CELLS = json.loads((pathlib.Path(__file__).parent / "data/golden.json").read_text())


def name(cell):
    shape = f"{cell['n_visible']}x{cell['n_hidden']}"
    return f"{cell['kernel']} {shape}{' biased' if cell['biased'] else ''}"


# Every second one in the fast tests, which are two or three of every kernel.
SOME = [
    pytest.param(cell, marks=pytest.mark.slow if i % 2 else (), id=name(cell))
    for i, cell in enumerate(CELLS)
]


@pytest.fixture(params=SOME)
def cell(request):
    stored = {k: v for k, v in request.param.items() if v is not None}
    biases = (stored["visible_bias"], stored["hidden_bias"]) if stored["biased"] else ()
    model = tq.RBM(jnp.array(stored["weights"]), *map(jnp.array, biases))
    return stored, KERNELS[stored["kernel"]], model, jnp.array(stored["data"])


def test_there_are_five_cells_of_every_kernel():
    counts = {k: sum(cell["kernel"] == k for cell in CELLS) for k in KERNELS}
    assert counts == dict.fromkeys(KERNELS, 5)


@eqx.filter_jit
def laws_of(teacher, model, data):
    return (
        tq.visible_distribution(teacher),
        tq.log_partition(model),
        tq.kl_divergence(model, data),
        tq.mean_observables(model),
        tq.kl_gradient(model, data),
    )


def test_laws(cell):
    stored, _, model, data = cell
    teacher = tq.RBM(jnp.array(stored["teacher_weights"]))
    law, log_z, kl, means, gradient = laws_of(teacher, model, data)
    assert_close(law, stored["data"], IDENTITY)
    assert_close(log_z, stored["log_z"], IDENTITY)
    # A difference of two entropies, of which little may be left.
    assert abs(kl - stored["kl"]) <= IDENTITY
    assert_close(means, stored["mean_observables"], IDENTITY)
    assert_close(gradient, stored["gradient"], DIRECT)


@eqx.filter_jit
def predictions(kernel, model, data, window, burn_in):
    return (
        tq.QStruct(kernel, window)(model, data),
        tq.QStruct(kernel, window, "sokal")(model, data),
        tq.QOperational(kernel, window, start=tq.Stationary())(model, data),
        tq.QOperational(kernel, window, burn_in)(model, data),
    )


@pytest.mark.quick(1)
def test_predictors(cell):
    stored, kernel, model, data = cell
    window, burn_in = stored["window"], stored["burn_in"]
    snr, sokal, exact, cold = predictions(kernel, model, data, window, burn_in)
    assert_close(snr.signal, stored["signal"], DIRECT)
    assert_close(snr.t_o, stored["t_o"], DIRECT)
    assert_close(snr.q, stored["q_struct"], DIRECT)
    assert_close(sokal.t_o, stored["t_o_sokal"], DIRECT)
    assert_close(exact.mse, stored["window_variance"], DIRECT)
    assert_close(cold.mse, stored["window_mse_uniform_start"], DIRECT)
    # The bias may have decayed to the rounding of the averages that it is one of.
    bias = stored["window_bias2_uniform_start"] ** 0.5
    assert abs(cold.bias2**0.5 - bias) <= IDENTITY * cold.mse**0.5


@eqx.filter_jit
def diagnostics(kernel, model):
    chain = kernel.chain(model)
    mode = jnp.arange(chain.n_states) == jnp.argmax(chain.log_stationary)
    hitting = jnp.mean(tq.markov.hitting_times(chain, mode))
    if not kernel.is_reversible:
        return hitting, chain.matrix(), None
    balance = tq.markov.detailed_balance_residual(chain)
    return hitting, chain.matrix(), (tq.markov.cheeger_margins(chain), balance)


@pytest.mark.quick(1)
def test_diagnostics(cell):
    stored, kernel, model, _ = cell
    hitting, matrix, reversible = diagnostics(kernel, model)
    assert_close(hitting, stored["hitting_time_to_mode_from_uniform"], DIRECT)
    assert kernel.is_reversible == ("gap" in stored)
    assert kernel.is_reversible == (reversible is not None)
    if reversible is not None:
        found, balance = reversible
        # Eigenvalues carry an absolute error, and the smallest gap is 4e-5.
        assert abs(found.gap - stored["gap"]) <= IDENTITY
        assert_close(found.conductance, stored["sweep_conductance"], DIRECT)
        eigenvalues = np.linalg.eigvals(np.asarray(matrix)).real
        top = np.sort(eigenvalues)[::-1][: len(stored["eigenvalues_top8"])]
        assert_close(top, stored["eigenvalues_top8"], DIRECT)
        assert balance <= IDENTITY
