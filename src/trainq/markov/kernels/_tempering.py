"""Parallel tempering: replicas of a model at several temperatures, and swaps."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key, Num

from ..._random import split
from ..._spins import check_enumerable
from ...models import AbstractEnergyModel
from ..chains import AbstractSwapOrder, RandomSwaps, ReplicaChain
from ._base import AbstractKernel, Stepper, on_any_mesh
from ._swaps import Swaps, no_swaps, swapper


class ParallelTempering(AbstractKernel):
    """Replicas of a model at several inverse temperatures, which move by a kernel and
    are swapped: parallel tempering, or replica exchange.

    Hot replicas cross the barriers that hold the cold one, which is the model itself.
    States have shape `(..., replicas, n_units)`, the cold replica first, and all that
    is asked of the kernel is answered for that one: gradients, `Q`, `T_O`, budgets,
    moments of a run. States of the model, as `start_chains(key, model, n_chains)` makes
    them, are taken by every replica alike where a run begins.

    The law is the product of the tempered laws. A step is one of the kernel in each
    replica, `L`, and swaps of neighbours, `S`, each of which is accepted with
    probability `min(1, exp((β - β') (E(x) - E(y))))`. By default they make up `½ (LS +
    SL)`, which is reversible if the kernel is.

    Which of the two comes first, and which pairs are tried, all chains of a step share,
    so that half of the swaps need not be computed. Each chain by itself is the same as
    with draws of its own, and chains in their stationary law are uncorrelated, since
    every step that may be drawn has that law. But scatter over chains tells the error
    given these draws, which differs from the error over windows of a few steps: for
    these take `shared=False`. See [coins that are
    shared](../sampling.md#coins-that-are-shared).

    The cost of a step, `site_updates`, is that of all replicas; swaps are no updates of
    a unit, and take the energies of all replicas once a step.

    !!! example

        ```python
        kernel = tq.PalindromicBlockGibbs()
        tempering = tq.ParallelTempering(kernel, betas=[1.0, 0.5])
        small = tq.RBM(jnp.array([[2.0, -1.0], [-1.0, 2.0]]))
        chains = tq.start_chains(key, small, n_chains=8)
        state = tq.run(tempering, small, chains, n_steps=100).state
        assert state.x.shape == (8, 2, small.n_units)
        for one in (kernel, tempering):
            window = one.steps(small, sweeps=1000)  # at equal cost
            print(tq.QStruct(one, window)(small, jnp.full(4, 1 / 4)))
        ```

    ??? cite "Source"

        Swendsen and Wang, *Replica Monte Carlo simulation of spin-glasses*, Phys. Rev.
        Lett. 57, 2607, 1986; Geyer, *Markov chain Monte Carlo maximum likelihood*, in
        Computing Science and Statistics, 1991; Hukushima and Nemoto, *Exchange Monte
        Carlo method and application to spin glass simulations*, J. Phys. Soc. Jpn. 65,
        1604, 1996.
    """

    kernel: AbstractKernel
    betas: Float[Array, " replicas"]
    order: AbstractSwapOrder
    shared: bool = eqx.field(static=True)

    def __init__(
        self,
        kernel: AbstractKernel,
        betas: Sequence[float] | Float[Array | np.ndarray, " replicas"],
        order: AbstractSwapOrder = RandomSwaps(),
        *,
        shared: bool = True,
    ):
        """**Arguments:**

        - `kernel`: how each replica moves at its own temperature.
        - `betas`: inverse temperatures of the replicas, relative to the model: 1 for
            the model itself, and then decreasing to 0 or more. At least two.
            [`trainq.markov.ladder`][] finds some. Others compile nothing anew, unless
            they are more or fewer.
        - `order`: in which order replicas move and are swapped:
            [`trainq.markov.RandomSwaps`][], [`trainq.markov.EvenOddSwaps`][], or one of
            your own.
        - `shared`: whether all chains of a step share its order. Otherwise each draws
            its own.

        **Raises:** `ValueError` for betas that do not start at 1, or do not decrease,
        or an order whose rounds are none; `TypeError` for another thing than an order.
        Using the kernel raises a `ValueError` if `kernel` runs several replicas itself.
        """
        self.kernel = kernel
        self.betas = checked_betas(betas)
        if not isinstance(order, AbstractSwapOrder):
            raise TypeError(
                "order is an object such as `RandomSwaps()` or `EvenOddSwaps()`, but "
                f"{order!r} was given."
            )
        order.checked_rounds(self.n_replicas)
        self.order = order
        self.shared = shared

    @property
    def n_replicas(self) -> int:
        """How many replicas there are."""
        return self.betas.shape[0]

    @property
    def is_reversible(self) -> bool:
        """Whether both the kernel of the replicas and the order are."""
        return self.kernel.is_reversible and self.order.is_reversible(self.n_replicas)

    def adjoint(self) -> AbstractKernel:
        if self.is_reversible or not self.order.is_reversible(self.n_replicas):
            return super().adjoint()
        # (LS + SL)* = S L* + L* S.
        kernel = self.kernel.adjoint()
        return ParallelTempering(kernel, self.betas, self.order, shared=self.shared)

    def replicas(self, model: AbstractEnergyModel) -> tuple[AbstractEnergyModel, ...]:
        self._check_kernel(model)
        return (model, *(model.tempered(beta) for beta in self.betas[1:]))

    @property
    def shares_coins(self) -> bool:
        return self.shared or self.kernel.shares_coins

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        move = self.swapping_stepper(model)

        def step(key, x):
            if x.ndim < 2 or x.shape[-2] != self.n_replicas:
                raise ValueError(
                    f"States of this kernel have shape (..., {self.n_replicas}, "
                    f"{model.n_units}), one for each replica, but {x.shape} was given. "
                    "`run` takes those of the model as well, and `x[..., None, :]` "
                    "repeated along that axis starts all replicas alike."
                )
            return move(key, x.reshape(-1, *x.shape[-2:]))[0].reshape(x.shape)

        return step

    def swapping_stepper(
        self, model: AbstractEnergyModel
    ) -> Callable[
        [Key[Array, ""], Num[Array, "chains replicas n_units"]],
        tuple[Num[Array, "chains replicas n_units"], Swaps],
    ]:
        """`stepper`, which also tells what the swaps of the step did, for states of
        shape `(chains, replicas, n_units)`."""
        self._check_kernel(model)
        swap = swapper(self.order, self.shared, self.betas.astype(model.dtype), model)

        def one(beta, key, x):
            return self.kernel.stepper(model.tempered(beta))(key, x)

        def local(key, x):
            keys = split(key, self.n_replicas)
            return jax.vmap(one, (0, 0, 1), 1)(self.betas, keys, x)

        def rest(_, x, swaps, active):
            return x, swaps

        def step(key, x):
            coin, before, move, after = split(key, 4)
            swaps, every = no_swaps(*x.shape[:2]), jnp.ones(x.shape[0], bool)
            if not self.order.is_symmetrised:
                return swap(after, local(move, x), swaps, every)
            if self.shared:
                moves_first = jr.bernoulli(coin)
                x, swaps = jax.lax.cond(
                    moves_first, rest, swap, before, x, swaps, every
                )
                x = local(move, x)
                return jax.lax.cond(moves_first, swap, rest, after, x, swaps, every)
            moves_first = jr.bernoulli(coin, shape=every.shape)
            x, swaps = swap(before, x, swaps, ~moves_first)
            return swap(after, local(move, x), swaps, moves_first)

        return step

    def chain(self, model: AbstractEnergyModel) -> ReplicaChain:
        """The exact chain of all replicas, on `2**(replicas · n_units)` states.

        **Raises:** `ValueError` if there are too many states; a run-time error if a
        parameter is not finite.
        """
        check_enumerable(
            self.n_replicas * model.n_units,
            what=f"states of {self.n_replicas} replicas, and so",
        )
        chains = tuple(self.kernel.chain(one) for one in self.replicas(model))
        return ReplicaChain(
            chains, model.energies(), self.betas.astype(model.dtype), self.order
        )

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        """Number of single-unit updates in one step, on average, of all replicas
        together. Swaps are none."""
        return self.n_replicas * self.kernel.site_updates(model)

    def _check_kernel(self, model: AbstractEnergyModel) -> None:
        if len(self.kernel.replicas(model)) > 1:
            raise ValueError(
                "The kernel of `ParallelTempering` moves one replica, but "
                f"{type(self.kernel).__name__} has several of its own. Give the "
                "temperatures of all replicas as `betas`."
            )


def checked_betas(
    betas: Sequence[float] | Float[Array | np.ndarray, " replicas"],
) -> Float[Array, " replicas"]:
    """Return the inverse temperatures of replicas as an array.

    **Raises:** `ValueError` for a wrong shape or type, or if they do not start at 1 and
    decrease; a run-time error for traced ones.
    """
    array = betas if isinstance(betas, Tracer) else np.asarray(betas)
    kinds = (jnp.integer, jnp.floating)
    real = any(jnp.issubdtype(array.dtype, kind) for kind in kinds)
    if not real or array.ndim != 1 or array.shape[0] < 2:
        raise ValueError(
            "betas are the inverse temperatures of at least two replicas, relative to "
            f"the model, such as [1.0, 0.6, 0.3], but {betas!r} was given."
        )
    found = jnp.asarray(array).astype(float)
    message = (
        "betas start at 1, which is the model itself, and decrease to 0 or more, as "
        "in [1.0, 0.6, 0.3]"
    )
    if isinstance(array, Tracer):
        falls = jnp.all(found[1:] < found[:-1]) & (found[-1] >= 0)
        return eqx.error_if(found, ~((found[0] == 1) & falls), message + ".")
    if not (array[0] == 1 and np.all(np.diff(array) < 0) and array[-1] >= 0):
        raise ValueError(f"{message}, but {array.tolist()} were given.")
    return found
