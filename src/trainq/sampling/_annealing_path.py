"""The path of annealed chains: from independent units to a model, and back."""

from collections.abc import Sequence
from typing import SupportsIndex

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Num

from .._checks import whole_number
from .._progress import bar
from .._spins import spins
from ..markov import AbstractKernel, AlternatingBlockGibbs, checked_kernel
from ..models import (
    RBM,
    AbstractEnergyModel,
    BoltzmannMachine,
    Data,
    check_data,
    checked,
)


Betas = SupportsIndex | Sequence[float] | Float[Array | np.ndarray, " betas"]


class AnnealingPath(eqx.Module):
    """The models between independent units in their fields and a model."""

    model: AbstractEnergyModel
    fields: Float[Array, " n_units"] | None
    betas: Float[Array, " betas"]
    kernel: AbstractKernel

    @classmethod
    def of(
        cls,
        model: AbstractEnergyModel,
        kernel: AbstractKernel | None,
        betas: Betas,
        data: Data | None,
    ) -> "AnnealingPath":
        layers = isinstance(model.equivalent or model, RBM)
        if kernel is None:
            blocks = None if layers else model.colouring()
            kernel = AlternatingBlockGibbs(blocks)
        kernel = checked_kernel(kernel)
        if len(kernel.replicas(model)) > 1:
            raise ValueError(
                f"A {type(kernel).__name__} runs replicas, but annealing takes one "
                "state a chain: give the kernel that runs inside of it."
            )
        fields = None if data is None else _fields(model, data)
        return cls(model, fields, _checked_betas(betas, model.dtype), kernel)

    @property
    def log_base(self) -> Float[Array, ""]:
        n, dtype = self.model.n_units, self.model.dtype
        fields = jnp.zeros(n, dtype) if self.fields is None else self.fields
        # log 2cosh: the larger one of both signs, and what the smaller one adds.
        return jnp.sum(jnp.logaddexp(fields, -fields))

    def forward(self, key: Array, n_chains: int, progress: bool) -> tuple[Array, Array]:
        first, key = jr.split(key)
        shape = (n_chains, self.model.n_units)
        if self.fields is None:
            x = jr.rademacher(first, shape, self.model.dtype)
        else:
            up = jr.bernoulli(first, jax.nn.sigmoid(2 * self.fields)[None], shape)
            x = jnp.where(up, 1, -1).astype(self.model.dtype)
        return _walk(self, self.kernel, key, x, self.betas, progress)

    def backward(self, key: Array, x: Array, progress: bool) -> Array:
        kernel = self.kernel.adjoint()
        return -_walk(self, kernel, key, x, self.betas[::-1], progress)[0]

    def at(self, beta: Float[Array, ""]) -> AbstractEnergyModel:
        """The model at an inverse temperature."""
        model = self.model.tempered(beta)
        if self.fields is None:
            return model
        return _in_fields(model, (1 - beta) * self.fields)

    def slope(self, x: Num[Array, "chains n_units"]) -> Float[Array, " chains"]:
        """Minus the derivative of the energy by `β`: `E_0(x) - E(x)`."""
        energy = jax.vmap(self.model.energy)(x)
        return -energy if self.fields is None else -energy - x @ self.fields


def _walk(
    path: AnnealingPath,
    kernel: AbstractKernel,
    key: Array,
    x: Array,
    betas: Array,
    progress: bool,
) -> tuple[Array, Array]:
    """`log w` of chains through some temperatures, and where they end."""
    n = betas.shape[0] - 1
    chunk = max(1, n // 100) if progress else n
    log_weights = jnp.zeros(x.shape[0], x.dtype)
    with bar(n, progress) as advance:
        for start in range(0, n, chunk):
            some = betas[start : start + chunk + 1]
            log_weights, x = _anneal(
                path, kernel, key, x, log_weights, some, jnp.asarray(start)
            )
            if progress:
                jax.block_until_ready(x)
            advance(some.shape[0] - 1)
    return log_weights, x


@eqx.filter_jit
def _anneal(
    path: AnnealingPath,
    kernel: AbstractKernel,
    key: Array,
    x: Array,
    log_weights: Array,
    betas: Array,
    start: Array,
) -> tuple[Array, Array]:
    path = eqxi.nondifferentiable(
        eqx.tree_at(lambda p: p.model, path, checked(path.model)),
        msg="A derivative of weights of annealed chains leaves out that their states "
        "depend on the parameters. That of log Z is minus the mean of the observables, "
        "which chains estimate: `trainq.run`.",
    )

    def step(carry, now):
        x, total = carry
        old, new, number = now
        total = total + (new - old) * path.slope(x)
        x = kernel.stepper(path.at(new))(jr.fold_in(key, number), x)
        return (x, total), None

    numbers = start + jnp.arange(betas.shape[0] - 1)
    (x, log_weights), _ = jax.lax.scan(
        step, (x, log_weights), (betas[:-1], betas[1:], numbers)
    )
    bad = ~jnp.all(jnp.isfinite(log_weights))
    log_weights = eqx.error_if(log_weights, bad, "An energy is not finite.")
    return log_weights, x


class _InFields(AbstractEnergyModel):
    """Any model, in further fields on its units."""

    model: AbstractEnergyModel
    fields: Float[Array, " n_units"]
    n_visible: int = eqx.field(static=True)
    n_hidden: int = eqx.field(static=True)

    def energy(self, x: Num[Array, "*batch n_units"]) -> Float[Array, "*batch"]:
        return self.model.energy(x) - x @ self.fields

    def local_fields(
        self, x: Num[Array, "*batch n_units"], units: Int[Array, " some"]
    ) -> Float[Array, "*batch some"]:
        fields = self.model.local_fields(x, units)
        return fields + self.fields[units].reshape((1,) * (x.ndim - 1) + (-1,))

    def colouring(self) -> tuple[np.ndarray, ...]:
        return self.model.colouring()

    def conflict(self, colours: Int[np.ndarray, " n_units"]) -> tuple[int, int] | None:
        return self.model.conflict(colours)


def _in_fields(model: AbstractEnergyModel, fields: Array) -> AbstractEnergyModel:
    """A model in further fields, which are biases where it has them."""
    inner = model.equivalent or model
    if isinstance(inner, RBM):
        a, b = jnp.split(fields, [inner.n_visible])
        a = a if inner.visible_bias is None else inner.visible_bias + a
        b = b if inner.hidden_bias is None else inner.hidden_bias + b
        return RBM(inner.weights, a, b)
    if isinstance(inner, BoltzmannMachine):
        bias = fields if inner.bias is None else inner.bias + fields
        return BoltzmannMachine.from_edges(
            inner.edges, inner.couplings, bias, inner.n_visible
        )
    sizes = {"n_visible": inner.n_visible, "n_hidden": inner.n_hidden}
    return _InFields(model=inner, fields=fields, **sizes)


def _fields(model: AbstractEnergyModel, data: Data) -> Float[Array, " n_units"]:
    """Those of independent units with the means of the data; hidden ones have none."""
    data = check_data(data, model)
    if data.ndim == 1:
        mean = data @ spins(model.n_visible, data.dtype)
    else:
        mean = jnp.mean(data, axis=0)
    # A unit that is the same in all the data would have an infinite field.
    fields = jnp.arctanh(0.95 * mean)
    return jnp.concatenate([fields, jnp.zeros(model.n_hidden, data.dtype)])


def _checked_betas(betas: Betas, dtype: np.dtype) -> Float[Array, " betas"]:
    array = jnp.asarray(betas)
    if array.ndim == 0:
        n = whole_number("betas", betas, of="steps")
        return jnp.linspace(0, 1, n + 1, dtype=dtype)
    array = array.astype(dtype)
    message = (
        "betas are inverse temperatures that increase from 0, of independent units, to "
        "1, of the model, or the number of even steps between these"
    )
    if array.ndim != 1 or array.shape[0] < 2:
        raise ValueError(f"{message}, but an array of shape {array.shape} was given.")
    wrong = (array[0] != 0) | (array[-1] != 1) | jnp.any(jnp.diff(array) <= 0)
    wrong = wrong | ~jnp.all(jnp.isfinite(array))
    if isinstance(wrong, Tracer):
        return eqx.error_if(array, wrong, message + ".")
    if wrong:
        raise ValueError(f"{message}, but other ones were given.")
    return array
