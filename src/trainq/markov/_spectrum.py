"""Spectral gaps and slowest modes of reversible chains."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from . import _lapack
from ._chains import AbstractChain, Sector, inverse_root, require_reversible


class SlowestMode(eqx.Module):
    """The gap of a reversible chain and the eigenfunction that has it.

    `gap` is `γ = 1 - λ`, the rate in inverse kernel steps at which the slowest function
    decays; `mode` is `ψ` with `Pψ = λψ`, `π(ψ) = 0`, `π(ψ²) = 1`; `is_odd` says whether
    `ψ(-x) = -ψ(x)` for a chain that is symmetric under the global flip.
    """

    gap: Float[Array, ""]
    mode: Float[Array, " states"]
    is_odd: Array


class ParityGaps(eqx.Module):
    """The spectral gaps on the even and on the odd functions under the global flip."""

    even: Float[Array, ""]
    odd: Float[Array, ""]


@eqx.filter_jit
def spectral_gap(
    chain: AbstractChain, sector: Sector | None = None
) -> Float[Array, ""]:
    """`γ = 1 - λ₁`, with `λ₁` the second largest eigenvalue, in inverse kernel steps.

    Its derivative is that of a simple eigenvalue, `⟨y, dL y⟩` with `y` the symmetrised
    mode. At a degenerate one it is a supergradient, and never NaN.

    **Arguments:**

    - `chain`: a reversible chain.
    - `sector`: `"even"` or `"odd"` for the gap on functions of this parity under the
        global flip, of a chain that is symmetric.

    **Returns:** the gap; infinity if constants are the only functions.

    **Raises:** `ValueError` if the chain is not reversible, not symmetric where a
    sector is asked for, or too large for a dense eigenproblem.
    """
    require_reversible(chain, "spectral gap")
    gaps = [_lowest(chain, s)[0] for s in chain.sectors(sector)]
    return jnp.min(jnp.stack(gaps))


@eqx.filter_jit
def parity_gaps(chain: AbstractChain) -> ParityGaps:
    """The spectral gap in each sector of the global flip.

    The gap of the chain is the smaller one, as a rule the odd: between opposite wells.
    Even observables, such as those of weights, only feel the even one.

    **Raises:** `ValueError` if the chain is not symmetric, and as
    `trainq.markov.spectral_gap`.
    """
    return ParityGaps(spectral_gap(chain, "even"), spectral_gap(chain, "odd"))


@eqx.filter_jit
def slowest_mode(chain: AbstractChain) -> SlowestMode:
    """The spectral gap and its eigenfunction.

    The gap is differentiable. The mode is not, since modes of symmetric chains are
    degenerate: differentiating it raises.

    **Raises:** as `trainq.markov.spectral_gap`.
    """
    require_reversible(chain, "slowest mode")
    found = [_lowest(chain, s) for s in chain.sectors()]
    gaps = jnp.stack([gap for gap, _ in found])
    which = jnp.argmin(gaps)
    y = jnp.stack([y for _, y in found])[which]
    psi = y / jnp.linalg.norm(y) * inverse_root(chain.log_stationary)
    is_odd = (which == 1) & jnp.asarray(len(found) > 1)
    return SlowestMode(gaps[which], _no_derivative("slowest mode", psi), is_odd)


def _lowest(chain: AbstractChain, sector: Sector | None) -> tuple[Array, Array]:
    problem = chain.eigen_problem(sector)
    # Never differentiate eigh: its derivative divides by differences of eigenvalues.
    # The first derivative of the Rayleigh quotient at a fixed eigenvector is that of
    # the eigenvalue (Hellmann and Feynman), and λ_min is concave in the matrix.
    vectors = _lapack.eigenvectors(lax.stop_gradient(problem.matrix))
    y = vectors[:, 0]
    value = y @ problem.matrix @ y
    gap = jnp.where(value > 2.5, jnp.inf, problem.gap(value, y))
    return gap, lax.stop_gradient(problem.lift(y))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _no_derivative(what: str, x: Array) -> Array:
    return x


@_no_derivative.defjvp
def _no_derivative_jvp(what, primals, tangents):
    raise ValueError(
        f"The {what} has no derivative: eigenfunctions turn abruptly where eigenvalues "
        "cross. Use `jax.lax.stop_gradient` on the model if you want it held fixed."
    )
