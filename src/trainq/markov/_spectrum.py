"""Spectral gaps and slowest modes of reversible chains."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._show import AbstractShown
from ..solvers import (
    AbstractGenerator,
    Direct,
    LinearSolve,
    eigenvectors,
    form_derivative,
    inverse_root,
)
from .chains import (
    AbstractChain,
    AbstractReduction,
    Sector,
    check_dense,
    require_reversible,
)


class SlowestMode(AbstractShown):
    """The gap of a reversible chain and the eigenfunction that has it."""

    gap: Float[Array, ""]
    """`γ = 1 - λ`, the rate in inverse kernel steps at which the slowest function
    decays."""
    mode: Float[Array, " states"]
    """`ψ` at every state, in order, with `Pψ = λψ`, `π(ψ) = 0` and `π(ψ²) = 1`."""
    is_odd: Array
    """Whether `ψ(-x) = -ψ(x)`, for a chain that is symmetric under the global flip."""


class ParityGaps(AbstractShown):
    """The spectral gaps on the even and on the odd functions under the global flip."""

    even: Float[Array, ""]
    """The gap on functions with `f(-x) = f(x)`, in inverse kernel steps."""
    odd: Float[Array, ""]
    """The gap on functions with `f(-x) = -f(x)`, in inverse kernel steps."""


@eqx.filter_jit
def spectral_gap(
    chain: AbstractChain, sector: Sector | None = None
) -> Float[Array, ""]:
    """`γ = 1 - λ₁`, with `λ₁` the second largest eigenvalue, in inverse kernel steps.

    Its first derivative, in reverse mode, is that of a simple eigenvalue, `⟨y, dL y⟩`
    with `y` the symmetrised mode. At a degenerate one it is a supergradient, and never
    NaN. There is no second one: the mode turns, and turns abruptly where gaps cross.

    **Arguments:**

    - `chain`: a reversible chain.
    - `sector`: `"even"` or `"odd"` for the gap on functions of this parity under the
        global flip, of a chain that is symmetric.

    **Returns:** the gap; infinity if constants are the only functions.

    **Raises:** `ValueError` if the chain is not reversible, not symmetric where a
    sector is asked for, or too large for a dense eigenproblem.
    """
    require_reversible(chain, "spectral gap")
    reductions = chain.spectral_reductions(sector)
    gaps = [_slowest_of(reduction, Direct())[0] for reduction in reductions]
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
    return find_slowest(chain, Direct())


def find_slowest(
    chain: AbstractChain, solver: Direct, sector: Sector | None = None
) -> SlowestMode:
    reductions = chain.spectral_reductions(sector)
    found = [_slowest_of(reduction, solver) for reduction in reductions]
    gaps = jnp.stack([gap for gap, _ in found])
    which = jnp.argmin(gaps)
    y = jnp.stack([y for _, y in found])[which]
    psi = y / jnp.linalg.norm(y) * inverse_root(chain.log_stationary)
    psi = chain.jacobi_sweeps(psi[:, None], gaps[which] * psi[:, None])[:, 0]
    is_odd = jnp.array([r.sector == "odd" for r in reductions])[which]
    return SlowestMode(gaps[which], _no_derivative("slowest mode", psi), is_odd)


def _slowest_of(
    reduction: AbstractReduction, solver: Direct
) -> tuple[Float[Array, ""], Float[Array, " states"]]:
    """The smallest gap of one reduction, and `√π ψ` up to a factor."""
    whole = 1 if reduction.sector is None else 2
    check_dense(whole * reduction.generator.n_states)
    found: Any = _slowest(reduction.generator, solver)
    slowness, y, known = found
    # No rate is above two, and of constants alone there is none.
    some = slowness > 0.25
    gap = reduction.gap(1 / jnp.where(some, slowness, 1), y)
    gap = jnp.where(known, jnp.where(some, gap, jnp.inf), jnp.nan)
    return gap, lax.stop_gradient(reduction.mode(y))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _slowest(generator: AbstractGenerator, solver: Direct) -> tuple[Array, ...]:
    """The largest eigenvalue of the resolvent `L⁺`, which is one over the smallest of
    `L`, its eigenvector, and whether they are known."""
    return _slowest_fwd(generator, solver)[0]


def _slowest_fwd(generator, solver):
    # An eigenvalue of L itself would be known up to an absolute error of ε, and a gap
    # of that size not at all.
    def fix(x):
        return _no_derivative("derivative of a spectral gap", x)

    fixed = jax.tree.map(fix, generator)
    identity = jnp.eye(fixed.n_states, dtype=fixed.log_law.dtype)
    null = fixed.null
    others = identity if null is None else identity - jnp.outer(null, null)
    inverse, stats, _ = LinearSolve(fixed, solver, len(others))(others)
    inverse = inverse if null is None else others @ inverse
    y = eigenvectors((inverse + inverse.T) / 2)[:, -1]
    y = y if null is None else y - null * (null @ y)
    solution = inverse @ y
    slowness = y @ solution
    # Never differentiate eigh: its derivative divides by differences of eigenvalues.
    # The first derivative of the form at a fixed eigenvector is that of the eigenvalue
    # (Hellmann and Feynman), and the smallest one of L is concave in the matrix.
    return (slowness, y, stats.ok), (generator, y, solution, slowness)


def _slowest_bwd(solver, residuals, cotangents):
    generator, y, solution, slowness = residuals
    # As in `_forms`: the derivative of a very slow one is lost in rounding.
    lost = float(jnp.finfo(y.dtype).eps) ** 2 * slowness > solver.tolerance(y.dtype)
    cotangent = eqx.error_if(
        cotangents[0],
        lost,
        "The chain is so slow that the derivative of its gap is lost in rounding. "
        "Lower beta or the weights, or use float64.",
    )
    u, y = y[:, None], solution[:, None]
    moved = form_derivative(generator, u, None, y, None, "diagonal")
    return moved(cotangent[None])[:1]


_slowest.defvjp(_slowest_fwd, _slowest_bwd)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _no_derivative(what: str, x: Array) -> Array:
    return x


@_no_derivative.defjvp
def _no_derivative_jvp(what, primals, tangents):
    raise ValueError(
        f"The {what} has no derivative: eigenfunctions turn abruptly where eigenvalues "
        "cross. Use `jax.lax.stop_gradient` on the model if you want it held fixed."
    )
