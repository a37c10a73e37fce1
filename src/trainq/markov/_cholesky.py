"""Cholesky factorisation by halves, so that nearly all work is matrix products.

With `A = [[A₁, B], [Bᵀ, A₂]]` and `A₁ = L₁L₁ᵀ`, the factor of `A` is
`[[L₁, 0], [Mᵀ, L₂]]` with `M = L₁⁻¹B` and `L₂L₂ᵀ = A₂ - MᵀM`: two factorisations of
half the size, one solve and one product. The recursion ends at blocks for which the
inverse of the triangle is stored in the place of the triangle.

On a CPU, XLA multiplies matrices several times as fast as LAPACK factorises them, and
the threads of LAPACK compete with XLA's, which stalls both. LAPACK leaves small blocks
to one thread.

??? cite "Source"

    Gustavson, *Recursion leads to automatic variable blocking for dense linear-algebra
    algorithms*, IBM J. Res. Dev. 41, 737, 1997.
"""

from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float


class Halves(NamedTuple):
    """The factor of a matrix: those of both halves, and the `M` that couples them."""

    first: "Factor"
    coupling: Float[Array, "m n"]
    last: "Factor"


# The inverse of a small triangle, or two halves.
Factor: TypeAlias = Float[Array, "n n"] | Halves


def cholesky(matrix: Float[Array, "n n"]) -> Factor:
    """Factorise a symmetric positive definite matrix; NaN if it is not."""
    # More than 64 blocks would take long to compile.
    return _cholesky(matrix, max(16, matrix.shape[0] // 64))


def cholesky_solve(factor: Factor, b: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """`A⁻¹ b` from the factor of `A`."""
    return _backward(factor, _forward(factor, b))


def _cholesky(matrix: Float[Array, "n n"], block: int) -> Factor:
    n = matrix.shape[0]
    if n <= block:
        triangle = jnp.linalg.cholesky(matrix, symmetrize_input=False)
        return solve_triangular(triangle, jnp.eye(n, dtype=matrix.dtype), lower=True)
    half = n // 2
    first = _cholesky(matrix[:half, :half], block)
    coupling = _forward(first, matrix[:half, half:])
    last = _cholesky(matrix[half:, half:] - coupling.T @ coupling, block)
    return Halves(first, coupling, last)


def _forward(factor: Factor, b: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """`L⁻¹ b`."""
    if not isinstance(factor, Halves):
        return factor @ b
    half = factor.coupling.shape[0]
    first = _forward(factor.first, b[:half])
    last = _forward(factor.last, b[half:] - factor.coupling.T @ first)
    return jnp.concatenate([first, last])


def _backward(factor: Factor, b: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """`L⁻ᵀ b`."""
    if not isinstance(factor, Halves):
        return factor.T @ b
    half = factor.coupling.shape[0]
    last = _backward(factor.last, b[half:])
    first = _backward(factor.first, b[:half] - factor.coupling @ last)
    return jnp.concatenate([first, last])
