"""What does not fit into memory is refused before it is computed, by estimates that are
compared with what XLA sets aside."""

import os
import re
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow_except

import trainq as tq
from trainq import _memory


def rbm(n_visible, n_hidden, biases=False):
    weights = 0.3 * jax.random.normal(jax.random.key(0), (n_visible, n_hidden))
    if not biases:
        return tq.RBM(weights)
    return tq.RBM(weights, 0.1 * jnp.ones(n_visible), 0.1 * jnp.ones(n_hidden))


def ring(n):
    edges = np.stack([np.arange(n), (np.arange(n) + 1) % n], axis=1)
    return tq.BoltzmannMachine.from_edges(edges, jnp.full(n, 0.3), n_visible=n // 2)


def log_q(predictor):
    def fn(model):
        data = jnp.full(2**model.n_visible, 2.0**-model.n_visible)
        return jnp.log(predictor(model, data).q)

    return fn


def along(fn):
    """`fn(predictor, model, data)` as a function of the model."""

    def of_model(model):
        data = jnp.full(2**model.n_visible, 2.0**-model.n_visible)
        return jnp.log(fn(model, data).q)

    return of_model


def gap(model):
    return tq.markov.spectral_gap(FLIPS.chain(model))


def one_state(chain):
    return jnp.arange(chain.n_states) == 0


FLIPS = tq.RandomScanGibbs()
LAYERS = tq.RandomScanBlockGibbs()
FIXED = tq.AlternatingBlockGibbs
SCAN = FIXED([np.arange(i, 18, 3) for i in range(3)])
FUNCTIONS = np.random.default_rng(0).normal(size=(2**16, 8))
# A function of a model, and the model.
PATHS = {
    "flips": (log_q(tq.QStruct(FLIPS, 1000)), rbm(9, 9)),
    "flips, one block": (log_q(tq.QStruct(FLIPS, 1000)), rbm(8, 8)),
    "flips, few columns": (
        log_q(tq.QStruct(FLIPS, 1000, solver=tq.ConjugateGradient(block=4))),
        rbm(9, 9),
    ),
    "flips, odd": (log_q(tq.QStruct(FLIPS, 1000)), rbm(9, 8)),
    "flips, biases": (log_q(tq.QStruct(FLIPS, 1000)), rbm(8, 8, True)),
    "flips, sokal": (log_q(tq.QStruct(FLIPS, 1000, "sokal")), rbm(9, 9)),
    "flips, randomised": (
        along(
            lambda model, data: tq.QStruct(FLIPS, 1000).randomised(
                jax.random.key(0), model, data
            )
        ),
        rbm(9, 9),
    ),
    "flips, large": (log_q(tq.QStruct(FLIPS, 1000)), rbm(11, 11)),
    "layers": (log_q(tq.QStruct(LAYERS, 1000)), rbm(12, 12)),
    "layers, large": (log_q(tq.QStruct(LAYERS, 1000)), rbm(14, 14)),
    "layers, iterated": (log_q(tq.QStruct(LAYERS, 1000)), rbm(15, 15)),
    "layers, symmetrised": (
        log_q(tq.QStruct(tq.Symmetrised(FIXED()), 1000)),
        rbm(14, 14),
    ),
    "layers, table": (log_q(tq.QStruct(LAYERS, 1000)), rbm(11, 11)),
    "layers, table, biases": (log_q(tq.QStruct(LAYERS, 1000)), rbm(11, 11, True)),
    "layers, table, symmetrised": (
        log_q(tq.QStruct(tq.Symmetrised(FIXED()), 1000)),
        rbm(11, 11),
    ),
    "layers, wide": (log_q(tq.QStruct(LAYERS, 1000)), rbm(18, 8)),
    "scan": (log_q(tq.QStruct(SCAN, 1000)), ring(18)),
    "scan, symmetrised": (log_q(tq.QStruct(tq.Symmetrised(SCAN), 1000)), ring(18)),
    "power": (log_q(tq.QStruct(tq.Power(FLIPS, 18), 1000)), ring(18)),
    "window": (log_q(tq.QOperational(FLIPS, 1000)), rbm(8, 8)),
    "window, longer": (log_q(tq.QOperational(FLIPS, 40_000)), rbm(8, 8)),
    "window, few columns": (log_q(tq.QOperational(FLIPS, 1000)), rbm(10, 10)),
    "window, stationary": (
        log_q(tq.QOperational(FLIPS, 1000, start=tq.Stationary())),
        rbm(9, 9),
    ),
    "resolvent": (
        lambda model: jnp.sum(tq.markov.resolvent(FLIPS.chain(model), FUNCTIONS) ** 2),
        rbm(8, 8),
    ),
    "hitting times": (
        lambda model: tq.markov.hitting_times(
            FLIPS.chain(model), one_state(FLIPS.chain(model))
        )[-1],
        rbm(9, 9),
    ),
    "gap": (gap, rbm(6, 6, True)),
    "gap, parities": (gap, rbm(6, 6)),
}
# Those of many models at once, by `jax.vmap`.
BATCHES = {
    "matrices": (log_q(tq.QStruct(FLIPS, 1000)), rbm(5, 5), 50),
    "matrices, biases": (log_q(tq.QStruct(FLIPS, 1000)), rbm(6, 5, True), 20),
    "flips": (log_q(tq.QStruct(FLIPS, 1000)), rbm(8, 8), 6),
    "layers": (log_q(tq.QStruct(LAYERS, 1000)), rbm(10, 10), 20),
    "layers, biases": (log_q(tq.QStruct(LAYERS, 1000)), rbm(10, 10, True), 20),
    "layers, large": (log_q(tq.QStruct(LAYERS, 1000)), rbm(12, 12), 4),
    "window": (log_q(tq.QOperational(FLIPS, 1000)), rbm(6, 6), 4),
    "window, stationary": (
        log_q(tq.QOperational(FLIPS, 1000, start=tq.Stationary())),
        rbm(8, 8),
        4,
    ),
    "scan": (log_q(tq.QStruct(SCAN, 1000)), ring(18), 3),
}


def in_a_batch(fn, model, size):
    """`fn` of some models like this one, and what it is a function of."""
    params, static = eqx.partition(model, eqx.is_array)
    models = jax.tree.map(
        lambda x: jnp.stack([x * scale for scale in jnp.linspace(0.8, 1, size)]), params
    )
    return jax.vmap(lambda p: fn(eqx.combine(p, static))), models


def estimate_and_peak(fn, model, monkeypatch):
    """The bytes that trainq says and those that XLA sets aside."""
    said, require_memory = [], _memory.require_memory
    for module in list(sys.modules.values()):
        if vars(module).get("require_memory") is require_memory:
            monkeypatch.setattr(module, "require_memory", lambda n, *_: said.append(n))
    jax.clear_caches()  # nothing is estimated twice
    params, static = eqx.partition(model, eqx.is_array)
    compiled = jax.jit(lambda p: fn(eqx.combine(p, static))).lower(params).compile()
    stats = compiled.memory_analysis()
    return max(said), stats.temp_size_in_bytes + stats.output_size_in_bytes


@pytest.mark.parametrize("derivative", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize(
    "path", slow_except(list(PATHS), "flips", "layers", "window", "hitting times")
)
def test_estimates_are_what_is_set_aside(path, derivative, monkeypatch):
    fn, model = PATHS[path]
    if derivative:
        fn = eqx.filter_value_and_grad(fn)
    said, peak = estimate_and_peak(fn, model, monkeypatch)
    assert abs(said / peak - 1) < 0.25


@pytest.mark.parametrize("derivative", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize(
    "path", slow_except(list(PATHS), "flips", "layers", "window", "hitting times")
)
def test_what_does_not_fit_is_refused(path, derivative, monkeypatch):
    monkeypatch.setenv("TRAINQ_MEMORY", "0.02")
    jax.clear_caches()
    fn, model = PATHS[path]
    if derivative:
        fn = eqx.filter_grad(fn)
    with pytest.raises(MemoryError, match="GiB.*, and there are 0.02 GiB. "):
        eqx.filter_eval_shape(fn, model)
    jax.clear_caches()


@pytest.mark.parametrize("derivative", [False, True], ids=["value", "gradient"])
@pytest.mark.parametrize("batch", slow_except(list(BATCHES), "matrices", "window"))
def test_estimates_of_many_models_at_once(batch, derivative, monkeypatch):
    fn, model, size = BATCHES[batch]
    if derivative:
        fn = eqx.filter_value_and_grad(fn)
    said, peak = estimate_and_peak(*in_a_batch(fn, model, size), monkeypatch)
    assert abs(said / peak - 1) < 0.25


def test_many_models_at_once_that_do_not_fit(monkeypatch):
    fn, model, size = BATCHES["matrices"]
    monkeypatch.setenv("TRAINQ_MEMORY", "0.05")
    jax.clear_caches()
    eqx.filter_eval_shape(fn, model)
    for one in fn, jax.jit(jax.grad(fn)), jax.grad(jax.jit(fn)):
        with pytest.raises(MemoryError, match="50 times at once by `jax.vmap`, takes"):
            eqx.filter_eval_shape(*in_a_batch(one, model, size))
    many, models = in_a_batch(fn, model, size)
    # What is said to fit does, with its gradient, and one more does not.
    with pytest.raises(MemoryError) as refused:
        eqx.filter_eval_shape(many, models)
    fits = int(re.search(r"batch_size=(\d+)\)", str(refused.value))[1])
    gradient = jax.grad(fn)
    eqx.filter_eval_shape(*in_a_batch(gradient, model, fits))
    with pytest.raises(MemoryError, match=rf"{fits + 1} times at once"):
        eqx.filter_eval_shape(*in_a_batch(gradient, model, fits + 1))
    monkeypatch.setenv("TRAINQ_MEMORY", "0.08")
    jax.clear_caches()
    eqx.filter_eval_shape(many, models)
    with pytest.raises(MemoryError, match="The gradient of the .* 50 times at once"):
        eqx.filter_eval_shape(jax.grad(lambda m: jnp.sum(many(m))), models)
    jax.clear_caches()


def test_modes_that_do_not_fit(monkeypatch):
    monkeypatch.setenv("TRAINQ_MEMORY", "0.1")
    for n, k in ((6, None), (7, 100)):
        model = rbm(n, n)
        chain, f = FLIPS.chain(model), tq.markov.EnergyGradients(model)
        if k is not None:
            tq.markov.modes(chain, f, 1)
        with pytest.raises(MemoryError, match="Finding modes among"):
            tq.markov.modes(chain, f, k)


def test_the_estimate_of_all_modes(monkeypatch):
    def gaps(model):
        return tq.markov.modes(FLIPS.chain(model), tq.markov.EnergyGradients(model)).gap

    said, peak = estimate_and_peak(gaps, rbm(6, 5, True), monkeypatch)
    assert abs(said / peak - 1) < 0.25


def test_basins_that_do_not_fit(monkeypatch):
    monkeypatch.setenv("TRAINQ_MEMORY", "0.02")
    tq.markov.basins(FLIPS.chain(rbm(8, 8)))
    with pytest.raises(MemoryError, match="Finding basins among 262,144 states takes"):
        tq.markov.basins(FLIPS.chain(rbm(9, 9)))


def test_values_that_cannot_be_kept(monkeypatch):
    monkeypatch.setenv("TRAINQ_MEMORY", "0.02")
    model = rbm(10, 10)
    state = tq.start_chains(jax.random.key(0), model, 8)
    kept = tq.run(FLIPS, model, state, 1000, keep=True).values
    assert kept.nbytes == 1000 * 8 * 100 * 8
    tq.run(FLIPS, model, state, 2000)
    for chunk in None, 100:
        with pytest.raises(MemoryError, match="Keeping 2,000 values of 100 functions"):
            tq.run(FLIPS, model, state, 2000, keep=True, chunk=chunk)


class Own(tq.solvers.AbstractSolver):
    """A solver of a user's own, which needs no matrix."""

    throw: bool = True

    def init(self, system):
        return system

    def compute(self, state, b, options):
        return b, jnp.zeros(b.shape[1], int)


def test_a_solver_of_ones_own_is_not_taken_to_need_a_matrix():
    generator = FLIPS.chain(rbm(4, 4)).generator("even")
    system = generator.system()
    numbers = tq.solvers.solve_numbers(generator, system, Own(), 3)
    assert numbers < tq.solvers.solve_numbers(generator, system, tq.Direct(), 3) / 5
    iterated = tq.solvers.solve_numbers(generator, system, tq.ConjugateGradient(), 3)
    assert numbers == iterated


def test_a_limit_that_is_no_number(monkeypatch):
    monkeypatch.setenv("TRAINQ_MEMORY", "16GB")
    with pytest.raises(ValueError, match="a number of GiB, but '16GB' was given"):
        _memory.require_memory(1.0, "Nothing", "")
    monkeypatch.delenv("TRAINQ_MEMORY")
    _memory.require_memory(1.0, "A byte", "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_process():
    # What XLA sets aside is what the process then takes.
    code = r"""if True:
        import re, jax, jax.numpy as jnp, trainq as tq

        def kib(name):  # not by `getrusage`, whose peak begins with that of the parent
            status = open("/proc/self/status").read()
            return int(re.search(name + r":\s*(\d+)", status)[1])

        jax.config.update("jax_enable_x64", True)
        model = tq.RBM(0.3 * jax.random.normal(jax.random.key(0), (9, 9)))
        data, predictor = jnp.full(2**9, 2.0**-9), tq.QStruct(tq.RandomScanGibbs(), 9)
        fn = jax.jit(jax.value_and_grad(lambda model: predictor(model, data).log_q))
        compiled = fn.lower(model).compile()
        before = kib("VmRSS")
        jax.block_until_ready(compiled(model))
        taken = (kib("VmHWM") - before) * 1024
        print(taken, compiled.memory_analysis().temp_size_in_bytes)
    """
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    taken, said = map(int, out.stdout.split())
    assert abs(taken / said - 1) < 0.25
