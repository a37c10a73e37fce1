"""The forms in which chains ask for functions of the state."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import DIRECT, IDENTITY, KERNELS, MODELS, assert_close, energies, rbm

import trainq as tq
from trainq.markov.chains import _functions
from trainq.solvers._forms import Form


# A model of each kind; the rest are slow.
KINDS = ("rbm 2x4", "biased rbm 2x3", "machine 4+2", "visible machine 4", "neural 3+2")
SOME = [m if m in KINDS else pytest.param(m, marks=pytest.mark.slow) for m in MODELS]


@pytest.fixture(params=SOME)
def model(request):
    return MODELS[request.param]


@pytest.mark.quick(1)
def test_gradients_along_directions_are_combinations_of_the_observables(model):
    table = np.asarray(tq.observables(model))
    directions = jr.normal(jr.key(0), (3, table.shape[1]))
    found = _functions.EnergyGradients(model, directions)
    assert_close(found.table(), table @ np.asarray(directions).T, DIRECT)
    assert_close(_functions.EnergyGradients(model).table(), table, IDENTITY)


@pytest.mark.quick(2)
def test_moments_given_a_layer_are_those_of_the_table(model):
    # The closed forms, from derivatives of free energies, against sums over states.
    law = np.exp(-energies(model))
    law = (law / law.sum()).reshape(2**model.n_visible, -1)
    table = np.asarray(tq.observables(model))
    cube = table.reshape(*law.shape, -1)
    on_visible = np.einsum("vh,vha->va", law, cube) / law.sum(1)[:, None]
    on_hidden = np.einsum("vh,vha->ha", law, cube) / law.sum(0)[:, None]
    within = np.einsum("vh,vha->a", law, (cube - on_visible[:, None]) ** 2)
    chain = KERNELS["random"].chain(model)

    @eqx.filter_jit
    def moments(f):
        means = f.layer_means(chain.layers)
        return means, f.covariance_given_visible(chain.layers, means[0], "diagonal")

    for f in (_functions.EnergyGradients(model), _functions.Table(jnp.array(table))):
        means, found = moments(f)
        assert_close(means[0], on_visible, DIRECT)
        assert_close(means[1], on_hidden, DIRECT)
        assert jnp.max(jnp.abs(found - within)) <= DIRECT * np.max(table**2)
    mean = law.reshape(-1) @ table
    variance = law.reshape(-1) @ (table - mean) ** 2
    for name in ("random", "gibbs"):
        chain = KERNELS[name].chain(model)
        found = eqx.filter_jit(tq.markov.variance)(
            chain, _functions.EnergyGradients(model)
        )
        assert jnp.max(jnp.abs(found - variance)) <= DIRECT * np.max(table**2)


@pytest.mark.parametrize("block", [1, 2, 4, 6, 100])
@pytest.mark.parametrize("as_table", [False, True])
def test_blocks_give_every_function_once_and_in_order(block, as_table):
    model, sizes = rbm(3, 2), []
    f = _functions.EnergyGradients(model)
    f = _functions.Table(f.table()) if as_table else f

    def first_moments(f, _):
        sizes.append(f.n_functions)
        return Form(jnp.arange(32.0) @ f.table(), None, None)

    found = _functions.in_blocks(first_moments, f, block).value
    assert_close(found, jnp.arange(32.0) @ tq.observables(model), IDENTITY)
    assert max(sizes) <= block


def test_directions_are_taken_a_few_at_a_time(monkeypatch):
    model = rbm(1, 5)
    f = _functions.EnergyGradients(model)

    def means(model):
        at = _functions.EnergyGradients(model)
        return at.visible_means() ** 2

    at_once = f.visible_means(), jax.jacrev(lambda m: means(m))(model).weights
    monkeypatch.setattr(_functions, "MAX_TABLE", 2 * 2 * 6)  # two of the five
    assert_close(f.visible_means(), at_once[0], IDENTITY)
    found = jax.jacrev(lambda m: means(m))(model).weights
    assert_close(found, at_once[1], IDENTITY)
