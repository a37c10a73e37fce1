"""Spectral gaps and slowest modes of reversible chains."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._compiled import compiled_quickly
from .._show import AbstractShown
from ..solvers import (
    Direct,
    form_derivative,
    inverse_root,
)
from ._eigenpairs import (
    Eigenpairs,
    Operator,
    Part,
    check_memory,
    held_fixed,
    lowest_pairs,
    parts_of,
    slowest_pair,
)
from .chains import AbstractChain, Sector, require_reversible


_LOST = (
    "The gap is lost in rounding: the chain is reducible in floating point, or one of "
    "your own that falls apart into several, or is not reversible. Lower beta or the "
    "weights, use float64, or a block kernel."
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


def spectral_gap(
    chain: AbstractChain, sector: Sector | None = None
) -> Float[Array, ""]:
    """`γ = 1 - λ₁`, with `λ₁` the second largest eigenvalue, in inverse kernel steps.

    Its first derivative, in reverse mode, is that of a simple eigenvalue, `⟨y, dL y⟩`
    with `y` the symmetrised mode. At a degenerate one it is a supergradient, and never
    NaN. There is no second one: the mode turns, and turns abruptly where gaps cross.

    With more than 2**13 states it is found by Lanczos' iteration, outside of `jax.jit`
    and without a derivative.

    **Arguments:**

    - `chain`: a reversible chain.
    - `sector`: `"even"` or `"odd"` for the gap on functions of this parity under the
        global flip, of a chain that is symmetric.

    **Returns:** the gap; infinity if constants are the only functions.

    **Raises:** `ValueError` if the chain is not reversible, not symmetric where a
    sector is asked for, too large, or traced and too large for a dense eigenproblem;
    `MemoryError`, with an estimate, for more than there is memory for.
    """
    require_reversible(chain, "spectral gap")
    return find_gap(chain, sector)


def parity_gaps(chain: AbstractChain) -> ParityGaps:
    """The spectral gap in each sector of the global flip.

    The gap of the chain is the smaller one, as a rule the odd: between opposite wells.
    Even observables, such as those of weights, only feel the even one.

    **Raises:** `ValueError` if the chain is not symmetric, and as
    `trainq.markov.spectral_gap`.
    """
    return ParityGaps(spectral_gap(chain, "even"), spectral_gap(chain, "odd"))


def slowest_mode(chain: AbstractChain, sector: Sector | None = None) -> SlowestMode:
    """The spectral gap and its eigenfunction.

    The gap is differentiable, as that of `trainq.markov.spectral_gap` is. The mode is
    not, since modes of symmetric chains are degenerate: differentiating it raises.

    **Arguments:**

    - `chain`: a reversible chain.
    - `sector`: `"even"` or `"odd"` for the slowest mode of this parity under the global
        flip, of a chain that is symmetric.

    **Returns:** a [`trainq.markov.SlowestMode`][].

    **Raises:** as `trainq.markov.spectral_gap`.
    """
    require_reversible(chain, "slowest mode")
    return find_slowest(chain, sector)


def find_gap(chain: AbstractChain, sector: Sector | None) -> Array:
    parts = _parts(chain, sector)
    return jnp.min(jnp.stack([_slowest_of(part, True)[0] for part in parts]))


def find_slowest(
    chain: AbstractChain, sector: Sector | None = None, *, throw: bool = True
) -> SlowestMode:
    """The slowest mode; if it is lost in rounding and nothing is to be thrown, its gap
    is NaN."""
    parts = [p for p in _parts(chain, sector) if p.n_modes]
    if not parts:
        raise ValueError(
            f"The {sector} sector of this chain has no mode on the smaller of its "
            "layers, which has no such function but the constant. What the other "
            "layer has is forgotten in a step or two: `spectral_gap` says how fast."
        )
    found = [_slowest_of(part, throw) for part in parts]
    is_odd = [part.sector == "odd" for part in parts]
    return _normalised(chain, found, is_odd)


def _parts(chain: AbstractChain, sector: Sector | None) -> tuple[Part, ...]:
    parts = parts_of(chain, sector)
    for part in parts:
        if part.is_dense:
            check_memory(part.operator, 2 + 5 * len(parts))
    return parts


@eqx.filter_jit
def _normalised(
    chain: AbstractChain, found: list[tuple[Array, Array]], is_odd: list[bool]
) -> SlowestMode:
    gaps = jnp.stack([gap for gap, _ in found])
    which = jnp.argmin(gaps)
    y = jnp.stack([y for _, y in found])[which]
    psi = y / jnp.linalg.norm(y) * inverse_root(chain.log_stationary)
    psi = chain.jacobi_sweeps(psi[:, None], gaps[which] * psi[:, None])[:, 0]
    odd = jnp.array(is_odd)[which]
    return SlowestMode(gaps[which], held_fixed("slowest mode", psi), odd)


def _slowest_of(
    part: Part, throw: bool
) -> tuple[Float[Array, ""], Float[Array, " states"]]:
    """The smallest gap of one sector, and `√π ψ` up to a factor."""
    if part.is_dense:
        return _slowest_of_dense(part, throw)
    return _slowest_of_large(part, lowest_pairs(part.operator, 1), throw)


@eqx.filter_jit
def _slowest_of_large(
    part: Part, found: Eigenpairs, throw: bool
) -> tuple[Array, Array]:
    gap, columns = part.reduction.modes(found.values, found.vectors)
    gap = jnp.where(found.known, gap[0], jnp.nan)
    gap = eqx.error_if(gap, ~found.known, _LOST) if throw else gap
    return gap, part.reduction.densities(columns[:, :1])[:, 0]


@compiled_quickly
def _slowest_of_dense(part: Part, throw: bool) -> tuple[Array, Array]:
    law = part.reduction.generator.log_law
    if part.n_modes:
        found: Any = _slowest(part.operator)
        slowness, y, known = found
    else:  # constants are the only mode
        slowness, y, known = jnp.ones_like(law[0]), jnp.zeros_like(law), True
    if throw:
        slowness = eqx.error_if(slowness, ~jnp.asarray(known), _LOST)
    gap, columns = part.reduction.modes((1 / slowness)[None], y[:, None])
    gap = jnp.where(known, gap[0], jnp.nan)
    if not part.n_modes:
        gap = jnp.asarray(part.reduction.least_rest_gap, gap.dtype)
    columns = lax.stop_gradient(columns[:, :1])
    return gap, lax.stop_gradient(part.reduction.densities(columns)[:, 0])


@jax.custom_vjp
def _slowest(operator: Operator) -> tuple[Array, ...]:
    """One over the smallest eigenvalue, which is the largest one of the resolvent `L⁺`,
    its eigenvector, and whether they are known."""
    return _slowest_fwd(operator)[0]


def _slowest_fwd(operator):
    found = slowest_pair(held_fixed("derivative of a spectral gap", operator))
    y, slowness, null = (
        found.vectors[:, 0],
        1 / found.values[0],
        operator.generator.null,
    )
    y = y if null is None else y - lax.stop_gradient(null * (null @ y))
    # Never differentiate eigh: its derivative divides by differences of eigenvalues.
    # The first derivative of the form at a fixed eigenvector is that of the eigenvalue
    # (Hellmann and Feynman), and the smallest one of L is concave in the matrix.
    return (slowness, y, found.known), (operator, y, slowness)


def _slowest_bwd(residuals, cotangents):
    operator, y, slowness = residuals
    # As in `_forms`: the derivative of a very slow one is lost in rounding.
    eps = float(jnp.finfo(y.dtype).eps)
    cotangent = eqx.error_if(
        cotangents[0],
        eps**2 * slowness > Direct().tolerance(y.dtype),
        "The chain is so slow that the derivative of its gap is lost in rounding. "
        "Lower beta or the weights, or use float64.",
    )
    u = y[:, None]
    y = slowness * u
    moved = form_derivative(operator.generator, u, None, y, None, "diagonal")
    moved, *_ = moved(cotangent[None])
    return (Operator(moved, operator.sign),)


_slowest.defvjp(_slowest_fwd, _slowest_bwd)
