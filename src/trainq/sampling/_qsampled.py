"""The sampled signal-to-noise ratio of a gradient, with confidence intervals."""

import math
from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, Num

from .._numbers import whole_number
from .._spins import check_spins, state_spins
from ..markov import AbstractKernel, checked_kernel
from ..models import AbstractEnergyModel, log_stationary, mean_observables
from ..models._base import checked, require_model
from ..models._laws import check_law
from ..predictors import AbstractSNR
from ._autocorrelation import Series, check_series, summed, window_weights
from ._run import ChainState, check_key, run


# For which the exact gradient and an exact start are found by enumeration.
_MAX_EXACT_UNITS = 20
SampledStart = Literal["uniform", "data", "stationary"]


class SampledSNR(AbstractSNR):
    """The signal-to-noise ratio of a gradient, estimated from independent replicates.

    `squared_error` is that of each replicate, unbiased for `E‖ĝ - g‖²`, and `signal` is
    either exact or estimated without bias as well: it may then be negative, where the
    replicates do not tell it from zero, and `q` and `log_q` are zero and `-inf`.
    `knows_bias` says whether the bias of the start is part of the error.
    """

    estimated_signal: Float[Array, ""]
    signal_error: Float[Array, ""]
    squared_error: Float[Array, " replicates"]
    window: int = eqx.field(static=True)
    knows_bias: bool = eqx.field(static=True)

    @property
    def signal(self) -> Float[Array, ""]:
        """`‖g‖²`, or the estimate of it."""
        return self.estimated_signal

    @property
    def mse(self) -> Float[Array, ""]:
        """The estimate of `E‖ĝ - g‖²`."""
        return jnp.mean(self.squared_error)

    @property
    def q(self) -> Float[Array, ""]:
        """`Q = signal / mse`, and zero where the signal is not told from zero."""
        return jnp.maximum(super().q, 0)

    @property
    def mse_error(self) -> Float[Array, ""]:
        """The standard error of `mse`."""
        return _standard_error(self.squared_error)

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
        reach = _student(confidence, self.squared_error.size - 1) * self.log_q_error
        return _around(self.q, reach)

    def _remarks(self) -> list[str]:
        low, high = self.interval()
        remarks = [
            f"{self.squared_error.size} replicates",
            f"Q is {low:.4g} to {high:.4g} with 95 % confidence",
        ]
        if not self.knows_bias:
            remarks.append("the bias of the start left out")
        return remarks


class QSampled(eqx.Module):
    """The signal-to-noise ratio of an actual estimate of the gradient, found by running
    it many times: for models too large for [`trainq.QOperational`][], which is the same
    number without the noise.

    Errors are taken about the exact gradient, found by enumeration for up to 20 units.
    For larger models give it the `gradient` if you know it: otherwise errors are taken
    about the mean of the replicates, which leaves out the bias of the start, and `Q` is
    too large, by a lot if the burn-in is short.

    Every replicate is a complete estimate: `chains` chains of its own start anew, drop
    `burn_in` steps and average the observables over the next `window`.
    """

    kernel: AbstractKernel
    window: int = eqx.field(static=True)
    burn_in: int = eqx.field(static=True)
    start: SampledStart = eqx.field(static=True)
    chains: int = eqx.field(static=True)
    batch: int | None = eqx.field(static=True)
    replicates: int = eqx.field(static=True)

    def __init__(
        self,
        kernel: AbstractKernel,
        window: SupportsIndex,
        burn_in: SupportsIndex = 0,
        start: SampledStart = "uniform",
        chains: SupportsIndex = 1,
        *,
        batch: SupportsIndex | None = None,
        replicates: SupportsIndex = 64,
    ):
        """**Arguments:**

        - `kernel`: the kernel that samples the model.
        - `window`: the number of states that a chain averages over, one a step.
        - `burn_in`: the number of states dropped before, the first included.
        - `start`: where chains start. `"uniform"`, over all states; `"data"`, visible
            units from the data and hidden ones from their law given these, which is
            contrastive divergence; `"stationary"`, drawn exactly from the model by
            enumeration. For a stationary start of a large model, burn in.
        - `chains`: the number of independent chains of a replicate.
        - `batch`: the number of independent samples in the data phase, drawn with
            replacement from the data, or None for all of it.
        - `replicates`: the number of replicates, at least 8, which intervals need. The
            relative error of `Q` is about `√(2 / replicates)` or less.

        **Raises:** `ValueError` for numbers that are not whole, or too small.
        """
        if start not in ("uniform", "data", "stationary"):
            raise ValueError(
                f'start is "uniform", "data" or "stationary", but {start!r} was given.'
            )
        self.kernel = checked_kernel(kernel)
        self.window = whole_number("window", window, of="kernel steps")
        self.burn_in = whole_number("burn_in", burn_in, least=0, of="kernel steps")
        self.start = start
        self.chains = whole_number("chains", chains)
        self.batch = None if batch is None else whole_number("batch", batch)
        self.replicates = whole_number("replicates", replicates, least=8)

    def __call__(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        data: Float[Array, " visible_states"] | Num[Array, "samples n_visible"],
        *,
        gradient: Float[Array | np.ndarray, " n_parameters"]
        | Sequence[float]
        | Literal["sampled"]
        | None = None,
        progress: bool = False,
    ) -> SampledSNR:
        """**Arguments:**

        - `key`: random key.
        - `model`: the model.
        - `data`: `(2**n_visible,)`, the law of the data, or `(samples, n_visible)`
            spins.
        - `gradient`: `(n_parameters,)`, the true gradient, which errors are taken
            about. By default it is found by enumeration for up to 20 units; for more,
            or with `"sampled"`, it is the mean of the replicates, and the bias of the
            start is left out.
        - `progress`: show a bar; needs `rich`.

        **Returns:** a [`trainq.sampling.SampledSNR`][].

        **Raises:** `ValueError` for a wrong shape or type, or an exact start of a model
        with more than 20 units; a run-time error if `data` is not a law, or a parameter
        or `gradient` is not finite.
        """
        check_key(key)
        require_model(model)
        data = checked_data(data, model)
        if gradient is None and model.n_units <= _MAX_EXACT_UNITS:
            gradient = _exact_gradient(model, data)
        elif isinstance(gradient, str):
            if gradient != "sampled":
                raise ValueError(
                    'gradient is an array, "sampled" or None, but '
                    f"{gradient!r} was given."
                )
            gradient = None
        elif gradient is not None:
            gradient = _checked_gradient(gradient, model)
        starts, data_key, chain_key = jr.split(key, 3)
        n_chains = self.replicates * self.chains
        x = draw_starts(starts, model, data, n_chains, self.start)
        state = ChainState.begin(x, chain_key)
        if self.burn_in:
            state = run(
                self.kernel,
                model,
                state,
                self.burn_in,
                functions=_nothing,
                progress=progress,
            ).state
        found = run(self.kernel, model, state, self.window, progress=progress)
        means = found.moments.mean.reshape(self.replicates, self.chains, -1)
        return self._snr(data_key, model, data, jnp.mean(means, axis=1), gradient)

    @eqx.filter_jit
    def _snr(
        self,
        key: Array,
        model: AbstractEnergyModel,
        data: Array,
        means: Float[Array, "replicates n_parameters"],
        gradient: Array | None,
    ) -> SampledSNR:
        if self.batch is None:
            phase = data_phase(model, data)[None]
        else:
            batches = _draw(key, model, data, (self.replicates, self.batch))
            phase = jax.vmap(lambda v: data_phase(model, v))(batches)
        estimates = phase - means
        n = self.replicates
        if gradient is not None:
            squares = jnp.sum((estimates - gradient[None]) ** 2, axis=1)
            signal = jnp.sum(gradient**2)
            return SampledSNR(
                estimated_signal=signal,
                signal_error=jnp.zeros_like(signal),
                squared_error=squares,
                window=self.window,
                knows_bias=True,
            )
        mean = jnp.mean(estimates, axis=0)
        rest = estimates - mean[None]
        squares = jnp.sum(rest**2, axis=1) * n / (n - 1)
        # ‖mean‖² is too large by the variance of the mean. Leaving out one replicate at
        # a time gives the error of what is left (the jackknife).
        signal = jnp.sum(mean**2) - jnp.mean(squares) / n
        others = jnp.sum((mean[None] - rest / (n - 1)) ** 2, axis=1)
        spread = (jnp.sum(squares) * (n - 1) / n - squares) / (n - 2)
        others = others - spread / (n - 1)
        error = jnp.sqrt((n - 1) * jnp.mean((others - jnp.mean(others)) ** 2))
        return SampledSNR(
            estimated_signal=signal,
            signal_error=error,
            squared_error=squares,
            window=self.window,
            knows_bias=self.start == "stationary",
        )


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


def checked_data(data: Array, model: AbstractEnergyModel) -> Array:
    data = jnp.asarray(data)
    if data.ndim == 1 and data.shape != (model.n_visible,):
        return check_law(data, model)
    if data.ndim != 2 or data.shape[1] != model.n_visible or data.shape[0] == 0:
        raise ValueError(
            f"data is a law of shape (2**{model.n_visible},), or samples of shape "
            f"(samples, {model.n_visible}), but {data.shape} was given. For one sample "
            "add an axis: `data[None]`."
        )
    return check_spins(data, model.n_visible).astype(model.dtype)


def data_phase(
    model: AbstractEnergyModel, data: Array
) -> Float[Array, " n_parameters"]:
    """`E_data[f_a]`, for a law of the visible states or for samples: the derivative of
    the mean free energy."""
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def mean(p):
        whole = eqx.combine(p, static)
        if data.ndim == 1:
            return data @ whole.free_energies()
        return jnp.mean(whole.free_energy(data))

    return ravel_pytree(jax.grad(mean)(params))[0]


@eqx.filter_jit
def _exact_gradient(
    model: AbstractEnergyModel, data: Array
) -> Float[Array, " n_parameters"]:
    return data_phase(model, data) - mean_observables(model)


def _draw(
    key: Array, model: AbstractEnergyModel, data: Array, shape: tuple[int, ...]
) -> Array:
    """Visible states from the data."""
    if data.ndim == 1:
        index = jr.choice(key, data.shape[0], shape, p=data)
        return state_spins(index, model.n_visible, model.dtype)
    return data[jr.randint(key, shape, 0, data.shape[0])]


@eqx.filter_jit
def draw_starts(
    key: Array, model: AbstractEnergyModel, data: Array, n_chains: int, start: str
) -> Float[Array, "chains n_units"]:
    shape = (n_chains, model.n_units)
    if start == "uniform":
        return jr.rademacher(key, shape, model.dtype)
    first, second = jr.split(key)
    if start == "stationary":
        if model.n_units > _MAX_EXACT_UNITS:
            raise ValueError(
                "An exact start enumerates all states: at most "
                f"{_MAX_EXACT_UNITS} units, but there are "
                f'{model.n_units}. Use start="uniform" and a burn-in.'
            )
        index = jr.categorical(first, log_stationary(model), shape=(n_chains,))
        return state_spins(index, model.n_units, model.dtype)
    hidden = jnp.ones((n_chains, model.n_hidden), model.dtype)
    x = jnp.concatenate([_draw(first, model, data, (n_chains,)), hidden], axis=1)
    return checked(model).sample_block(second, x, "hidden") if model.n_hidden else x


class SampledTime(eqx.Module):
    """`T_O` estimated from a trajectory, in steps of the series.

    `segments` are the estimates from the pieces that it was cut into, whose scatter
    gives the error. It is `resolved` if every observable changes, but for rounding, a
    piece is at least 10 times as long as the longest window of their autocorrelation,
    and the estimate is finite and positive.
    """

    segments: Float[Array, " segments"]
    variance: Float[Array, ""]
    resolved: Array

    @property
    def t_o(self) -> Float[Array, ""]:
        """`T_O = Σ_a ⟨f̃_a, R f̃_a⟩_π`."""
        return jnp.mean(self.segments)

    @property
    def t_o_error(self) -> Float[Array, ""]:
        """The standard error of `t_o`."""
        return _standard_error(self.segments)

    def interval(self, confidence: float = 0.95) -> Float[Array, " 2"]:
        """A confidence interval for `T_O`, from Student's `t` on the logarithm."""
        positive = self.t_o > 0
        relative = self.t_o_error / jnp.where(positive, self.t_o, 1)
        reach = _student(confidence, self.segments.size - 1) * relative
        return _around(self.t_o, jnp.where(positive, reach, jnp.inf))


def sampled_time(
    values: Float[Array | np.ndarray, "chains steps n_obs"],
    *,
    segments: SupportsIndex = 32,
) -> SampledTime:
    """`T_O` from the values of the observables along chains that have burnt in:
    `½ Σ_a Var f_a (τ_a + 1)`, with the window of each sum set by Sokal's rule from all
    of the data, as in [`trainq.sampling.autocorrelation_time`][], and the error from
    pieces of the trajectory.

    **Arguments:**

    - `values`: `(chains, steps, n_obs)`.
    - `segments`: the number of pieces for the error, at least 8. Each chain is cut into
        equal ones, so that there may be more.

    **Returns:** a [`trainq.sampling.SampledTime`][]. Look at `resolved`.

    **Raises:** `ValueError` for a wrong shape, or if a piece would have fewer than 8
    steps.
    """
    values = check_series(values)
    if values.ndim != 3:
        raise ValueError(
            "values have shape (chains, steps, n_obs), as `run(..., keep=True).values`,"
            f" but {values.shape} was given. For one chain add an axis, `values[None]`,"
            " for one observable `values[..., None]`."
        )
    segments = whole_number("segments", segments, least=8)
    n_chains, n_steps, _ = values.shape
    pieces = -(-segments // n_chains)
    if n_steps // pieces < 8:
        raise ValueError(
            f"{n_steps} steps of {n_chains} chains cannot be cut into at least "
            f"{segments} pieces of at least 8 steps each."
        )
    return _sampled_time(values, pieces)


@eqx.filter_jit
def _sampled_time(values: Array, pieces: int) -> SampledTime:
    n_chains, n_steps, n_obs = values.shape
    length = n_steps // pieces
    series = Series(values)
    covariance = jnp.mean(series.covariance(), axis=0)
    window = summed(series.correlation(), n_chains * n_steps).window
    parts = series.values[:, : pieces * length]
    parts = parts.reshape(n_chains * pieces, length, n_obs)
    local = eqx.tree_at(lambda s: s.values, series, parts).covariance()
    # Fewer pairs of times have a larger lag, and the common mean takes away a little of
    # every one of them.
    pairs = length / (length - jnp.arange(length)).astype(values.dtype)
    weights = window_weights(covariance[:length], window) * pairs[:, None]
    sums = jnp.sum(weights[None] * local, axis=1)
    lost = (2 * window + 1).astype(values.dtype) / (n_chains * n_steps)
    sums = sums / (1 - jnp.minimum(lost, 0.5))[None]

    def total(x):
        # What only rounding moves has no variance; what is not finite is not hidden.
        still = series.finite & ~series.moves
        return jnp.sum(jnp.where(still, 0, x) * series.scale * series.scale)

    found = SampledTime(
        segments=jax.vmap(total)(sums),
        variance=total(covariance[0]),
        resolved=jnp.all(series.moves) & (10 * jnp.max(window) <= length),
    )
    known = jnp.isfinite(found.t_o_error) & (found.t_o > 0)
    return eqx.tree_at(lambda f: f.resolved, found, found.resolved & known)


def _standard_error(x: Float[Array, " n"]) -> Float[Array, ""]:
    """That of a mean, for values whose squares may overflow or vanish."""
    unit = jnp.max(jnp.abs(x))
    unit = jnp.where(unit > 0, unit, 1)
    return unit * (jnp.std(x / unit[None], ddof=1) / math.sqrt(x.size))


def _around(value: Array, reach: Array) -> Float[Array, " 2"]:
    """An interval that reaches so far on the logarithm: all that there is, if this is
    not known."""
    known = jnp.isfinite(reach) & jnp.isfinite(value)
    sides = jnp.where(known, reach, 0) * jnp.array([-1, 1], reach.dtype)
    wide = jnp.array([0, jnp.inf], reach.dtype)
    return jnp.where(known, value * jnp.exp(sides), wide)


def _student(confidence: float, degrees: int) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is between 0 and 1, but {confidence} was given.")
    # Imported here because it is slow to load.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))
