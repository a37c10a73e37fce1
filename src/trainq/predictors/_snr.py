"""The signal-to-noise ratio of a gradient: what predictors return."""

import abc
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from .._show import AbstractShown, Table, count, number
from ..solvers import SolverStats


class AbstractSNR(AbstractShown):
    """The signal and the noise of an estimated gradient: `Q = ‖g‖² / E‖ĝ - g‖²`.

    Another way to find these needs `signal`, `mse`, `window` and
    `parameter_device_bias`, which is None where the model itself runs.
    """

    window: eqx.AbstractVar[int | Num[Array, "*batch"]]
    parameter_device_bias: eqx.AbstractVar[Float[Array, "*batch n_parameters"] | None]

    @property
    @abc.abstractmethod
    def signal(self) -> Float[Array, "*batch"]:
        """`‖g‖²`."""

    @property
    @abc.abstractmethod
    def mse(self) -> Float[Array, "*batch"]:
        """`E‖ĝ - g‖²`, the mean squared error of one estimate."""

    @property
    def q(self) -> Float[Array, "*batch"]:
        """`Q = signal / mse`. Above one, a single estimate points the right way. It is
        zero where the estimate of a signal is negative, not told from zero."""
        return _ratio(self.signal, self.mse)

    @property
    def log_q(self) -> Float[Array, "*batch"]:
        """`log Q`, for a loss. It is `-inf` where the signal is zero, whatever the
        noise is, and its derivative is taken to be zero there."""
        return _log_ratio(self.signal, self.mse)

    @property
    def parameter_q(self) -> Float[Array, "*batch n_parameters"]:
        """`g_a² / E(ĝ_a - g_a)²` for each parameter, where that is known.

        **Raises:** `AttributeError` for an estimate of `Q`, which is of them together.
        """
        raise AttributeError(
            f"A {type(self).__name__} has the errors of all parameters together. "
            "`trainq.QStruct` and `trainq.QOperational` find `parameter_q`."
        )

    @property
    def device_bias2(self) -> Float[Array, "*batch"]:
        """The part of `E‖ĝ - g‖²` that no window, burn-in or number of chains takes
        away, because what runs is not the model: zero without a device."""
        if self.parameter_device_bias is None:
            return jnp.zeros_like(self.signal)
        return jnp.sum(self.parameter_device_bias**2, axis=-1)

    @property
    def q_limit(self) -> Float[Array, "*batch"]:
        """What `Q` tends to for endless chains on this device, and cannot exceed from
        its stationary law: `signal / device_bias2`, infinite without a device. A start
        that errs to the other side may cancel some of the bias, by luck, in a short
        window."""
        return _ratio(self.signal, self.device_bias2)

    def _shown(self) -> list[str | Table]:
        text = f"Q = {number(self.q)}: signal {number(self.signal)}"
        text += f" over noise {number(self.mse)}"
        window = self.window if jnp.ndim(self.window) == 0 else number(self.window)
        window = f"window of {window} steps"
        parts = [text, window, *self._remarks()]
        if self.parameter_device_bias is not None:
            limit = number(self.q_limit)
            parts.append(f"on this device Q cannot exceed {limit} in the long run")
        return [", ".join(parts)]

    @abc.abstractmethod
    def _remarks(self) -> list[str]:
        """What `print` says besides."""


class GradientSNR(AbstractSNR):
    """The signal of a gradient, and the error of an estimate `ĝ` of it from chains, in
    parts: `E‖ĝ - g‖² = Σ_a bias_a² + variance_a + data variance_a`.

    Everything is derived from the contributions of each parameter, which are in the
    order of [`trainq.observables`][], and are those of the estimate from all of its
    `n_chains` chains of `window` kernel steps and all of its data. A batch of models,
    by `eqx.filter_vmap`, has leading axes.

    A structural predictor, of one chain from its stationary law and of an exact data
    phase, has all of its error in the variance, but for that of a device which is not
    the model. Its result has the time `t_o` as well.
    """

    parameter_signal: Float[Array, "*batch n_parameters"]
    """`g_a²`."""
    parameter_bias: Float[Array, "*batch n_parameters"]
    """`E ĝ_a - g_a`, which no number of chains takes away; that of the device is part
    of it."""
    parameter_variance: Float[Array, "*batch n_parameters"]
    """`Var ĝ_a` from the chains: that of one, over their number."""
    parameter_data_variance: Float[Array, "*batch n_parameters"]
    """`Var ĝ_a` from a finite batch of data."""
    window: Num[Array, "..."] = eqx.field(converter=jnp.asarray)
    """Kernel steps that each chain averages over."""
    n_chains: int = eqx.field(static=True)
    """The number of independent chains."""
    stats: SolverStats | None = None
    """How well the system of each parameter was solved, if any was."""
    parameter_t_o: Float[Array, "*batch n_parameters"] | None = None
    """Of a structural predictor, what each parameter contributes to `t_o`."""
    parameter_device_bias: Float[Array, "*batch n_parameters"] | None = None
    """The part of the bias that no window takes away either, `E_π[f_a] - E_device[f_a]`
    in the laws of the model and of the device; None where the model itself runs."""

    @property
    def signal(self) -> Float[Array, "*batch"]:
        """`‖g‖²`."""
        return jnp.sum(self.parameter_signal, axis=-1)

    @property
    def parameter_mse(self) -> Float[Array, "*batch n_parameters"]:
        """`E(ĝ_a - g_a)²` for each parameter."""
        noise = self.parameter_variance + self.parameter_data_variance
        return self.parameter_bias**2 + noise

    @property
    def mse(self) -> Float[Array, "*batch"]:
        """`E‖ĝ - g‖²`, the mean squared error of one estimate."""
        return jnp.sum(self.parameter_mse, axis=-1)

    @property
    def bias2(self) -> Float[Array, "*batch"]:
        """`‖E ĝ - g‖²`: what no number of chains takes away."""
        return jnp.sum(self.parameter_bias**2, axis=-1)

    @property
    def variance(self) -> Float[Array, "*batch"]:
        """`E‖ĝ - E ĝ‖²` from the chains: that of one, over their number."""
        return jnp.sum(self.parameter_variance, axis=-1)

    @property
    def data_variance(self) -> Float[Array, "*batch"]:
        """The part of `E‖ĝ - g‖²` that comes from a finite batch of data."""
        return jnp.sum(self.parameter_data_variance, axis=-1)

    @property
    def parameter_q(self) -> Float[Array, "*batch n_parameters"]:
        """`g_a² / E(ĝ_a - g_a)²` for each parameter."""
        return _ratio(self.parameter_signal, self.parameter_mse)

    @property
    def t_o(self) -> Float[Array, "*batch"]:
        """`T_O` in kernel steps, so that the variance is `2 T_O / K`, and without a
        device `Q = (K/2) ‖g‖² / T_O`: of a structural predictor alone.
        `Σ_a ⟨f̃_a, R f̃_a⟩_π` in the resolvent convention, and half of the variances
        less in that of Sokal, `Σ_a Var f_a (½ + Σ_t ρ_a(t))`.

        **Raises:** `AttributeError` for the error of an actual estimate.
        """
        if self.parameter_t_o is None:
            raise AttributeError(
                "This is the error of an actual estimate, which is no time of the "
                "chain: it depends on the window, the start, the chains and the data. "
                "`trainq.QStruct(kernel, window)(model, data).t_o` is T_O."
            )
        return jnp.sum(self.parameter_t_o, axis=-1)

    def _remarks(self) -> list[str]:
        if self.parameter_t_o is not None:
            unsolved = self.stats is not None and not self.stats.ok.all()
            return ["NOT SOLVED: see `stats`"] if unsolved else []
        parts = (
            f"of which squared bias {number(self.bias2)}, "
            f"variance {number(self.variance)}, data {number(self.data_variance)}"
        )
        return [count(self.n_chains, "chain"), parts]


def structural(
    gradient: Float[Array, " n_parameters"],
    t_o: Float[Array, " n_parameters"],
    window: int | float | np.number | Num[Array, ""],
    stats: SolverStats | None = None,
    bias: Float[Array, " n_parameters"] | None = None,
) -> GradientSNR:
    """The result of a structural predictor, whose error is `2 T_O / K`, and the squared
    bias of its device if there is one."""
    nothing = jnp.zeros_like(t_o)
    return GradientSNR(
        parameter_signal=gradient**2,
        parameter_bias=nothing if bias is None else bias,
        parameter_variance=2 * t_o / jnp.asarray(window).astype(t_o.dtype),
        parameter_data_variance=nothing,
        window=window,
        n_chains=1,
        stats=stats,
        parameter_t_o=t_o,
        parameter_device_bias=bias,
    )


class RandomisedSNR(AbstractSNR):
    """The exact signal of a gradient, and an estimate of its noise from random probes,
    each of which is unbiased.

    `q` has a relative error of about `mse_error / mse`, and `log_q` is too large on
    average by half the square of that.

    A standard error from few probes is itself uncertain. In the cold one mode makes
    nearly all of the noise, each probe is then the square of one random sum, and an
    estimate that is too small comes with an error that is too small as well: with 16
    probes, deviations of three and more times `mse_error` are not rare. Take more
    probes, or compare two keys, before you trust it.
    """

    parameter_signal: Float[Array, "*batch n_parameters"]
    """`g_a²`, exact."""
    probe_mse: Float[Array, "*batch n_probes"]
    """The estimate of `E‖ĝ - g‖²` from each probe. The squared bias of a device, which
    is part of it, is exact."""
    window: Num[Array, "..."] = eqx.field(converter=jnp.asarray)
    """Kernel steps that the chain averages over."""
    stats: SolverStats | None = None
    """How well the system of each probe was solved, if any was."""
    parameter_device_bias: Float[Array, "*batch n_parameters"] | None = None
    """As that of a [`trainq.GradientSNR`][], exact."""

    @property
    def signal(self) -> Float[Array, "*batch"]:
        """`‖g‖²`, exact."""
        return jnp.sum(self.parameter_signal, axis=-1)

    @property
    def mse(self) -> Float[Array, "*batch"]:
        """The estimate of `E‖ĝ - g‖²`."""
        return jnp.mean(self.probe_mse, axis=-1)

    @property
    def mse_error(self) -> Float[Array, "*batch"]:
        """The standard error of `mse`, from the scatter of the probes."""
        n_probes = self.probe_mse.shape[-1]
        return jnp.std(self.probe_mse, axis=-1, ddof=1) / math.sqrt(n_probes)

    @property
    def t_o(self) -> Float[Array, "*batch"]:
        """The estimate of `T_O`, which is `window / 2` times the variance, in kernel
        steps."""
        noise = self.mse - self.device_bias2
        return self.window.astype(noise.dtype) * noise / 2

    @property
    def t_o_error(self) -> Float[Array, "*batch"]:
        """The standard error of `t_o`."""
        return self.window.astype(self.mse.dtype) * self.mse_error / 2

    def _remarks(self) -> list[str]:
        return [f"noise known to {number(self.mse_error)}"]


def pool(snr: GradientSNR) -> GradientSNR:
    """The signal-to-noise ratio of a batch of models taken together.

    Signals and mean squared errors are summed over all leading axes, part by part:
    `Q_pool = Σ signal / Σ mse` is that of one gradient with a block for each model.
    The statistics of the solver are not kept: look at them before. Squared biases are
    summed as well, so that the bias of the result is the length of those of the models.

    **Arguments:**

    - `snr`: the result of a predictor under `eqx.filter_vmap`.

    **Returns:** a [`trainq.GradientSNR`][] of one model.

    **Raises:** a run-time error if the windows differ.

    !!! example

        ```python
        models = eqx.filter_vmap(model.tempered)(jnp.array([0.5, 1.0]))
        predictor = tq.QStruct(tq.RandomScanGibbs(), window=1000)
        each = eqx.filter_vmap(predictor, in_axes=(0, None))(models, data)
        print(tq.pool(each))
        ```
    """
    n_parameters = snr.parameter_signal.shape[-1]

    def total(x):
        return jnp.sum(x.reshape(-1, n_parameters), axis=0)

    of_device = snr.parameter_device_bias
    windows = snr.window.reshape(-1)
    window = eqx.error_if(
        windows[0],
        jnp.any(windows != windows[0]),
        "The models have different windows, but together they have one: give all of "
        "them the same.",
    )
    return GradientSNR(
        parameter_signal=total(snr.parameter_signal),
        parameter_bias=_root(total(snr.parameter_bias**2)),
        parameter_variance=total(snr.parameter_variance),
        parameter_data_variance=total(snr.parameter_data_variance),
        window=window,
        n_chains=snr.n_chains,
        parameter_t_o=None if snr.parameter_t_o is None else total(snr.parameter_t_o),
        parameter_device_bias=None if of_device is None else _root(total(of_device**2)),
    )


def _root(x: Array) -> Array:
    """The square root, with a derivative of zero at zero: no bias has none."""
    some = x > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, x, 1)), 0)


def _ratio(signal: Array, mse: Array) -> Array:
    # Nothing over nothing is a parameter that the energy does not depend on: no signal.
    # What is no number stays none.
    noisy = ~(mse <= 0)
    exact = jnp.where(signal > 0, jnp.inf, 0 * signal)
    ratio = jnp.where(noisy, signal / jnp.where(noisy, mse, 1), exact)
    return jnp.where(signal < 0, 0, ratio)


def _log_ratio(signal: Array, mse: Array) -> Array:
    some = ~(signal <= 0)
    noisy = some & ~(mse <= 0)
    log_signal = jnp.log(jnp.where(some, signal, 1))
    log_ratio = log_signal - jnp.log(jnp.where(noisy, mse, 1))
    exact = jnp.where(signal > 0, jnp.inf, signal)
    return jnp.where(some, jnp.where(noisy, log_ratio, exact), -jnp.inf)
