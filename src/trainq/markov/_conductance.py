"""Conductance of sweep cuts, and Cheeger's inequality."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._chains import AbstractChain, require_reversible
from ._spectrum import SlowestMode, slowest_mode


class CheegerMargins(eqx.Module):
    """Both sides of `γ/2 ≤ Φ ≤ √(2γ)`, with `Φ` the best sweep cut of the slowest mode.

    `lower` is `Φ - γ/2` and `upper` is `√(2γ) - Φ`, in inverse kernel steps; for a
    chain that is what it claims to be neither is negative. `gap` is `γ`, `conductance`
    is `Φ`.
    """

    gap: Float[Array, ""]
    conductance: Float[Array, ""]

    @property
    def lower(self) -> Float[Array, ""]:
        return self.conductance - self.gap / 2

    @property
    def upper(self) -> Float[Array, ""]:
        return jnp.sqrt(2 * self.gap) - self.conductance


@eqx.filter_jit
def sweep_conductance(chain: AbstractChain) -> Float[Array, ""]:
    """`Φ = min_S Σ_{x∈S, y∉S} π(x) P(x, y) / min(π(S), 1 - π(S))` over the sweep cuts
    `S` of the slowest mode, in inverse kernel steps.

    A sweep cut takes the states with the smallest values of the mode. The bottleneck
    between two wells is one; the conductance of the chain is at most `Φ`.

    **Raises:** `ValueError` if the chain is not reversible, or too large for a dense
    eigenproblem.

    ??? cite "Source"

        Sinclair and Jerrum, *Approximate counting, uniform generation and rapidly
        mixing Markov chains*, Inf. Comput. 82, 93, 1989.
    """
    require_reversible(chain, "sweep conductance")
    return _conductance(chain, slowest_mode(chain))


@eqx.filter_jit
def cheeger_margins(chain: AbstractChain) -> CheegerMargins:
    """Both sides of Cheeger's inequality, and the numbers that they compare.

    **Raises:** as `trainq.markov.sweep_conductance`.

    ??? cite "Source"

        Lawler and Sokal, *Bounds on the L² spectrum for Markov chains and Markov
        processes*, Trans. Am. Math. Soc. 309, 557, 1988.
    """
    require_reversible(chain, "Cheeger margin")
    slowest = slowest_mode(chain)
    return CheegerMargins(slowest.gap, _conductance(chain, slowest))


@eqx.filter_jit
def cheeger_margin(chain: AbstractChain) -> Float[Array, ""]:
    """`min(Φ - γ/2, √(2γ) - Φ)`, in inverse kernel steps: negative only if the gap or
    the law is wrong. `trainq.markov.cheeger_margins` has the two sides.

    **Raises:** as `trainq.markov.sweep_conductance`.
    """
    margins = cheeger_margins(chain)
    return jnp.minimum(margins.lower, margins.upper)


def _conductance(chain: AbstractChain, slowest: SlowestMode) -> Array:
    order = jnp.argsort(slowest.mode)
    law = chain.stationary[order]
    inside, outside = jnp.cumsum(law)[:-1], jnp.cumsum(law[::-1])[::-1][1:]
    flows = chain.cut_flows(order)
    return jnp.min(flows / jnp.minimum(inside, outside), initial=jnp.inf)
