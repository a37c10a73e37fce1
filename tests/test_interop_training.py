"""Training specifications of thrml: both phases, against thrml's own gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, IDENTITY, SIGMAS, assert_close, grid
from thrml import Block, SamplingSchedule, SpinNode
from thrml.models import IsingEBM, IsingTrainingSpec
from thrml.models.ising import estimate_kl_grad

import trainq as tq
from trainq.interop.thrml import (
    TrainingPhases,
    from_training_spec,
    to_blocks,
    to_training_spec,
)
from trainq.models import Tempered


CHAINS = 400
SCHEDULE = SamplingSchedule(20, 30, 1)


def specification(beta=0.8, n_conditioning=1):
    """A model whose nodes are in another order than data, conditioning, hidden."""
    nodes = [SpinNode() for _ in range(6)]
    hidden, data, held = nodes[:2], [nodes[4], nodes[2]], [nodes[3], nodes[5]]
    pairs = [(0, 2), (0, 3), (0, 4), (1, 2), (1, 4), (1, 5), (2, 3), (4, 5)]
    values = 0.6 * np.random.default_rng(1).normal(size=len(pairs))
    biases = jnp.linspace(-0.4, 0.5, 6)
    edges = [(nodes[i], nodes[j]) for i, j in pairs]
    ebm = IsingEBM(nodes, edges, biases, jnp.asarray(values), jnp.asarray(beta))
    if n_conditioning == 0:
        data, held = data + held, []
    drawn = [Block(held)] if held else []
    free = [Block(hidden), Block(data)] if held else [Block(hidden), *blocks_of(data)]
    return IsingTrainingSpec(
        ebm, [Block(data)], drawn, [Block(hidden)], free, SCHEDULE, SCHEDULE
    )


def blocks_of(nodes):
    return [Block([node]) for node in nodes]


@pytest.mark.slow
def test_the_phases_are_models_and_kernels():
    spec = specification()
    phases = from_training_spec(spec)
    assert (phases.n_data, phases.n_conditioning) == (2, 2)
    assert phases.negative.blocks == ((2, 3), (0, 1))
    assert phases.positive is not None and phases.positive.blocks == ((0, 1),)
    assert isinstance(phases.model, Tempered)
    machine: Any = phases.model.model
    assert machine.couplings is spec.ebm.weights
    order = [4, 2, 3, 5, 0, 1]  # data, conditioning, hidden
    assert_close(machine.bias, spec.ebm.biases[np.array(order)], IDENTITY)
    x = jr.rademacher(jr.key(0), (8, 6), float)
    theirs = x[:, np.argsort(order)] > 0
    whole = Block(spec.ebm.nodes)
    energies = [float(spec.ebm.energy([row], [whole])) for row in theirs]
    assert_close(phases.model.energy(x), np.array(energies), DIRECT)
    assert "(2 units of data, 2 of conditioning, 2 hidden; pos" in str(phases)


@pytest.mark.parametrize("n_conditioning", [0, 1])
def test_there_and_back(n_conditioning):
    phases = from_training_spec(specification(1.0, n_conditioning))
    spec = to_training_spec(phases, SCHEDULE, SCHEDULE)
    again = from_training_spec(spec)
    assert again.positive == phases.positive and again.negative == phases.negative
    assert again.n_conditioning == phases.n_conditioning
    before, after = phases.model, again.model
    assert isinstance(before, tq.BoltzmannMachine)
    assert isinstance(after, tq.BoltzmannMachine)
    assert spec.ebm.weights is before.couplings is after.couplings
    assert spec.ebm.biases is before.bias is after.bias
    assert before.edges.tolist() == after.edges.tolist()


@pytest.mark.slow
def test_the_gradient_of_thrml_is_that_of_the_two_phases():
    # As it comes back from us, so that units are nodes in order.
    phases = from_training_spec(specification())
    spec = to_training_spec(phases, SCHEDULE, SCHEDULE)
    ebm = spec.ebm
    data = jnp.array([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    held = jnp.array([-1.0, 1.0])
    keys = jr.split(jr.key(0), 3)
    positive = [jr.bernoulli(keys[0], shape=(CHAINS, 3, 2))]
    x = jr.rademacher(keys[1], (CHAINS, 4), float)

    @jax.jit
    def run(key):
        return estimate_kl_grad(
            key,
            spec,
            ebm.nodes,
            ebm.edges,
            [data > 0],
            [held > 0],
            positive,
            to_blocks(phases.negative, x),
        )

    weights, biases, plus, minus = run(keys[2])
    found = jnp.concatenate([weights, biases])
    negative = phases.negative_model(held)
    law = tq.empirical_distribution(data)
    exact = tq.kl_gradient(negative, law)

    def moments(pair, axis):
        return jnp.concatenate(pair[::-1], axis=-1).mean(axis=axis)

    scatter = [moments(plus, 1), moments(minus, ())]
    variance = sum(jnp.var(values, axis=0) for values in scatter)
    error = 0.8 * jnp.sqrt(variance / CHAINS)
    assert jnp.all(jnp.abs(found - exact) <= SIGMAS * error + 1e-9)
    # Not that of the whole model, nor of other conditions.
    other = tq.kl_gradient(phases.negative_model(-held), law)
    assert jnp.any(jnp.abs(found - other) > SIGMAS * error + 1e-9)
    # Each phase by itself: the positive one is that of clamped models.
    given = jax.vmap(lambda v: tq.mean_observables(phases.positive_model(v, held)))
    plus = -0.8 * jnp.mean(scatter[0], axis=0)
    error = 0.8 * jnp.sqrt(jnp.var(scatter[0], axis=0) / CHAINS)
    phase = jnp.mean(given(data), axis=0)
    assert jnp.all(jnp.abs(plus - phase) <= SIGMAS * error + 1e-9)
    # And Q says what the negative phase adds.
    q = tq.QOperational(phases.negative, 30, 20)(negative, law)
    squares = (0.8 * scatter[1] + tq.mean_observables(negative)[None]) ** 2
    total = jnp.sum(squares, axis=1)
    error = jnp.std(total) / jnp.sqrt(CHAINS)
    assert abs(jnp.mean(total) - q.mse) < SIGMAS * error


def test_a_model_without_hidden_units_has_no_positive_phase():
    machine = tq.BoltzmannMachine(0.3 * jnp.ones(2), edges=[(0, 1), (1, 2)])
    kernel = tq.AlternatingBlockGibbs([[0, 2], [1]])
    spec = to_training_spec(TrainingPhases(machine, None, kernel), SCHEDULE, SCHEDULE)
    phases = from_training_spec(spec, with_biases=False)
    assert phases.positive is None and phases.model.is_symmetric
    assert phases.negative == kernel
    with pytest.raises(ValueError, match="At least one unit stays free"):
        phases.positive_model(jnp.ones(3))


def test_phases_that_do_not_fit_are_refused(as_for_users):
    spec = specification()
    nodes = spec.ebm.nodes
    data, held = [Block([nodes[4], nodes[2]])], [Block([nodes[3], nodes[5]])]
    hidden = [Block(nodes[:2])]
    wrong = {
        "units of one block interact": (
            data,
            held,
            hidden,
            [Block([*nodes[:2], nodes[4], nodes[2]])],
        ),
        "positive phase draws each node once": (data, held, [Block(nodes[:1])], None),
    }
    for message, (d, h, plus, minus) in wrong.items():
        minus = [*hidden, *data] if minus is None else minus
        made = IsingTrainingSpec(spec.ebm, d, h, plus, minus, SCHEDULE, SCHEDULE)
        with pytest.raises(ValueError, match=message):
            from_training_spec(made)
    machine, kernel = grid(), tq.AlternatingBlockGibbs([[0], [1]])
    with pytest.raises(ValueError, match="n_conditioning is less than the 4 visible"):
        TrainingPhases(machine, None, kernel, 4)
    with pytest.raises(ValueError, match="has 2 units in its blocks, but the model"):
        TrainingPhases(machine, None, kernel, 1)
