"""Spectral gaps and slowest modes of reversible chains."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._show import AbstractShown
from .._spins import global_flip
from ..solvers import (
    AbstractGenerator,
    Direct,
    eigenpairs,
    form_derivative,
    inverse_root,
)
from ._eigenpairs import Eigenpairs, Part, lowest_pairs, parts_of, resolvent_matrix
from .chains import AbstractChain, Sector, require_reversible


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
    sector is asked for, too large, or traced and too large for a dense eigenproblem.
    """
    require_reversible(chain, "spectral gap")
    return find_gap(chain, Direct(), sector)


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
    return find_slowest(chain, Direct(), sector)


def find_gap(chain: AbstractChain, solver: Direct, sector: Sector | None) -> Array:
    parts = parts_of(chain, sector)
    return jnp.min(jnp.stack([_slowest_of(part, solver)[0] for part in parts]))


def find_slowest(
    chain: AbstractChain, solver: Direct, sector: Sector | None = None
) -> SlowestMode:
    parts = [p for p in parts_of(chain, sector) if p.size > int(p.is_closed)]
    if not parts:
        raise ValueError(
            f"The {sector} sector of this chain has no mode on the smaller of its "
            "layers, which has no such function but the constant. What the other "
            "layer has is forgotten in a step or two: `spectral_gap` says how fast."
        )
    found = [_slowest_of(part, solver) for part in parts]
    is_odd = [part.sector == "odd" for part in parts]
    return _normalised(chain, found, is_odd)


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
    return SlowestMode(gaps[which], no_derivative("slowest mode", psi), odd)


def _slowest_of(
    part: Part, solver: Direct
) -> tuple[Float[Array, ""], Float[Array, " states"]]:
    """The smallest gap of one sector, and `√π ψ` up to a factor."""
    if part.is_dense:
        return _slowest_of_dense(part, solver)
    return _slowest_of_large(part, lowest_pairs(part, 1))


@eqx.filter_jit
def _slowest_of_large(part: Part, found: Eigenpairs) -> tuple[Array, Array]:
    gap, columns = part.reduction.modes(found.values, found.vectors)
    return gap[0], part.reduction.densities(columns[:, :1])[:, 0]


@eqx.filter_jit
def _slowest_of_dense(part: Part, solver: Direct) -> tuple[Array, Array]:
    found: Any = _slowest(part.generator, solver, part.sign)
    slowness, y, known = found
    # No rate is above two, and of constants alone there is none.
    some = slowness > 0.25
    value = 1 / jnp.where(some, slowness, 1)
    gap, columns = part.reduction.modes(value[None], y[:, None])
    alone = part.reduction.least_rest_gap  # constants are the only mode
    gap = jnp.where(known, jnp.where(some, gap[0], alone), jnp.nan)
    columns = lax.stop_gradient(columns[:, :1])
    return gap, lax.stop_gradient(part.reduction.densities(columns)[:, 0])


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _slowest(
    generator: AbstractGenerator, solver: Direct, sign: int | None
) -> tuple[Array, ...]:
    """The largest eigenvalue of the resolvent `L⁺`, which is one over the smallest of
    `L`, its eigenvector, and whether they are known. With a sign, on functions of this
    parity alone."""
    return _slowest_fwd(generator, solver, sign)[0]


def _slowest_fwd(generator, solver, sign):
    # An eigenvalue of L itself would be known up to an absolute error of ε, and a gap
    # of that size not at all.
    def fix(x):
        return no_derivative("derivative of a spectral gap", x)

    fixed = jax.tree.map(fix, generator)
    inverse, known = resolvent_matrix(fixed, solver)
    if sign is not None:
        inverse = (inverse + sign * global_flip(inverse)) / 2
        inverse = (inverse + sign * global_flip(inverse.T)) / 2
    y, null = eigenpairs(inverse)[1][:, -1], fixed.null
    y = y if null is None else y - null * (null @ y)
    solution = inverse @ y
    slowness = y @ solution
    # Never differentiate eigh: its derivative divides by differences of eigenvalues.
    # The first derivative of the form at a fixed eigenvector is that of the eigenvalue
    # (Hellmann and Feynman), and the smallest one of L is concave in the matrix.
    return (slowness, y, known), (generator, y, solution, slowness)


def _slowest_bwd(solver, sign, residuals, cotangents):
    del sign
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
def no_derivative(what: str, x: Array) -> Array:
    return x


@no_derivative.defjvp
def _no_derivative_jvp(what, primals, tangents):
    raise ValueError(
        f"The {what} has no derivative: eigenfunctions turn abruptly where eigenvalues "
        "cross. Use `jax.lax.stop_gradient` on the model if you want it held fixed."
    )
