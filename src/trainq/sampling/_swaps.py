"""Parallel tempering seen at work: swaps, round trips and energies by rung."""

from collections.abc import Callable
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import whole_number
from .._meshes import explicit_layout, of_axes, on_automatic_axes, raise_if
from .._show import AbstractShown, Table
from ..markov import Ladder, ParallelTempering, even_ladder, with_replicas
from ..models import AbstractEnergyModel, checked, require_model
from ._chain_state import ChainState, step_keys
from ._moments import Moments


# Steps in one compiled call: for each of them there is a key.
_CHUNK = 2**20
# Where a state has been last, of the two ends of the ladder.
_NOWHERE, _COLD, _HOT = range(3)


class SwapStatistics(AbstractShown):
    """What the replicas of a run did: how often neighbours were swapped, and how states
    wandered up and down the ladder."""

    state: ChainState
    """Where the chains stand: to go on from."""
    betas: Float[Array, " replicas"]
    """The inverse temperatures of the rungs."""
    n_steps: int = eqx.field(static=True)
    """How many kernel steps were taken."""
    tried: Int[Array, "chains pairs"]
    """How often each pair of neighbours was tried, the coldest first, in each chain."""
    accepted: Int[Array, "chains pairs"]
    """How often each pair was swapped, in each chain."""
    round_trips: Int[Array, " chains"]
    """How often a state came back to the cold end from the hot one, in each chain."""
    came_from_cold: Int[Array, " replicas"]
    """On each rung, how many of the states that came by had last been at the cold
    end."""
    came_from_hot: Int[Array, " replicas"]
    """The same for the hot end."""
    energies: Moments
    """Means and variances of the energy of the model on each rung, for each chain."""

    @property
    def acceptance(self) -> Float[Array, " pairs"]:
        """The share of swaps that were accepted, of each pair; not a number for a pair
        that was not tried."""
        return jnp.mean(self._shares, axis=0)

    @property
    def acceptance_error(self) -> Float[Array, " pairs"]:
        """The standard error of `acceptance`, from the scatter of chains, of which
        there are at least two."""
        shares = self._shares
        return jnp.std(shares, axis=0, ddof=1) / float(np.sqrt(shares.shape[0]))

    @property
    def _shares(self) -> Float[Array, "chains pairs"]:
        return self.accepted / self.tried

    @property
    def flow(self) -> Float[Array, " replicas"]:
        """Of the states on each rung, the share that has last been at the cold end: 1
        there, 0 at the hot end, and a straight line in between where states wander
        freely. A steep place is the bottleneck of the ladder."""
        from_cold, from_hot = self.came_from_cold, self.came_from_hot
        return from_cold / (from_cold + from_hot)

    @property
    def energy_variance(self) -> Float[Array, " replicas"]:
        """The variance of the energy of the model on each rung, over all chains."""
        between = jnp.var(self.energies.mean, axis=0)
        return jnp.mean(self.energies.variance, axis=0) + between

    def ladder(
        self, *, acceptance: float = 0.234, n_replicas: SupportsIndex | None = None
    ) -> Ladder:
        """A ladder from the variances of the energies that the run has found, between
        the same ends, for models that cannot be enumerated. As good as these are: run
        it again from there.

        **Arguments:**

        - `acceptance`, `n_replicas`: as for [`trainq.markov.ladder`][].

        **Returns:** a [`trainq.markov.Ladder`][].

        **Raises:** as [`trainq.markov.ladder`][].
        """
        # Imported here because it is slow to load.
        from scipy.interpolate import PchipInterpolator

        betas = np.asarray(self.betas, float)[::-1]
        rates = np.sqrt(np.asarray(self.energy_variance, float))[::-1]
        length = PchipInterpolator(betas, rates).antiderivative()
        return even_ladder(
            lambda beta: float(length(beta)), float(betas[0]), acceptance, n_replicas
        )

    def _shown(self) -> list[str | Table]:
        if self.tried.ndim > 2:  # a batch, by `eqx.filter_vmap`
            return super()._shown()
        rows: Table = [("beta", "energy variance", "flow", "swaps accepted")]
        shares = [f"{share:.3g}" for share in np.asarray(self.acceptance)] + [""]
        columns = (self.betas, self.energy_variance, self.flow)
        for share, *cells in zip(shares, *map(np.asarray, columns), strict=True):
            rows.append((*(f"{cell:.4g}" for cell in cells), share))
        trips = int(np.sum(self.round_trips))
        chains, replicas = self.energies.recent[0].shape
        each = chains * replicas * self.n_steps / trips if trips else np.inf
        line = f"{trips} round trips in {self.n_steps} steps, one in {each:.4g} "
        return [line + "steps of a replica", rows]


def swap_statistics(
    kernel: ParallelTempering,
    model: AbstractEnergyModel,
    state: ChainState,
    n_steps: SupportsIndex,
) -> SwapStatistics:
    """Run parallel tempering, and count swaps, round trips and energies on the way. The
    chains are those of [`trainq.sampling.run`][], to the last bit.

    A round trip is made when a state that has been at the hot end comes to the cold end
    again. Trips are counted from the beginning of the call.

    **Arguments:**

    - `kernel`, `model`: what to run.
    - `state`: where the chains stand, as for [`trainq.sampling.run`][].
    - `n_steps`: number of kernel steps.

    **Returns:** a [`trainq.sampling.SwapStatistics`][]. `print` it.

    **Raises:** `TypeError` for another kernel; `ValueError` for a number of steps that
    is not whole, or a state of another model or kernel; a run-time error if a parameter
    or an energy is not finite.

    !!! example

        ```python
        kernel = tq.PalindromicBlockGibbs()
        tempering = tq.ParallelTempering(kernel, [1.0, 0.5, 0.25])
        state = tq.start_chains(key, model, n_chains=16)
        found = tq.sampling.swap_statistics(
            tempering, model, state, n_steps=200
        )
        print(found)
        print(tq.markov.swap_acceptance(model, tempering.betas))
        ```

    ??? cite "Source"

        Katzgraber, Trebst, Huse and Troyer, *Feedback-optimized parallel tempering
        Monte Carlo*, J. Stat. Mech. P03018, 2006, for round trips and the flow.
    """
    if not isinstance(kernel, ParallelTempering):
        raise TypeError(
            "Swaps are those of a `ParallelTempering`, but a "
            f"{type(kernel).__name__} was given."
        )
    require_model(model)
    n_steps = whole_number("n_steps", n_steps, of="kernel steps")
    if state.x.shape[-1] != model.n_units:
        raise ValueError(
            f"The state is of chains with {state.x.shape[-1]} units, but the model has "
            f"{model.n_units}. `start_chains` makes a new one."
        )
    x = with_replicas(kernel, model, state.x)
    state = ChainState(x, state.key_data, state.step, state.key_impl)
    n_chains, n_replicas, _ = x.shape
    counts = _Counts.begin(n_chains, n_replicas, model.dtype)
    for done in range(0, n_steps, _CHUNK):
        length = min(_CHUNK, n_steps - done)
        state, counts = _segment(kernel, model, state, counts, length)
    return SwapStatistics(
        state=state,
        betas=kernel.betas,
        n_steps=n_steps,
        tried=counts.tried,
        accepted=counts.accepted,
        round_trips=counts.round_trips,
        came_from_cold=jnp.sum(counts.came_from_cold, axis=0),
        came_from_hot=jnp.sum(counts.came_from_hot, axis=0),
        energies=counts.energies,
    )


class _Counts(eqx.Module):
    """What is summed up on the way, and the end that each state has last been at."""

    last: Int[Array, "chains replicas"]
    tried: Int[Array, "chains pairs"]
    accepted: Int[Array, "chains pairs"]
    round_trips: Int[Array, " chains"]
    came_from_cold: Int[Array, "chains replicas"]
    came_from_hot: Int[Array, "chains replicas"]
    energies: Moments

    @classmethod
    def begin(cls, n_chains: int, n_replicas: int, dtype: np.dtype) -> "_Counts":
        pairs = jnp.zeros((n_chains, n_replicas - 1), int)
        rungs = jnp.zeros((n_chains, n_replicas), int)
        last = jnp.full((n_chains, n_replicas), _NOWHERE)
        energies = Moments.begin(last.shape, dtype)
        last = last.at[:, 0].set(_COLD).at[:, -1].set(_HOT)
        return cls(last, pairs, pairs, pairs[:, 0], rungs, rungs, energies)

    @classmethod
    def layouts(cls, of: Callable[..., Any], chains: Any) -> Any:
        """How the arrays lie on a mesh, over whose axes `chains` chains are spread."""
        each: Any = [of(*chains)] * 6
        return cls(*each, energies=Moments.layouts(of, chains, None))


@eqx.filter_jit
def _segment(
    kernel: ParallelTempering,
    model: AbstractEnergyModel,
    state: ChainState,
    counts: _Counts,
    n_steps: int,
) -> tuple[ChainState, _Counts]:
    trees = kernel, checked(model), state, counts
    layout = explicit_layout(state.x)
    if layout is None:
        return _counted(trees, n_steps)
    of, chains = of_axes(layout), layout.spec[:1]
    layouts = state.layouts(layout), _Counts.layouts(of, chains)
    return on_automatic_axes(lambda trees: _counted(trees, n_steps), trees, layouts)


def _counted(trees: Any, n_steps: int) -> tuple[ChainState, _Counts]:
    kernel, model, state, counts = trees
    move = kernel.swapping_stepper(model)

    def step(carry, key):
        x, counts = carry
        flat = x.reshape(-1, model.n_units).astype(model.dtype)
        energies = jax.vmap(model.energy)(flat).astype(model.dtype)
        x, swaps = move(key, x)
        # What is known of a state goes with it.
        last = jnp.take_along_axis(counts.last, swaps.came_from, axis=1)
        arrived = (last[:, 0] == _HOT).astype(int)
        last = last.at[:, 0].set(_COLD).at[:, -1].set(_HOT)
        counts = _Counts(
            last=last,
            tried=counts.tried + swaps.tried,
            accepted=counts.accepted + swaps.accepted,
            round_trips=counts.round_trips + arrived,
            came_from_cold=counts.came_from_cold + (last == _COLD).astype(int),
            came_from_hot=counts.came_from_hot + (last == _HOT).astype(int),
            energies=counts.energies.add(energies.reshape(last.shape)),
        )
        return (x, counts), None

    keys, key_data, number = step_keys(state, n_steps)
    (x, counts), _ = jax.lax.scan(step, (state.x, counts), keys)
    finite = jnp.all(jnp.isfinite(counts.energies.variance))
    x = raise_if(x, ~finite, "The energy of a state of a replica is not finite.")
    return ChainState(x, key_data, number, state.key_impl), counts
