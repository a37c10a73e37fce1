"""The operational signal-to-noise ratio: that of an estimate which somebody runs."""

from typing import Literal, SupportsIndex

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from .._numbers import whole_number
from .._spins import check_spins, state_index
from ..markov import (
    AbstractKernel,
    EnergyGradients,
    checked_kernel,
    moments_from_law,
    window_variance,
)
from ..models import AbstractEnergyModel
from ..models._laws import check_law, gradient_of_kl, log_laws, require_law
from ._snr import OperationalSNR


Start = Literal["stationary", "uniform", "data"]


class QOperational(eqx.Module):
    """The exact `Q = ‖g‖² / E‖ĝ - g‖²` of an actual estimate of the gradient: `M`
    independent chains start from some law, drop `B` steps and average the observables
    over the next `K`,

        ĝ_a = E_data[f_a] - (1/MK) Σ_chains Σ_{B ≤ t < B+K} f_a(X_t).

    No Monte Carlo and no limit of long windows: the error is the squared bias of the
    start plus the variance, and both are differentiable. It is what
    [`trainq.QStruct`][] predicts; in the convention `"sokal"` that is its limit for
    long windows, up to `O(1/K²)`.

    From the stationary law it costs `O(√K)` products with the reduced chain, and works
    for as many units as `QStruct` without a factorisation. From any other law it costs
    `B + K` products with the chain on all states. Dense chains that are not reversible
    take `K` products as well.
    """

    kernel: AbstractKernel
    window: int = eqx.field(static=True)
    burn_in: int = eqx.field(static=True)
    start: Start | Num[Array, " start"] = eqx.field()
    chains: int = eqx.field(static=True)
    batch: int | None = eqx.field(static=True)

    def __init__(
        self,
        kernel: AbstractKernel,
        window: SupportsIndex,
        burn_in: SupportsIndex = 0,
        start: Start | Num[Array, " start"] = "stationary",
        chains: SupportsIndex = 1,
        *,
        batch: SupportsIndex | None = None,
    ):
        """**Arguments:**

        - `kernel`: the kernel that samples the model.
        - `window`: the number `K` of states that a chain averages over, one a step.
        - `burn_in`: the number `B` of states dropped before, the first included.
        - `start`: where chains start. `"stationary"`; `"uniform"`, over all states;
            `"data"`, visible units from the data and hidden ones from their law given
            these, which is contrastive divergence; a `(2**n_units,)` law; or one state,
            as `(n_units,)` spins.
        - `chains`: the number `M` of independent chains.
        - `batch`: the number of independent samples that `E_data` is an average over,
            or None for an exact data phase.

        **Raises:** `ValueError` for numbers that are not whole, or too small.
        """
        if isinstance(start, str):
            if start not in ("stationary", "uniform", "data"):
                raise ValueError(
                    'start is "stationary", "uniform", "data", a (2**n_units,) law or '
                    f"an (n_units,) state, but {start!r} was given."
                )
        else:
            start = jnp.asarray(start)
        self.kernel = checked_kernel(kernel)
        self.window = whole_number("window", window, of="kernel steps")
        self.burn_in = whole_number("burn_in", burn_in, 0, of="kernel steps")
        self.start = start
        self.chains = whole_number("chains", chains)
        self.batch = None
        if batch is not None:
            self.batch = whole_number("batch", batch, of="samples")

    @eqx.filter_jit
    def __call__(
        self, model: AbstractEnergyModel, data: Float[Array, " visible_states"]
    ) -> OperationalSNR:
        """**Arguments:**

        - `model`: the model. Use `eqx.filter_vmap` for a batch.
        - `data`: `(2**n_visible,)`, the law of the data.

        **Returns:** a [`trainq.OperationalSNR`][].

        **Raises:** `ValueError` for a wrong shape, or too many states; a run-time error
        if `data` or `start` is not a law, or a parameter is not finite.
        """
        chain = self.kernel.chain(model)  # which checks the model
        data = check_law(data, model)
        f = EnergyGradients(model)
        if isinstance(self.start, str) and self.start == "stationary":
            sector = "even" if model.is_symmetric and chain.is_symmetric else None
            variance = window_variance(chain, f, self.window, sector)
            bias = jnp.zeros_like(variance)
        else:
            law = start_law(self.start, model, data)
            bias, variance = moments_from_law(chain, f, self.window, law, self.burn_in)
        gradient = gradient_of_kl(model, data)
        return OperationalSNR(
            parameter_signal=gradient**2,
            parameter_bias=-bias,
            parameter_variance=variance / self.chains,
            parameter_data_variance=data_variance(f, data, self.batch),
            window=self.window,
            chains=self.chains,
        )


def start_law(
    start: Start | Array, model: AbstractEnergyModel, data: Array
) -> Float[Array, " states"]:
    """The law of the first state, for data that has been checked."""
    n_states = 2**model.n_units
    if isinstance(start, str):
        if start == "stationary":
            return jnp.exp(log_laws(model)[0])
        if start == "uniform":
            return jnp.full(n_states, 1 / n_states, model.dtype)
        joint, visible, _ = log_laws(model)
        given_visible = jnp.exp(joint.reshape(visible.size, -1) - visible[:, None])
        return (data[:, None] * given_visible).reshape(-1)
    if start.shape == (model.n_units,):
        index = state_index(check_spins(start, model.n_units))
        return jnp.zeros(n_states, model.dtype).at[index].set(1)
    if start.shape != (n_states,):
        raise ValueError(
            f"start is a law of the states, of shape ({n_states},), or one state, "
            f"of shape ({model.n_units},), but {start.shape} was given."
        )
    return require_law(start, model.dtype, "start")


def data_variance(
    f: EnergyGradients, data: Array, batch: int | None
) -> Float[Array, " n_parameters"]:
    """The variance of the data phase over batches of samples from a law."""
    means = f.visible_means()
    if batch is None:
        return jnp.zeros_like(means[0])
    centred = means - (data @ means)[None]
    return data @ centred**2 / batch
