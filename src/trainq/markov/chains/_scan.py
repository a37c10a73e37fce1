"""Units redrawn one after the other in a fixed order, and chains in other orders."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from ..._spins import unit_mask, xor
from ...solvers._forms import Form, Pairing
from ...solvers._generators import DenseGenerator
from ...solvers._solvers import AbstractStrategy, SolverStats
from ._base import AbstractChain, EigenProblem, Sector, dense_generator, scale
from ._dense import DenseChain
from ._functions import AbstractFunctions, Table
from ._two_block import Scan, TwoBlockChain


class SystematicScanChain(AbstractChain):
    """Redraw every unit once given all others, in a fixed order: `P = E_1 E_2 ⋯ E_N`.

    Units of a block that do not interact commute, and so the order of the units is all
    that the blocks of a scan are here. It is not reversible. It applies to functions
    without a matrix; what solves a system makes one, of at most 2**13 states.
    """

    log_stationary: Float[Array, " states"]
    order: tuple[int, ...] = eqx.field(static=True)
    is_symmetric: bool = eqx.field(static=True)
    is_reversible: bool = eqx.field(static=True, default=False, init=False)

    def stepper(self) -> Callable[[Array], Array]:
        log_law = self.log_stationary
        masks = [unit_mask(unit, len(self.order)) for unit in self.order]
        flips = [jax.nn.sigmoid(xor(log_law, mask) - log_law) for mask in masks]

        def step(f):
            # (P f)(x) = E[f(X₁) | x]: the unit drawn last is averaged over first.
            for mask, flip in zip(masks[::-1], flips[::-1], strict=True):
                f = f + scale(flip, xor(f, mask) - f)
            return f

        return step

    def _dense(self) -> DenseChain:
        return DenseChain(self.matrix(), self.stationary, is_reversible=False)

    def resolvent_form(
        self,
        f: AbstractFunctions,
        *,
        pairing: Pairing,
        solver: AbstractStrategy,
        sector: Sector | None,
        guess: Any = None,
    ) -> Form:
        self.sectors(sector)
        return self._dense().resolvent_form(
            f, pairing=pairing, solver=solver, sector=None, guess=guess
        )

    def window_variance(
        self, f: AbstractFunctions, window: int, sector: Sector | None = None
    ) -> Float[Array, " n_obs"]:
        self.sectors(sector)
        return self.stationary @ self.window_moments(self.centre(f.table()), window)[1]

    def resolvent(
        self, f: Float[Array, "states n_obs"], *, solver: AbstractStrategy
    ) -> tuple[Float[Array, "states n_obs"], SolverStats]:
        return self._dense().resolvent(f, solver=solver)

    def killed_generator(self, target: Bool[Array, " states"]) -> DenseGenerator:
        return dense_generator(self.matrix(), self.log_stationary, False, target)

    def eigen_problem(self, sector: Sector | None) -> EigenProblem:
        return self._dense().eigen_problem(sector)


class RelabelledChain(AbstractChain):
    """A two-block chain whose blocks are not the first units and the last ones: that on
    the units in another order, and functions brought into this order and back."""

    chain: TwoBlockChain
    order: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        log_stationary: Float[Array, " states"],
        blocks: tuple[tuple[int, ...], tuple[int, ...]],
        scan: Scan,
        is_symmetric: bool,
    ):
        self.order = blocks[0] + blocks[1]
        joint = _permuted(log_stationary, self.order)
        table = joint.reshape(2 ** len(blocks[0]), -1)
        self.chain = TwoBlockChain(
            joint,
            jax.nn.logsumexp(table, axis=1),
            jax.nn.logsumexp(table, axis=0),
            scan=scan,
            is_symmetric=is_symmetric,
        )

    @property
    def is_reversible(self) -> bool:
        return self.chain.is_reversible

    @property
    def is_symmetric(self) -> bool:
        return self.chain.is_symmetric

    @property
    def log_stationary(self) -> Float[Array, " states"]:
        return self._back(self.chain.log_stationary)

    def _there(self, f: Array) -> Array:
        return _permuted(f, self.order)

    def _back(self, f: Array) -> Array:
        return _permuted(f, tuple(np.argsort(self.order).tolist()))

    def stepper(self) -> Callable[[Array], Array]:
        step = self.chain.stepper()
        return lambda f: self._back(step(self._there(f)))

    def sectors(self, sector: Sector | None = None) -> tuple[Sector | None, ...]:
        return self.chain.sectors(sector)

    def resolvent_form(
        self,
        f: AbstractFunctions,
        *,
        pairing: Pairing,
        solver: AbstractStrategy,
        sector: Sector | None,
        guess: Any = None,
    ) -> Form:
        return self.chain.resolvent_form(
            Table(self._there(f.table())),
            pairing=pairing,
            solver=solver,
            sector=sector,
            guess=guess,
        )

    def window_variance(
        self, f: AbstractFunctions, window: int, sector: Sector | None = None
    ) -> Float[Array, " n_obs"]:
        table = Table(self._there(f.table()))
        return self.chain.window_variance(table, window, sector)

    def resolvent(
        self, f: Float[Array, "states n_obs"], *, solver: AbstractStrategy
    ) -> tuple[Float[Array, "states n_obs"], SolverStats]:
        x, stats = self.chain.resolvent(self._there(f), solver=solver)
        return self._back(x), stats

    def killed_generator(self, target: Bool[Array, " states"]) -> DenseGenerator:
        return dense_generator(
            self.matrix(), self.log_stationary, self.is_reversible, target
        )

    def eigen_problem(self, sector: Sector | None) -> EigenProblem:
        generator, gap, lift = self.chain.eigen_problem(sector)
        return EigenProblem(generator, gap, lambda y: self._back(lift(y)))


def _permuted(f: Float[Array, "states *obs"], order: tuple[int, ...]) -> Array:
    """The function of the units in another order: unit `order[i]` becomes unit `i`."""
    n, rest = len(order), f.shape[1:]
    axes = order + tuple(range(n, n + len(rest)))
    return f.reshape((2,) * n + rest).transpose(axes).reshape(f.shape)
