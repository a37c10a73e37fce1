import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import DIRECT, IDENTITY, KERNELS, assert_close, energies, machine, rbm

import trainq as tq
from trainq._spins import fold


RULES = {"gibbs": tq.markov.HeatBath(), "metropolis": tq.markov.Metropolis()}


@pytest.mark.parametrize("name", RULES)
def test_rules_obey_detailed_balance(name):
    rule, delta = RULES[name], jnp.linspace(-30, 30, 101)
    assert_close(
        rule.acceptance(delta) / jnp.exp(delta / 2),
        rule.acceptance(-delta) * jnp.exp(delta / 2),
        IDENTITY,
    )
    expected = jnp.exp(-delta / 2) * rule.acceptance(delta)
    assert_close(rule.symmetrised(delta), expected, IDENTITY)
    assert_close(rule.symmetrised(delta), rule.symmetrised(-delta), IDENTITY)


@pytest.mark.parametrize("name", RULES)
def test_rules_do_not_overflow(name):
    rule, cold = RULES[name], jnp.array([-1e4, 0.0, 1e4])
    for fn in (rule.acceptance, rule.symmetrised, jax.vmap(jax.grad(rule.symmetrised))):
        assert jnp.all(jnp.isfinite(fn(cold)))
    assert_close(rule.acceptance(cold)[::2], [0, 1], IDENTITY)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("model", [rbm(3, 2), rbm(2, 2)], ids=["odd N", "even N"])
def test_sectors_are_the_blocks_of_the_dense_generator(name, model):
    pi = oracle.law(energies(model))
    root = np.sqrt(pi)
    matrix = oracle.single_flip(pi, name)
    whole = np.eye(len(pi)) - root[:, None] * matrix / root[None, :]
    chain = KERNELS[name].chain(model)
    assert_close(chain.generator().matrix(), whole, IDENTITY)
    for sector, sign in (("even", 1), ("odd", -1)):
        basis = fold(jnp.eye(len(pi)), sign)  # rows are an orthonormal basis
        block = basis @ whole @ basis.T
        assert_close(chain.generator(sector).matrix(), block, IDENTITY)
    both = [np.linalg.eigvalsh(chain.generator(s).matrix()) for s in ("even", "odd")]
    assert_close(np.sort(np.concatenate(both)), np.linalg.eigvalsh(whole), DIRECT)


def test_states_whose_probability_underflows_do_no_harm():
    # exp(-2·400) is zero in float64; the chain flips out of these states at once.
    model = tq.RBM(jnp.zeros((1, 1)), jnp.array([400.0]), jnp.array([0.3]))
    chain = KERNELS["gibbs"].chain(model)
    assert chain.stationary.min() == 0
    f = tq.observables(model)[:, 2:]
    x = tq.markov.resolvent(chain, f)
    assert jnp.all(jnp.isfinite(x))
    # The hidden unit alone: every other step redraws one of two units, the spin h with
    # variance 1 - tanh², and R f̃ = 2 f̃ for a unit that is redrawn at rate one half.
    assert_close(x[2:], 2 * (f - jnp.tanh(-0.3))[2:, :], 1e-8)
    variance = 1 - jnp.tanh(0.3) ** 2
    assert_close(tq.markov.resolvent_trace(chain, f), 2 * variance, DIRECT)


def test_relabelling_units_permutes_the_flips():
    model = machine(3, biased=True)
    order = np.array([2, 0, 1])
    matrix = model.coupling_matrix[order][:, order]
    permuted = tq.BoltzmannMachine(matrix, model.bias[order])
    flips = KERNELS["gibbs"].chain(model).flip_probabilities()
    found = KERNELS["gibbs"].chain(permuted).flip_probabilities()
    table = flips.reshape(3, 2, 2, 2).transpose(0, 3, 1, 2)[order]
    assert_close(found.reshape(3, 2, 2, 2), table, IDENTITY)
