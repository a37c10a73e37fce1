"""The error of the gradient for every burn-in and window, in one pass."""

import math
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, Num

from .._numbers import whole_number
from ..markov import AbstractKernel, EnergyGradients, checked_kernel
from ..models import AbstractEnergyModel, observables, require_model
from ..models._laws import check_law, gradient_of_kl
from ..predictors import QOperational
from ..predictors._qoperational import Start, data_variance, start_law
from ._calibration import calibrate
from ._error_table import ErrorTable


# Times of a grid grow by about a third.
_GROWTH = 4 / 3
_MAX_EXACT_UNITS = 14


def error_table(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: Float[Array, " visible_states"] | Num[Array, "samples n_visible"],
    *,
    start: Start | Num[Array, " start"] = "uniform",
    batch: SupportsIndex | None = None,
    max_steps: SupportsIndex = 10_000,
    key: Key[Array, ""] | None = None,
    replicates: SupportsIndex = 256,
    progress: bool = False,
) -> ErrorTable:
    """The error of the gradient for burn-ins and windows of up to `max_steps` steps in
    all, on a grid of times that grow by a third.

    Without a key it is exact: one pass of `max_steps` products with the chain, for all
    of the grid. With a key it comes from a calibration run of any model, `replicates`
    chains of `max_steps` steps, and that is what it costs. The true gradient is then
    that of the second half of the run, which must be long enough to have forgotten the
    start: some ten sweeps and more, in steps of the kernel.

    **Arguments:**

    - `kernel`, `model`, `data`: as for [`trainq.QOperational`][] or, for a
        calibration, [`trainq.sampling.QSampled`][].
    - `start`: where chains start, as for these.
    - `batch`: number of independent samples in the data phase, or None for all.
    - `max_steps`: the largest number of steps of one chain.
    - `key`: random key of a calibration run.
    - `replicates`: the number of its chains, at least 8.
    - `progress`: show a bar, in a calibration; needs `rich`.

    **Returns:** a [`trainq.sampling.ErrorTable`][].

    **Raises:** `ValueError` for an exact table of more than 14 units, under `jax.jit`
    and its like, and as these; [`trainq.sampling.BudgetError`][] for a calibration that
    is too short, or whose chains are frozen.
    """
    checked_kernel(kernel)
    require_model(model)
    max_steps, batch = checked_sizes(max_steps, batch)
    traced = [
        name
        for name, given in dict(model=model, data=data, start=start, key=key).items()
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(given))
    ]
    if traced:
        raise ValueError(
            "A budget is searched for among numbers, which are not there while a "
            f"function is traced, but a traced {' and '.join(traced)} was given. Call "
            "it outside of `jax.jit`, `jax.vmap` and `jax.grad`."
        )
    grid = _grid(max_steps)
    if key is not None:
        return calibrate(
            key, kernel, model, data, start, batch, grid, replicates, progress
        )
    burn_ins = np.zeros(1, int) if is_named(start, "stationary") else np.append(0, grid)
    return exact_table(kernel, model, data, start, batch, burn_ins, grid, max_steps)


def checked_sizes(
    max_steps: SupportsIndex, batch: SupportsIndex | None
) -> tuple[int, int | None]:
    """Return these as Python numbers, having checked them."""
    max_steps = whole_number("max_steps", max_steps, of="kernel steps")
    if max_steps >= 2**31:
        raise ValueError(f"max_steps is below 2**31, but {max_steps} was given.")
    return max_steps, None if batch is None else whole_number("batch", batch)


def is_named(start: Any, name: str) -> bool:
    return isinstance(start, str) and start == name


def _grid(max_steps: int) -> np.ndarray:
    """Times from 1 to `max_steps`."""
    powers = _GROWTH ** np.arange(math.ceil(math.log(max_steps, _GROWTH)) + 1)
    times = np.append(np.round(powers), max_steps).astype(int)
    return np.unique(times[times <= max_steps])


def exact_table(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: Any,
    start: Any,
    batch: int | None,
    burn_ins: np.ndarray,
    windows: np.ndarray,
    max_steps: int,
) -> ErrorTable:
    if model.n_units > _MAX_EXACT_UNITS:
        raise ValueError(
            f"An exact table takes at most {_MAX_EXACT_UNITS} units, but the model "
            f"has {model.n_units}. Give `key=jax.random.key(0)` for a table from a "
            "calibration run."
        )
    errors = _exact_errors(
        QOperational(kernel, 1, start=start, batch=batch),
        model,
        jnp.asarray(data),
        jnp.asarray(burn_ins),
        jnp.asarray(windows),
    )
    bias2, variance, signal, data_variance = jax.tree.map(np.asarray, errors)
    burn_in, window = np.meshgrid(burn_ins, windows, indexing="ij")
    allowed = burn_in + window <= max_steps
    return ErrorTable(
        burn_in=burn_in[allowed],
        window=window[allowed],
        bias2=bias2[allowed],
        variance=variance[allowed],
        signal=float(signal),
        data_variance=float(data_variance),
        site_updates=float(kernel.site_updates(model)),
    )


@eqx.filter_jit
def _exact_errors(
    estimate: QOperational,
    model: AbstractEnergyModel,
    data: Array,
    burn_ins: Int[Array, " burn_ins"],
    windows: Int[Array, " windows"],
) -> tuple[Array, Array, Array, Array]:
    """Squared bias and variance for all pairs, the signal, and the data variance.

    With `S_n` the sum of `f(X_t)` over `n` steps, `s_n(x) = E[S_n | X_0 = x]` and
    `h_n(x) = Σ_a E[S_n,a² | X_0 = x]` follow step by step, as in
    `AbstractChain.window_moments`; pairing them with the law after each burn-in gives
    every entry.
    """
    chain = estimate.kernel.chain(model)
    data = check_law(data, model)
    f = chain.centre(observables(model))
    law = start_law(estimate.start, model, data)
    step = chain.operator()
    back = jax.linear_transpose(step, law)

    def push(carry, burn_in):
        done, law = carry
        law = jax.lax.fori_loop(done, burn_in, lambda _, law: back(law)[0], law)
        return (jnp.maximum(done, burn_in), law), law

    zero = jnp.zeros((), burn_ins.dtype)
    _, laws = jax.lax.scan(push, (zero, law), burn_ins)

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

    start = (zero, (jnp.zeros_like(f), jnp.zeros_like(law)))
    _, (means, squares) = jax.lax.scan(grow, start, windows)
    bias2 = jnp.sum(means**2, axis=-1).T
    variance = jnp.maximum(squares.T - bias2, 0)
    noise = data_variance(EnergyGradients(model), data, estimate.batch)
    signal = jnp.sum(gradient_of_kl(model, data) ** 2)
    # What rounding leaves of a gradient that is zero is no signal.
    rounding = 64 * jnp.finfo(f.dtype).eps
    size = jnp.sum(jnp.max(observables(model) ** 2, axis=0))
    signal = jnp.where(signal > rounding**2 * size, signal, 0)
    return bias2, variance, signal, jnp.sum(noise)
