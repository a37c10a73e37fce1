"""The restricted Boltzmann machine."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from .._checks import require_precision
from .._random import draw_spins
from .._spins import (
    as_spins,
    check_enumerable,
    draw_states,
    map_blocks,
    merge,
    spins,
    state_spins,
)
from ._base import (
    AbstractEnergyModel,
    Block,
    check_drawn,
    log_2cosh,
    made,
)
from ._tempered import inverse_temperature


class RBM(AbstractEnergyModel):
    """Visible and hidden spins coupled across the two layers only:
    `E(v, h) = -vᵀ W h - aᵀ v - bᵀ h`.

    Its observables are `-v_i h_j`, then `-v_i` and `-h_j` if it has biases. Without
    biases it is symmetric under the global flip, and exact work halves. Either layer
    sums out analytically, so the visible law costs `2**n_visible` and the partition
    function `2**min(n_visible, n_hidden)`.

    ??? cite "Source"

        Smolensky, *Information processing in dynamical systems: foundations of harmony
        theory*, Parallel Distributed Processing 1, 1986.
    """

    weights: Float[Array, "n_visible n_hidden"]
    visible_bias: Float[Array, " n_visible"] | None
    hidden_bias: Float[Array, " n_hidden"] | None

    def __init__(self, weights: Any, visible_bias: Any = None, hidden_bias: Any = None):
        """**Arguments:**

        - `weights`: `(n_visible, n_hidden)` couplings `W`.
        - `visible_bias`: `(n_visible,)` fields `a`, or None for a model without them.
        - `hidden_bias`: `(n_hidden,)` fields `b`, or None.

        **Raises:** `ValueError` if the shapes do not fit.
        """
        self.weights = as_parameter("weights", weights)
        if self.weights.ndim != 2 or 0 in self.weights.shape:
            raise ValueError(
                "weights has shape (n_visible, n_hidden), both at least 1, but "
                f"{self.weights.shape} was given."
            )
        self.visible_bias = _bias("visible", visible_bias, self.weights.shape[0])
        self.hidden_bias = _bias("hidden", hidden_bias, self.weights.shape[1])

    @classmethod
    def from_bits(
        cls, weights: Any, visible_bias: Any = None, hidden_bias: Any = None
    ) -> "RBM":
        """The machine with the law of another one whose units are 0 and 1, and whose
        energy is `-vᵀ W h - aᵀ v - bᵀ h` in these.

        A bit is `(1 + x) / 2` of its spin `x`: couplings become `W / 4`, and fields
        `a / 2 + Σ_j W_ij / 4`. What is left is a constant, on which no law depends:
        the energy in bits is `E(x)` less that of all spins down.

        Gradients are by the parameters of the spins, and so is Q, which another choice
        of parameters changes: [for those of the bits](../interop.md#q-in-bits) a model
        of your own says so.

        **Arguments:**

        - `weights`: `(n_visible, n_hidden)` couplings of bits.
        - `visible_bias`: `(n_visible,)` fields of bits, or None for zeros.
        - `hidden_bias`: `(n_hidden,)`, likewise.

        **Returns:** a machine with biases, differentiable by all arguments.

        **Raises:** `ValueError` if the shapes do not fit.

        !!! example

            ```python
            model = tq.RBM.from_bits(jnp.array([[1.0, -2.0]]))
            down = model.energy(-jnp.ones(3))
            energy = model.energy(jnp.array([1, 1, -1])) - down
            assert jnp.isclose(energy, -1.0)
            ```
        """
        bits = cls(weights, visible_bias, hidden_bias)
        sums = bits.weights.sum(axis=1), bits.weights.sum(axis=0)
        visible, hidden = (
            total / 4 if bias is None else total / 4 + bias / 2
            for total, bias in zip(
                sums, (bits.visible_bias, bits.hidden_bias), strict=True
            )
        )
        return cls(bits.weights / 4, visible, hidden)

    def to_bits(
        self,
    ) -> tuple[
        Float[Array, "n_visible n_hidden"],
        Float[Array, " n_visible"],
        Float[Array, " n_hidden"],
    ]:
        """The parameters of the machine with this law whose units are 0 and 1: the
        inverse of `from_bits`, which has the constant between the energies.

        **Returns:** its weights `4 W`, its visible biases `2 a_i - 2 Σ_j W_ij` and its
        hidden ones: these are there also where the machine has none.
        """
        sums = self.weights.sum(axis=1), self.weights.sum(axis=0)
        visible, hidden = (
            -2 * total if bias is None else 2 * bias - 2 * total
            for total, bias in zip(
                sums, (self.visible_bias, self.hidden_bias), strict=True
            )
        )
        return 4 * self.weights, visible, hidden

    @property
    def n_visible(self) -> int:
        return self.weights.shape[-2]

    @property
    def n_hidden(self) -> int:
        return self.weights.shape[-1]

    @property
    def is_symmetric(self) -> bool:
        return self.visible_bias is None and self.hidden_bias is None

    @property
    def is_linear(self) -> bool:
        return True

    @property
    def is_batch(self) -> bool:
        return self.weights.ndim > 2

    @property
    def _swapped(self) -> "RBM":
        return _rbm(self.weights.T, self.hidden_bias, self.visible_bias)

    def _split(self, x: Num[Array, "*batch n_units"]) -> tuple[Array, Array]:
        x = as_spins(x, self.n_units, self.dtype)
        return x[..., : self.n_visible], x[..., self.n_visible :]

    def visible_field(
        self, h: Float[Array, "*batch n_hidden"]
    ) -> Float[Array, "*batch n_visible"]:
        """`W h + a`: `p(v_i = 1 | h) = σ(2 field_i)` and `E[v | h] = tanh(field)`."""
        return shift(h @ self.weights.T, self.visible_bias)

    def hidden_field(
        self, v: Float[Array, "*batch n_visible"]
    ) -> Float[Array, "*batch n_hidden"]:
        """`Wᵀ v + b`: `p(h_j = 1 | v) = σ(2 field_j)` and `E[h | v] = tanh(field)`."""
        return shift(v @ self.weights, self.hidden_bias)

    def energy(self, x: Num[Array, "*batch n_units"]) -> Float[Array, "*batch"]:
        """`-vᵀ W h - aᵀ v - bᵀ h` for states of any leading shape."""
        v, h = self._split(x)
        return -jnp.sum(self.hidden_field(v) * h, axis=-1) - _dot(v, self.visible_bias)

    def energies(self) -> Float[Array, " states"]:
        check_enumerable(self.n_units)
        v, h = spins(self.n_visible, self.dtype), spins(self.n_hidden, self.dtype)
        return self.energy_table(v, h).reshape(-1)

    def energy_table(
        self, v: Num[Array, "some n_visible"], h: Num[Array, "others n_hidden"]
    ) -> Float[Array, "some others"]:
        return -(self.hidden_field(v) @ h.T + _dot(v, self.visible_bias)[:, None])

    def free_energy(self, v: Num[Array, "*batch n_visible"]) -> Float[Array, "*batch"]:
        """`-Σ_j log(2 cosh(Wᵀ v + b)_j) - aᵀ v` of some visible states, nats."""
        v = as_spins(v, self.n_visible, self.dtype)
        hidden = jnp.sum(log_2cosh(self.hidden_field(v)), axis=-1)
        return -hidden - _dot(v, self.visible_bias)

    def free_energies(self) -> Float[Array, " visible_states"]:
        n, width = self.n_visible, self.n_units
        return map_blocks(self.free_energy, n, self.dtype, width)

    def hidden_free_energies(self) -> Float[Array, " hidden_states"]:
        return self._swapped.free_energies()

    @property
    def n_enumerated(self) -> int:
        return min(self.n_visible, self.n_hidden)

    def log_partition(self) -> Float[Array, ""]:
        if self.n_visible <= self.n_hidden:
            return jax.nn.logsumexp(-self.free_energies())
        return jax.nn.logsumexp(-self.hidden_free_energies())

    def draw(
        self, key: Key[Array, ""], n_states: int
    ) -> Num[Array, "n_states n_units"]:
        """Independent states, exactly: the smaller layer from its law, by enumeration,
        and the other one given that."""
        if self.n_visible > self.n_hidden:
            x = self._swapped.draw(key, n_states)
            return jnp.roll(x, self.n_visible, axis=1)
        check_drawn(self)
        first, second = jr.split(key)
        index = draw_states(first, -self.free_energies(), n_states)
        v = state_spins(index, self.n_visible, self.dtype)
        return merge((v, draw_spins(second, self.hidden_field(v))), self.dtype)

    def observables(
        self, x: Num[Array, "*batch n_units"]
    ) -> Float[Array, "*batch n_parameters"]:
        v, h = self._split(x)
        products = v[..., :, None] * h[..., None, :]
        parts = [products.reshape(*x.shape[:-1], self.weights.size)]
        parts += [] if self.visible_bias is None else [v]
        parts += [] if self.hidden_bias is None else [h]
        return -merge(parts, self.dtype)

    def local_fields(
        self, x: Num[Array, "*batch n_units"], units: Int[Array, " some"]
    ) -> Float[Array, "*batch some"]:
        # Of a unit in either layer: a row of the weights, and a column.
        v, h = self._split(x)
        if 0 in self.weights.shape:  # no unit is opposite to any other
            bias = self.hidden_bias if self.n_visible == 0 else self.visible_bias
            zeros = jnp.zeros((*x.shape[:-1], units.shape[0]), self.dtype)
            return shift(zeros, _some(bias, units))
        i = jnp.minimum(units, self.n_visible - 1)
        j = jnp.maximum(units - self.n_visible, 0)
        visible, hidden = h @ self.weights[i].T, v @ self.weights[:, j]
        if self.visible_bias is not None:
            visible = shift(visible, self.visible_bias[i])
        if self.hidden_bias is not None:
            hidden = shift(hidden, self.hidden_bias[j])
        is_visible = units < self.n_visible
        return jnp.where(
            is_visible.reshape((1,) * (v.ndim - 1) + (-1,)), visible, hidden
        )

    def colouring(self) -> tuple[np.ndarray, ...]:
        """The two layers."""
        layers = np.split(np.arange(self.n_units), [self.n_visible])
        return tuple(layer for layer in layers if layer.size)

    def conflict(self, colours: Int[np.ndarray, " n_units"]) -> tuple[int, int] | None:
        visible, hidden = np.split(colours, [self.n_visible])
        _, i, j = np.intersect1d(visible, hidden, return_indices=True)
        return (int(i[0]), self.n_visible + int(j[0])) if i.size else None

    def sample_block(
        self, key: Key[Array, ""], x: Num[Array, "*batch n_units"], block: Block
    ) -> Num[Array, "*batch n_units"]:
        """Draw a layer given the other one: its units are independent."""
        v, h = self._split(x)
        field = self.visible_field(h) if block == "visible" else self.hidden_field(v)
        new = draw_spins(key, field)
        return merge((new, h) if block == "visible" else (v, new), x.dtype)

    def tempered(self, beta: int | float | Float[Array, ""]) -> "RBM":
        """The machine at inverse temperature `beta`: every parameter times `beta`."""
        beta = inverse_temperature(beta)
        return jax.tree.map(lambda p: p * beta.astype(p.dtype), self)

    def given(
        self, units: Int[np.ndarray, " some"], values: Float[Array, " some"]
    ) -> "tuple[RBM, Float[Array, '']]":
        m, n = self.weights.shape
        v, h = np.split(units, [np.searchsorted(units, m)])
        x, y = values[: v.size], values[v.size :]
        h = h - m
        i, j = np.delete(np.arange(m), v), np.delete(np.arange(n), h)
        # A layer gets fields from what is clamped of the other one.
        visible, hidden = _some(self.visible_bias, i), _some(self.hidden_bias, j)
        if h.size:
            visible = _sum(self.weights[np.ix_(i, h)] @ y, visible)
        if v.size:
            hidden = _sum(x @ self.weights[np.ix_(v, j)], hidden)
        offset = -x @ self.weights[np.ix_(v, h)] @ y
        offset = offset - _dot(x, _some(self.visible_bias, v))
        offset = offset - _dot(y, _some(self.hidden_bias, h))
        return _rbm(self.weights[np.ix_(i, j)], visible, hidden), offset


def _rbm(weights: Array, visible_bias: Array | None, hidden_bias: Array | None) -> RBM:
    """A machine of what is known to fit. One of its layers may be empty: the units of
    the other are then independent."""
    return made(
        RBM, weights=weights, visible_bias=visible_bias, hidden_bias=hidden_bias
    )


def as_parameter(name: str, values: Any) -> Array:
    """Parameters as an array of floats, in their own precision."""
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        values = values.astype(float)
    require_precision(values.dtype, name)
    return values


def _bias(layer: str, bias: Any, size: int) -> Array | None:
    if bias is None:
        return None
    bias = as_parameter(f"{layer}_bias", bias)
    if bias.shape != (size,):
        raise ValueError(
            f"{layer}_bias has shape ({size},), one field for each {layer} unit, but "
            f"{bias.shape} was given. Leave it out for a model without biases."
        )
    return bias


def shift(field: Array, bias: Array | None) -> Array:
    return (
        field if bias is None else field + bias.reshape((1,) * (field.ndim - 1) + (-1,))
    )


def _some(bias: Array | None, units: np.ndarray | Array) -> Array | None:
    return None if bias is None else bias[units]


def _sum(field: Array, bias: Array | None) -> Array:
    return field if bias is None else field + bias


def _dot(x: Array, bias: Array | None) -> Array:
    return jnp.zeros(x.shape[:-1], x.dtype) if bias is None else x @ bias
