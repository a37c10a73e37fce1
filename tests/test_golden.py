"""Stored values from an independent dense oracle, for every kernel."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIRECT, IDENTITY, KERNELS, assert_close

import trainq as tq


CELLS = json.loads((pathlib.Path(__file__).parent / "data/golden.json").read_text())


def name(cell):
    shape = f"{cell['n_visible']}x{cell['n_hidden']}"
    return f"{cell['kernel']} {shape}{' biased' if cell['biased'] else ''}"


@pytest.fixture(params=CELLS, ids=name)
def cell(request):
    stored = {k: v for k, v in request.param.items() if v is not None}
    biases = (stored["visible_bias"], stored["hidden_bias"]) if stored["biased"] else ()
    model = tq.RBM(jnp.array(stored["weights"]), *map(jnp.array, biases))
    return stored, KERNELS[stored["kernel"]], model, jnp.array(stored["data"])


def test_there_are_five_cells_of_every_kernel():
    counts = {k: sum(cell["kernel"] == k for cell in CELLS) for k in KERNELS}
    assert counts == dict.fromkeys(KERNELS, 5)


def test_laws(cell):
    stored, _, model, data = cell
    teacher = tq.RBM(jnp.array(stored["teacher_weights"]))
    assert_close(tq.visible_distribution(teacher), stored["data"], IDENTITY)
    assert_close(tq.log_partition(model), stored["log_z"], IDENTITY)
    # A difference of two entropies, of which little may be left.
    assert abs(tq.kl_divergence(data, model) - stored["kl"]) <= IDENTITY
    assert_close(tq.mean_observables(model), stored["mean_observables"], IDENTITY)
    assert_close(tq.kl_gradient(data, model), stored["gradient"], DIRECT)


def test_predictors(cell):
    stored, kernel, model, data = cell
    window = stored["window"]
    snr = tq.QStruct(kernel, window)(model, data)
    assert_close(snr.signal, stored["signal"], DIRECT)
    assert_close(snr.t_o, stored["t_o"], DIRECT)
    assert_close(snr.q, stored["q_struct"], DIRECT)
    sokal = tq.QStruct(kernel, window, "sokal")(model, data)
    assert_close(sokal.t_o, stored["t_o_sokal"], DIRECT)


def test_diagnostics(cell):
    stored, kernel, model, _ = cell
    chain = kernel.chain(model)
    mode = jnp.arange(chain.n_states) == jnp.argmax(chain.log_stationary)
    hitting = jnp.mean(tq.markov.hitting_times(chain, mode))
    assert_close(hitting, stored["hitting_time_to_mode_from_uniform"], DIRECT)
    assert kernel.is_reversible == ("gap" in stored)
    if kernel.is_reversible:
        # Eigenvalues carry an absolute error, and the smallest gap is 4e-5.
        found = tq.markov.cheeger_margins(chain)
        assert abs(found.gap - stored["gap"]) <= IDENTITY
        assert_close(found.conductance, stored["sweep_conductance"], DIRECT)
        eigenvalues = np.linalg.eigvals(np.asarray(chain.matrix())).real
        top = np.sort(eigenvalues)[::-1][: len(stored["eigenvalues_top8"])]
        assert_close(top, stored["eigenvalues_top8"], DIRECT)
        assert tq.markov.detailed_balance_residual(chain) <= IDENTITY
