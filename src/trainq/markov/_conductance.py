"""Conductance of sweep cuts, and Cheeger's inequality."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._show import AbstractShown
from ..solvers import Direct
from ._spectrum import SlowestMode, find_slowest
from .chains import AbstractChain, require_reversible


class CheegerMargins(AbstractShown):
    """Both sides of `γ/2 ≤ Φ ≤ √(2γ)`, with `Φ` the best sweep cut of the slowest mode.

    For a chain that is what it claims to be neither margin is negative.
    """

    gap: Float[Array, ""]
    """The spectral gap `γ`, in inverse kernel steps."""
    conductance: Float[Array, ""]
    """The conductance `Φ`, in inverse kernel steps."""

    @property
    def lower(self) -> Float[Array, ""]:
        """The lower margin `Φ - γ/2`, in inverse kernel steps."""
        return self.conductance - self.gap / 2

    @property
    def upper(self) -> Float[Array, ""]:
        """The upper margin `√(2γ) - Φ`, in inverse kernel steps."""
        return jnp.sqrt(2 * self.gap) - self.conductance

    @property
    def violation(self) -> Float[Array, ""]:
        """The share by which the conductance is outside of the bounds, and zero inside:
        a bottleneck that is hardly ever crossed counts like any other."""
        below = 1 - self.conductance / (self.gap / 2)
        above = self.conductance / jnp.sqrt(2 * self.gap) - 1
        return jnp.maximum(jnp.maximum(below, above), 0)


@eqx.filter_jit
def sweep_conductance(chain: AbstractChain) -> Float[Array, ""]:
    """`Φ = min_S Σ_{x∈S, y∉S} π(x) P(x, y) / min(π(S), 1 - π(S))` over the sweep cuts
    `S` of the slowest mode, in inverse kernel steps.

    A sweep cut takes the states whose value of the mode is below some level. The
    bottleneck between two wells is one; the conductance of the chain is at most `Φ`.

    **Raises:** `ValueError` if the chain is not reversible, or too large for a dense
    eigenproblem.

    ??? cite "Source"

        Sinclair and Jerrum, *Approximate counting, uniform generation and rapidly
        mixing Markov chains*, Inf. Comput. 82, 93, 1989.
    """
    require_reversible(chain, "sweep conductance")
    return _conductance(chain, find_slowest(chain, Direct()))


@eqx.filter_jit
def cheeger_margins(chain: AbstractChain) -> CheegerMargins:
    """Both sides of Cheeger's inequality, and the numbers that they compare.

    **Raises:** as `trainq.markov.sweep_conductance`.

    ??? cite "Source"

        Lawler and Sokal, *Bounds on the L² spectrum for Markov chains and Markov
        processes*, Trans. Am. Math. Soc. 309, 557, 1988.
    """
    require_reversible(chain, "Cheeger margin")
    return margins(chain, Direct())


def margins(chain: AbstractChain, solver: Direct) -> CheegerMargins:
    slowest = find_slowest(chain, solver)
    return CheegerMargins(slowest.gap, _conductance(chain, slowest))


@eqx.filter_jit
def cheeger_margin(chain: AbstractChain) -> Float[Array, ""]:
    """`min(Φ - γ/2, √(2γ) - Φ)`, in inverse kernel steps: negative only if the gap or
    the law is wrong. `trainq.markov.cheeger_margins` has the two sides.

    **Raises:** as `trainq.markov.sweep_conductance`.
    """
    both = cheeger_margins(chain)
    return jnp.minimum(both.lower, both.upper)


def _conductance(chain: AbstractChain, slowest: SlowestMode) -> Array:
    order = jnp.argsort(slowest.mode)
    mode, law = slowest.mode[order], chain.log_stationary[order]
    inside = jax.lax.cumlogsumexp(law)[:-1]
    outside = jax.lax.cumlogsumexp(law, reverse=True)[1:]
    log_phi = chain.log_cut_flows(order) - jnp.minimum(inside, outside)
    # States with the same value of the mode are on the same side: which of them comes
    # first is decided by rounding errors.
    size = jnp.maximum(jnp.abs(mode[1:]), jnp.abs(mode[:-1]))
    differ = mode[1:] - mode[:-1] > 1024 * jnp.finfo(mode.dtype).eps * size
    return jnp.exp(jnp.min(jnp.where(differ, log_phi, jnp.inf), initial=jnp.inf))
