"""Expected times until a chain finds a set of states, and from one set to another."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .._show import AbstractShown
from ..solvers import AbstractSolver, LinearSolve, checked_solver, inverse_root
from ._conductance import checked_set
from .chains import AbstractChain, require_chain


class PassageTimes(AbstractShown):
    """Mean first-passage times between two sets, each started in its own law: the
    stationary one, given that the chain is in the set."""

    forth: Float[Array, ""]
    """From the first set to the second, in kernel steps."""
    back: Float[Array, ""]
    """From the second set to the first, in kernel steps."""
    forth_error: Float[Array, ""]
    """A bound on the relative error of `forth`, by its residual; infinity if the
    residual says nothing."""
    back_error: Float[Array, ""]
    """A bound on the relative error of `back`, by its residual; infinity if the
    residual says nothing."""


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

    **Raises:** `ValueError` for a wrong shape or dtype, or too many states;
    `MemoryError`, with an estimate, for more than there is memory for; a run-time error
    if the target is empty, or cannot be reached in floating point.

    ??? cite "Source"

        Kemeny and Snell, *Finite Markov Chains*, 1960.
    """
    require_chain(chain)
    target = checked_set(chain, target, "The target")
    ones = jnp.ones_like(chain.log_stationary)
    return _sum_until(chain, target, ones, checked_solver(solver))


def _sum_until(
    chain: AbstractChain, target: Array, f: Array, solver: AbstractSolver
) -> Float[Array, " states"]:
    """`E[Σ f(X_t)]` over the steps before the chain is in the target: the solution of
    `x = f + P x` outside of it, and zero on it."""
    f = jnp.where(target, 0, f)[:, None]
    solve = LinearSolve(chain.killed_generator(target), solver, 1)
    y = solve(f * chain.root[:, None]).value
    x = y * inverse_root(chain.log_stationary)[:, None]
    x = jnp.where(target[:, None], 0, x)
    return chain.jacobi_sweeps(x, f, target)[:, 0]


@eqx.filter_jit
def hitting_error(
    chain: AbstractChain,
    target: Bool[Array, " states"],
    times: Float[Array, " states"],
    *,
    solver: AbstractSolver | None = None,
) -> Float[Array, ""]:
    """A bound on the relative error of hitting times, wherever they come from, in every
    state.

    Outside of the target `A τ = 1`, with `A` the part of `I - P` there. Its inverse,
    `Σ_t P^t`, has no negative entry: `A` is an M-matrix. Let `s` be at least the
    residual `|A t - 1|` of some times `t`, in every entry. If now a function `w ≥ 0`
    has `A w ≥ s > 0`, which is seen by applying `A` to it, then the inverse exists and

        |t - τ| = |A⁻¹ (A t - 1)| ≤ A⁻¹ s ≤ w,

    so that `w / t` bounds the error. A good `w` is found by one more solve, which need
    not be accurate: it is `A w` that is looked at.

    The rounding errors of both residuals are part of `s` and taken off `A w`, so the
    bound holds for the chain with the flip probabilities, or the matrix, as they are
    stored. It is some `ε` times the number of jumps until the target, which is how much
    the last digits of `t` matter.

    **Arguments:**

    - `chain`: the chain, reversible or not.
    - `target`: `(2**n_units,)` booleans, true on the target.
    - `times`: `(2**n_units,)`, such as [`trainq.markov.hitting_times`][] returns.
    - `solver`: how to solve for `w`, [`trainq.Auto`][] by default.

    **Returns:** the largest possible `|t - τ| / τ`; infinity where that cannot be said.
    Its derivative is zero.

    **Raises:** as [`trainq.markov.hitting_times`][].

    ??? cite "Source"

        Berman and Plemmons, *Nonnegative Matrices in the Mathematical Sciences*, 1994,
        chapter 6; Ogita, Oishi and Ushiro, *Fast verification of solutions for sparse
        monotone matrix equations*, Computing Suppl. 15, 175, 2001.

    !!! example

        ```python
        chain = tq.RandomScanGibbs().chain(model)
        target = jnp.arange(chain.n_states) == 0
        times = tq.markov.hitting_times(chain, target)
        print(tq.markov.hitting_error(chain, target, times))
        ```
    """
    require_chain(chain)
    target = checked_set(chain, target, "The target")
    return _error(chain, target, times, checked_solver(solver))


def _error(
    chain: AbstractChain, target: Array, times: Array, solver: AbstractSolver
) -> Float[Array, ""]:
    chain, times = jax.tree.map(lax.stop_gradient, (chain, times))
    eps = jnp.finfo(times.dtype).eps
    loss, rounding = chain.decrease(times)
    residual = jnp.where(target, 0, jnp.abs(loss - 1) + rounding + eps)
    w = _sum_until(chain, target, residual, solver)
    loss, rounding = chain.decrease(w)
    # `A w ≥ share s`: what is shown is that w / share is large enough.
    some = jnp.where(target, 1, residual)
    share = jnp.min(jnp.where(target, 1, (loss - rounding) / some))
    of_times = jnp.where(target, 0, w / jnp.where(times > 0, times, 1))
    most = jnp.max(of_times) / jnp.where(share > 0, share, 1)
    holds = (share > 0) & jnp.all(jnp.where(target, times == 0, times > 0))
    holds &= jnp.all(w >= 0) & jnp.all(jnp.isfinite(times)) & (most < 1)
    # |t - τ| ≤ m t is a share m / (1 - m) of τ.
    return jnp.where(holds, most / jnp.where(holds, 1 - most, 1), jnp.inf)


@eqx.filter_jit
def passage_times(
    chain: AbstractChain,
    one: Bool[Array, " states"],
    other: Bool[Array, " states"],
    *,
    solver: AbstractSolver | None = None,
) -> PassageTimes:
    """Mean first-passage times from one set of states to another, and back.

    A chain starts in a set in the law `π` has there: with basins for the sets, these
    are the times that a long run takes to change from one to the other. A basin reaches
    up to its rim, where a chain is as good as across: for the rate of a slow mode take
    the bottoms of its wells. The sum of both is the same for two states as that of the
    commute. Differentiable to any order, but for the error bounds, whose derivative is
    zero.

    Small systems are solved by elimination if they are slow, so that times of 1e20
    steps have all their digits; those of single flips beyond 12 units by conjugate
    gradients, without a matrix.

    **Arguments:**

    - `chain`: the chain, reversible or not.
    - `one`, `other`: `(2**n_units,)` booleans, true in the sets, which may have no
        state in common.
    - `solver`: how to solve, [`trainq.Auto`][] by default.

    **Returns:** [`trainq.markov.PassageTimes`][], each with the bound of
    [`trainq.markov.hitting_error`][].

    **Raises:** as [`trainq.markov.hitting_times`][]; also a run-time error if a set is
    empty or the two have a state in common.

    ??? cite "Source"

        Bovier and den Hollander, *Metastability: A Potential-Theoretic Approach*, 2015.

    !!! example

        ```python
        chain = tq.RandomScanGibbs().chain(model)
        found = tq.markov.basins(chain)
        if len(found.minima) > 1:
            first, second = found.label == 0, found.label == 1
            print(tq.markov.passage_times(chain, first, second))
        ```
    """
    require_chain(chain)
    one = checked_set(chain, one, "The first set")
    other = checked_set(chain, other, "The second set")
    one = eqx.error_if(
        one,
        jnp.any(one & other),
        "The two sets have a state in common, from which there is no way to go.",
    )

    chosen = checked_solver(solver)

    def mean(start: Array, target: Array) -> tuple[Array, Array]:
        times = hitting_times(chain, target, solver=chosen)
        law = jax.nn.softmax(jnp.where(start, chain.log_stationary, -jnp.inf))
        return jnp.sum(law * times), _error(chain, target, times, chosen)

    (forth, forth_error), (back, back_error) = mean(one, other), mean(other, one)
    return PassageTimes(forth, back, forth_error, back_error)
