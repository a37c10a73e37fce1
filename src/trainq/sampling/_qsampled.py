"""The sampled signal-to-noise ratio of a gradient, with confidence intervals."""

from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from .._checks import check_key, whole_number
from .._meshes import on_any_axes, spread
from .._show import AbstractShown, Table, count
from ..markov import AbstractKernel, checked_kernel, first_states
from ..models import (
    AbstractEnergyModel,
    AbstractStart,
    Data,
    Uniform,
    check_data,
    check_start,
    checked,
    data_phase,
    device_bias,
    draw_visible,
    gradient_of_kl,
    require_data_phase,
    require_model,
    running,
)
from ..predictors import AbstractSNR
from ._chain_state import ChainState
from ._moments import Moments
from ._run import run
from ._statistics import jackknife_error, log_interval, squared_mean, standard_error


# For which the exact gradient is found by enumeration.
_MAX_EXACT_UNITS = 20

Truth = (
    Float[Array | np.ndarray, " n_parameters"]
    | Sequence[float]
    | Literal["sampled"]
    | None
)


class SampledSNR(AbstractSNR):
    """The signal-to-noise ratio of a gradient, estimated from independent replicates.

    Where the replicates do not tell the signal from zero its estimate may be negative,
    and `q` and `log_q` are then zero and `-inf`.
    """

    estimated_signal: Float[Array, ""]
    """`‖g‖²`, exact or an estimate without bias."""
    signal_error: Float[Array, ""]
    """The standard error of `estimated_signal`; zero where it is exact."""
    squared_error: Float[Array, " replicates"]
    """The squared error of each replicate, unbiased for `E‖ĝ - g‖²`."""
    window: int = eqx.field(static=True)
    """Kernel steps that each chain averages over."""
    n_chains: int = eqx.field(static=True)
    """The number of independent chains of a replicate."""
    knows_bias: bool = eqx.field(static=True)
    """Whether the bias of the start is part of the error."""
    parameter_device_bias: Float[Array, " n_parameters"] | None = None
    """As that of a [`trainq.GradientSNR`][], exact; None where the model itself runs,
    or where it cannot be enumerated."""

    @property
    def signal(self) -> Float[Array, ""]:
        """`‖g‖²`, or the estimate of it."""
        return self.estimated_signal

    @property
    def mse(self) -> Float[Array, ""]:
        """The estimate of `E‖ĝ - g‖²`."""
        return jnp.mean(self.squared_error)

    @property
    def mse_error(self) -> Float[Array, ""]:
        """The standard error of `mse`."""
        return standard_error(self.squared_error)

    @property
    def log_q_error(self) -> Float[Array, ""]:
        """The standard error of `log_q`; infinite where the signal or the noise is not
        told from zero."""
        positive = (self.signal > 0) & (self.mse > 0)
        signal, mse = (jnp.where(positive, x, 1) for x in (self.signal, self.mse))
        error = jnp.hypot(self.mse_error / mse, self.signal_error / signal)
        return jnp.where(positive, error, jnp.inf)

    def interval(self, confidence: float = 0.95) -> Float[Array, " 2"]:
        """A confidence interval for `Q`, from Student's `t` on the logarithm."""
        degrees = self.squared_error.size - 1
        return log_interval(self.q, self.log_q_error, degrees, confidence)

    def _shown(self) -> list[str | Table]:
        if self.estimated_signal.ndim:  # a batch, by `eqx.filter_vmap`
            return AbstractShown._shown(self)
        return super()._shown()

    def _remarks(self) -> list[str]:
        low, high = self.interval()
        remarks = [
            f"{self.squared_error.size} replicates of {count(self.n_chains, 'chain')}",
            f"Q is {low:.4g} to {high:.4g} with 95 % confidence",
        ]
        if not self.knows_bias:
            remarks.append("the bias of the start left out")
        return remarks


class QSampled(eqx.Module):
    """The signal-to-noise ratio of an actual estimate of the gradient, found by running
    it many times: for models too large for [`trainq.QOperational`][], which is the same
    number without the noise.

    Errors are taken about the exact gradient, found by enumeration of up to
    [20 units](../choosing.md#limits): those of the smaller layer of an RBM, whatever
    the size of the other one. For larger models give it the `gradient` if you
    know it: otherwise errors are taken about the mean of the replicates, which leaves
    out the bias of the start, and `Q` is too large, by a lot if the burn-in is short.

    Every replicate is a complete estimate: `n_chains` chains of its own start anew,
    drop `burn_in` steps and average the observables over the next `window`.
    """

    kernel: AbstractKernel
    window: int = eqx.field(static=True)
    burn_in: int = eqx.field(static=True)
    start: AbstractStart
    n_chains: int = eqx.field(static=True)
    batch: int | None = eqx.field(static=True)
    replicates: int = eqx.field(static=True)

    def __init__(
        self,
        kernel: AbstractKernel,
        window: SupportsIndex,
        burn_in: SupportsIndex = 0,
        start: AbstractStart = Uniform(),
        n_chains: SupportsIndex = 1,
        *,
        batch: SupportsIndex | None = None,
        replicates: SupportsIndex = 64,
    ):
        """**Arguments:**

        - `kernel`: the kernel that samples the model.
        - `window`: the number of states that a chain averages over, one a step.
        - `burn_in`: the number of states dropped before, the first included.
        - `start`: where chains start, as for [`trainq.QOperational`][].
        - `n_chains`: the number of independent chains of a replicate.
        - `batch`: the number of independent samples in the data phase, drawn with
            replacement from the data, or None for all of it.
        - `replicates`: the number of replicates, at least 8, which intervals need. The
            relative error of `Q` is about `√(2 / replicates)` or less.

        **Raises:** `ValueError` for numbers that are not whole, or too small;
        `TypeError` for another thing than a start.
        """
        self.kernel = checked_kernel(kernel)
        self.window = whole_number("window", window, of="kernel steps")
        self.burn_in = whole_number("burn_in", burn_in, least=0, of="kernel steps")
        self.start = check_start(start)
        self.n_chains = whole_number("n_chains", n_chains)
        self.batch = None if batch is None else whole_number("batch", batch)
        self.replicates = whole_number("replicates", replicates, least=8)

    def __call__(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        data: Data,
        *,
        gradient: Truth = None,
        device: AbstractEnergyModel | None = None,
        progress: bool = False,
    ) -> SampledSNR:
        """**Arguments:**

        - `key`: random key.
        - `model`: the model.
        - `data`: `(2**n_visible,)`, the law of the data, or `(samples, n_visible)`
            spins.
        - `gradient`: `(n_parameters,)`, the true gradient, which errors are taken
            about. By default it is found by enumeration, where `model.n_enumerated` is
            at most 20; if it is more, or with `"sampled"`, it is the mean of the
            replicates, and the bias of the start is left out.
        - `device`: the model that runs, if it is another one, as for
            [`trainq.QOperational`][]. Errors about its own mean would not see that it
            is another one: it takes the gradient of the model.
        - `progress`: show a line of progress, from compiling on; needs `tqdm`.

        **Returns:** a [`trainq.sampling.SampledSNR`][].

        **Raises:** `ValueError` for a wrong shape or type, a device with other units or
        without a gradient, or an exact start of a model with an `n_enumerated` of more
        than 20; a run-time error if `data` is not a law, or a parameter or `gradient`
        is not finite.
        """
        check_key(key)
        require_model(model)
        runs = running(model, device)
        data = check_data(data, model)
        require_data_phase(model, data)
        truth = true_gradient(gradient, model, data)
        if truth is None and device is not None:
            raise ValueError(
                "What a device costs is told by the gradient of the model, but none is "
                "known. Give it by `gradient`, or use `calibrated_errors`, which runs "
                "the model beside its device."
            )
        of_device = None
        if device is not None and model.n_units <= _MAX_EXACT_UNITS:
            of_device = _exact_device_bias(model, device)
        starts, data_key, chain_key = jr.split(key, 3)
        n_chains = self.replicates * self.n_chains
        x = first_states(starts, self.kernel, self.start, runs, data, n_chains)
        state = ChainState.begin(spread(x), chain_key)
        if self.burn_in:
            state = run(
                self.kernel,
                runs,
                state,
                self.burn_in,
                functions=_nothing,
                progress=progress,
            ).state
        found = run(
            self.kernel,
            runs,
            state,
            self.window,
            functions=None if device is None else model.observables,
            progress=progress,
        )
        phases = _data_phases(data_key, model, data, self.replicates, self.batch)
        signal, signal_error, squares = _judged(phases, found.moments, truth)
        return SampledSNR(
            estimated_signal=signal,
            signal_error=signal_error,
            squared_error=squares,
            window=self.window,
            n_chains=self.n_chains,
            knows_bias=truth is not None or self.start.is_stationary,
            parameter_device_bias=of_device,
        )


@eqx.filter_jit
def _data_phases(
    key: Array,
    model: AbstractEnergyModel,
    data: Array,
    replicates: int,
    batch: int | None,
) -> Float[Array, "replicates n_parameters"]:
    """The data phase of each replicate."""
    if batch is None:
        phase = data_phase(model, data)
        return jnp.broadcast_to(phase, (replicates, phase.size))
    batches = draw_visible(key, model, data, (replicates, batch))
    return jax.vmap(lambda v: data_phase(model, v))(batches)


@eqx.filter_jit
@on_any_axes
def _judged(
    phases: Float[Array, "replicates n_parameters"],
    moments: Moments,
    gradient: Float[Array, " n_parameters"] | None,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, " replicates"]]:
    """`signal_and_errors`, from data phases and from chains of as many replicates."""
    means = moments.mean.reshape(phases.shape[0], -1, phases.shape[1])
    return signal_and_errors(phases - jnp.mean(means, axis=1), gradient)


@jax.jit
def signal_and_errors(
    estimates: Float[Array, "replicates n_parameters"],
    gradient: Float[Array, " n_parameters"] | None,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, " replicates"]]:
    """The squared length of the gradient, its standard error, and the squared error of
    each replicate: about the gradient, or about their mean if it is not known."""
    if gradient is not None:
        signal = jnp.sum(gradient**2)
        squares = jnp.sum((estimates - gradient[None]) ** 2, axis=1)
        return signal, jnp.zeros_like(signal), squares
    n, mean = len(estimates), jnp.mean(estimates, axis=0)
    scatter = estimates - mean[None]
    signal = squared_mean(mean, scatter).unbiased
    # The mean is nearer to its replicates than the truth is.
    squares = jnp.sum(scatter**2, axis=1) * n / (n - 1)
    return signal.whole, jackknife_error(signal.without), squares


def true_gradient(
    gradient: Truth, model: AbstractEnergyModel, data: Array
) -> Float[Array, " n_parameters"] | None:
    """The gradient that errors are taken about: the given one or, for None, the exact
    one where it can be found; None where samples have to tell."""
    if isinstance(gradient, str):
        if gradient != "sampled":
            raise ValueError(
                f'gradient is an array, "sampled" or None, but {gradient!r} was given.'
            )
        return None
    if gradient is not None:
        return _checked_gradient(gradient, model)
    if model.n_enumerated <= _MAX_EXACT_UNITS:
        return _exact_gradient(model, data)
    return None


def _checked_gradient(gradient: Any, model: AbstractEnergyModel) -> Array:
    """Return a gradient as an array of the model's type, having checked it."""
    gradient = jnp.asarray(gradient)
    x = jax.ShapeDtypeStruct((1, model.n_units), model.dtype)
    shape = jax.eval_shape(model.observables, x).shape[1:]
    real = jnp.issubdtype(gradient.dtype, jnp.floating)
    if gradient.shape != shape or not real:
        raise ValueError(
            f"gradient has shape {shape}, one float for each parameter, but an array "
            f"of shape {gradient.shape} and dtype {gradient.dtype} was given."
        )
    return eqx.error_if(
        gradient.astype(model.dtype),
        ~jnp.all(jnp.isfinite(gradient)),
        "An entry of gradient is not finite.",
    )


def _nothing(x: Array) -> Array:
    return jnp.zeros((x.shape[0], 0), x.dtype)


@eqx.filter_jit
def _exact_gradient(
    model: AbstractEnergyModel, data: Array
) -> Float[Array, " n_parameters"]:
    return gradient_of_kl(checked(model), data)


@eqx.filter_jit
def _exact_device_bias(
    model: AbstractEnergyModel, device: AbstractEnergyModel
) -> Float[Array, " n_parameters"]:
    return device_bias(checked(model), checked(device))
