"""Teachers: models with known structure to learn from."""

import math

import jax.random as jr
from jaxtyping import Array, Float, Key

from .._checks import whole_number
from ._base import inverse_temperature
from ._rbm import RBM


def planted_rbm(
    key: Key[Array, ""],
    n_visible: int,
    n_patterns: int,
    beta: int | float | Float[Array, ""],
) -> RBM:
    """A teacher with random patterns planted in its weights, one for each hidden unit.

    The weights are `β ξ / √n_visible` with `ξ` uniform over ±1. Summed over its hidden
    units it is a Hopfield model whose patterns are the columns of `ξ`.

    **Arguments:**

    - `key`: random key of the patterns.
    - `n_visible`, `n_patterns`: number of visible units, and of hidden ones.
    - `beta`: inverse temperature.

    **Returns:** an `RBM` without biases.

    **Raises:** `ValueError` if a size is not a positive whole number, or `beta` not one
    real number.

    ??? cite "Source"

        Barra, Bernacchia, Santucci and Contucci, *On the equivalence of Hopfield
        networks and Boltzmann machines*, Neural Networks 34, 1, 2012.
    """
    n_visible = whole_number("n_visible", n_visible, of="units")
    n_patterns = whole_number("n_patterns", n_patterns, of="hidden units")
    beta = inverse_temperature(beta)
    patterns = jr.rademacher(key, (n_visible, n_patterns), beta.dtype)
    return RBM(beta / math.sqrt(n_visible) * patterns)
