"""Kernels: recipes that hold no parameters, each a sampler and an exact chain."""

import abc
from typing import TYPE_CHECKING, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Key, Num

from .._spins import check_spins
from ..models import AbstractEnergyModel, log_stationary
from ..models._base import checked
from ..models._laws import log_laws
from ._chains import AbstractChain
from ._single_flip import AbstractFlipRule, HeatBath, Metropolis, SingleFlipChain
from ._two_block import Scan, TwoBlockChain


# Pyright knows an abstract class variable only by the name of a concrete one.
if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class AbstractKernel(eqx.Module):
    """A Markov kernel that leaves the law of every model invariant.

    A kernel has three faces: `step` samples, `chain` is the exact operator, and
    `site_updates` is the cost of a step. It holds no parameters, so every call takes
    the model. For a kernel of your own, `chain` may return a
    [`trainq.markov.DenseChain`][].
    """

    is_reversible: AbstractClassVar[bool]

    @eqx.filter_jit
    def step(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        x: Num[Array, "*batch n_units"],
    ) -> Num[Array, "*batch n_units"]:
        """One step of every chain in the batch, which are independent.

        **Arguments:**

        - `key`: random key.
        - `model`: the model.
        - `x`: ±1 spins of shape `(..., n_units)`, visible units first.

        **Returns:** the next states, in the shape and dtype of `x`.

        **Raises:** `ValueError` for a wrong shape or dtype; a run-time error for
        another value than ±1, or a parameter that is not finite.
        """
        return self.transition(key, checked(model), check_spins(x, model.n_units))

    @abc.abstractmethod
    def transition(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        x: Num[Array, "*batch n_units"],
    ) -> Num[Array, "*batch n_units"]:
        """What `step` does, for what has been checked: the body of a loop."""

    @abc.abstractmethod
    def chain(self, model: AbstractEnergyModel) -> AbstractChain:
        """The exact chain on all `2**n_units` states.

        **Raises:** `ValueError` if there are too many states; a run-time error if a
        parameter is not finite.
        """

    @abc.abstractmethod
    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        """Number of single-unit updates in one step, on average."""


class AbstractSingleFlipKernel(AbstractKernel):
    """Choose a unit uniformly, and flip it with the probability of a rule."""

    rule: AbstractClassVar[AbstractFlipRule]

    def transition(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        x: Num[Array, "*batch n_units"],
    ) -> Num[Array, "*batch n_units"]:

        def one(key, x):
            unit_key, accept_key = jr.split(key)
            unit = jr.randint(unit_key, (), 0, model.n_units)
            accept = self.rule.acceptance(-model.flip_energy(x, unit))
            flips = jr.uniform(accept_key, dtype=accept.dtype) < accept
            return x.at[unit].multiply(jnp.where(flips, -1, 1).astype(x.dtype))

        flat = x.reshape(-1, model.n_units)
        return jax.vmap(one)(jr.split(key, flat.shape[0]), flat).reshape(x.shape)

    def chain(self, model: AbstractEnergyModel) -> SingleFlipChain:
        return SingleFlipChain(
            log_stationary=log_stationary(model),
            rule=self.rule,
            is_symmetric=model.is_symmetric,
        )

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        del model
        return 1


class RandomScanGibbs(AbstractSingleFlipKernel):
    """Single-site Gibbs sampling (heat bath, Glauber dynamics) in random order.

    A step chooses one unit uniformly and draws it from its law given all others: it
    flips with probability `1 / (1 + exp(-Δ))`, where `Δ` is the change of `log π`.
    Reversible, and positive semi-definite. A sweep is `n_units` steps.

    ??? cite "Source"

        Glauber, *Time-dependent statistics of the Ising model*, J. Math. Phys. 4, 294,
        1963; Geman and Geman, IEEE Trans. Pattern Anal. 6, 721, 1984.
    """

    rule: ClassVar[AbstractFlipRule] = HeatBath()
    is_reversible: ClassVar[bool] = True


class RandomScanMetropolis(AbstractSingleFlipKernel):
    """Single-site Metropolis sampling in random order.

    A step chooses one unit uniformly and flips it with probability `min(1, exp(Δ))`,
    where `Δ` is the change of `log π`. Reversible, and by Peskun's ordering never
    noisier than [`trainq.RandomScanGibbs`][]. A sweep is `n_units` steps.

    ??? cite "Source"

        Metropolis et al., *Equation of state calculations by fast computing machines*,
        J. Chem. Phys. 21, 1087, 1953; Peskun, Biometrika 60, 607, 1973.
    """

    rule: ClassVar[AbstractFlipRule] = Metropolis()
    is_reversible: ClassVar[bool] = True


class AbstractBlockKernel(AbstractKernel):
    """Redraw whole layers, each from its law given the other."""

    scan: AbstractClassVar[Scan]

    def chain(self, model: AbstractEnergyModel) -> TwoBlockChain:
        return TwoBlockChain(
            *log_laws(model),
            scan=self.scan,
            is_symmetric=model.is_symmetric,
        )


class RandomScanBlockGibbs(AbstractBlockKernel):
    """Two-block Gibbs sampling in random order: `P = ½ (E_V + E_H)`.

    A step redraws all visible units given the hidden ones, or all hidden units given
    the visible ones, with probability one half each. Reversible. A step is
    `n_units / 2` site updates on average.

    ??? cite "Source"

        Liu, Wong and Kong, *Covariance structure and convergence rate of the Gibbs
        sampler with various scans*, J. R. Stat. Soc. B 57, 157, 1995.
    """

    scan: ClassVar[Scan] = "random"
    is_reversible: ClassVar[bool] = True

    def transition(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        x: Num[Array, "*batch n_units"],
    ) -> Num[Array, "*batch n_units"]:
        coin, visible, hidden = jr.split(key, 3)
        heads = jr.bernoulli(coin, shape=(*x.shape[:-1], 1))
        return jnp.where(
            heads,
            model.sample_block(visible, x, "visible"),
            model.sample_block(hidden, x, "hidden"),
        )

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        return model.n_units / 2


class PalindromicBlockGibbs(AbstractBlockKernel):
    """Two-block Gibbs sampling visible–hidden–visible: `P = E_V E_H E_V`.

    Reversible, and positive semi-definite. A step is `2 n_visible + n_hidden` site
    updates.

    ??? cite "Source"

        Liu, Wong and Kong, *Covariance structure and convergence rate of the Gibbs
        sampler with various scans*, J. R. Stat. Soc. B 57, 157, 1995.
    """

    scan: ClassVar[Scan] = "palindromic"
    is_reversible: ClassVar[bool] = True

    def transition(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        x: Num[Array, "*batch n_units"],
    ) -> Num[Array, "*batch n_units"]:
        first, middle, last = jr.split(key, 3)
        x = model.sample_block(first, x, "visible")
        x = model.sample_block(middle, x, "hidden")
        return model.sample_block(last, x, "visible")

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        return 2 * model.n_visible + model.n_hidden


class AlternatingBlockGibbs(AbstractBlockKernel):
    """Two-block Gibbs sampling, visible then hidden: `P = E_V E_H`.

    What block-Gibbs hardware and contrastive divergence run. It leaves the law
    invariant but is **not reversible**: it has no real spectrum, no gap and no Cheeger
    bound, and functions that need these raise. A step is one sweep, `n_units` site
    updates.

    ??? cite "Source"

        Hinton, *Training products of experts by minimizing contrastive divergence*,
        Neural Computation 14, 1771, 2002.
    """

    scan: ClassVar[Scan] = "alternating"
    is_reversible: ClassVar[bool] = False

    def transition(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        x: Num[Array, "*batch n_units"],
    ) -> Num[Array, "*batch n_units"]:
        visible, hidden = jr.split(key)
        x = model.sample_block(visible, x, "visible")
        return model.sample_block(hidden, x, "hidden")

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        return model.n_units
