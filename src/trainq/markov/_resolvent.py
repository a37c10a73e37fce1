"""The resolvent of a chain, and the noise of time averages that follows from it."""

from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._memory import gib, with_memory
from .._show import AbstractShown
from ..solvers import (
    AbstractSolver,
    AbstractSystem,
    ConjugateGradient,
    Form,
    GramGenerator,
    LinearSolve,
    Pairing,
    SolverStats,
    batch_numbers,
    bilinear_form,
    checked_solver,
    slope_numbers,
    solve_numbers,
    total,
    worst,
)
from .chains import (
    AbstractChain,
    AbstractFunctions,
    AbstractReduction,
    Sector,
    Table,
    blocks_alike,
    in_blocks,
    parity_of,
    require_chain,
    scale,
)


_PROBES = 16  # functions of `QStruct.randomised`, by default

Convention = Literal["resolvent", "sokal"]
"""Which noise a window of `K` steps has: `2 T_O / K`, or the asymptotic variance."""


@eqx.filter_jit
def resolvent(
    chain: AbstractChain,
    f: Float[Array, "some *obs"],
    *,
    sector: Sector | None = None,
    solver: AbstractSolver | None = None,
) -> Float[Array, "states *obs"]:
    """`R f`: the solution `x` of `(I - P) x = f - π(f)` with `π(x) = 0`.

    It is `Σ_{t≥0} P^t (f - π(f))` where that converges: the excess of `f` still to
    come, in steps. All columns of `f` share one factorisation. Differentiable to any
    order.

    **Arguments:**

    - `chain`: the chain.
    - `f`: `(states,)` or `(states, n_obs)`.
    - `sector`, `solver`: as for [`trainq.markov.resolvent_trace`][].

    **Returns:** an array like `f`.

    **Raises:** `ValueError` for a wrong shape, too many states, or a sector of a chain
    that is not symmetric; `MemoryError`, with an estimate, for more than there is
    memory for; a run-time error if the chain is reducible in floating point.

    ??? cite "Source"

        Kemeny and Snell, *Finite Markov Chains*, 1960: `R` is their fundamental matrix
        on functions of mean zero.
    """
    return solve_resolvent(chain, f, sector=sector, solver=solver).value


class ResolventSolution(AbstractShown):
    """`R f`, and how well each column of it was solved."""

    value: Float[Array, "states *obs"]
    """`R f` at every state, in order."""
    stats: SolverStats
    """How well each column was solved, and at what price."""


@eqx.filter_jit
def solve_resolvent(
    chain: AbstractChain,
    f: Float[Array, "some *obs"],
    *,
    sector: Sector | None = None,
    solver: AbstractSolver | None = None,
) -> ResolventSolution:
    """[`trainq.markov.resolvent`][], and the statistics of its solver.

    **Arguments:**

    - `chain`, `f`, `sector`, `solver`: as for [`trainq.markov.resolvent`][].

    **Returns:** a [`trainq.markov.ResolventSolution`][].

    **Raises:** as [`trainq.markov.resolvent`][].
    """
    require_chain(chain)
    columns = chain.centre(f).reshape(chain.n_states, -1)
    at, solver = chain.coordinates(Table(columns)), checked_solver(solver)
    parts, stats = [], []
    for reduction in chain.reductions(sector):
        left, right, bulk, *_ = reduction.sides(at, "diagonal")
        b = left if right is None else right
        solve = LinearSolve(reduction.generator, solver, columns.shape[1], at.size)
        solution = solve(b, bulk=bulk, beside=at.beside)
        parts.append(reduction.unfold(solution.value))
        stats.append(solution.stats)
    x = chain.solution(columns, sum(parts[1:], parts[0]))
    x = x.reshape(chain.n_states, *f.shape[1:])
    return ResolventSolution(x, worst(stats))


def resolvent_form(
    chain: AbstractChain,
    f: AbstractFunctions,
    *,
    solver: AbstractSolver,
    pairing: Pairing = "diagonal",
    sector: Sector | None = None,
    guess: Any = None,
    convention: Convention = "resolvent",
) -> Form:
    """`⟨f̃_a, R f̃_b⟩_π` for `a = b`, or for all pairs.

    **Arguments:**

    - `chain`: the chain.
    - `f`: the functions, which need not exist all at once.
    - `solver`: how to solve.
    - `pairing`: `"diagonal"` for `a = b`, `"gram"` for all pairs.
    - `sector`: a parity that all functions are promised to have.
    - `guess`: that of a form nearby.
    - `convention`: `"sokal"` to count lag zero half, for `a = b`.
    """
    reductions = chain.reductions(sector)
    only = parity_of(reductions)

    def some(f: AbstractFunctions, guesses: Any) -> Form:
        at, forms = chain.coordinates(f, pairing, only), []
        value = at.at_once
        if convention == "sokal":
            value = value - at.variance / 2
        guesses = guesses or [None] * len(reductions)
        for reduction, start in zip(reductions, guesses, strict=True):
            left, right, bulk, rest, weight = reduction.sides(at, pairing)
            value = value + rest
            found = bilinear_form(
                reduction.generator,
                left,
                right,
                pairing=pairing,
                solver=solver,
                size=at.size,
                bulk=bulk,
                beside=at.beside,
                guess=start,
            )
            forms.append(Form(weight * found.value, found.stats, found.guess))
        form = total(forms)
        return Form(value + form.value, form.stats, form.guess)

    if pairing == "gram":
        return some(f, guess)
    n, system = f.n_functions, reductions[0].generator.system()
    chosen = solver.select(system, n)
    block = chosen.columns_at_once(system, chain.width, n, chain.dtype)
    form = in_blocks(some, f, block, guess)
    value = _with_memory(form.value, chain, reductions, system, chosen, block)
    return Form(value, form.stats, form.guess)


def _with_memory(
    value: Float[Array, " n_obs"],
    chain: AbstractChain,
    reductions: tuple[AbstractReduction, ...],
    system: AbstractSystem,
    solver: AbstractSolver,
    block: int,
) -> Float[Array, " n_obs"]:
    """A form of so many functions, having required the memory that it takes."""
    n, itemsize = value.shape[0], chain.dtype.itemsize
    generator = reductions[0].generator

    def n_bytes(n: int, block: int, solver: AbstractSolver) -> tuple[float, float]:
        """What it takes for `n` functions, and with its derivative."""
        n_blocks, block = blocks_alike(n, min(n, block))
        parity = parity_of(reductions)
        values, slopes = chain.coordinate_numbers(block, n_blocks, parity)
        values += len(reductions) * solve_numbers(generator, system, solver, block)
        slopes += len(reductions) * slope_numbers(generator, system, n)
        return values * itemsize, (values + slopes) * itemsize

    taken, instead = n_bytes(n, block, solver), "`QSampled` takes samples."
    if not isinstance(generator, GramGenerator):
        one, few = ConjugateGradient(block=1), min(n, _PROBES)
        options = {
            "With `solver=tq.ConjugateGradient(block=1)` it takes": n,
            f"`predictor.randomised`, of {few} functions, takes with that": few,
        }
        instead = f"A two-layer kernel of an RBM takes less, and {instead}"
        for how, some in reversed(options.items()):
            less = n_bytes(some, 1, one)
            if less < taken:
                sizes = f"{gib(less[0])} GiB, and {gib(less[1])} with its gradient"
                instead = f"{how} about {sizes}. {instead}"
    what = f"The resolvent of {n} functions of {chain.n_states:,} states"
    once = len(reductions) * batch_numbers(system, solver) * itemsize
    return with_memory(value, *taken, what, instead, once)


@eqx.filter_jit
def resolvent_trace(
    chain: AbstractChain,
    f: Float[Array, "states *obs"],
    *,
    sector: Sector | None = None,
    solver: AbstractSolver | None = None,
) -> Float[Array, ""]:
    """`T_O = Σ_a ⟨f̃_a, R f̃_a⟩_π`, in kernel steps: the autocovariance of the
    observables summed over all lags `t ≥ 0`.

    One factorisation for all observables, and a backward pass without a solve. It is a
    `jax.custom_vjp`: reverse mode to any order and `jax.hessian` work; forward mode
    alone needs [`trainq.solvers.PlainAutodiff`][].

    **Arguments:**

    - `chain`: the chain.
    - `f`: `(states,)` or `(states, n_obs)`.
    - `sector`: `"even"` or `"odd"` if every column is known to have this parity under
        the global flip. Only that sector is then solved: the result is wrong if `f` has
        another part. Both, by default.
    - `solver`: how to solve, [`trainq.Auto`][] by default.

    **Returns:** a number.

    **Raises:** as `trainq.markov.resolvent`; also `ValueError` if a sector is asked for
    of a chain that is not symmetric.
    """
    require_chain(chain)
    columns = chain.centre(f).reshape(chain.n_states, -1)
    form = resolvent_form(
        chain, Table(columns), solver=checked_solver(solver), sector=sector
    )
    return jnp.sum(form.value)


@eqx.filter_jit
def asymptotic_covariance(
    chain: AbstractChain,
    f: Float[Array, "states n_obs"],
    *,
    convention: Convention = "sokal",
    sector: Sector | None = None,
    solver: AbstractSolver | None = None,
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
    require_chain(chain)
    check_convention(convention)
    if f.ndim != 2:
        raise ValueError(
            f"The covariance is of functions of shape ({chain.n_states}, n_obs), but "
            f"{f.shape} was given. Add an axis: `f[:, None]`."
        )
    f = chain.centre(f)
    form = resolvent_form(
        chain, Table(f), pairing="gram", solver=checked_solver(solver), sector=sector
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
