"""What an exact chain is: its law, whether it is reversible, and `f ↦ Pf`.

What it knows besides are reductions (`_reductions`), which make exact answers cheap.
What is asked of a chain is written once over these, in the file named after it.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..._loops import Steps, repeat
from ..._memory import with_memory
from ..._spins import check_enumerable, shard
from ...solvers import (
    MAX_ELIMINATED,
    AbstractGenerator,
    AbstractStep,
    DenseGenerator,
    Pairing,
    StepGenerator,
    inverse_root,
    ratio_scaled,
)
from ._cuts import log_total, log_where
from ._functions import AbstractFunctions
from ._reductions import (
    AbstractCoordinates,
    AbstractReduction,
    JointCoordinates,
    Sector,
    SectorReduction,
    scale,
)


# 2**13 states make a dense matrix of 512 MiB in float64.
_MAX_DENSE_UNITS = 13


class AbstractChain(eqx.Module):
    """A Markov chain on finitely many states, with its stationary law.

    A chain of your own has `log_stationary`, `is_reversible` and `apply`. Everything
    else has a default, by way of its matrix; what it can do better, it overrides.

    Functions of the state have shape `(states,)` or `(states, n_obs)`.
    """

    log_stationary: eqx.AbstractVar[Float[Array, " states"]]
    is_reversible: eqx.AbstractVar[bool]
    # Whether it keeps parity under the global flip of all spins.
    is_symmetric = False

    @property
    def is_positive(self) -> bool:
        """Whether it is reversible and has no negative eigenvalues: sums over its
        powers then need fewer terms."""
        return False

    @property
    def n_states(self) -> int:
        """Number of states."""
        return self.log_stationary.shape[0]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the law, which results share."""
        return self.log_stationary.dtype

    @property
    def stationary(self) -> Float[Array, " states"]:
        """The stationary law `π`."""
        return jnp.exp(self.log_stationary)

    @property
    def root(self) -> Float[Array, " states"]:
        """`√π`, a unit vector."""
        return jnp.exp(self.log_stationary / 2)

    @abc.abstractmethod
    def apply(self, f: Float[Array, "states *obs"]) -> Float[Array, "states *obs"]:
        """`(P f)(x) = E[f(X₁) | X₀ = x]`: linear in `f`."""

    def operator(self) -> Callable[[Array], Array]:
        """`apply` as a function, with what every application needs computed once."""
        return self.apply

    def push(
        self, law: Float[Array, " states"], steps: int | Steps = 1
    ) -> Float[Array, " states"]:
        """`law P^steps`: the law some steps after `law`."""
        back = jax.linear_transpose(self.operator(), law)
        return repeat(lambda law: back(law)[0], law, steps)

    def matrix(self) -> Float[Array, "states states"]:
        """The transition matrix `P`, with rows that sum to one.

        **Raises:** `ValueError` for more than 2**13 states.
        """
        check_dense(self.n_states)
        return self.apply(jnp.eye(self.n_states, dtype=self.dtype))

    def lift(self, f: Float[Array, "some *obs"]) -> Float[Array, "states *obs"]:
        """Functions of the state of a model as functions of that of the chain, which
        may be more: several replicas of the model, the first of which is observed."""
        return f

    def centre(self, f: Float[Array, "some *obs"]) -> Float[Array, "states *obs"]:
        """`f̃ = f - π(f)`, of functions on this chain or those that it lifts."""
        f = self.lift(f)
        if f.ndim not in (1, 2) or f.shape[0] != self.n_states or not f.size:
            raise ValueError(
                f"Functions on this chain, at least one, have shape ({self.n_states},) "
                f"or ({self.n_states}, n_obs), but {f.shape} was given."
            )
        return _centred(f.astype(self.dtype), self.log_stationary)

    # Reductions.

    @property
    def width(self) -> int:
        """How many numbers hold one function in `coordinates`."""
        return self.n_states

    def coordinates(
        self,
        f: AbstractFunctions,
        pairing: Pairing = "diagonal",
        sector: Sector | None = None,
    ) -> AbstractCoordinates:
        """Functions in the form that the reductions take, or that of one sector, if
        they are all in it."""
        del pairing
        log_law = self._log_law_in(sector)
        if sector is None:
            values = self.centre(f.table())
        else:
            values = f.table(half=True).astype(self.dtype)
        if sector == "even":
            values = _centred(values, log_law)
        # Rounding errors are those of the values, and of the mean that was taken off
        # them, which odd functions do not have.
        size = jnp.abs(values)
        if sector != "odd":
            size = size + jnp.abs(_at_the_mode(values, log_law))[None]
        root = jnp.exp(log_law / 2)
        return JointCoordinates(shard(scale(root, values)), scale(root, size), sector)

    def coordinate_numbers(
        self, block: int, n_blocks: int, sector: Sector | None = None
    ) -> tuple[float, float]:
        """About how many numbers are held at once while blocks of functions are brought
        into this form, and how many more by the derivative."""
        size = block * (self.n_states if sector is None else self.n_states // 2)
        # One block alone is not computed anew by the backward pass.
        values = (5.5 if n_blocks > 1 else 3.3) * size
        return values, 6.3 * size - values

    def _log_law_in(self, sector: Sector | None) -> Float[Array, " some"]:
        """The law of all states, or that of the classes {x, -x}, each of which has that
        of both its members."""
        law = self.log_stationary
        return law if sector is None else law[: law.shape[0] // 2] + math.log(2)

    def reductions(self, sector: Sector | None = None) -> tuple[AbstractReduction, ...]:
        """What the chain splits into: one part for each sector of the global flip, or
        that for functions of one parity alone.

        A chain without a `step_in` does not split, and its matrix is what is left.

        **Raises:** `ValueError` if there are too many states for that, or a sector is
        asked for of a chain that is not symmetric.
        """
        self.check_sector(sector)
        sectors: tuple[Sector | None, ...] = (sector,)
        if self.is_symmetric and sector is None:
            sectors = ("even", "odd")
        steps = [self.step_in(s) for s in sectors]
        lowest = 0 if self.is_positive else -1
        if any(step is None for step in steps):
            return (SectorReduction(self.dense_generator(), None, lowest),)
        return tuple(
            SectorReduction(self._step_generator(step, s), s, lowest)
            for step, s in zip(steps, sectors, strict=True)
            if step is not None
        )

    def step_in(self, sector: Sector | None = None) -> AbstractStep | None:
        """A step on half densities, in one sector of the global flip or in all, which
        takes no matrix; None if the chain does not know one."""
        del sector
        return None

    def _step_generator(
        self, step: AbstractStep, sector: Sector | None
    ) -> StepGenerator:
        small = self.n_states <= 2 * MAX_ELIMINATED
        return StepGenerator(
            step=step,
            log_law=self._log_law_in(sector),
            is_self_adjoint=self.is_reversible,
            whole=self.step_in() if sector == "odd" and small else None,
            is_odd=sector == "odd",
        )

    def spectral_reductions(
        self, sector: Sector | None = None
    ) -> tuple[AbstractReduction, ...]:
        """Reductions that together have all modes of the chain."""
        return self.reductions(sector)

    def spectral_coordinates(self, f: AbstractFunctions) -> AbstractCoordinates:
        """Functions in the form that these take."""
        return self.coordinates(f)

    def window_reductions(
        self, sector: Sector | None = None
    ) -> tuple[AbstractReduction, ...] | None:
        """Reductions whose powers over a finite window are a polynomial of few terms;
        None if the chain goes step by step, for which it needs no matrix."""
        self.check_sector(sector)
        if not self.is_reversible or self.step_in() is None:
            return None
        return self.reductions(sector)

    def solution(
        self, f: Float[Array, "states k"], y: Float[Array, "whole k"]
    ) -> Float[Array, "states k"]:
        """`R f`, from what its reductions solved for and `f` of mean zero."""
        x = scale(inverse_root(self.log_stationary), y)
        return self.centre(self.jacobi_sweeps(x, f))

    def check_sector(self, sector: Sector | None) -> None:
        """Raise a `ValueError` if the chain does not keep parity and is asked to."""
        if sector is not None and not self.is_symmetric:
            raise ValueError(
                f"The {sector} sector was asked for, but this chain is not symmetric "
                "under the global flip: its model has biases, or does not say "
                "`is_symmetric`."
            )

    def dense_generator(
        self, target: Bool[Array, " states"] | None = None
    ) -> DenseGenerator:
        """The symmetrised `I - P` as a matrix; with a target, that of the chain which
        is killed there."""
        check_dense(self.n_states)
        return dense_generator(
            self.matrix(), self.log_stationary, self.is_reversible, target
        )

    # Structure, for what does not reduce.

    def jumps(self) -> tuple[Float[Array, " states"], Callable[[Array], Array]]:
        """The probability to leave each state, and what `operator` does but for
        staying; or one and all of `operator`, where a step forgets the state."""
        return jnp.ones_like(self.log_stationary), self.operator()

    def decrease(
        self, f: Float[Array, " states"]
    ) -> tuple[Float[Array, " states"], Float[Array, " states"]]:
        """`f - P f`, what a step takes off a function, as a sum over differences
        between states; and a bound on the rounding errors in it."""

        def one(row):
            rates, value = row
            parts = rates * (value - f)
            return jnp.sum(parts), jnp.sum(jnp.abs(parts))

        total, size = lax.map(one, (self.matrix(), f), batch_size=256)
        return total, (self.n_states + 3) * jnp.finfo(f.dtype).eps * size

    def jacobi_sweeps(
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

        n_sweeps = (self.n_states - 1).bit_length()
        x = jax.lax.fori_loop(0, n_sweeps, jax.checkpoint(sweep), x)
        # The tables of the kernel; and the functions after every sweep.
        tables, k = n_sweeps * self.n_states, x.shape[1]
        value = 6.2 * tables + 3 * k * self.n_states
        gradient = 10.5 * tables + k * (2 * tables + 45 * self.n_states)
        return with_memory(
            x,
            value * self.dtype.itemsize,
            gradient * self.dtype.itemsize,
            f"The solution for {k} functions of {self.n_states:,} states",
            "Take a smaller model of the same kind, or fewer functions at a time.",
        )

    def least_probability(self) -> Float[Array, ""]:
        """The smallest entry of the transition matrix; not a number if one is none."""
        matrix = self.matrix()
        return jnp.where(jnp.all(jnp.isfinite(matrix)), jnp.min(matrix), jnp.nan)

    def imbalance(self) -> Float[Array, ""]:
        """`max |π(x) P(x, y) - π(y) P(y, x)|`."""
        flow = scale(self.stationary, self.matrix())
        return largest(flow - flow.T)

    def asymmetry(self) -> Float[Array, ""]:
        """`max |P(x, y) - P(-x, -y)|`."""
        matrix = self.matrix()
        return largest(matrix - matrix[::-1, ::-1])

    def log_cut_flow(self, members: Bool[Array, " states"]) -> Float[Array, ""]:
        """`log Σ_{x in S, y not in S} π(x) P(x, y)` for a set `S` of states."""
        # What goes out is what comes in, in the stationary law. A probability to cross
        # may underflow from one side, and then the flow from there is too small.
        step = self.operator()

        def one_way(inside):
            crosses = step(jnp.where(inside, 0, jnp.ones_like(self.log_stationary)))
            return log_total(self.log_stationary + log_where(inside, crosses))

        return jnp.maximum(one_way(members), one_way(~members))

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

    def killed_generator(self, target: Bool[Array, " states"]) -> AbstractGenerator:
        """The symmetrised `I - P` of the chain that is killed on the target, with the
        identity on the target itself."""
        return self.dense_generator(target)


def _centred(
    f: Float[Array, "some *obs"], log_law: Float[Array, " some"]
) -> Float[Array, "some *obs"]:
    """Functions less their means."""
    # First less its value where the chain is most of the time. In the cold the mean
    # differs from that by less than rounding leaves of either.
    f = f - _at_the_mode(f, log_law)[None]
    return f - (jnp.exp(log_law) @ f)[None]


def _at_the_mode(
    f: Float[Array, "some *obs"], log_law: Float[Array, " some"]
) -> Float[Array, "*obs"]:
    """The value in the most frequent state, or the mean of such: as a product, because
    to look one up gathers states that are spread over devices."""
    law = lax.stop_gradient(log_law)
    most = (law == jnp.max(law)).astype(f.dtype)
    return (most / jnp.sum(most)) @ f


def largest(x: Float[Array, "..."]) -> Float[Array, ""]:
    """The largest absolute value; not a number if one of them is none. (On the CPU,
    XLA's maximum over several axes may skip it.)"""
    return jnp.where(jnp.all(jnp.isfinite(x)), jnp.max(jnp.abs(x), initial=0), jnp.nan)


def check_dense(n_states: int, *instead: str) -> None:
    """Raise a `ValueError` if a matrix over so many states is too large, and say what
    to do instead."""
    n_units = (n_states - 1).bit_length()
    check_enumerable(n_units, _MAX_DENSE_UNITS, "matrix", *instead)


def require_chain(chain: Any) -> None:
    """Raise a `TypeError` for another thing than a chain."""
    if not isinstance(chain, AbstractChain):
        raise TypeError(
            "chain is the exact chain of a kernel on a model, as `kernel.chain(model)` "
            f"makes it, but an object of type {type(chain).__name__} was given."
        )


def require_reversible(chain: AbstractChain, what: str) -> None:
    """Raise a `ValueError` if the chain is not reversible, or a `TypeError` if it is no
    chain."""
    require_chain(chain)
    if not chain.is_reversible:
        raise ValueError(
            f"The {what} needs a reversible chain, and this one is not. Use a "
            "reversible kernel, such as `PalindromicBlockGibbs` in place of "
            "`AlternatingBlockGibbs`."
        )


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
        is_self_adjoint=is_reversible,
    )
