"""Families of models that the field compares by: mean fields, glasses, and patterns."""

import math
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key, Num

from .._checks import whole_number
from .._spins import check_spins
from ._boltzmann import BoltzmannMachine
from ._rbm import RBM
from ._tempered import inverse_temperature


def curie_weiss(
    n_units: int, beta: int | float | Float[Array, ""], n_visible: int | None = None
) -> BoltzmannMachine:
    """The mean-field ferromagnet, `E(x) = -(β/N) Σ_{i<j} x_i x_j`.

    Its law is one of the magnetisation `Σ x_i` alone, which orders where `β > 1`.

    **Arguments:**

    - `n_units`: number of units.
    - `beta`: inverse temperature.
    - `n_visible`: how many of the units are visible; all, by default.

    **Returns:** a [`trainq.BoltzmannMachine`][] without biases, with a parameter for
    each pair.

    **Raises:** `ValueError` if a size is not a positive whole number, or `beta` not one
    real number.

    !!! example

        ```python
        model = tq.curie_weiss(6, beta=1.2)
        ```

    ??? cite "Source"

        Friedli and Velenik, *Statistical Mechanics of Lattice Systems*, Cambridge
        University Press, 2017, chapter 2.
    """
    n_units = whole_number("n_units", n_units, of="units")
    couplings = (1 - jnp.eye(n_units)) / n_units
    return BoltzmannMachine(inverse_temperature(beta) * couplings, None, n_visible)


def sherrington_kirkpatrick(
    key: Key[Array, ""],
    n_units: int,
    beta: int | float | Float[Array, ""],
    n_visible: int | None = None,
) -> BoltzmannMachine:
    """The mean-field spin glass, `E(x) = -(β/√N) Σ_{i<j} J_ij x_i x_j` with independent
    standard normal `J_ij`.

    **Arguments:**

    - `key`: random key of the couplings.
    - `n_units`, `beta`, `n_visible`: as for [`trainq.curie_weiss`][].

    **Returns:** a [`trainq.BoltzmannMachine`][] without biases, with a parameter for
    each pair.

    **Raises:** as [`trainq.curie_weiss`][].

    !!! example

        ```python
        model = tq.sherrington_kirkpatrick(key, 6, beta=1.2)
        ```

    ??? cite "Source"

        Sherrington and Kirkpatrick, *Solvable model of a spin-glass*, Phys. Rev. Lett.
        35, 1792, 1975.
    """
    n_units = whole_number("n_units", n_units, of="units")
    beta = inverse_temperature(beta)
    upper = jnp.triu(jr.normal(key, (n_units, n_units), beta.dtype), 1)
    couplings = (upper + upper.T) / math.sqrt(n_units)
    return BoltzmannMachine(beta * couplings, None, n_visible)


def hopfield(
    patterns: Num[Array | np.ndarray, "n_patterns n_units"],
    beta: int | float | Float[Array, ""],
    n_visible: int | None = None,
) -> BoltzmannMachine:
    """Hopfield's network, `E(x) = -(β/N) Σ_{i<j} Σ_μ ξ_μi ξ_μj x_i x_j`.

    Each pattern and its opposite are wells, while there are few of them.

    **Arguments:**

    - `patterns`: `(n_patterns, n_units)` spins ±1, such as
        [`trainq.random_patterns`][] draws.
    - `beta`, `n_visible`: as for [`trainq.curie_weiss`][].

    **Returns:** a [`trainq.BoltzmannMachine`][] without biases, with a parameter for
    each pair.

    **Raises:** as [`trainq.curie_weiss`][]; also `ValueError` if the patterns have
    another shape, or another value than ±1.

    !!! example

        ```python
        patterns = tq.random_patterns(key, n_patterns=2, n_units=6)
        model = tq.hopfield(patterns, beta=1.2)
        ```

    ??? cite "Source"

        Hopfield, *Neural networks and physical systems with emergent collective
        computational abilities*, Proc. Natl. Acad. Sci. USA 79, 2554, 1982.
    """
    beta = inverse_temperature(beta)
    patterns = _checked_patterns("patterns", patterns, beta)
    n_units = patterns.shape[1]
    couplings = (1 - jnp.eye(n_units)) * (patterns.T @ patterns) / n_units
    return BoltzmannMachine(beta * couplings, None, n_visible)


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


def paired_rbm(
    visible_patterns: Num[Array | np.ndarray, "n_patterns n_visible"],
    hidden_patterns: Num[Array | np.ndarray, "n_patterns n_hidden"],
    beta: int | float | Float[Array, ""],
) -> RBM:
    """An RBM with pairs of patterns planted in both layers,
    `W = (β/√(m n)) Σ_μ ξ_μ η_μᵀ` for `m` visible and `n` hidden units.

    Each pair `(ξ_μ, η_μ)` and its opposite are wells, while there are few of them. How
    far two of them are apart follows from their overlaps in each layer.

    **Arguments:**

    - `visible_patterns`, `hidden_patterns`: `(n_patterns, n_visible)` and
        `(n_patterns, n_hidden)` spins ±1, such as [`trainq.random_patterns`][] draws.
    - `beta`: inverse temperature.

    **Returns:** an [`trainq.RBM`][] without biases.

    **Raises:** `ValueError` if there are not as many patterns of one layer as of the
    other, for another value than ±1, or if `beta` is not one real number.

    !!! example

        ```python
        visible_key, hidden_key = jax.random.split(key)
        model = tq.paired_rbm(
            tq.random_patterns(visible_key, n_patterns=2, n_units=5),
            tq.random_patterns(hidden_key, n_patterns=2, n_units=5),
            beta=3,
        )
        ```

    ??? cite "Source"

        Kosko, *Bidirectional associative memories*, IEEE Trans. Syst. Man Cybern. 18,
        49, 1988.
    """
    beta = inverse_temperature(beta)
    visible = _checked_patterns("visible_patterns", visible_patterns, beta)
    hidden = _checked_patterns("hidden_patterns", hidden_patterns, beta)
    if len(visible) != len(hidden):
        raise ValueError(
            "Patterns come in pairs, one for each layer, but "
            f"{len(visible)} visible and {len(hidden)} hidden ones were given."
        )
    scale = beta / math.sqrt(visible.shape[1] * hidden.shape[1])
    return RBM(scale * visible.T @ hidden)


def random_patterns(
    key: Key[Array, ""], n_patterns: int, n_units: int
) -> Float[Array, "n_patterns n_units"]:
    """Independent patterns, uniform over ±1.

    **Arguments:**

    - `key`: random key.
    - `n_patterns`, `n_units`: how many, and of how many units.

    **Returns:** `(n_patterns, n_units)` spins.

    **Raises:** `ValueError` if a size is not a positive whole number.

    !!! example

        ```python
        patterns = tq.random_patterns(key, n_patterns=2, n_units=6)
        ```
    """
    n_patterns = whole_number("n_patterns", n_patterns, of="patterns")
    n_units = whole_number("n_units", n_units, of="units")
    return jr.rademacher(key, (n_patterns, n_units), float)


def _checked_patterns(name: str, patterns: Any, beta: Array) -> Array:
    patterns = jnp.asarray(patterns)
    if patterns.ndim != 2 or 0 in patterns.shape:
        raise ValueError(
            f"{name} has shape (n_patterns, n_units), one pattern a row, but "
            f"{patterns.shape} was given."
        )
    return check_spins(patterns, None).astype(beta.dtype)
