"""The signal-to-noise ratio of a gradient: what predictors return."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..markov import SolverStats


class GradientSNR(eqx.Module):
    """The signal and the noise of a gradient `ĝ` estimated from a window of a chain:
    `Q = ‖g‖² / E‖ĝ - g‖²`.

    A batch of models, by `eqx.filter_vmap`, has leading axes. Attributes are derived
    from the contributions of each parameter, which are in the order of
    [`trainq.observables`][]. `stats` tells how well the system of each was solved.
    """

    parameter_signal: Float[Array, "*batch n_parameters"]
    parameter_mse: Float[Array, "*batch n_parameters"]
    window: int | float = eqx.field(static=True)
    stats: SolverStats | None = None

    @property
    def signal(self) -> Float[Array, "*batch"]:
        """`‖g‖²`."""
        return jnp.sum(self.parameter_signal, axis=-1)

    @property
    def mse(self) -> Float[Array, "*batch"]:
        """`E‖ĝ - g‖²`, the mean squared error of one estimate."""
        return jnp.sum(self.parameter_mse, axis=-1)

    @property
    def q(self) -> Float[Array, "*batch"]:
        """`Q = signal / mse`. Above one, a single estimate points the right way."""
        return _ratio(self.signal, self.mse)

    @property
    def log_q(self) -> Float[Array, "*batch"]:
        """`log Q`, for a loss. It is `-inf` where the signal is zero, and its
        derivative is taken to be zero there."""
        return _log(self.signal) - _log(self.mse)

    @property
    def t_o(self) -> Float[Array, "*batch"]:
        """`T_O = window · mse / 2`, in kernel steps: the noise with the window taken
        out. In the resolvent convention it is `Σ_a ⟨f̃_a, R f̃_a⟩_π`."""
        return self.window * self.mse / 2

    @property
    def parameter_q(self) -> Float[Array, "*batch n_parameters"]:
        """`g_a² / E(ĝ_a - g_a)²` for each parameter."""
        return _ratio(self.parameter_signal, self.parameter_mse)


class RandomisedSNR(eqx.Module):
    """The exact signal of a gradient, and an estimate of its noise from random probes,
    each of which is unbiased."""

    signal: Float[Array, "*batch"]
    probe_mse: Float[Array, "*batch n_probes"]
    window: int | float = eqx.field(static=True)
    stats: SolverStats | None = None

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
    def q(self) -> Float[Array, "*batch"]:
        """`signal / mse`, with a relative error of `mse_error / mse`."""
        return _ratio(self.signal, self.mse)

    @property
    def log_q(self) -> Float[Array, "*batch"]:
        """`log Q`, for a loss; its standard error is about `mse_error / mse`, and it is
        too large on average by half the square of that."""
        return _log(self.signal) - _log(self.mse)

    @property
    def t_o(self) -> Float[Array, "*batch"]:
        """`T_O = window · mse / 2`, in kernel steps."""
        return self.window * self.mse / 2

    @property
    def t_o_error(self) -> Float[Array, "*batch"]:
        """The standard error of `t_o`."""
        return self.window * self.mse_error / 2


def pool(snr: GradientSNR) -> GradientSNR:
    """The signal-to-noise ratio of a batch of models taken together.

    Signals and mean squared errors are summed over all leading axes:
    `Q_pool = Σ signal / Σ mse` is that of one gradient with a block for each model.
    The statistics of the solver are not kept: look at them before.
    """
    n_parameters = snr.parameter_signal.shape[-1]

    def total(x):
        return jnp.sum(x.reshape(-1, n_parameters), axis=0)

    return GradientSNR(
        total(snr.parameter_signal), total(snr.parameter_mse), snr.window
    )


def _ratio(signal: Array, mse: Array) -> Array:
    # Nothing over nothing is a parameter that the energy does not depend on: no signal.
    noisy = mse > 0
    return jnp.where(
        noisy, signal / jnp.where(noisy, mse, 1), jnp.where(signal > 0, jnp.inf, 0)
    )


def _log(x: Array) -> Array:
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1)), -jnp.inf)
