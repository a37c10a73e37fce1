"""Expected times until a chain finds a set of states."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..solvers import AbstractSolver, LinearSolve, checked_solver, inverse_root
from .chains import AbstractChain, require_chain


@eqx.filter_jit
def hitting_times(
    chain: AbstractChain,
    target: Bool[Array, " states"],
    *,
    solver: AbstractSolver | None = None,
) -> Float[Array, " states"]:
    """`τ(x)`, the expected number of steps from `x` until the chain is in the target.

    It is zero on the target, and `τ = 1 + P τ` elsewhere. Differentiable to any order.

    **Arguments:**

    - `chain`: the chain.
    - `target`: `(2**n_units,)` booleans, true on the target.
    - `solver`: how to solve, [`trainq.Auto`][] by default.

    **Returns:** `(2**n_units,)` times in kernel steps.

    **Raises:** `ValueError` for a wrong shape or dtype, or too many states; a run-time
    error if the target is empty, or cannot be reached in floating point.

    ??? cite "Source"

        Kemeny and Snell, *Finite Markov Chains*, 1960.
    """
    require_chain(chain)
    target = jnp.asarray(target)
    if target.shape != (chain.n_states,) or target.dtype != bool:
        raise ValueError(
            f"The target has one boolean for each of the {chain.n_states} states, but "
            f"an array of shape {target.shape} and dtype {target.dtype} was given."
        )
    target = eqx.error_if(target, ~jnp.any(target), "The target has no state in it.")
    outside = jnp.where(target, 0, jnp.ones_like(chain.log_stationary))
    solve = LinearSolve(chain.killed_generator(target), checked_solver(solver), 1)
    y = solve((outside * chain.root)[:, None]).value
    times = y * inverse_root(chain.log_stationary)[:, None]
    times = jnp.where(target[:, None], 0, times)
    return chain.jacobi_sweeps(times, outside[:, None], target)[:, 0]
