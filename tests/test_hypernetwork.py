"""The network from codes to models."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import (
    DIFFERENCES,
    IDENTITY,
    SIGMAS,
    assert_close,
    central_difference,
    flatten,
    random_law,
)

import trainq as tq


CODE = jnp.array([0.3, -1.2])
# Compiled, because the initial parameters take many small operations.
build = eqx.filter_jit(tq.CouplingNetwork)


def network(*, biases=False, depth=1, weight_scale=0.5, seed=0):
    sizes = {"width": 5, "depth": depth, "weight_scale": weight_scale}
    return build(2, 2, 3, **sizes, biases=biases, key=jr.key(seed))


def outputs(network, code):
    """What comes out of the perceptron, in NumPy."""
    x = np.asarray(code)
    for layer in network.mlp.layers:
        x = np.asarray(layer.weight) @ x + np.asarray(layer.bias)
        x = x if layer is network.mlp.layers[-1] else np.tanh(x)
    return x


@pytest.mark.parametrize("depth", [1, 2])
def test_weights_are_the_outputs_row_by_row(depth):
    net = network(depth=depth)
    assert len(net.mlp.layers) == depth + 1
    assert net.mlp.layers[0].weight.shape == (5, 2)
    model = net(CODE)
    assert isinstance(model, tq.RBM) and model.is_symmetric
    assert_close(model.weights, outputs(net, CODE).reshape(2, 3), IDENTITY)


def test_biases_follow_the_weights_visible_first():
    net = network(biases=True)
    model, out = net(CODE), outputs(net, CODE)
    assert out.shape == (11,)
    assert_close(model.weights, out[:6].reshape(2, 3), IDENTITY)
    assert_close(model.visible_bias, out[6:8], IDENTITY)
    assert_close(model.hidden_bias, out[8:], IDENTITY)


def test_the_output_biases_have_the_standard_deviation_of_the_scale():
    net = build(2, 40, 50, width=3, weight_scale=0.3, key=jr.key(1))
    bias = np.asarray(net.mlp.layers[-1].bias)
    # The sample deviation of 2000 normal numbers has a relative error of 1/√4000.
    assert abs(bias.std() / 0.3 - 1) < SIGMAS / np.sqrt(4000)


@pytest.mark.parametrize(("scale", "width"), [(0.01, 3), (2, 300)])
def test_the_scale_sets_the_order_of_the_initial_weights(scale, width):
    net = build(2, 40, 50, width=width, weight_scale=scale, key=jr.key(1))
    # A tanh layer adds at most as much variance as the output layer's biases have.
    spread = SIGMAS / np.sqrt(4000)
    relative = np.asarray(net(CODE).weights).std() / scale
    assert 1 - spread < relative < np.sqrt(2) * (1 + spread)


def test_initial_weights_are_proportional_to_the_scale():
    narrow, wide = network(), network(weight_scale=5)
    assert_close(10 * narrow(CODE).weights, wide(CODE).weights, IDENTITY)


def test_keys_and_codes_give_different_models():
    net = network()
    assert (net(CODE).weights == network()(CODE).weights).all()
    assert (net(CODE).weights != network(seed=1)(CODE).weights).all()
    assert (net(CODE).weights != net(-CODE).weights).all()


def test_the_gradient_of_a_loss_reaches_the_network_and_the_code():
    net, data = network(biases=True), random_law(2)
    flat, rebuild = flatten(net)

    @jax.jit
    def loss(arguments):
        return tq.kl_divergence(rebuild(arguments[2:])(arguments[:2]), data)

    arguments = jnp.concatenate([CODE, flat])
    gradient = jax.jit(jax.grad(loss))(arguments)
    assert (gradient != 0).all()
    everywhere = jr.normal(jr.key(3), arguments.shape)
    for direction in (everywhere, everywhere.at[2:].set(0)):
        difference = central_difference(loss, arguments, direction)
        assert_close(gradient @ direction, difference, DIFFERENCES)


def test_a_batch_of_codes_gives_a_batch_of_models():
    net, data = network(biases=True), random_law(2)
    codes = jr.normal(jr.key(5), (3, 2))

    def kl(model):
        return tq.kl_divergence(model, data)

    models = eqx.filter_jit(eqx.filter_vmap(net))(codes)
    assert models.weights.shape == (3, 2, 3)
    assert (models.n_visible, models.n_hidden) == (2, 3)
    batch = eqx.filter_jit(eqx.filter_vmap(kl))(models)
    expected = [eqx.filter_jit(kl)(net(code)) for code in codes]
    assert_close(batch, jnp.stack(expected), IDENTITY)


def test_a_network_without_biases_has_the_parameters_of_the_weights_alone():
    count = sum(leaf.size for leaf in jax.tree.leaves(flatten(network())[0]))
    assert count == (2 + 1) * 5 + (5 + 1) * 6


def test_every_leaf_is_an_array_and_the_network_is_pickled():
    net = network(biases=True)
    assert all(eqx.is_array(leaf) for leaf in jax.tree.leaves(net))
    halved = jax.tree.map(lambda p: p / 2, net)
    expected = outputs(halved, CODE)[:6].reshape(2, 3)
    assert_close(halved(CODE).weights, expected, IDENTITY)
    back = pickle.loads(pickle.dumps(net))
    assert eqx.tree_equal(back, net)
    assert_close(back(CODE).weights, net(CODE).weights, IDENTITY)


def test_the_initial_parameters_are_those_of_equinox_but_for_the_output():
    theirs = eqx.nn.MLP(2, 6, 5, 2, jnp.tanh, key=jr.split(jr.key(0), 3)[0])
    ours = network(depth=2).mlp
    for one, other in zip(ours.layers[:-1], theirs.layers[:-1], strict=True):
        assert eqx.tree_equal(one, other)
    whole = eqx.tree_at(lambda mlp: mlp.layers, theirs, ours.layers)
    assert_close(ours(CODE), whole(CODE), IDENTITY)


def test_sizes_become_plain_numbers(as_for_users):
    net = tq.CouplingNetwork(
        np.int32(2), np.uint8(20), np.int8(30), width=np.int64(5), key=jr.key(0)
    )
    assert type(net.n_visible) is type(net.n_hidden) is int
    assert net(CODE).weights.shape == (20, 30)


@pytest.mark.parametrize("name", ["code_size", "n_visible", "n_hidden", "width"])
def test_sizes_are_whole_numbers(name, as_for_users):
    sizes = {"code_size": 2, "n_visible": 2, "n_hidden": 2, "depth": 1}
    for size in (0, 1.0, True):
        with pytest.raises(ValueError, match=f"{name} is a whole .* {size} was given"):
            tq.CouplingNetwork(**sizes | {name: size}, key=jr.key(0))
    with pytest.raises(ValueError, match="depth is a whole number, at least 1, but 0"):
        tq.CouplingNetwork(**sizes | {"depth": 0}, key=jr.key(0))
