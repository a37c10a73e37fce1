"""Cuts of a chain: flow, conductance, sweeps, and Cheeger's inequality."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Num

from .._show import AbstractShown, Table, count
from ._spectrum import find_slowest
from .chains import (
    AbstractChain,
    Sector,
    log_total,
    require_chain,
    require_reversible,
)


# Sets that `best_cut` looks at: those of 17 states, or of 16 in the odd sector.
_MAX_SETS = 2**16


class Cut(AbstractShown):
    """A set `S` of states, and what goes through its boundary in one step.

    Masses and flows are held as logarithms, because those of a bottleneck may be
    smaller than any number.
    """

    members: Bool[Array, " states"]
    """Whether each state is in `S`."""
    log_mass: Float[Array, ""]
    """`log π(S)`."""
    log_rest: Float[Array, ""]
    """`log (1 - π(S))`, the mass of all other states, of which nothing was
    subtracted."""
    log_flow: Float[Array, ""]
    """`log Σ_{x∈S, y∉S} π(x) P(x, y)`, with the flow in inverse kernel steps."""

    @property
    def mass(self) -> Float[Array, ""]:
        """`π(S)`."""
        return jnp.exp(self.log_mass)

    @property
    def flow(self) -> Float[Array, ""]:
        """`Σ_{x∈S, y∉S} π(x) P(x, y)`: how often a long run leaves `S`, in inverse
        kernel steps."""
        return jnp.exp(self.log_flow)

    @property
    def log_conductance(self) -> Float[Array, ""]:
        """The logarithm of the conductance."""
        smaller = jnp.minimum(self.log_mass, self.log_rest)
        none = jnp.isneginf(smaller)
        return jnp.where(none, jnp.inf, self.log_flow - jnp.where(none, 0, smaller))

    @property
    def conductance(self) -> Float[Array, ""]:
        """`flow / min(π(S), 1 - π(S))`, in inverse kernel steps: the rate at which the
        rarer side of the cut is left. Infinity if one side is empty."""
        return jnp.exp(self.log_conductance)

    def _shown(self) -> list[str | Table]:
        n_members = int(self.members.sum())
        return [
            f"Cut between {count(n_members, 'state')} and "
            f"{self.members.size - n_members}",
            [
                ("number", "value"),
                ("mass", f"{float(self.mass):.4g}"),
                ("flow", f"{float(self.flow):.4g} per step"),
                ("conductance", f"{float(self.conductance):.4g} per step"),
            ],
        ]


class CheegerMargins(AbstractShown):
    """Both sides of `γ/2 ≤ Φ ≤ √(2γ)`, with `Φ` the best sweep cut of the slowest mode.

    For a chain that is what it claims to be neither margin is negative.
    """

    gap: Float[Array, ""]
    """The spectral gap `γ`, in inverse kernel steps."""
    conductance: Float[Array, ""]
    """The conductance `Φ`, in inverse kernel steps."""

    @property
    def lower(self) -> Float[Array, ""]:
        """The lower margin `Φ - γ/2`, in inverse kernel steps."""
        return self.conductance - self.gap / 2

    @property
    def upper(self) -> Float[Array, ""]:
        """The upper margin `√(2γ) - Φ`, in inverse kernel steps."""
        return jnp.sqrt(2 * self.gap) - self.conductance

    @property
    def violation(self) -> Float[Array, ""]:
        """The share by which the conductance is outside of the bounds, and zero inside:
        a bottleneck that is hardly ever crossed counts like any other."""
        below = 1 - self.conductance / (self.gap / 2)
        above = self.conductance / jnp.sqrt(2 * self.gap) - 1
        return jnp.maximum(jnp.maximum(below, above), 0)


@eqx.filter_jit
def cut(chain: AbstractChain, members: Bool[Array, " states"]) -> Cut:
    """Mass, flow and conductance of a given set of states.

    No matrix is made. The flow is a sum of positive terms, in logarithms for single
    flips; for other chains one that is below the smallest number counts as none.
    Differentiable in the chain, to any order.

    **Arguments:**

    - `chain`: the chain, reversible or not: in the stationary law as much leaves a set
        as comes in.
    - `members`: `(2**n_units,)` booleans, true in the set.

    **Returns:** a [`trainq.markov.Cut`][].

    **Raises:** `ValueError` for a wrong shape or dtype; a run-time error if the set is
    empty or has all states.

    !!! example

        ```python
        chain = tq.RandomScanGibbs().chain(model)
        up = jnp.arange(chain.n_states) >= chain.n_states // 2  # unit 0
        print(tq.markov.cut(chain, up).conductance)  # per step
        ```
    """
    require_chain(chain)
    members = checked_set(chain, members, "The set")
    members = eqx.error_if(
        members, jnp.all(members), "The set has all states: no cut is around it."
    )
    return _cut(chain, members)


def checked_set(
    chain: AbstractChain, members: Any, name: str
) -> Bool[Array, " states"]:
    """A set of states as booleans.

    **Raises:** `ValueError` for a wrong shape or dtype; a run-time error if it is
    empty.
    """
    members = jnp.asarray(members)
    if members.shape != (chain.n_states,) or members.dtype != bool:
        raise ValueError(
            f"{name} has one boolean for each of the {chain.n_states} states, but an "
            f"array of shape {members.shape} and dtype {members.dtype} was given."
        )
    return eqx.error_if(members, ~jnp.any(members), f"{name} has no state in it.")


def _cut(chain: AbstractChain, members: Array) -> Cut:
    law = chain.log_stationary
    return Cut(
        members=members,
        log_mass=log_total(jnp.where(members, law, -jnp.inf)),
        log_rest=log_total(jnp.where(members, -jnp.inf, law)),
        log_flow=chain.log_cut_flow(members),
    )


def best_sweep_cut(
    chain: AbstractChain,
    f: Num[Array, " states"] | None = None,
    sector: Sector | None = None,
) -> Cut:
    """The cut of the smallest conductance among the sweep cuts of a function.

    A sweep cut takes the states whose value of the function is below some level. States
    whose values are the same up to rounding are on one side. Differentiable in the
    chain, with the set held fixed.

    In a sector of the global flip a bottleneck is another thing. In the even one it is
    between sets that are closed under the flip, `-S = S`: the bottleneck that even
    observables feel. In the odd one it is around a set that does not meet its mirror
    image, or around the complement of one. The sweep cuts of even functions are of the
    first kind and those of odd ones of the second, and with the slowest mode of the
    sector either satisfies `γ/2 ≤ Φ ≤ √(2γ)`, `γ` being the gap of the sector.

    **Arguments:**

    - `chain`: a reversible chain.
    - `f`: `(2**n_units,)`, any function of the state: a mode, the energy, an overlap
        with a pattern. The slowest mode by default.
    - `sector`: `"even"` or `"odd"`, of a chain that is symmetric: the parity of `f`,
        or that of the slowest mode to take.

    **Returns:** a [`trainq.markov.Cut`][], with the states below the level.

    **Raises:** `ValueError` if the chain is not reversible, not symmetric where a
    sector is asked for, or too large: for Lanczos' iteration if `f` is not given,
        and for its matrix if it does not flip single units; a run-time error if `f` is
    constant, not finite, or has not the parity of the sector.

    ??? cite "Source"

        Sinclair and Jerrum, *Approximate counting, uniform generation and rapidly
        mixing Markov chains*, Inf. Comput. 82, 93, 1989; for the odd sector, Atay and
        Liu, *Cheeger constants, structural balance, and spectral clustering analysis
        for signed graphs*, Discrete Math. 343, 111616, 2020.

    !!! example

        ```python
        chain = tq.RandomScanGibbs().chain(tq.RBM(jnp.ones((3, 3))))
        cut = tq.markov.best_sweep_cut(chain, sector="even")
        print(cut.mass, cut.conductance)
        ```
    """
    found = _best_sweep_cut(chain, f, sector)
    members = eqx.error_if(
        found.members,
        ~jnp.any(found.members),
        "The function has the same value in all states: there is no sweep cut of it.",
    )
    return eqx.tree_at(lambda cut: cut.members, found, members)


def sweep_conductance(
    chain: AbstractChain,
    f: Num[Array, " states"] | None = None,
    sector: Sector | None = None,
) -> Float[Array, ""]:
    """`Φ = min_S Σ_{x∈S, y∉S} π(x) P(x, y) / min(π(S), 1 - π(S))` over the sweep cuts
    `S` of a function, by default of the slowest mode, in inverse kernel steps.

    The bottleneck between two wells is one; the conductance of the chain is at most
    `Φ`. [`trainq.markov.best_sweep_cut`][] has the cut itself.

    **Arguments:**

    - `chain`, `f`, `sector`: as for [`trainq.markov.best_sweep_cut`][].

    **Returns:** a number; infinity if there is no cut.

    **Raises:** as [`trainq.markov.best_sweep_cut`][].

    ??? cite "Source"

        Sinclair and Jerrum, *Approximate counting, uniform generation and rapidly
        mixing Markov chains*, Inf. Comput. 82, 93, 1989.
    """
    return _best_sweep_cut(chain, f, sector).conductance


@eqx.filter_jit
def best_cut(chain: AbstractChain, sector: Sector | None = None) -> Cut:
    """The cut of the smallest conductance of all: that is the conductance of the chain.

    Every set is tried, so it is for chains of a few states, to judge sweep cuts by.

    **Arguments:**

    - `chain`: a chain of at most 17 states; 16 in the odd sector, and 32 in the even.
    - `sector`: `"even"` for sets that are closed under the global flip, `"odd"` for
        those that do not meet their mirror image: see
        [`trainq.markov.best_sweep_cut`][].

    **Returns:** a [`trainq.markov.Cut`][].

    **Raises:** `ValueError` if there are too many sets, or only one state, or the chain
    is not symmetric where a sector is asked for.

    !!! example

        ```python
        chain = tq.RandomScanGibbs().chain(tq.RBM(jnp.ones((2, 2))))
        print(tq.markov.best_cut(chain).conductance)
        print(tq.markov.sweep_conductance(chain))  # at least that
        ```
    """
    require_chain(chain)
    chain.check_sector(sector)
    n = chain.n_states
    # What can be chosen for each state, or for each class {x, -x}; the last is free
    # where a set and its complement make the same cut.
    n_options = 3 if sector == "odd" else 2
    n_choices = n // 2 if sector == "odd" else (n if sector is None else n // 2) - 1
    n_sets = n_options**n_choices
    if not 1 < n_sets <= _MAX_SETS:
        raise ValueError(
            f"All cuts are tried if there are 2 to {_MAX_SETS} sets, which 17 states "
            "have, 16 in the odd sector and 32 in the even one: at most 4 units are "
            f"allowed, 5 for even sets, but a chain of {n} states was given. Use "
            "`best_sweep_cut`, which is an upper bound."
        )

    def members(index: Array) -> Array:
        choice = (index // n_options ** jnp.arange(n_choices)) % n_options
        if sector is None:
            return jnp.append(choice == 1, False)
        if sector == "odd":
            return jnp.concatenate([choice == 1, (choice == 2)[::-1]])
        half = jnp.append(choice == 1, False)
        return jnp.concatenate([half, half[::-1]])

    fixed = jax.tree.map(lax.stop_gradient, chain)
    rates = jnp.log(fixed.matrix()) + fixed.log_stationary[:, None]
    rates = jnp.maximum(rates, rates.T) if chain.is_reversible else rates

    def log_conductance(index: Array) -> Array:
        inside = members(index)
        crosses = inside[:, None] & ~inside[None, :]
        law = fixed.log_stationary
        sides = [log_total(jnp.where(s, law, -jnp.inf)) for s in (inside, ~inside)]
        flow = log_total(jnp.where(crosses, rates, -jnp.inf))
        return flow - jnp.minimum(*sides)

    found = lax.map(log_conductance, jnp.arange(1, n_sets), batch_size=4096)
    return _cut(chain, members(jnp.argmin(found) + 1))


def cheeger_margins(
    chain: AbstractChain, sector: Sector | None = None
) -> CheegerMargins:
    """Both sides of Cheeger's inequality, and the numbers that they compare.

    **Arguments:**

    - `chain`: a reversible chain.
    - `sector`: `"even"` or `"odd"` for the gap and the cuts of this sector of the
        global flip: see [`trainq.markov.best_sweep_cut`][].

    **Returns:** [`trainq.markov.CheegerMargins`][].

    **Raises:** as `trainq.markov.sweep_conductance`.

    ??? cite "Source"

        Lawler and Sokal, *Bounds on the L² spectrum for Markov chains and Markov
        processes*, Trans. Am. Math. Soc. 309, 557, 1988.
    """
    require_reversible(chain, "Cheeger margin")
    return margins(chain, sector)


def margins(
    chain: AbstractChain, sector: Sector | None = None, *, throw: bool = True
) -> CheegerMargins:
    slowest = find_slowest(chain, sector, throw=throw)
    return CheegerMargins(slowest.gap, _sweep(chain, slowest.mode, sector).conductance)


def cheeger_margin(
    chain: AbstractChain, sector: Sector | None = None
) -> Float[Array, ""]:
    """`min(Φ - γ/2, √(2γ) - Φ)`, in inverse kernel steps: negative only if the gap or
    the law is wrong. `trainq.markov.cheeger_margins` has the two sides.

    **Arguments:**

    - `chain`, `sector`: as for [`trainq.markov.cheeger_margins`][].

    **Returns:** the smaller margin.

    **Raises:** as `trainq.markov.sweep_conductance`.
    """
    both = cheeger_margins(chain, sector)
    return jnp.minimum(both.lower, both.upper)


def _best_sweep_cut(
    chain: AbstractChain, f: Array | None, sector: Sector | None
) -> Cut:
    require_reversible(chain, "sweep conductance")
    chain.check_sector(sector)
    if f is None:
        # The set is one of finitely many, and jumps where another gets better.
        fixed = jax.tree.map(lax.stop_gradient, chain)
        return _sweep(chain, find_slowest(fixed, sector).mode, sector)
    values = jnp.asarray(f)
    if values.shape != (chain.n_states,):
        raise ValueError(
            f"The function to sweep over has shape ({chain.n_states},), but "
            f"{values.shape} was given. Of several, take one at a time."
        )
    values = lax.stop_gradient(values.astype(chain.dtype))
    holds = jnp.all(jnp.isfinite(values))
    values = eqx.error_if(values, ~holds, "The function is not finite.")
    if sector is not None:
        sign = 1 if sector == "even" else -1
        other = jnp.max(jnp.abs(values - sign * values[::-1]))
        tolerance = jnp.finfo(values.dtype).eps ** 0.5 * jnp.max(jnp.abs(values))
        values = eqx.error_if(
            values,
            other > tolerance,
            f"The function is not {sector} under the global flip. Take the part of it "
            f"that is, `(f {'+' if sign > 0 else '-'} f[::-1]) / 2`, or no sector.",
        )
    return _sweep(chain, values, sector)


@eqx.filter_jit
def _sweep(chain: AbstractChain, f: Array, sector: Sector | None) -> Cut:
    f = lax.stop_gradient(f)
    if sector is not None:  # to the last bit, so that levels have no rounding errors
        f = (f + f[::-1] if sector == "even" else f - f[::-1]) / 2
    order = jnp.argsort(f)
    fixed = jax.tree.map(lax.stop_gradient, chain)
    values, law = f[order], fixed.log_stationary[order]
    inside = jax.lax.cumlogsumexp(law)[:-1]
    outside = jax.lax.cumlogsumexp(law, reverse=True)[1:]
    log_phi = fixed.log_cut_flows(order) - jnp.minimum(inside, outside)
    # States with the same value of the function are on the same side: which of them
    # comes first is decided by rounding errors.
    size = jnp.maximum(jnp.abs(values[1:]), jnp.abs(values[:-1]))
    differ = values[1:] - values[:-1] > 1024 * jnp.finfo(values.dtype).eps * size
    log_phi = jnp.where(differ, log_phi, jnp.inf)
    # If there is no cut at all, the set is empty.
    n_members = 0
    if chain.n_states > 1:
        best = jnp.argmin(log_phi)
        n_members = jnp.where(differ[best], best + 1, 0)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(chain.n_states))
    return _cut(chain, rank < n_members)
