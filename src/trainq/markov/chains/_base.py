"""Exact chains: linear operators on functions of the state.

A chain knows its own structure, and so the reductions that make exact answers cheap:
single flips split into the two sectors of the global flip and eliminate half of what is
left (`_single_flip`); two-block kernels live on one layer (`_two_block`).
"""

import abc
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..._spins import check_enumerable, fold, unfold
from ...solvers._forms import Form, Pairing
from ...solvers._generators import AbstractGenerator, DenseGenerator, ratio_scaled
from ...solvers._solvers import AbstractStrategy, ConjugateGradient, SolverStats
from ._functions import AbstractFunctions, in_blocks


Sector = Literal["even", "odd"]
_SIGNS: dict[Sector, int] = {"even": 1, "odd": -1}
# 2**13 states make a dense matrix of 512 MiB in float64.
_MAX_DENSE_UNITS = 13


class EigenProblem(NamedTuple):
    """The generator in one sector whose slowest mode gives that of the chain.

    The gap is `gap(λ, y)`, with `λ` the smallest eigenvalue of the generator but that
    of its null vector and `y` the eigenvector, and the mode's symmetrised values
    `√π(x) ψ(x)` are `lift(y)` up to a factor.
    """

    generator: AbstractGenerator
    gap: Callable[[Array, Array], Array]
    lift: Callable[[Array], Array]


class AbstractChain(eqx.Module):
    """A Markov chain on finitely many states, with its stationary law.

    Functions of the state have shape `(states,)` or `(states, n_obs)`.
    """

    log_stationary: eqx.AbstractVar[Float[Array, " states"]]
    is_reversible: eqx.AbstractVar[bool]
    is_symmetric: eqx.AbstractVar[bool]

    @property
    def n_states(self) -> int:
        """Number of states."""
        return self.log_stationary.shape[0]

    @property
    def stationary(self) -> Float[Array, " states"]:
        """The stationary law `π`."""
        return jnp.exp(self.log_stationary)

    @property
    def root(self) -> Float[Array, " states"]:
        """`√π`, a unit vector."""
        return jnp.exp(self.log_stationary / 2)

    @abc.abstractmethod
    def stepper(self) -> Callable[[Array], Array]:
        """`apply` as a function, with what every application needs computed once."""

    def apply(self, f: Float[Array, "states *obs"]) -> Float[Array, "states *obs"]:
        """`(P f)(x) = E[f(X₁) | X₀ = x]`."""
        return self.stepper()(f)

    def push(
        self, law: Float[Array, " states"], steps: int = 1
    ) -> Float[Array, " states"]:
        """`law P^steps`: the law some steps after `law`."""
        back = jax.linear_transpose(self.stepper(), law)
        return loop(lambda law: back(law)[0], law, steps)

    def matrix(self) -> Float[Array, "states states"]:
        """The transition matrix `P`, with rows that sum to one.

        **Raises:** `ValueError` for more than 2**13 states.
        """
        check_dense(self.n_states)
        return self.apply(jnp.eye(self.n_states, dtype=self.log_stationary.dtype))

    def centre(self, f: Float[Array, "states *obs"]) -> Float[Array, "states *obs"]:
        """`f̃ = f - π(f)`."""
        if f.ndim not in (1, 2) or f.shape[0] != self.n_states:
            raise ValueError(
                f"Functions on this chain have shape ({self.n_states},) or "
                f"({self.n_states}, n_obs), but {f.shape} was given."
            )
        f = f.astype(self.log_stationary.dtype)
        # First less its value where the chain is most of the time. In the cold the mean
        # differs from that by less than rounding leaves of either.
        f = f - f[jnp.argmax(self.log_stationary)][None]
        return f - (self.stationary @ f)[None]

    def bulk(self, f: Float[Array, "states n_obs"]) -> Float[Array, "states n_obs"]:
        """What the rounding errors in `√π f̃` are proportional to, for functions that
        `centre` returns: their values, and the mean that was taken off them."""
        offset = jnp.abs(f[jnp.argmax(self.log_stationary)])
        return scale(self.root, jnp.abs(f) + offset[None])

    @abc.abstractmethod
    def resolvent_form(
        self,
        f: AbstractFunctions,
        *,
        pairing: Pairing,
        solver: AbstractStrategy,
        sector: Sector | None,
        guess: Any = None,
    ) -> Form:
        """`⟨f̃_a, R f̃_b⟩_π` for `a = b`, or for all pairs. `sector` promises a parity of
        `f` under the global flip; `guess` is that of a form nearby."""

    @abc.abstractmethod
    def resolvent(
        self, f: Float[Array, "states n_obs"], *, solver: AbstractStrategy
    ) -> tuple[Float[Array, "states n_obs"], SolverStats]:
        """`R f`, the solution of `(I - P) x = f` with `π(x) = 0`, for `f` of mean
        zero."""

    @abc.abstractmethod
    def window_variance(
        self, f: AbstractFunctions, window: int, sector: Sector | None = None
    ) -> Float[Array, " n_obs"]:
        """The variance of the average of `f_a` over `window` steps of the chain, from
        its stationary law. `sector` promises a parity of `f` under the global flip."""

    def window_moments(
        self, f: Float[Array, "states n_obs"], window: int
    ) -> tuple[Float[Array, "states n_obs"], Float[Array, "states n_obs"]]:
        """First and second moment of the average of `f` over `window` steps, given the
        first state. It takes as many applications of the chain as there are steps.
        """
        # With s_n(x) the mean and h_n(x) the mean square of f(X_0) + … + f(X_n-1),
        #   s_n+1 = f + P s_n,
        #   h_n+1 = f² + 2 f P s_n + P h_n = f (2 s_n+1 - f) + P h_n.
        step, n_obs = self.stepper(), f.shape[1]

        def longer(moments):
            s, h = jnp.split(step(moments), [n_obs], axis=1)
            s = f + s
            return jnp.concatenate([s, f * (2 * s - f) + h], axis=1)

        zero = jnp.zeros((self.n_states, 2 * n_obs), f.dtype)
        s, h = jnp.split(loop(longer, zero, window), [n_obs], axis=1)
        return s / window, h / window**2

    def variance(self, f: AbstractFunctions) -> Float[Array, " n_obs"]:
        """`Var_π f_a`."""

        def some(f, _):
            root = scale(self.root, self.centre(f.table()))
            return Form(jnp.sum(root**2, axis=0), None, None)

        dtype = self.log_stationary.dtype
        block = ConjugateGradient().block_size(self.n_states, f.n_functions, dtype)
        return in_blocks(some, f, block).value

    def jumps(self) -> tuple[Float[Array, " states"], Callable[[Array], Array]]:
        """The probability to leave each state, and what `stepper` does but for staying;
        or one and all of `stepper`, where a step forgets the state."""
        return jnp.ones_like(self.log_stationary), self.stepper()

    def relax(
        self,
        x: Float[Array, "states n_obs"],
        f: Float[Array, "states n_obs"],
        killed: Bool[Array, " states"] | None = None,
    ) -> Float[Array, "states n_obs"]:
        """Sweeps of Jacobi's iteration for `(I - P) x = f`, with `x` held where
        `killed`.

        A solution of the symmetrised system is `√π x`, and dividing it by `√π` leaves
        nothing of `x` in states that are hardly ever visited. But their values follow
        from those of the states that the chain goes to next, which are visited more:
        after as many sweeps as there are units, every value comes from accurate ones.
        """
        leaving, step = self.jumps()
        moves = leaving > 0 if killed is None else (leaving > 0) & ~killed
        leaving = jnp.where(moves, leaving, 1)

        def sweep(_, x):
            return jnp.where(moves[:, None], scale(1 / leaving, f + step(x)), x)

        return jax.lax.fori_loop(0, (self.n_states - 1).bit_length(), sweep, x)

    def imbalance(self) -> Float[Array, ""]:
        """`max |π(x) P(x, y) - π(y) P(y, x)|`."""
        flow = scale(self.stationary, self.matrix())
        return largest(flow - flow.T)

    def asymmetry(self) -> Float[Array, ""]:
        """`max |P(x, y) - P(-x, -y)|`."""
        matrix = self.matrix()
        return largest(matrix - matrix[::-1, ::-1])

    def log_cut_flows(self, order: Int[Array, " states"]) -> Float[Array, " cuts"]:
        """`log Σ_{x in S, y not in S} π(x) P(x, y)` for the sets `S` of the first `k`
        states in `order`, `k = 1, …, states - 1`, of a reversible chain."""
        # Nothing is subtracted, and nothing underflows: all flows into a state after
        # each of the others, and then all from a state before it.
        law = self.log_stationary[order]
        flow = jnp.log(self.matrix()[order][:, order]) + law[:, None]
        flow = jnp.maximum(flow, flow.T)  # where one direction has underflowed
        beyond = jax.lax.cumlogsumexp(flow, axis=1, reverse=True)[:, 1:]
        on = jnp.arange(self.n_states)
        before = on[:, None] <= on[None, :-1]
        return jax.nn.logsumexp(jnp.where(before, beyond, -jnp.inf), axis=0)

    @abc.abstractmethod
    def killed_generator(self, target: Bool[Array, " states"]) -> AbstractGenerator:
        """The symmetrised `I - P` of the chain that is killed on the target, with the
        identity on the target itself."""

    @abc.abstractmethod
    def eigen_problem(self, sector: Sector | None) -> EigenProblem:
        """The eigenproblem of the slowest mode, in one sector of the global flip."""

    def sectors(self, sector: Sector | None = None) -> tuple[Sector | None, ...]:
        """The sectors of the global flip that the chain splits into, or the one asked
        for; `(None,)` for a chain that is not symmetric."""
        if sector is not None and not self.is_symmetric:
            raise ValueError(
                f"The {sector} sector was asked for, but this chain is not symmetric "
                "under the global flip: its model has biases, or does not say "
                "`is_symmetric`."
            )
        if not self.is_symmetric:
            return (None,)
        return ("even", "odd") if sector is None else (sector,)


def loop(body: Callable[[Any], Any], carry: Any, steps: int) -> Any:
    """`body` applied `steps` times. The backward pass keeps about `2 √steps` of the
    states in between, and computes the others anew."""

    def some(carry, length):
        if length == 0:
            return carry
        return jax.lax.scan(lambda x, _: (body(x), None), carry, length=length)[0]

    inner = math.isqrt(steps)
    if inner < 2:
        return some(carry, steps)
    outer, rest = divmod(steps, inner)
    segment = jax.checkpoint(lambda carry: some(carry, inner))
    carry, _ = jax.lax.scan(lambda x, _: (segment(x), None), carry, length=outer)
    return some(carry, rest)


def largest(x: Float[Array, "..."]) -> Float[Array, ""]:
    """The largest absolute value; not a number if one of them is none. (On the CPU,
    XLA's maximum over several axes may skip it.)"""
    return jnp.where(jnp.all(jnp.isfinite(x)), jnp.max(jnp.abs(x), initial=0), jnp.nan)


def check_dense(n_states: int) -> None:
    """Raise a `ValueError` if a matrix over so many states is too large."""
    check_enumerable((n_states - 1).bit_length(), _MAX_DENSE_UNITS, "matrix")


def require_reversible(chain: AbstractChain, what: str) -> None:
    """Raise a `ValueError` if the chain is not reversible."""
    if not chain.is_reversible:
        raise ValueError(
            f"The {what} needs a reversible chain, and this one is not. Use a "
            "reversible kernel, such as `PalindromicBlockGibbs` in place of "
            "`AlternatingBlockGibbs`."
        )


def fold_sector(f: Array, sector: Sector | None) -> Array:
    return f if sector is None else fold(f, _SIGNS[sector])


def fold_bulk(f: Array, sector: Sector | None) -> Array:
    """What the rounding errors in `fold_sector` are proportional to."""
    return f if sector is None else fold(f, 1)


def unfold_sector(f: Array, sector: Sector | None) -> Array:
    return f if sector is None else unfold(f, _SIGNS[sector])


def scale(weight: Float[Array, " n"], f: Float[Array, "n *k"]) -> Array:
    """Multiply every column of `f` by `weight`."""
    return weight.reshape(weight.shape + (1,) * (f.ndim - 1)) * f


def off_diagonal(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """A matrix with zeros on its diagonal."""
    on = jnp.arange(matrix.shape[0])
    return jnp.where(on[:, None] == on[None, :], 0, matrix)


def dense_generator(
    matrix: Float[Array, "n n"],
    log_law: Float[Array, " n"],
    is_reversible: bool,
    target: Bool[Array, " n"] | None = None,
) -> DenseGenerator:
    """The symmetrised `I - P`; with a target, that of the chain which is killed there,
    and the identity on the target itself."""
    # The diagonal is the sum of the rates to other states: one minus the probability to
    # stay would lose the digits of a state that is hardly ever left.
    rates = off_diagonal(matrix)
    diagonal, leak = jnp.sum(rates, axis=1), None
    if target is not None:
        leak = jnp.where(target, 1, jnp.sum(jnp.where(target[None], rates, 0), axis=1))
        diagonal = jnp.where(target, 1, diagonal)
        rates = jnp.where(target[:, None] | target[None, :], 0, rates)
    # √π(x) P(x, y) / √π(y)
    hops = ratio_scaled(rates, (log_law[:, None] - log_law[None, :]) / 2)
    hops = (hops + hops.T) / 2 if is_reversible else hops
    return DenseGenerator(
        diagonal=diagonal,
        hops=hops,
        log_law=log_law,
        leak=leak,
        is_symmetric=is_reversible,
    )
