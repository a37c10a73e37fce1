"""Where in the space of states the noise is made: in sets, or between them."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import require_concrete
from .._show import AbstractShown, Table as Rows, percent
from ..solvers import AbstractSolver, Form, SolverStats, columns_in
from ._resolvent import solve_resolvent
from .chains import (
    AbstractChain,
    AbstractFunctions,
    Sector,
    Table,
    in_blocks,
    require_chain,
    scale,
)


_MEMORY = 4.0  # GiB for the functions that are held at once
_SHOWN = 8  # sets that a table shows


class NoiseBySet(AbstractShown):
    """The variance and `T_O` of observables, divided among sets of states.

    What a set has of them is a part within it and a part between the sets:

        T_O = Σ_S π(S) Σ_a (Cov(f_a, R f_a | S) + E[f̃_a | S] E[R f_a | S]).

    Times are in kernel steps.
    """

    mass: Float[Array, " sets"]
    """The stationary probability of each set."""
    variance: Float[Array, " sets"]
    """What each set adds to `V = Σ_a Var f_a`."""
    variance_between: Float[Array, " sets"]
    """The part of it that is between the sets: `π(S) Σ_a E[f̃_a | S]²`."""
    t_o: Float[Array, " sets"]
    """What each set adds to `T_O = Σ_a ⟨f̃_a, R f̃_a⟩`, in kernel steps."""
    t_o_between: Float[Array, " sets"]
    """The part of it that is between the sets, in kernel steps:
    `π(S) Σ_a E[f̃_a | S] E[R f_a | S]`. It may be negative."""
    stats: SolverStats | None
    """How well each observable was solved for."""

    @property
    def variance_shares(self) -> Float[Array, " sets"]:
        """The share of the variance that each set has. Zero if nothing varies."""
        return _share(self.variance, self.variance)

    @property
    def noise_shares(self) -> Float[Array, " sets"]:
        """The share of `T_O` that each set has. Zero if nothing varies."""
        return _share(self.t_o, self.t_o)

    @property
    def variance_share(self) -> Float[Array, ""]:
        """The share of the variance that is between the sets, from 0 to 1: the
        correlation ratio `η²`. Zero if nothing varies."""
        return jnp.sum(_share(self.variance_between, self.variance))

    @property
    def noise_share(self) -> Float[Array, ""]:
        """The share of `T_O` that is between the sets: near one if the noise is that of
        jumps from set to set. Zero if nothing varies."""
        return jnp.sum(_share(self.t_o_between, self.t_o))

    def _shown(self) -> list[str | Rows]:
        if self.mass.ndim > 1:
            return super()._shown()
        rows: Rows = [("set", "mass", "of the variance", "of T_O")]
        columns = zip(self.mass, self.variance_shares, self.noise_shares, strict=True)
        for k, (mass, *shares) in enumerate(itertools.islice(columns, _SHOWN)):
            rows.append((str(k), f"{float(mass):.4g}", *map(percent, shares)))
        more = self.mass.size - _SHOWN
        return [
            rows,
            *([f"and {more} more"] if more > 0 else []),
            f"between the sets: {percent(self.variance_share)} of the variance, "
            f"{percent(self.noise_share)} of T_O",
        ]


def _share(part: Array, whole: Array) -> Array:
    total = jnp.sum(whole)
    return jnp.where(total > 0, part / jnp.where(total > 0, total, 1), 0)


def noise_by_set(
    chain: AbstractChain,
    f: Float[Array, "some *obs"] | AbstractFunctions,
    label: Int[np.ndarray | Array, " labelled"] | Bool[np.ndarray | Array, " labelled"],
    *,
    sector: Sector | None = None,
    solver: AbstractSolver | None = None,
) -> NoiseBySet:
    """Where the noise of observables is made: in which sets of states, such as the
    basins of the energy, and whether within them or by jumps between them. Exact, for
    any chain, reversible or not, and without a matrix where the chain needs none.

    `T_O` sums covariances, `Cov(f_a, R f_a)`, and the law of total covariance divides
    each into the covariance of the means of the sets and the mean of the covariances
    within them. A chain that mixes fast in each set and hardly leaves it has nearly all
    of `T_O` between the sets; one whose sets are no bottleneck has no more of it there
    than of the variance.

    **Arguments:**

    - `chain`: the chain.
    - `f`: `(states,)` or `(states, n_obs)`; or functions that need not exist all at
        once, as [`trainq.markov.EnergyGradients`][].
    - `label`: the set of each state, whole numbers from zero, as that of
        [`trainq.markov.Basins`][]; or booleans, for a set and its complement. They
        decide shapes, and are not traced: under `jax.jit` pass an array of NumPy.
    - `sector`: `"even"` or `"odd"` to promise a parity of every function, as for
        [`trainq.markov.resolvent_trace`][].
    - `solver`: how to solve, [`trainq.Auto`][] by default.

    **Returns:** a [`trainq.markov.NoiseBySet`][].

    **Raises:** `ValueError` for wrong shapes, labels that are traced, negative, no
    whole numbers or as large as the number of states, a sector of a chain that is not
    symmetric, or too many states; a run-time error if the chain is reducible in
    floating point.

    !!! example

        ```python
        chain = tq.RandomScanGibbs().chain(model)
        basins = tq.markov.basins(chain, least=1.0)
        f = tq.observables(model)
        print(tq.markov.noise_by_set(chain, f, basins.label))
        ```
    """
    require_chain(chain)
    require_concrete("A division of states into sets", label=label)
    label = np.asarray(label)
    label = label.astype(int) if label.dtype == bool else label
    low, high = label.min(initial=0), label.max(initial=0)
    is_whole = np.issubdtype(label.dtype, np.integer)
    if not is_whole or low < 0 or high >= chain.n_states:
        raise ValueError(
            "label has the number of the set of each state, integers from zero and "
            f"below the number of states, {chain.n_states}, but values of dtype "
            f"{label.dtype} from {low} to {high} were given. Number the sets by "
            "`np.unique(label, return_inverse=True)[1]`."
        )
    members = chain.lift(jnp.asarray(label, float)).astype(int)
    if members.shape != (chain.n_states,):
        raise ValueError(
            f"label has shape ({chain.n_states},), a set for each state of this chain, "
            f"but {label.shape} was given."
        )
    n_sets = int(label.max()) + 1
    return _noise_by_set(chain, f, members, n_sets, sector, solver)


@eqx.filter_jit
def _noise_by_set(
    chain: AbstractChain,
    f: Array | AbstractFunctions,
    label: Array,
    n_sets: int,
    sector: Sector | None,
    solver: AbstractSolver | None,
) -> NoiseBySet:
    law = chain.stationary

    def sums(x: Array) -> Array:
        return jax.ops.segment_sum(scale(law, x), label, n_sets)

    mass = sums(jnp.ones_like(law))
    per_mass = jnp.where(mass > 0, 1 / jnp.where(mass > 0, mass, 1), 0)

    def some(f: AbstractFunctions, _: None) -> Form:
        columns = chain.centre(f.table())
        solved = solve_resolvent(chain, columns, sector=sector, solver=solver)
        here, ahead = sums(columns), sums(solved.value)
        parts = (
            sums(columns**2),
            scale(per_mass, here**2),
            sums(columns * solved.value),
            scale(per_mass, here * ahead),
        )
        return Form(jnp.stack(parts).T, solved.stats, None)

    if not isinstance(f, AbstractFunctions):
        f = Table(chain.centre(f).reshape(chain.n_states, -1))
    dtype = chain.dtype
    block = columns_in(_MEMORY, chain.n_states, f.n_functions, dtype)
    form = in_blocks(some, f, block)
    variance, variance_between, t_o, t_o_between = jnp.sum(form.value, axis=0).T
    return NoiseBySet(
        *(mass, variance, variance_between, t_o, t_o_between), stats=form.stats
    )
