"""The structural predictor of the gradient's signal-to-noise ratio."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..markov import AbstractKernel, AbstractStrategy, Auto
from ..markov._functions import EnergyGradients
from ..markov._resolvent import Convention, check_convention
from ..models import AbstractEnergyModel, kl_gradient
from ._snr import GradientSNR


class QStruct(eqx.Module):
    """The structural predictor `Q_struct⊥ = (K/2) ‖g‖² / T_O` of the gradient's
    signal-to-noise ratio, with `T_O = Σ_a ⟨f̃_a, R f̃_a⟩_π` and a window of `K` kernel
    steps.

    It is projected on the gradient observables `f_a = ∂E/∂θ_a` by the resolvent of the
    chain, and selects no eigenvectors. So it is smooth wherever the chain mixes, and
    its gradient costs no further solve. The data phase of the gradient is taken as
    exact, and the chain as started from its stationary law.

    Two conventions for the noise `E‖ĝ - g‖²`, which differ when the window is not much
    longer than the autocorrelation: see
    [three noises](../mathematics.md#three-noises-that-must-never-be-confused).
    """

    kernel: AbstractKernel
    window: int | float = eqx.field(static=True)
    convention: Convention = eqx.field(static=True)
    solver: AbstractStrategy

    def __init__(
        self,
        kernel: AbstractKernel,
        window: int | float,
        convention: Convention = "resolvent",
        *,
        solver: AbstractStrategy | None = None,
    ):
        """**Arguments:**

        - `kernel`: the kernel that samples the model.
        - `window`: length `K` of the average, in kernel steps. For a window in sweeps:
            `sweeps * model.n_units / kernel.site_updates(model)`.
        - `convention`: `"resolvent"` for a noise of `2 T_O / K`, or `"sokal"` for the
            asymptotic variance `(2 T_O - V) / K`, with `V = Σ_a Var f_a`.
        - `solver`: how to solve, [`trainq.Auto`][] by default.

        **Raises:** `ValueError` if the window is not positive, or the convention
        unknown.
        """
        self.kernel = kernel
        self.window = check_window(window)
        check_convention(convention)
        self.convention = convention
        self.solver = solver or Auto()

    @eqx.filter_jit
    def __call__(
        self, model: AbstractEnergyModel, data: Float[Array, " visible_states"]
    ) -> GradientSNR:
        """**Arguments:**

        - `model`: the model. Use `eqx.filter_vmap` for a batch.
        - `data`: `(2**n_visible,)`, the law of the data.

        **Returns:** a [`trainq.GradientSNR`][].

        **Raises:** `ValueError` for a wrong shape, or too many states; a run-time error
        if `data` is not a law, a parameter is not finite, or the chain is reducible in
        floating point.
        """
        chain = self.kernel.chain(model)
        f = EnergyGradients(model)
        # The observables of a symmetric model are even at every value of its
        # parameters.
        sector = "even" if model.is_symmetric and chain.is_symmetric else None
        form = chain.resolvent_form(
            f, pairing="diagonal", solver=self.solver, sector=sector
        )
        noise = 2 * form.value
        if self.convention == "sokal":
            noise = jnp.maximum(noise - chain.variance(f), 0)
        gradient = kl_gradient(data, model)
        return GradientSNR(gradient**2, noise / self.window, self.window)


def check_window(window: int | float) -> int | float:
    """Return the window, or raise a `ValueError` if it is not a positive number."""
    if not (math.isfinite(window) and window > 0):
        raise ValueError(
            f"The window is a positive number of kernel steps, but {window!r} was "
            "given."
        )
    return window
