"""The operational signal-to-noise ratio: that of an estimate which somebody runs."""

from typing import SupportsIndex

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._checks import steps, whole_number
from .._loops import Steps
from ..markov import (
    AbstractKernel,
    EnergyGradients,
    checked_kernel,
    first_law,
    moments_from_law,
    window_variance,
)
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
    require_model,
    running,
)
from ._snr import GradientSNR


class QOperational(eqx.Module):
    """The exact `Q = ‖g‖² / E‖ĝ - g‖²` of an actual estimate of the gradient: `M`
    independent chains start from some law, drop `B` steps and average the observables
    over the next `K`,

        ĝ_a = E_data[f_a] - (1/MK) Σ_chains Σ_{B ≤ t < B+K} f_a(X_t).

    No Monte Carlo and no limit of long windows: the error is the squared bias of the
    start plus the variance, and both are differentiable. From the stationary law it is
    what [`trainq.QStruct`][] predicts; in the convention `"sokal"` that is its limit
    for long windows, up to `O(1/K²)`.

    From the stationary law it costs `O(√K)` products with the reduced chain, and works
    for as many units as `QStruct` without a factorisation. From any other law it costs
    `B + K` products with the chain on all states. Dense chains that are not reversible
    take `K` products as well.

    Other numbers compile nothing anew, but for windows and burn-ins that pass 1023
    steps or another power of 32. A function of yours that is compiled takes windows and
    burn-ins as arguments: then they are arrays, which `jax.vmap` maps over.

    !!! example

        ```python
        @eqx.filter_jit
        def study(windows):
            def q(window):
                predictor = tq.QOperational(tq.RandomScanGibbs(), window)
                return predictor(model, data).q

            return jax.vmap(q)(windows)


        print(study(jnp.array([10, 30, 100])))
        ```
    """

    kernel: AbstractKernel
    window: np.integer | Int[Array, ""]
    burn_in: np.integer | Int[Array, ""]
    start: AbstractStart
    n_chains: int = eqx.field(static=True)
    batch: int | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        kernel: AbstractKernel,
        window: SupportsIndex | Int[Array, ""],
        burn_in: SupportsIndex | Int[Array, ""] = 0,
        start: AbstractStart = Uniform(),
        n_chains: SupportsIndex = 1,
        *,
        batch: SupportsIndex | None = None,
        max_steps: SupportsIndex = 1023,
    ):
        """**Arguments:**

        - `kernel`: the kernel that samples the model.
        - `window`: the number `K` of states that a chain averages over, one a step.
        - `burn_in`: the number `B` of states dropped before, the first included.
        - `start`: where chains start: [`trainq.Uniform`][] over all states,
            [`trainq.Stationary`][], [`trainq.FromData`][], [`trainq.At`][] a state, by
            a [`trainq.Law`][], or one of your own.
        - `n_chains`: the number `M` of independent chains.
        - `batch`: the number of independent samples that `E_data` is an average over,
            or None for an exact data phase.
        - `max_steps`: the largest window and burn-in that the program takes. Only one
            that is traced needs it: a number that is there may be larger. It is rounded
            up to a power of 32, less one.

        **Raises:** `ValueError` for numbers that are not whole, or too small;
        `TypeError` for another thing than a start; a run-time error for traced numbers
        that are too small or too large.
        """
        self.kernel = checked_kernel(kernel)
        most = whole_number("max_steps", max_steps, of="kernel steps")
        most = Steps.of(most).at_most
        self.window = steps("window", window, most=most)
        self.burn_in = steps("burn_in", burn_in, 0, most=most)
        for known in (self.window, self.burn_in):
            if isinstance(known, np.integer):
                most = Steps.of(int(known), most).at_most
        self.max_steps = most
        self.start = check_start(start)
        self.n_chains = whole_number("n_chains", n_chains)
        self.batch = None
        if batch is not None:
            self.batch = whole_number("batch", batch, of="samples")

    def __call__(
        self,
        model: AbstractEnergyModel,
        data: VisibleLaw,
        *,
        device: AbstractEnergyModel | None = None,
    ) -> GradientSNR:
        """**Arguments:**

        - `model`: the model. Use `eqx.filter_vmap` for a batch.
        - `data`: `(2**n_visible,)`, the law of the data.
        - `device`: the model that runs, if it is another one, as for
            [`trainq.QStruct`][]. Chains also start as the start says for the device.

        **Returns:** a [`trainq.GradientSNR`][], with the squared error in its parts.

        **Raises:** `ValueError` for a wrong shape, a device with other units, or too
        many states; `MemoryError`, with an estimate, for more than there is memory for;
        a run-time error if `data` or the law of the start is not a law, or a parameter
        is not finite.
        """
        require_model(model)
        gradient, bias, of_device, variance, of_data = _parts(
            self.kernel,
            model,
            data,
            device,
            self.start,
            Steps.of(self.window, self.max_steps),
            Steps.of(self.burn_in, self.max_steps),
            self.batch is not None,
        )
        return GradientSNR(
            parameter_signal=gradient**2,
            parameter_bias=bias,
            parameter_variance=variance / float(self.n_chains),
            parameter_data_variance=of_data / float(self.batch or 1),
            window=self.window,
            n_chains=self.n_chains,
            parameter_device_bias=of_device,
        )


@eqx.filter_jit
def _parts(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: VisibleLaw,
    device: AbstractEnergyModel | None,
    start: AbstractStart,
    window: Steps,
    burn_in: Steps,
    from_samples: bool,
) -> tuple[Array, Array, Array | None, Array, Array]:
    """The gradient, the bias of its estimate and that part of it which the device has,
    and the variances that come from one chain and from one sample of the data: from
    none, if the data phase is exact."""
    runs = running(model, device)
    chain = kernel.chain(runs)  # which checks it
    model = checked(model)
    data = check_law(data, model)
    f = EnergyGradients(model)
    if start.is_stationary:
        sector = "even" if model.is_symmetric and chain.is_symmetric else None
        variance = window_variance(chain, f, window, sector)
        bias = jnp.zeros_like(variance)
    else:
        law = first_law(kernel, start, runs, data)
        bias, variance = moments_from_law(chain, f, window, law, burn_in)
    eps = float(jnp.finfo(variance.dtype).eps)
    least = -(eps**0.5) * jnp.max(jnp.abs(variance), initial=0) - 1e3 * eps
    variance = eqx.error_if(
        variance,
        ~(jnp.all(jnp.isfinite(variance)) & jnp.all(variance >= least)),
        "The variance of a window is negative, or not a number: the chain is not what "
        "it says. See what `trainq.certify` finds; a rule may only claim `is_positive` "
        "if no eigenvalue of its chains is negative.",
    )
    gradient = gradient_of_kl(model, data)
    of_data = data_variance(model, data) if from_samples else jnp.zeros_like(gradient)
    # A model phase that is too large makes the gradient too small.
    bias = -bias
    if device is None:
        return gradient, bias, None, variance, of_data
    of_device = device_bias(model, device)
    return gradient, bias + of_device, of_device, variance, of_data
