"""The resolvent of a chain, and the noise of time averages that follows from it."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..solvers._solvers import AbstractStrategy, SolverStats, checked_strategy
from .chains._base import AbstractChain, Sector, scale
from .chains._functions import Table


Convention = Literal["resolvent", "sokal"]


@eqx.filter_jit
def resolvent(
    chain: AbstractChain,
    f: Float[Array, "states *obs"],
    *,
    solver: AbstractStrategy | None = None,
) -> Float[Array, "states *obs"]:
    """`R f`: the solution `x` of `(I - P) x = f - π(f)` with `π(x) = 0`.

    It is `Σ_{t≥0} P^t (f - π(f))` where that converges: the excess of `f` still to
    come, in steps. All columns of `f` share one factorisation. Differentiable to any
    order.

    **Arguments:**

    - `chain`: the chain.
    - `f`: `(states,)` or `(states, n_obs)`.
    - `solver`: how to solve, [`trainq.Auto`][] by default.

    **Returns:** an array like `f`.

    **Raises:** `ValueError` for a wrong shape, or too many states; a run-time error if
    the chain is reducible in floating point.

    ??? cite "Source"

        Kemeny and Snell, *Finite Markov Chains*, 1960: `R` is their fundamental matrix
        on functions of mean zero.
    """
    return solve_resolvent(chain, f, solver=solver).value


class ResolventSolution(eqx.Module):
    """`R f`, and how well each column of it was solved."""

    value: Float[Array, "states *obs"]
    stats: SolverStats


@eqx.filter_jit
def solve_resolvent(
    chain: AbstractChain,
    f: Float[Array, "states *obs"],
    *,
    solver: AbstractStrategy | None = None,
) -> ResolventSolution:
    """[`trainq.markov.resolvent`][], and the statistics of its solver."""
    columns = chain.centre(f).reshape(chain.n_states, -1)
    x, stats = chain.resolvent(columns, solver=checked_strategy(solver))
    return ResolventSolution(x.reshape(f.shape), stats)


@eqx.filter_jit
def resolvent_trace(
    chain: AbstractChain,
    f: Float[Array, "states *obs"],
    *,
    sector: Sector | None = None,
    solver: AbstractStrategy | None = None,
) -> Float[Array, ""]:
    """`T_O = Σ_a ⟨f̃_a, R f̃_a⟩_π`, in kernel steps: the autocovariance of the
    observables summed over all lags `t ≥ 0`.

    One factorisation for all observables, and a backward pass without a solve. It is a
    `jax.custom_vjp`: reverse mode to any order and `jax.hessian` work; forward mode
    alone needs `Direct(plain_autodiff=True)`.

    **Arguments:**

    - `chain`: the chain.
    - `f`: `(states,)` or `(states, n_obs)`.
    - `sector`: `"even"` or `"odd"` if every column is known to have this parity under
        the global flip. Only that sector is then solved: the result is wrong if `f` has
        another part. Both, by default.
    - `solver`: how to solve, [`trainq.Auto`][] by default.

    **Raises:** as `trainq.markov.resolvent`; also `ValueError` if a sector is asked for
    of a chain that is not symmetric.
    """
    columns = chain.centre(f).reshape(chain.n_states, -1)
    form = chain.resolvent_form(
        Table(columns),
        pairing="diagonal",
        solver=checked_strategy(solver),
        sector=sector,
    )
    return jnp.sum(form.value)


@eqx.filter_jit
def asymptotic_covariance(
    chain: AbstractChain,
    f: Float[Array, "states n_obs"],
    *,
    convention: Convention = "sokal",
    sector: Sector | None = None,
    solver: AbstractStrategy | None = None,
) -> Float[Array, "n_obs n_obs"]:
    """The matrix of the noise of time averages, `lim K Cov(f̂_a, f̂_b)` for a window of
    `K` steps, in kernel steps: `⟨f̃_a, R f̃_b⟩ + ⟨f̃_b, R f̃_a⟩ - Cov(f_a, f_b)`.

    With the gradient observables of a model it is the covariance of the gradient noise,
    times `K`.

    **Arguments:**

    - `chain`, `sector`, `solver`: as for `trainq.markov.resolvent_trace`.
    - `f`: `(states, n_obs)`.
    - `convention`: `"resolvent"` leaves out the last term, so that the trace is
        `2 T_O`.

    **Returns:** a symmetric `(n_obs, n_obs)` matrix.

    **Raises:** as `trainq.markov.resolvent_trace`.
    """
    check_convention(convention)
    if f.ndim != 2:
        raise ValueError(
            f"The covariance is of functions of shape ({chain.n_states}, n_obs), but "
            f"{f.shape} was given. Add an axis: `f[:, None]`."
        )
    f = chain.centre(f)
    form = chain.resolvent_form(
        Table(f), pairing="gram", solver=checked_strategy(solver), sector=sector
    ).value
    noise = form + form.T
    if convention == "resolvent":
        return noise
    return noise - f.T @ scale(chain.stationary, f)


def check_convention(convention: str) -> None:
    """Raise a `ValueError` unless the noise convention is one that exists."""
    if convention not in ("resolvent", "sokal"):
        raise ValueError(
            f'The convention is "resolvent" or "sokal", but {convention!r} was given.'
        )
