"""The textbook predictor, from a single spectral gap."""

from typing import SupportsIndex

import equinox as eqx
from jaxtyping import Array

from .._checks import positive_number
from ..markov import AbstractKernel, checked_kernel, slowest_mode, spectral_gap
from ..models import AbstractEnergyModel, VisibleLaw, kl_gradient, observables
from ._snr import GradientSNR, structural


class SingleGap(eqx.Module):
    """The textbook predictor: all the noise is in the slowest mode `ψ`, with gap `γ`,
    `Q = (K/2) ‖g‖² γ / Σ_a ⟨f_a, ψ⟩_π²`.

    The thing to beat. It never overestimates the noise, and it misses all of it when
    the slowest mode has no overlap with the observables. With spin-flip symmetry that
    is the rule: the mode is odd and the observables of weights are even, so that the
    predicted `Q` is too large by many orders of magnitude, or infinite. Not
    differentiable.

    !!! example

        ```python
        kernel = tq.RandomScanGibbs()
        textbook = tq.SingleGap(kernel, window=1000)(model, data)
        print(textbook.q)
        ```
    """

    kernel: AbstractKernel
    window: int | float = eqx.field(static=True)
    relevant: bool = eqx.field(static=True)

    def __init__(
        self,
        kernel: AbstractKernel,
        window: SupportsIndex | float,
        relevant: bool = False,
    ):
        """**Arguments:**

        - `kernel`: a reversible kernel.
        - `window`: length `K` of the average, in kernel steps.
        - `relevant`: what is done with the gap by those who know of the symmetry. Take
            the slowest gap that the observables can feel, that of even functions for a
            model with spin-flip symmetry, and let all of their variance decay as
            slowly: `Q = (K/2) ‖g‖² γ / Σ_a Var_π f_a`. It never underestimates the
            noise, where the default never overestimates it.

        **Raises:** `ValueError` if the window is not positive.
        """
        self.kernel = checked_kernel(kernel)
        self.window = positive_number("window", window, of="kernel steps")
        self.relevant = relevant

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
        gradient, t_o = _gradient_and_time(self.kernel, model, data, self.relevant)
        return structural(gradient, t_o, self.window)


@eqx.filter_jit
def _gradient_and_time(
    kernel: AbstractKernel, model: AbstractEnergyModel, data: VisibleLaw, relevant: bool
) -> tuple[Array, Array]:
    """The gradient, and for each parameter what stands for `T_O`."""
    chain = kernel.chain(model)
    f = chain.centre(observables(model))
    gradient = kl_gradient(model, data)
    if relevant:
        sector = "even" if model.is_symmetric and chain.is_symmetric else None
        return gradient, chain.stationary @ f**2 / spectral_gap(chain, sector)
    slowest = slowest_mode(chain)
    overlap = (chain.stationary * slowest.mode) @ f
    return gradient, overlap**2 / slowest.gap
