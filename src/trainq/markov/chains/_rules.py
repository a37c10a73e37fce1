"""Rules of acceptance: how a kernel that flips one unit at a time decides."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class AbstractFlipRule(eqx.Module):
    """With what probability a proposed flip is made, given `δ = log π(xⁱ) - log π(x)`.

    A rule of your own has one method.
    """

    @abc.abstractmethod
    def acceptance(self, delta: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The probability to flip. Detailed balance needs
        `acceptance(δ) = exp(δ) acceptance(-δ)`."""

    @property
    def is_positive(self) -> bool:
        """Whether the chain has no negative eigenvalues: sums over its powers then need
        fewer terms."""
        return False

    def symmetrised(self, delta: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`exp(-δ/2) acceptance(δ)`, without overflow: an even function of `δ`."""
        size = jnp.abs(delta)
        return jnp.exp(-size / 2) * self.acceptance(size)


class HeatBath(AbstractFlipRule):
    """Redraw the unit from its law given the others: flip with probability `σ(δ)`.

    ??? cite "Source"

        Glauber, *Time-dependent statistics of the Ising model*, J. Math. Phys. 4, 294,
        1963.
    """

    @property
    def is_positive(self) -> bool:
        return True

    def acceptance(self, delta: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(delta)


class Metropolis(AbstractFlipRule):
    """Accept the flip with probability `min(1, exp(δ))`.

    ??? cite "Source"

        Metropolis et al., *Equation of state calculations by fast computing machines*,
        J. Chem. Phys. 21, 1087, 1953.
    """

    def acceptance(self, delta: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.exp(jnp.minimum(delta, 0))
