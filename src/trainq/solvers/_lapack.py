"""LAPACK that is safe under `vmap`: a batch is written out as single calls.

On the CPU, jaxlib 0.10 spreads a batch over the threads of XLA's pool, and one of them
waits for the others. Calls that run at once may hold all threads, each waiting for one
more: on two cores, two independent `vmap`ped Cholesky factorisations in one program
hang. A single call waits for nobody.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int


# So many calls are written out; a longer batch is a loop over as many at a time.
_AT_ONCE = 8


def one_by_one(function: Callable[..., Any]) -> Any:
    """A function of trees of arrays whose batches are single calls on the CPU."""
    single = custom_vmap(function)

    @single.def_vmap
    def batch(size, batched, *args):
        leaves, tree = jax.tree.flatten(args)
        batched = jax.tree.leaves(batched)

        def one(mapped):
            mapped = iter(mapped)
            whole = [
                next(mapped) if b else x for x, b in zip(leaves, batched, strict=True)
            ]
            return single(*jax.tree.unflatten(tree, whole))

        mapped = [x for x, b in zip(leaves, batched, strict=True) if b]
        if jax.default_backend() != "cpu":

            def flat(*leaves):
                return function(*jax.tree.unflatten(tree, leaves))

            axes = [0 if b else None for b in batched]
            out = jax.vmap(flat, in_axes=axes)(*leaves)
        elif size > _AT_ONCE:
            out = lax.map(one, mapped, batch_size=_AT_ONCE)
        else:
            parts = [one([x[i] for x in mapped]) for i in range(size)]
            out = jax.tree.map(lambda *xs: jnp.stack(xs), *parts)
        return out, jax.tree.map(lambda _: True, out)

    return single


@one_by_one
def cholesky(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The lower triangular factor; NaN if the matrix is not positive definite."""
    # LAPACK wants columns, and the matrix has been made in rows: that of its transpose,
    # which is the same, are its columns, and need not be copied into another order.
    return jnp.linalg.cholesky(matrix.T, symmetrize_input=False)


@one_by_one
def cholesky_solve(
    factor: Float[Array, "n n"], b: Float[Array, "n k"]
) -> Float[Array, "n k"]:
    """`matrix⁻¹ b`, from the factor of the matrix that `cholesky` returns."""
    return jax.scipy.linalg.cho_solve((factor, True), b)


@one_by_one
def lu(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Int[Array, " n"]]:
    return jax.scipy.linalg.lu_factor(matrix)


@one_by_one
def lu_solve(
    factor: Float[Array, "n n"], pivots: Int[Array, " n"], b: Float[Array, "n k"]
) -> Float[Array, "n k"]:
    return jax.scipy.linalg.lu_solve((factor, pivots), b)


@one_by_one
def lu_solve_transposed(
    factor: Float[Array, "n n"], pivots: Int[Array, " n"], b: Float[Array, "n k"]
) -> Float[Array, "n k"]:
    return jax.scipy.linalg.lu_solve((factor, pivots), b, trans=1)


def solve(matrix: Float[Array, "n n"], b: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """`matrix⁻¹ b`, differentiable."""
    factor = lu(lax.stop_gradient(matrix))
    return lax.custom_linear_solve(
        lambda x: matrix @ x,
        b,
        lambda _, b: lu_solve(*factor, b),
        lambda _, b: lu_solve_transposed(*factor, b),
    )


@one_by_one
def eigenpairs(
    matrix: Float[Array, "n n"],
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """The eigenvalues of a symmetric matrix, from the smallest, and eigenvectors."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors
