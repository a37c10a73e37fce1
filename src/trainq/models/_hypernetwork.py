"""A network whose output is a model: from a code to the couplings."""

import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from ._rbm import RBM


class CouplingNetwork(eqx.Module):
    """A multilayer perceptron that maps a code `u` to the parameters of an `RBM`.

    Several models then share one set of trainable parameters. The couplings stay
    differentiable: a loss of `network(code)` has gradients in the network.
    """

    mlp: eqx.nn.MLP
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

        **Raises:** `ValueError` if a size is not positive.
        """
        sizes = {
            "code_size": code_size,
            "n_visible": n_visible,
            "n_hidden": n_hidden,
            "width": width,
            "depth": depth,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is at least 1, but {size} was given.")
        out_size = n_visible * n_hidden + biases * (n_visible + n_hidden)
        mlp_key, weight_key, bias_key = jr.split(key, 3)
        mlp = eqx.nn.MLP(code_size, out_size, width, depth, jnp.tanh, key=mlp_key)
        last = mlp.layers[-1]
        assert last.bias is not None
        # Equinox's own initial output has a scale set by the width.
        scale = weight_scale / math.sqrt(width)
        self.mlp = eqx.tree_at(
            lambda net: (net.layers[-1].weight, net.layers[-1].bias),
            mlp,
            (
                scale * jr.normal(weight_key, last.weight.shape, last.weight.dtype),
                weight_scale * jr.normal(bias_key, last.bias.shape, last.bias.dtype),
            ),
        )
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
