"""Kernels that flip one unit at a time."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..._random import two_words, uniform
from ...models import AbstractEnergyModel, log_stationary
from ..chains import AbstractFlipRule, HeatBath, Metropolis, SingleFlipChain
from ._base import AbstractKernel, Stepper, on_any_mesh
from ._visits import Visit


class AbstractSingleFlipKernel(AbstractKernel):
    """Choose a unit uniformly, and flip it with the probability of a rule."""

    rule: eqx.AbstractVar[AbstractFlipRule]
    is_reversible: ClassVar[bool] = True

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        def flip(x, unit, word):
            spin = x[unit]
            field = model.local_fields(x, unit[None])[0]
            change = -2 * spin.astype(field.dtype) * field
            flips = uniform(word, field.dtype) < self.rule.acceptance(change)
            return x.at[unit].set(jnp.where(flips, -spin, spin))

        def step(key, x):
            flat = x.reshape(-1, model.n_units)
            # One hash for each chain. That some units come up to `n_units / 2**32` of
            # their share too often changes no law, as units are chosen before all else.
            words, others = two_words(key, flat.shape[:1])
            units = (words % model.n_units).astype(jnp.int32)
            return jax.vmap(flip)(flat, units, others).reshape(x.shape)

        return step

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

    def visits(self, model: AbstractEnergyModel) -> tuple[Visit, ...]:
        return tuple(Visit((i,), 1 / model.n_units, ()) for i in range(model.n_units))


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


class RandomScan(AbstractSingleFlipKernel):
    """Single flips in random order, by a rule of acceptance of your own.

    Reversible if the rule keeps detailed balance. A sweep is `n_units` steps.
    """

    rule: AbstractFlipRule


RandomScan.__init__.__doc__ = """**Arguments:**

- `rule`: how flips are accepted.
"""
