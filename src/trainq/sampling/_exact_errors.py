"""The exact error of the gradient for every burn-in and window, in one pass."""

from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import require_concrete
from ..markov import AbstractKernel, checked_kernel, first_law
from ..models import (
    AbstractEnergyModel,
    AbstractStart,
    Uniform,
    VisibleLaw,
    check_law,
    check_start,
    checked,
    data_variance,
    device_bias,
    gradient_of_kl,
    observables,
    require_model,
    running,
)
from ._error_table import ErrorTable, checked_sizes, time_grid


_MAX_UNITS = 14


def exact_errors(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: VisibleLaw,
    *,
    start: AbstractStart = Uniform(),
    batch: SupportsIndex | None = None,
    max_steps: SupportsIndex = 10_000,
    device: AbstractEnergyModel | None = None,
) -> ErrorTable:
    """The exact error of the gradient for burn-ins and windows of up to `max_steps`
    steps in all, on a grid of times that grow by a third.

    Every entry is that of [`trainq.QOperational`][], and one pass of `max_steps`
    products with the chain makes all of them. For models that are too large see
    [`trainq.sampling.calibrated_errors`][].

    **Arguments:**

    - `kernel`, `model`, `data`, `start`, `batch`: as for [`trainq.QOperational`][].
    - `max_steps`: the largest number of steps of one chain.
    - `device`: the model that runs, if it is another one, as for
        [`trainq.QOperational`][]. Its bias is part of that of every entry.

    **Returns:** a [`trainq.sampling.ErrorTable`][].

    **Raises:** `ValueError` for a model of more than [14 units](../choosing.md#limits),
    and under `jax.jit` and its like; and as `QOperational`.
    """
    checked_kernel(kernel)
    require_model(model)
    max_steps, batch = checked_sizes(max_steps, batch)
    start = check_start(start)
    require_concrete(
        "A table of errors", model=model, data=data, start=start, device=device
    )
    runs = running(model, device)
    n_units = sum(one.n_units for one in kernel.replicas(runs))
    if n_units > _MAX_UNITS:
        what = "replicas have" if n_units > model.n_units else "model has"
        raise ValueError(
            f"An exact table takes at most {_MAX_UNITS} units, but the {what} "
            f"{n_units}. `trainq.sampling.calibrated_errors` takes any model."
        )
    data = jnp.asarray(data)
    windows = time_grid(max_steps)
    tabulate = _Tabulate(kernel, model, device, data, start, batch, max_steps)
    return tabulate(np.append(0, windows), windows)


class _Tabulate(eqx.Module):
    """Makes exact tables, of any burn-ins and windows that fit into `max_steps`."""

    kernel: AbstractKernel
    model: AbstractEnergyModel
    device: AbstractEnergyModel | None
    data: Float[Array, " visible_states"]
    start: AbstractStart
    batch: int | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __call__(
        self,
        burn_ins: Int[np.ndarray, " burn_ins"],
        windows: Int[np.ndarray, " windows"],
    ) -> ErrorTable:
        """The table of all pairs of these, each in increasing order: of the first
        burn-in alone, where chains start from the stationary law."""
        if self.start.is_stationary:
            burn_ins = np.zeros(1, int)
        errors = _pass(
            self.kernel,
            self.model,
            self.device,
            self.data,
            self.start,
            jnp.asarray(burn_ins),
            jnp.asarray(windows),
            self.batch is not None,
        )
        bias2, variance, signal, of_data, of_device = jax.tree.map(np.asarray, errors)
        burn_in, window = np.meshgrid(burn_ins, windows, indexing="ij")
        allowed = burn_in + window <= self.max_steps
        return ErrorTable(
            burn_in=burn_in[allowed],
            window=window[allowed],
            bias2=bias2[allowed],
            variance=variance[allowed],
            signal=float(signal),
            data_variance=float(of_data) / (self.batch or 1),
            site_updates=float(self.kernel.site_updates(self.model)),
            finer=self,
            device_bias2=float(of_device),
        )


@eqx.filter_jit
def _pass(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    device: AbstractEnergyModel | None,
    data: Array,
    start: AbstractStart,
    burn_ins: Int[Array, " burn_ins"],
    windows: Int[Array, " windows"],
    from_samples: bool,
) -> tuple[Array, Array, Array, Array, Array]:
    """Squared bias and variance of one chain for all pairs, the signal, the data
    variance of one sample, which is none if the data phase is exact, and the squared
    bias of the device."""
    runs = running(model, device)
    chain = kernel.chain(runs)
    model = checked(model)
    data = check_law(data, model)
    f = chain.centre(observables(model))
    law = first_law(kernel, start, runs, data)
    step = chain.operator()
    back = jax.linear_transpose(step, law)

    def push(carry, burn_in):
        done, law = carry
        law = jax.lax.fori_loop(done, burn_in, lambda _, law: back(law)[0], law)
        return (jnp.maximum(done, burn_in), law), law

    zero = jnp.zeros((), burn_ins.dtype)
    _, laws = jax.lax.scan(push, (zero, law), burn_ins)

    # With S_n the sum of f(X_t) over n steps, s_n(x) = E[S_n | X_0 = x] and
    # h_n(x) = Σ_a E[S_n,a² | X_0 = x] follow step by step,
    #   s_n+1 = f + P s_n,
    #   h_n+1 = Σ_a (f_a² + 2 f_a P s_n,a) + P h_n = Σ_a f_a (2 s_n+1,a - f_a) + P h_n,
    # and pairing them with the law after each burn-in gives every entry.
    def longer(_, carry):
        s, h = carry
        moved = step(jnp.concatenate([s, h[:, None]], axis=1))
        s = f + moved[:, :-1]
        return s, jnp.sum(f * (2 * s - f), axis=1) + moved[:, -1]

    def grow(carry, window):
        done, moments = carry
        s, h = jax.lax.fori_loop(done, window, longer, moments)
        n = window.astype(f.dtype)
        return (window, (s, h)), (laws @ s / n, laws @ h / n**2)

    first = (zero, (jnp.zeros_like(f), jnp.zeros_like(law)))
    _, (means, squares) = jax.lax.scan(grow, first, windows)
    variance = jnp.maximum(squares - jnp.sum(means**2, axis=-1), 0).T
    # These are means about that of the device, and the truth is that of the model.
    offset = jnp.zeros_like(means[0, 0])
    if device is not None:
        offset = device_bias(model, device)
    bias2 = jnp.sum((means - offset[None, None]) ** 2, axis=-1).T
    signal = jnp.sum(gradient_of_kl(model, data) ** 2)
    # What rounding leaves of a gradient that is zero is no signal.
    rounding = 64 * jnp.finfo(f.dtype).eps
    size = jnp.sum(jnp.max(observables(model) ** 2, axis=0))
    signal = jnp.where(signal > rounding**2 * size, signal, 0)
    of_data = jnp.sum(data_variance(model, data)) if from_samples else zero
    return bias2, variance, signal, of_data, jnp.sum(offset**2)
