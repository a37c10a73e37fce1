"""A network whose output is a model: from a code to the couplings."""

import math
from itertools import pairwise

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from .._checks import whole_number
from ._rbm import RBM


class TanhLayers(eqx.Module):
    """A multilayer perceptron with tanh between its layers.

    In `eqx.nn.MLP` the activation is a leaf, which tree maps reach, and which cannot be
    pickled. Here every leaf is an array.
    """

    layers: tuple[eqx.nn.Linear, ...]

    def __call__(self, x: Float[Array, " in_size"]) -> Float[Array, " out_size"]:
        *inner, last = self.layers
        for layer in inner:
            x = jnp.tanh(layer(x))
        return last(x)


class CouplingNetwork(eqx.Module):
    """A multilayer perceptron that maps a code `u` to the parameters of an `RBM`.

    Several models then share one set of trainable parameters. The couplings stay
    differentiable: a loss of `network(code)` has gradients in the network.

    !!! example

        ```python
        network = tq.CouplingNetwork(4, 3, 2, key=key)
        codes = jax.random.normal(key, (10, 4))
        models = eqx.filter_vmap(network)(codes)  # a batch of RBMs
        ```
    """

    mlp: TanhLayers
    n_visible: int = eqx.field(static=True)
    n_hidden: int = eqx.field(static=True)
    biases: bool = eqx.field(static=True)

    def __init__(
        self,
        code_size: int,
        n_visible: int,
        n_hidden: int,
        *,
        width: int = 16,
        depth: int = 1,
        weight_scale: int | float = 0.1,
        biases: bool = False,
        key: Key[Array, ""],
    ):
        """**Arguments:**

        - `code_size`: length of a code.
        - `n_visible`, `n_hidden`: units of the models that come out.
        - `width`, `depth`: size and number of the tanh layers.
        - `weight_scale`: standard deviation of the output layer's biases, and order of
            the initial weights of the models.
        - `biases`: whether the models have visible and hidden biases.
        - `key`: random key of the initial parameters.

        **Raises:** `ValueError` if a size is not a positive whole number.
        """
        code_size = whole_number("code_size", code_size)
        n_visible = whole_number("n_visible", n_visible, of="units")
        n_hidden = whole_number("n_hidden", n_hidden, of="units")
        width, depth = whole_number("width", width), whole_number("depth", depth)
        out_size = n_visible * n_hidden + biases * (n_visible + n_hidden)
        mlp_key, weight_key, bias_key = jr.split(key, 3)
        sizes = [code_size, *depth * [width], out_size]
        keys = jr.split(mlp_key, depth + 1)
        layers = [
            eqx.nn.Linear(*ends, key=key)
            for ends, key in zip(pairwise(sizes), keys, strict=True)
        ]
        last = layers[-1]
        assert last.bias is not None
        # Equinox's own initial output has a scale set by the width.
        scale = weight_scale / math.sqrt(width)
        layers[-1] = eqx.tree_at(
            lambda layer: (layer.weight, layer.bias),
            last,
            (
                scale * jr.normal(weight_key, last.weight.shape, last.weight.dtype),
                weight_scale * jr.normal(bias_key, last.bias.shape, last.bias.dtype),
            ),
        )
        self.mlp = TanhLayers(tuple(layers))
        self.n_visible = n_visible
        self.n_hidden = n_hidden
        self.biases = biases

    def __call__(self, code: Float[Array, " code_size"]) -> RBM:
        """The model of one code. For a batch, use `eqx.filter_vmap(network)`."""
        m, n = self.n_visible, self.n_hidden
        out = self.mlp(code)
        weights = out[: m * n].reshape(m, n)
        if not self.biases:
            return RBM(weights)
        return RBM(weights, out[m * n : m * n + m], out[m * n + m :])
