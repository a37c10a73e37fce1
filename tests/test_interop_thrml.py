"""thrml's own programs, and ours on the same model: laws, times and Q."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, IDENTITY, SIGMAS, assert_close, random_law
from thrml import (
    Block,
    SamplingSchedule,
    SpinNode,
    StateObserver,
    sample_with_observation,
)
from thrml.models import IsingEBM, IsingSamplingProgram

import trainq as tq
from trainq import sampling
from trainq.interop.thrml import (
    from_blocks,
    from_thrml,
    to_blocks,
    to_clamped,
    to_thrml,
)
from trainq.models import Clamped, Tempered


BURN_IN, WINDOW, CHAINS = 40, 60, 2000


def ising(beta=1.0):
    """A ring of six spins with a chord, in three blocks, two of them one superblock."""
    nodes = [SpinNode() for _ in range(6)]
    pairs = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (0, 3)]
    values = 0.6 * np.random.default_rng(0).normal(size=len(pairs))
    biases = jnp.array([0.3, -0.2, 0.1, 0.0, 0.4, -0.3])
    edges = [(nodes[i], nodes[j]) for i, j in pairs]
    ebm = IsingEBM(nodes, edges, biases, jnp.asarray(values), jnp.asarray(beta))
    blocks = [
        (Block([nodes[4]]), Block([nodes[0], nodes[2]])),
        Block([nodes[5], nodes[1], nodes[3]]),
    ]
    return ebm, blocks


@pytest.mark.parametrize("beta", [1.0, 0.7])
def test_the_weights_are_the_same_arrays(beta):
    ebm, blocks = ising(beta)
    model, kernel = from_thrml(ebm, blocks, n_visible=4)
    inner = model.model if isinstance(model, Tempered) else model
    assert isinstance(inner, tq.BoltzmannMachine)
    assert inner.couplings is ebm.weights and inner.bias is ebm.biases
    assert (model.n_visible, model.n_hidden) == (4, 2)
    assert kernel.blocks == ((4, 0, 2), (5, 1, 3))
    back, again = to_thrml(model, kernel)
    assert back.weights is ebm.weights and back.biases is ebm.biases
    assert back.beta == ebm.beta
    assert [len(block) for block in again] == [3, 3]


@pytest.mark.parametrize("beta", [1.0, 0.7])
def test_the_energy_is_that_of_thrml(beta):
    ebm, blocks = ising(beta)
    model, _ = from_thrml(ebm, blocks)
    x = jr.rademacher(jr.key(0), (20, 6), float)
    node = Block(ebm.nodes)
    theirs = [float(ebm.energy([row > 0], [node])) for row in x]
    assert_close(model.energy(x), np.array(theirs), DIRECT)


def test_a_gradient_reaches_the_model_of_thrml():
    ebm, blocks = ising(0.7)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(arrays):
        whole = eqx.tree_at(lambda e: (e.weights, e.biases, e.beta), ebm, arrays)
        return tq.log_partition(from_thrml(whole, blocks)[0])

    weights, _, beta = gradient((ebm.weights, ebm.biases, ebm.beta))
    model, _ = from_thrml(ebm, blocks)
    means = tq.mean_observables(model)
    assert_close(weights, -means[: len(weights)], DIRECT)
    parts = jnp.concatenate([ebm.weights, ebm.biases])
    assert_close(beta, -means @ parts / 0.7, DIRECT)


def test_another_temperature_does_not_compile_again():
    traced = 0

    @eqx.filter_jit
    def log_partition(model):
        nonlocal traced
        traced += 1
        return tq.log_partition(model)

    for beta in (0.7, 0.3, jnp.float32(1.5)):
        ebm, blocks = ising(beta)
        model, _ = from_thrml(ebm, blocks)
        assert isinstance(model, Tempered)
        assert float(model.beta) == float(ebm.beta)
        scaled = tq.log_partition(model.model.tempered(ebm.beta))
        assert_close(log_partition(model), scaled, IDENTITY)
    assert traced == 1


def run_thrml(ebm, blocks, chains, start):
    """The states of every chain after each of `WINDOW` sweeps, by thrml alone."""
    program = IsingSamplingProgram(ebm, blocks, [])
    flat = program.gibbs_spec.free_blocks
    schedule = SamplingSchedule(BURN_IN, WINDOW, 1)
    observer = StateObserver(flat)

    @eqx.filter_jit
    def run(program, key, start):
        def one(key, start):
            return sample_with_observation(
                key, program, schedule, start, [], observer.init(), observer
            )[1]

        return jax.vmap(one)(jr.split(key, chains), start)

    place = {node: i for i, node in enumerate(ebm.nodes)}
    order = [place[node] for block in flat for node in block]
    starts = [start[:, [place[n] for n in block]] > 0 for block in flat]
    states = jnp.concatenate(run(program, jr.key(5), starts), axis=-1)
    return jnp.where(states[..., np.argsort(order)], 1.0, -1.0)


@pytest.mark.slow
def test_means_times_and_q_of_a_program_of_thrml_are_those_we_compute():
    ebm, blocks = ising(0.7)
    model, kernel = from_thrml(ebm, blocks, n_visible=6)
    chain = kernel.chain(model)
    start = jr.rademacher(jr.key(1), (CHAINS, 6), float)
    values = model.observables(run_thrml(ebm, blocks, CHAINS, start))

    means = jnp.mean(values, axis=1)
    exact = tq.mean_observables(model)
    error = jnp.std(means, axis=0) / jnp.sqrt(CHAINS)
    assert jnp.all(jnp.abs(jnp.mean(means, axis=0) - exact) < SIGMAS * error)

    found = sampling.autocorrelation_time(values)
    f = tq.observables(model)
    half = tq.markov.asymptotic_covariance(chain, f).diagonal()
    variance = chain.stationary @ (f - exact[None]) ** 2
    tau = half / variance
    # Sixty sweeps a chain: the times are short, and known to some percent, but where
    # the sum goes on past an eighth of a chain: five times a time is more than 7 lags.
    known = found.status != 4
    np.testing.assert_allclose(found.value[known], tau[known], rtol=0.1)
    assert jnp.sum(known) > 10 and jnp.all(tau[~known] > 7 / 5)

    data = random_law(6)
    q = tq.QOperational(kernel, WINDOW, BURN_IN)(model, data)
    squares = jnp.sum((exact[None] - means) ** 2, axis=1)
    error = jnp.std(squares) / jnp.sqrt(CHAINS)
    # thrml takes its first value after the burn-in, as we do.
    assert abs(jnp.mean(squares) - q.mse) < SIGMAS * error
    # Half of the burn-in and the window would be told apart.
    other = tq.QOperational(kernel, WINDOW // 2)(model, data)
    assert abs(jnp.mean(squares) - other.mse) > SIGMAS * error


def test_the_scan_of_thrml_is_stationary_but_not_reversible():
    model, kernel = from_thrml(*ising())
    chain = kernel.chain(model)
    assert tq.markov.stationarity_residual(chain) < 1e-12
    assert tq.markov.detailed_balance_residual(chain) > 1e-3


def test_states_there_and_back():
    _, kernel = from_thrml(*ising())
    x = jr.rademacher(jr.key(3), (5, 6), float)
    states = to_blocks(kernel, x)
    assert [state.shape for state in states] == [(5, 3), (5, 3)]
    assert all(state.dtype == bool for state in states)
    assert jnp.array_equal(from_blocks(kernel, states), x)


def test_what_cannot_be_taken_over_is_refused():
    ebm, blocks = ising()
    with pytest.raises(ValueError, match="free and the clamped blocks together hold"):
        from_thrml(ebm, blocks[:1])
    with pytest.raises(ValueError, match="units of one block interact"):
        from_thrml(ebm, [Block(list(ebm.nodes))])
    with pytest.raises(ValueError, match="7 nodes, 1 of them strange to it"):
        from_thrml(ebm, [*blocks, Block([SpinNode()])])
    with pytest.raises(ValueError, match="a `BoltzmannMachine` is needed"):
        to_thrml(tq.RBM(jnp.ones((2, 2))), tq.AlternatingBlockGibbs([[0, 1], [2, 3]]))
    model, _ = from_thrml(ebm, blocks)
    with pytest.raises(ValueError, match="has 2 units in its blocks"):
        to_thrml(model, tq.AlternatingBlockGibbs([[0], [1]]))


def test_one_thing_for_another_is_refused(as_for_users):
    ebm, blocks = ising()
    with pytest.raises(ValueError, match="comes first, but a list was given"):
        from_thrml(blocks, ebm)
    with pytest.raises(ValueError, match="is a list of `thrml.Block`"):
        from_thrml(ebm, [list(block) for block in blocks])
    model, _ = from_thrml(ebm, blocks)
    for use in (
        lambda: to_thrml(model, tq.RandomScanGibbs()),
        lambda: to_blocks(tq.RandomScanGibbs(), jnp.ones(6)),
    ):
        with pytest.raises(ValueError, match=r"but RandomScanGibbs\(\) was given"):
            use()


@pytest.mark.slow
def test_biases_of_zero_are_left_out_if_asked_to():
    ebm, blocks = ising()
    with pytest.raises(ValueError, match="leaves biases out that are zero"):
        from_thrml(ebm, blocks, with_biases=False)
    zero = IsingEBM(
        ebm.nodes, ebm.edges, jnp.zeros_like(ebm.biases), ebm.weights, ebm.beta
    )
    model, kernel = from_thrml(zero, blocks, with_biases=False)
    whole, _ = from_thrml(zero, blocks)
    assert model.is_symmetric and not whole.is_symmetric
    assert tq.observables(model).shape == (2**6, 7)
    found, other = (tq.QStruct(kernel, 50)(m, random_law(6)) for m in (model, whole))
    assert_close(found.parameter_mse, other.parameter_mse[:7], DIRECT)
    assert_close(found.parameter_signal, other.parameter_signal[:7], DIRECT)


def clamped_ising(beta=0.7):
    """The ring with two of its nodes clamped, and their states."""
    ebm, _ = ising(beta)
    nodes = ebm.nodes
    free = [Block([nodes[4], nodes[0]]), Block([nodes[1], nodes[5]])]
    clamped = [Block([nodes[3]]), Block([nodes[2]])]
    return ebm, free, clamped, [jnp.array([True]), jnp.array([False])]


def test_clamped_blocks_are_clamped_units():
    ebm, free, blocks, states = clamped_ising()
    model, kernel = from_thrml(
        ebm, free, n_visible=3, clamped_blocks=blocks, clamped_values=states
    )
    assert isinstance(model, Tempered) and isinstance(model.model, Clamped)
    held: Any = model.model
    assert held.units == (2, 3) and held.values.tolist() == [-1, 1]
    assert held.model.couplings is ebm.weights and held.model.bias is ebm.biases
    assert (model.n_visible, model.n_hidden) == (2, 2)
    assert kernel.blocks == ((2, 0), (1, 3))
    x = jr.rademacher(jr.key(0), (10, 4), float)
    whole = held.fill(x)
    assert whole[:, 2].tolist() == [-1] * 10 and whole[:, 3].tolist() == [1] * 10
    theirs = [float(ebm.energy([row > 0], [Block(ebm.nodes)])) for row in whole]
    assert_close(model.energy(x), np.array(theirs), DIRECT)
    back, again = to_thrml(model, kernel)
    others, values = to_clamped(model, back)
    assert back.weights is ebm.weights and back.biases is ebm.biases
    place = {node: i for i, node in enumerate(back.nodes)}
    assert [[place[n] for n in b] for b in again] == [[4, 0], [1, 5]]
    assert [[place[n] for n in b] for b in others] == [[2, 3]]
    assert [value.tolist() for value in values] == [[False, True]]
    assert to_clamped(*from_thrml(*ising())[:1], back) == ([], [])


@pytest.mark.slow
def test_a_program_with_clamped_blocks_samples_the_conditional_law():
    ebm, free, blocks, states = clamped_ising()
    model, kernel = from_thrml(ebm, free, clamped_blocks=blocks, clamped_values=states)
    # As it comes back from us.
    ebm, free = to_thrml(model, kernel)
    clamped, values = to_clamped(model, ebm)
    program = IsingSamplingProgram(ebm, free, clamped)
    observer = StateObserver(free)

    @eqx.filter_jit
    def run(program, key, start, values):
        def one(key, start):
            return sample_with_observation(
                key,
                program,
                SamplingSchedule(20, WINDOW, 1),
                start,
                values,
                observer.init(),
                observer,
            )[1]

        return jax.vmap(one)(jr.split(key, CHAINS), start)

    start = to_blocks(kernel, jr.rademacher(jr.key(1), (CHAINS, 4), float))
    x = from_blocks(kernel, run(program, jr.key(2), start, values))
    means = jnp.mean(model.observables(x), axis=1)
    error = jnp.std(means, axis=0) / jnp.sqrt(CHAINS)
    deviation = jnp.abs(jnp.mean(means, axis=0) - tq.mean_observables(model))
    assert jnp.all(deviation <= SIGMAS * error + 1e-9)
    whole = from_thrml(*ising(0.7))[0]
    deviation = jnp.abs(jnp.mean(means, axis=0) - tq.mean_observables(whole))
    assert jnp.any(deviation > SIGMAS * error + 1e-9)
    data = random_law(4)
    q = tq.QOperational(kernel, WINDOW, 20)(model, data)
    squares = jnp.sum((tq.mean_observables(model)[None] - means) ** 2, axis=1)
    error = jnp.std(squares) / jnp.sqrt(CHAINS)
    assert abs(jnp.mean(squares) - q.mse) < SIGMAS * error


def test_clamped_blocks_come_with_their_states(as_for_users):
    ebm, free, blocks, states = clamped_ising()
    for wrong in ((), states[:1], [jnp.ones(1), jnp.ones(1)], [states[0]] * 3):
        with pytest.raises(ValueError, match="clamped_values has an array of booleans"):
            from_thrml(ebm, free, clamped_blocks=blocks, clamped_values=wrong)
    with pytest.raises(ValueError, match="clamped_blocks is a list of `thrml.Block`"):
        from_thrml(ebm, free, clamped_blocks=[[ebm.nodes[3]]], clamped_values=states)
    model, _ = from_thrml(ebm, free, clamped_blocks=blocks, clamped_values=states)
    with pytest.raises(ValueError, match="has 6 units, clamped ones included, but an"):
        to_clamped(model, IsingEBM(ebm.nodes[:2], [], ebm.biases, ebm.weights, 1.0))
