"""The textbook predictor, from a single spectral gap."""

from typing import Literal, SupportsIndex

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import positive_number
from ..markov import (
    AbstractChain,
    AbstractKernel,
    EnergyGradients,
    SlowestMode,
    checked_kernel,
    modes,
    slowest_mode,
)
from ..models import AbstractEnergyModel, VisibleLaw, kl_gradient, observables
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
    window: int | float = eqx.field(static=True)
    noise: SingleNoise = eqx.field(static=True)

    def __init__(
        self,
        kernel: AbstractKernel,
        window: SupportsIndex | float,
        noise: SingleNoise = "slowest mode",
    ):
        """**Arguments:**

        - `kernel`: a reversible kernel.
        - `window`: length `K` of the average, in kernel steps.
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
        self.window = positive_number("window", window, of="kernel steps")
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
    ) -> GradientSNR:
        """**Arguments:**

        - `model`, `data`: as for [`trainq.QStruct`][].

        **Returns:** a [`trainq.GradientSNR`][].

        **Raises:** as [`trainq.QStruct`][]; also `ValueError` if the kernel is not
        reversible.
        """
        gradient, t_o = _gradient_and_time(self.kernel, model, data, self.noise)
        return structural(gradient, t_o, self.window)


def _gradient_and_time(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: VisibleLaw,
    noise: SingleNoise,
) -> tuple[Array, Array]:
    """The gradient, and for each parameter what stands for `T_O`."""
    chain, gradient = _chain_and_gradient(kernel, model, data)
    if noise == "slowest mode":
        return gradient, _time_of(slowest_mode(chain), chain, model)
    # The observables of a symmetric model are even.
    sector = "even" if model.is_symmetric and chain.is_symmetric else None
    found = modes(chain, EnergyGradients(model), sector=sector)
    gap = found.relevant_gap()
    if noise == "relevant gap":
        return gradient, found.observable_variance / gap
    members = found.cluster(factor=1).members
    weight = jnp.sum(jnp.where(members[:, None], found.weight, 0), axis=0)
    return gradient, jnp.where(jnp.any(members), weight, found.rest_weight) / gap


@eqx.filter_jit
def _chain_and_gradient(
    kernel: AbstractKernel, model: AbstractEnergyModel, data: VisibleLaw
) -> tuple[AbstractChain, Array]:
    return kernel.chain(model), kl_gradient(model, data)


@eqx.filter_jit
def _time_of(
    slowest: SlowestMode, chain: AbstractChain, model: AbstractEnergyModel
) -> Array:
    f = chain.centre(observables(model))
    overlap = (chain.stationary * slowest.mode) @ f
    return overlap**2 / slowest.gap
