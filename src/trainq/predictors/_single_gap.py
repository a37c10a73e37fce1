"""The textbook predictor, from a single spectral gap."""

from typing import Literal, SupportsIndex

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from .._checks import length
from ..markov import (
    AbstractChain,
    AbstractKernel,
    EnergyGradients,
    SlowestMode,
    checked_kernel,
    modes,
    slowest_mode,
)
from ..models import (
    AbstractEnergyModel,
    VisibleLaw,
    checked,
    device_bias,
    kl_gradient,
    observables,
    running,
)
from ._snr import GradientSNR, structural


SingleNoise = Literal["slowest mode", "relevant mode", "relevant gap"]
"""What stands for the noise of a chain: its slowest mode, the slowest mode that the
observables feel, or all of their variance at the gap of that."""


class SingleGap(eqx.Module):
    """The textbook predictor: one gap stands for the chain.

    With the slowest mode `ψ` and its gap `γ`, `Q = (K/2) ‖g‖² γ / Σ_a ⟨f_a, ψ⟩_π²`. It
    never overestimates the noise, and it misses all of it when the slowest mode has no
    overlap with the observables. With spin-flip symmetry that is the rule: the mode is
    odd and the observables of weights are even, so that the predicted `Q` is too large
    by many orders of magnitude, or infinite. Two readings know better, and take the
    slowest mode that the observables feel. The thing to beat. Not differentiable.

    !!! example

        ```python
        kernel = tq.RandomScanGibbs()
        textbook = tq.SingleGap(kernel, window=1000)(model, data)
        print(textbook.q)
        ```
    """

    kernel: AbstractKernel
    window: np.number | Num[Array, ""]
    noise: SingleNoise = eqx.field(static=True)

    def __init__(
        self,
        kernel: AbstractKernel,
        window: SupportsIndex | float | Num[Array, ""],
        noise: SingleNoise = "slowest mode",
    ):
        """**Arguments:**

        - `kernel`: a reversible kernel.
        - `window`: length `K` of the average, in kernel steps; it may be traced.
        - `noise`: what stands for the noise. `"slowest mode"` is the weight of the
            slowest mode over its gap. `"relevant mode"` is the same of the slowest one
            that the observables feel, with more than 1e-6 of their variance; if it is
            degenerate, of all modes with its gap, as the weight of one is arbitrary.
            Neither ever overestimates the noise. `"relevant gap"` lets all of the
            variance decay as slowly as that mode, `Q = (K/2) ‖g‖² γ / Σ_a Var_π f_a`,
            and never underestimates it.

        **Raises:** `ValueError` if the window is not positive, or the noise unknown.
        """
        self.kernel = checked_kernel(kernel)
        self.window = length("window", window)
        if noise not in ("slowest mode", "relevant mode", "relevant gap"):
            raise ValueError(
                'noise is "slowest mode", "relevant mode" or "relevant gap", but '
                f"{noise!r} was given."
            )
        self.noise = noise

    def __call__(
        self,
        model: AbstractEnergyModel,
        data: VisibleLaw,
        *,
        device: AbstractEnergyModel | None = None,
    ) -> GradientSNR:
        """**Arguments:**

        - `model`, `data`, `device`: as for [`trainq.QStruct`][].

        **Returns:** a [`trainq.GradientSNR`][].

        **Raises:** as [`trainq.QStruct`][]; also `ValueError` if the kernel is not
        reversible.
        """
        chain, gradient, bias = _chain_and_gradient(self.kernel, model, data, device)
        t_o = _time(chain, model, self.noise)
        return structural(gradient, t_o, self.window, bias=bias)


def _time(
    chain: AbstractChain, model: AbstractEnergyModel, noise: SingleNoise
) -> Array:
    """For each parameter what stands for `T_O`."""
    if noise == "slowest mode":
        return _time_of(slowest_mode(chain), chain, model)
    # The observables of a symmetric model are even.
    sector = "even" if model.is_symmetric and chain.is_symmetric else None
    found = modes(chain, EnergyGradients(model), sector=sector)
    gap = found.relevant_gap()
    if noise == "relevant gap":
        return found.observable_variance / gap
    members = found.cluster(factor=1).members
    weight = jnp.sum(jnp.where(members[:, None], found.weight, 0), axis=0)
    return jnp.where(jnp.any(members), weight, found.rest_weight) / gap


@eqx.filter_jit
def _chain_and_gradient(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: VisibleLaw,
    device: AbstractEnergyModel | None,
) -> tuple[AbstractChain, Array, Array | None]:
    chain, gradient = kernel.chain(running(model, device)), kl_gradient(model, data)
    bias = None if device is None else device_bias(checked(model), device)
    return chain, gradient, bias


@eqx.filter_jit
def _time_of(
    slowest: SlowestMode, chain: AbstractChain, model: AbstractEnergyModel
) -> Array:
    f = chain.centre(observables(model))
    overlap = (chain.stationary * slowest.mode) @ f
    return overlap**2 / slowest.gap
