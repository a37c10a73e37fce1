"""Several replicas of a model side by side, which move and are swapped."""

from collections.abc import Callable
from functools import reduce

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...solvers import DenseGenerator
from ._base import AbstractChain, check_dense
from ._swaps import AbstractSwapOrder


_ALL_COUNT = (
    "The units of all replicas count. `trainq.QOperational` needs no matrix, and "
    "`trainq.QSampled` takes any number of them."
)


class ReplicaChain(AbstractChain):
    """Replicas of a model at several temperatures, the first of which is the model
    itself: each moves by a chain of its own, `L = L_0 ⊗ L_1 ⊗ ⋯`, and neighbours are
    swapped.

    Its states are those of all replicas, the first one in the leading bits, and its law
    is the product of theirs. A function of the state of the model is one of the first
    replica. It applies to functions without a matrix; what solves a system makes one,
    of at most 2**13 states.
    """

    chains: tuple[AbstractChain, ...]
    energies: Float[Array, " model_states"]
    betas: Float[Array, " replicas"]
    order: AbstractSwapOrder

    def __init__(
        self,
        chains: tuple[AbstractChain, ...],
        energies: Float[Array, " model_states"],
        betas: Float[Array, " replicas"],
        order: AbstractSwapOrder,
    ):
        self.chains = chains
        self.energies = energies
        self.betas = betas
        self.order = order

    @property
    def log_stationary(self) -> Float[Array, " states"]:
        laws = [chain.log_stationary for chain in self.chains]
        return reduce(lambda p, q: (p[:, None] + q[None, :]).reshape(-1), laws)

    @property
    def n_states(self) -> int:
        return self.energies.size ** len(self.chains)

    @property
    def is_reversible(self) -> bool:
        moves = all(chain.is_reversible for chain in self.chains)
        return moves and self.order.is_reversible(len(self.chains))

    @property
    def is_symmetric(self) -> bool:
        """Whether it keeps parity under the flip of all spins of all replicas."""
        # A swap does not notice.
        return all(chain.is_symmetric for chain in self.chains)

    def lift(self, f: Float[Array, "some *obs"]) -> Float[Array, "states *obs"]:
        if f.ndim == 0 or f.shape[0] != self.energies.size:
            return f
        return jnp.repeat(f, self.n_states // self.energies.size, axis=0)

    def apply(self, f: Float[Array, "states *obs"]) -> Float[Array, "states *obs"]:
        return self.operator()(f)

    def matrix(self) -> Float[Array, "states states"]:
        check_dense(self.n_states, _ALL_COUNT)
        return super().matrix()

    def dense_generator(
        self, target: Bool[Array, " states"] | None = None
    ) -> DenseGenerator:
        check_dense(self.n_states, _ALL_COUNT)
        return super().dense_generator(target)

    def operator(self) -> Callable[[Array], Array]:
        n, size = len(self.chains), self.energies.size
        moves = [chain.operator() for chain in self.chains]
        rounds = self.order.checked_rounds(n)
        # A swap of x and y changes log π by (β - β') (E(x) - E(y)).
        gaps = self.energies[:, None] - self.energies[None, :]
        steps = self.betas[:-1] - self.betas[1:]
        changes = [jnp.minimum(step * gaps, 0) for step in steps]
        swaps, stays = [jnp.exp(c) for c in changes], [-jnp.expm1(c) for c in changes]

        def local(f):
            for replica, move in enumerate(moves):
                table = f.reshape(size**replica, size, -1)
                rows = jnp.moveaxis(table, 1, 0)
                moved = move(rows.reshape(size, -1)).reshape(rows.shape)
                f = jnp.moveaxis(moved, 0, 1).reshape(f.shape)
            return f

        def swapped(f, pair):
            table = f.reshape(size**pair, size, size, -1)
            there = swaps[pair][None, :, :, None] * jnp.swapaxes(table, 1, 2)
            return (there + stays[pair][None, :, :, None] * table).reshape(f.shape)

        def swap(f):
            # (P f)(x) = E[f(X₁) | x]: the last round is averaged over first.
            for sets in reversed(rounds):
                parts = [reduce(swapped, pairs, f) for pairs in sets]
                f = reduce(jnp.add, parts) / len(sets)
            return f

        def step(f):
            if not self.order.is_symmetrised:
                return local(swap(f))
            return (local(swap(f)) + swap(local(f))) / 2

        return step
