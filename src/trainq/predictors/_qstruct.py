"""The structural predictor of the gradient's signal-to-noise ratio."""

from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num, PyTree

from .._checks import length, whole_number
from ..markov import (
    AbstractKernel,
    Convention,
    EnergyGradients,
    check_convention,
    checked_kernel,
    resolvent_form,
)
from ..models import (
    AbstractEnergyModel,
    VisibleLaw,
    check_law,
    checked,
    device_bias,
    gradient_of_kl,
    kl_gradient,
    running,
)
from ..solvers import AbstractSolver, SolverStats, checked_solver
from ._snr import GradientSNR, RandomisedSNR, structural


class QStruct(eqx.Module):
    """The structural predictor `Q_struct⊥ = (K/2) ‖g‖² / T_O` of the gradient's
    signal-to-noise ratio, with `T_O = Σ_a ⟨f̃_a, R f̃_a⟩_π` and a window of `K` kernel
    steps.

    It is projected on the gradient observables `f_a = ∂E/∂θ_a` by the resolvent of the
    chain, and selects no eigenvectors. So it is smooth wherever the chain mixes, and
    its gradient costs no further solve. The data phase of the gradient is taken as
    exact, and the chain as started from its stationary law. That this law is the
    model's, as it has to be of a kernel of your own, is not checked here but by
    [`trainq.certify`][].

    Two conventions for the noise `E‖ĝ - g‖²`, which differ when the window is not much
    longer than the autocorrelation: see
    [three noises](../mathematics.md#three-noises-that-must-never-be-confused). Another
    window compiles nothing anew.
    """

    kernel: AbstractKernel
    window: np.number | Num[Array, ""]
    convention: Convention = eqx.field(static=True)
    solver: AbstractSolver

    def __init__(
        self,
        kernel: AbstractKernel,
        window: SupportsIndex | float | Num[Array, ""],
        convention: Convention = "resolvent",
        *,
        solver: AbstractSolver | None = None,
    ):
        """**Arguments:**

        - `kernel`: the kernel that samples the model.
        - `window`: length `K` of the average, in kernel steps; it may be traced. For a
            window in sweeps: `kernel.steps(model, sweeps=250)`.
        - `convention`: `"resolvent"` for a noise of `2 T_O / K`, or `"sokal"` for the
            asymptotic variance `(2 T_O - V) / K`, with `V = Σ_a Var f_a`.
        - `solver`: how to solve, [`trainq.Auto`][] by default.

        **Raises:** `ValueError` if the window is not positive, or the convention
        unknown; a run-time error for a traced window that is not positive.
        """
        self.kernel = checked_kernel(kernel)
        self.window = length("window", window)
        check_convention(convention)
        self.convention = convention
        self.solver = checked_solver(solver)

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
        - `device`: the model that runs, if it is another one, as from
            [`trainq.quantise`][] or `model.tempered(0.8)`. The chain is then that of
            the device, and its law; the gradient, its observables and the data phase
            are those of the model. The bias that comes of it is part of the error.

        **Returns:** a [`trainq.GradientSNR`][].

        **Raises:** `ValueError` for a wrong shape, a device with other units, or too
        many states; `MemoryError`, with an estimate, for more than there is memory for;
        a run-time error if `data` is not a law, a parameter is not finite, or the chain
        is reducible in floating point.
        """
        return self._snr(model, data, device)[0]

    def along(
        self,
        model: AbstractEnergyModel,
        data: VisibleLaw,
        directions: Float[Array | np.ndarray, "n_directions n_parameters"]
        | None = None,
        *,
        device: AbstractEnergyModel | None = None,
    ) -> GradientSNR:
        """The signal and the noise of projections of the gradient, one right-hand side
        each in place of one for every parameter.

        **Arguments:**

        - `model`, `data`: as above.
        - `directions`: `(n_directions, n_parameters)` vectors `d`, in the order of
            [`trainq.observables`][], with signals `(d · g)²` and noises
            `E(d · (ĝ - g))²`. By default the direction of the gradient itself,
            `g / ‖g‖`, held fixed under differentiation: how well its length is known.
        - `device`: as above.

        **Returns:** a [`trainq.GradientSNR`][], with directions for parameters.

        **Raises:** also `ValueError` if the directions have another shape.
        """
        if directions is None:
            gradient = jax.lax.stop_gradient(kl_gradient(model, data))
            norm = jnp.linalg.norm(gradient)
            directions = (gradient / jnp.where(norm > 0, norm, 1))[None]
        size = EnergyGradients(model).n_functions
        if directions.ndim != 2 or directions.shape[1] != size:
            raise ValueError(
                f"directions has shape (n_directions, {size}), one entry for each "
                f"parameter, but {directions.shape} was given."
            )
        directions = jnp.asarray(directions, model.dtype)
        return self._snr(model, data, device, directions)[0]

    def randomised(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        data: VisibleLaw,
        n_probes: SupportsIndex = 16,
        *,
        device: AbstractEnergyModel | None = None,
    ) -> RandomisedSNR:
        """An unbiased estimate of the noise from a few random combinations of the
        observables, for models with so many parameters that a right-hand side for each
        is too many.

        With signs `s_a = ±1` at random, `E[⟨s·f̃, R s·f̃⟩] = Σ_a ⟨f̃_a, R f̃_a⟩`. The
        signal is exact. Differentiable: the derivative of the estimate is an unbiased
        estimate of the derivative.

        **Arguments:**

        - `key`: random key of the signs. Keep it through a training run for a smooth
            loss; with a new one at every step `mse` and its gradient are right on
            average, and `log_q` is too large by about `(mse_error / mse)² / 2`.
        - `model`, `data`: as above.
        - `n_probes`: number of combinations, at least 2. The relative standard error is
            at most `√(2 / n_probes)`.
        - `device`: as above.

        **Returns:** a [`trainq.predictors.RandomisedSNR`][].

        **Raises:** also `ValueError` for fewer than 2 probes.

        ??? cite "Source"

            Hutchinson, *A stochastic estimator of the trace of the influence matrix for
            Laplacian smoothing splines*, Commun. Stat. Simul. Comput. 19, 433, 1990.
        """
        n_probes = whole_number("n_probes", n_probes, 2)
        gradient = kl_gradient(model, data)  # which checks both
        signs = jax.random.rademacher(key, (n_probes, gradient.size), gradient.dtype)
        probes, _ = self._snr(model, data, device, signs)
        noise, bias = probes.parameter_variance, None
        if device is not None:
            bias = _bias_of(model, device)
            noise = noise + jnp.sum(bias**2)
        return RandomisedSNR(
            parameter_signal=gradient**2,
            probe_mse=noise,
            window=self.window,
            stats=probes.stats,
            parameter_device_bias=bias,
        )

    def from_guess(
        self,
        model: AbstractEnergyModel,
        data: VisibleLaw,
        guess: PyTree = None,
        *,
        device: AbstractEnergyModel | None = None,
    ) -> tuple[GradientSNR, PyTree]:
        """As a call, from an initial guess of the solutions, such as those for the last
        model of a training loop: conjugate gradients then need fewer iterations. A
        factorisation, which [`trainq.Auto`][] takes for small models, has no use for
        it.

        **Arguments:**

        - `model`, `data`: as above.
        - `guess`: what this returned for the other model, in the same shapes; None to
            start from zero. `zero_guess` makes one to start a loop with: it is compiled
            once, and `jax.lax.scan` needs it.
        - `device`: as above.

        **Returns:** a [`trainq.GradientSNR`][], and the guess for the next call.
        """
        return self._snr(model, data, device, guess=guess)

    def zero_guess(
        self,
        model: AbstractEnergyModel,
        data: VisibleLaw,
        *,
        device: AbstractEnergyModel | None = None,
    ) -> PyTree:
        """The guess to start `from_guess` with: zeros.

        **Arguments:**

        - `model`, `data`, `device`: as above.

        **Returns:** a tree of arrays, whose shapes are all that the model decides.
        """
        ask = eqx.Partial(self.from_guess, device=device)
        _, shapes = eqx.filter_eval_shape(ask, model, data)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def _snr(
        self,
        model: AbstractEnergyModel,
        data: VisibleLaw,
        device: AbstractEnergyModel | None,
        directions: Array | None = None,
        guess: PyTree = None,
    ) -> tuple[GradientSNR, PyTree]:
        found = _gradient_and_time(
            *(self.kernel, model, data, device),
            *(self.convention, self.solver, directions, guess),
        )
        gradient, t_o, bias, stats, guess = found
        return structural(gradient, t_o, self.window, stats, bias), guess


@eqx.filter_jit
def _gradient_and_time(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: VisibleLaw,
    device: AbstractEnergyModel | None,
    convention: Convention,
    solver: AbstractSolver,
    directions: Array | None,
    guess: PyTree,
) -> tuple[Array, Array, Array | None, SolverStats | None, PyTree]:
    """The gradient, `T_O` and the bias of the device by parameters or directions, how
    well they were solved, and the guess for another model. No window: it would be
    compiled for each."""
    chain = kernel.chain(running(model, device))
    f = EnergyGradients(model, directions)
    # The observables of a symmetric model are even at every value of its parameters.
    sector = "even" if model.is_symmetric and chain.is_symmetric else None
    form = resolvent_form(
        *(chain, f), solver=solver, sector=sector, guess=guess, convention=convention
    )
    t_o = form.value
    if convention == "sokal":  # the variance of an average
        t_o = jnp.maximum(t_o, 0)
    # The chain has checked the model, or its device.
    gradient = gradient_of_kl(checked(model), check_law(data, model))
    bias = None if device is None else device_bias(model, device)
    if directions is not None:
        gradient = directions @ gradient
        bias = None if bias is None else directions @ bias
    return gradient, t_o, bias, form.stats, form.guess


_bias_of = eqx.filter_jit(device_bias)
