"""Temperatures for parallel tempering, and how often neighbours swap.

Let `C(β) = Var_β(E) = ∂² log Z(β) / ∂β²`, with `Z(β) = Σ_x exp(-β E(x))`. The energies
of two replicas at `β > β'` are nearly normal, with means `C (β - β')` apart and
variances `C`. A swap is accepted with probability `E min(1, exp(D))`, where
`D = (β - β') (E(x) - E(y))`, `x` from the colder law and `y` from the hotter one, then
has the mean `-δ²` and the variance `2 δ²` for `δ = (β - β') √C`, and so

    E min(1, exp(D)) = 2 P(D > 0) = erfc(δ/2).

The first of these is exact for any law, as `_acceptance` shows. So rungs have equal
acceptance where they divide the thermodynamic length `∫ √C dβ` evenly.
"""

from collections.abc import Callable, Sequence
from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import require_concrete, whole_number
from .._show import AbstractShown, Table
from ..models import AbstractEnergyModel, exactly, require_model
from .kernels import checked_betas


class Ladder(AbstractShown):
    """Inverse temperatures at equal distances in thermodynamic length."""

    betas: Float[np.ndarray, " replicas"]
    """The inverse temperatures, decreasing from 1: those of
    [`trainq.ParallelTempering`][]."""
    length: float
    """The thermodynamic length `∫ √C dβ` of all of it."""

    @property
    def spacing(self) -> float:
        """The length `δ` of each rung."""
        return self.length / (self.betas.size - 1)

    @property
    def acceptance(self) -> float:
        """The acceptance `erfc(δ/2)` that is predicted for each pair of neighbours."""
        from scipy.special import erfc

        return float(erfc(self.spacing / 2))

    def _shown(self) -> list[str | Table]:
        rungs = " ".join(f"{beta:.4g}" for beta in self.betas)
        return [
            f"{self.betas.size} replicas, length {self.length:.4g}, "
            f"{100 * self.acceptance:.3g} % of swaps accepted if energies are normal",
            f"betas {rungs}",
        ]


def ladder(
    model: AbstractEnergyModel,
    lowest: float,
    *,
    acceptance: float = 0.234,
    n_replicas: SupportsIndex | None = None,
) -> Ladder:
    """Inverse temperatures for [`trainq.ParallelTempering`][], from 1 down to
    `lowest`, between which swaps are accepted equally often: they divide the
    thermodynamic length `Λ = ∫ √C dβ` evenly, with `C` the variance of the energy.

    For a given acceptance `erfc(δ/2)` there are `1 + round(Λ/δ)` of them, and at least
    two. It is a prediction for energies that are nearly normal, as those of large
    models are: [`trainq.markov.swap_acceptance`][] is exact. Where the model cannot be
    enumerated, [`trainq.sampling.SwapStatistics.ladder`][] makes one from a run.

    **Arguments:**

    - `model`: the model.
    - `lowest`: the inverse temperature of the hottest replica, relative to the model,
        at least 0 and below 1: hot enough that its kernel mixes.
    - `acceptance`: the share of swaps to be accepted, between 0 and 1.
    - `n_replicas`: the number of replicas, in place of an acceptance.

    **Returns:** a [`trainq.markov.Ladder`][].

    **Raises:** `ValueError` for numbers that are not allowed, too many states, and
    under `jax.jit` and its like; a run-time error if a parameter is not finite.

    !!! example

        ```python
        ladder = tq.markov.ladder(model, lowest=0.2)
        kernel = tq.PalindromicBlockGibbs()
        tempering = tq.ParallelTempering(kernel, ladder.betas)
        print(ladder)
        print(tq.markov.swap_acceptance(model, ladder.betas))
        ```

    ??? cite "Source"

        Predescu, Predescu and Ciobanu, *The incomplete beta function law for parallel
        tempering sampling of classical canonical systems*, J. Chem. Phys. 120, 4119,
        2004; Kofke, *On the acceptance probability of replica-exchange Monte Carlo
        trials*, J. Chem. Phys. 117, 6911, 2002.
    """
    require_model(model)
    require_concrete("A ladder", model=model, lowest=lowest)
    lowest = float(lowest)
    if not 0 <= lowest < 1:
        raise ValueError(
            "lowest is the inverse temperature of the hottest replica, relative to the "
            f"model, at least 0 and below 1, but {lowest} was given."
        )
    # Imported here because it is slow to load.
    from scipy.integrate import solve_ivp

    def rate(beta, _):
        return [max(float(energy_variance(model, beta)), 0.0) ** 0.5]

    found = solve_ivp(
        rate,
        (lowest, 1.0),
        [0.0],
        method="DOP853",
        dense_output=True,
        rtol=1e-7,
        atol=1e-9,
    )
    assert found.success and found.sol is not None
    solution = found.sol
    return even_ladder(
        lambda beta: float(solution(beta)[0]), lowest, acceptance, n_replicas
    )


def even_ladder(
    length: Callable[[float], float],
    lowest: float,
    acceptance: float,
    n_replicas: SupportsIndex | None,
) -> Ladder:
    """The ladder that divides a length evenly.

    **Arguments:**

    - `length`: the thermodynamic length from `lowest` to an inverse temperature.
    - `lowest`, `acceptance`, `n_replicas`: as for `trainq.markov.ladder`.

    **Returns:** a [`trainq.markov.Ladder`][].

    **Raises:** `ValueError` for an acceptance that is not between 0 and 1, or fewer
    than two replicas.
    """
    from scipy.optimize import root_scalar
    from scipy.special import erfcinv

    if not 0 < acceptance < 1:
        raise ValueError(
            f"acceptance is between 0 and 1, but {acceptance!r} was given."
        )
    whole = length(1.0)
    if n_replicas is None:
        n_replicas = 1 + max(1, round(whole / (2 * float(erfcinv(acceptance)))))
    n = whole_number("n_replicas", n_replicas, least=2)
    betas = np.linspace(1, lowest, n)
    if whole > 0:  # of a model without energies all replicas are alike
        for k in range(1, n - 1):
            target = whole * (n - 1 - k) / (n - 1)
            found = root_scalar(
                lambda beta, t=target: length(beta) - t, bracket=(lowest, 1.0)
            )
            betas[k] = found.root
    return Ladder(betas, whole)


def energy_variance(
    model: AbstractEnergyModel, beta: float | Float[Array, ""] = 1.0
) -> Float[Array, ""]:
    """`C(β) = ∂² log Z / ∂β²`, the variance of the energy of the model in its law at
    the inverse temperature `β`, exact: `C β²` is its heat capacity.

    **Arguments:**

    - `model`: the model. That of `log Z` is all that there is to enumerate: the states
        of the smaller layer of an RBM.
    - `beta`: the inverse temperature, relative to the model.

    **Returns:** a number.

    **Raises:** as [`trainq.log_partition`][].
    """
    require_model(model)
    return _energy_variance(model, jnp.asarray(beta).astype(model.dtype))


@eqx.filter_jit
def _energy_variance(model: AbstractEnergyModel, beta: Array) -> Float[Array, ""]:
    return jax.grad(jax.grad(_log_partition_at(exactly(model))))(beta)


def _log_partition_at(
    model: AbstractEnergyModel,
) -> Callable[[Float[Array, ""]], Float[Array, ""]]:
    """`log Z(β)`, which can be differentiated by `β`, but for the `β offset` of an
    equivalent: it is linear in `β`, and no part of the variance."""
    linear = model.equivalent or model
    if not linear.is_linear:
        energies = model.energies()
        return lambda beta: jax.nn.logsumexp(-beta * energies)
    # An energy that is linear in its parameters is scaled by scaling these.
    params, static = eqx.partition(linear, eqx.is_inexact_array)

    def log_z(beta):
        scaled = jax.tree.map(lambda p: beta.astype(p.dtype) * p, params)
        return eqx.combine(scaled, static).log_partition()

    return log_z


def swap_acceptance(
    model: AbstractEnergyModel,
    betas: Sequence[float] | Float[Array | np.ndarray, " replicas"],
) -> Float[Array, " pairs"]:
    """How often a swap of neighbouring replicas is accepted, exactly:
    `Σ_xy π_β(x) π_β'(y) min(1, exp((β - β') (E(x) - E(y))))` for each pair, by sorting
    energies. Differentiable, in the parameters of the model and in `betas`.

    **Arguments:**

    - `model`: the model.
    - `betas`: as for [`trainq.ParallelTempering`][].

    **Returns:** `(replicas - 1,)` probabilities, the coldest pair first.

    **Raises:** `ValueError` for betas that do not start at 1, or do not decrease, or
    too many states; a run-time error if a parameter is not finite.
    """
    require_model(model)
    return _acceptances(model, checked_betas(betas))


@eqx.filter_jit
def _acceptances(
    model: AbstractEnergyModel, betas: Float[Array, " replicas"]
) -> Float[Array, " pairs"]:
    energies = exactly(model).energies()
    betas = betas.astype(energies.dtype)
    energies = energies[jnp.argsort(jax.lax.stop_gradient(energies))]
    laws = jax.nn.softmax(-betas[:, None] * energies[None], axis=1)
    return jax.vmap(_acceptance)(laws[:-1], laws[1:])


def _acceptance(
    cold: Float[Array, " states"], hot: Float[Array, " states"]
) -> Float[Array, ""]:
    """From the laws of two replicas, their states sorted by energy."""
    # π_β(x) π_β'(y) exp((β - β') (E(x) - E(y))) = π_β(y) π_β'(x). So what pairs with
    # E(x) < E(y) contribute is, with names exchanged, the probability of E(x) > E(y),
    # and that of the others is the probability of E(x) ≥ E(y). Where energies are equal
    # so are the probabilities, and which state comes first does not matter.
    return jnp.sum(cold * (2 * jnp.cumsum(hot) - hot))
