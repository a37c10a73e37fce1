"""Steps of a chain as operators on half densities, without a matrix.

A step `P` that keeps the law `π` acts on functions `x`, and on half densities
`y = √π x` as `D^½ P D^-½`. Redrawing a unit from its law given the others is a
projection there,

    out(x) = s(x) (s(x) y(x) + s(x') y(x')),        s = √p(x_i | rest),

with `x'` the state with the unit flipped: nothing is ever divided by `π`. All other
steps are made of such: one after the other, one of several, several times.

In a sector of the global flip the states are classes {x, -x}. A step is then that on
functions of one parity, and `is_odd` says that those change sign between the members.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._spins import fold, inverse_order, permuted, unfold, xor
from ._generators import FlipGenerator, ratio_scaled
from ._systems import Pairing, pair


class AbstractStep(eqx.Module):
    """A step of a chain on half densities."""

    @property
    @abc.abstractmethod
    def products(self) -> int:
        """Multiplications in one application to one column."""

    @property
    def left(self) -> float:
        """About how many copies of a function its Dirichlet form leaves for the
        backward pass."""
        return 1.5

    @abc.abstractmethod
    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """`D^½ P D^-½ y`, for `k` columns at once."""

    @abc.abstractmethod
    def average(self, x: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """`P x` of functions, by sums of positive multiples of their values."""

    @abc.abstractmethod
    def transposed(self) -> "AbstractStep":
        """The step of the reversed chain."""

    @abc.abstractmethod
    def leaving(self) -> Float[Array, " n"]:
        """About how often each state is left: a scale, of which only the order of
        magnitude matters."""

    @abc.abstractmethod
    def dirichlet(
        self, z: Array, x: Array, root: Float[Array, " n"], pairing: Pairing
    ) -> Array:
        """`⟨z_a, (I - P) x_b⟩_π` of two functions, for `a = b` or all pairs, as a sum
        of products of differences; `root` is `√π`."""


class Redraw(AbstractStep):
    """One unit is drawn from its law given all others."""

    root: Float[Array, " n"]
    """`√p(x_i | rest)`."""
    mask: int = eqx.field(static=True)
    """The bits of a state that change with the unit."""
    is_odd: bool = eqx.field(static=True, default=False)
    """Whether functions change their sign with it."""

    @property
    def products(self) -> int:
        return 2 * self.root.shape[0]

    def _other(self, y: Array) -> Array:
        other = xor(y, self.mask)
        return -other if self.is_odd else other

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        y = self.root[:, None] * y
        return self.root[:, None] * (y + self._other(y))

    def average(self, x: Float[Array, "n k"]) -> Float[Array, "n k"]:
        x = (self.root**2)[:, None] * x
        return x + self._other(x)

    def transposed(self) -> "Redraw":
        return self

    def leaving(self) -> Float[Array, " n"]:
        return xor(self.root**2, self.mask)

    def dirichlet(
        self, z: Array, x: Array, root: Float[Array, " n"], pairing: Pairing
    ) -> Array:
        # π(x) p(x'_i | rest) = √π(x) s(x) √π(x') s(x'), once from each end.
        weight = root * self.root
        flow = weight * xor(weight, self.mask) / 2
        z, x = z - self._other(z), x - self._other(x)
        return pair(z, flow[:, None] * x, pairing)


class LayerRedraw(AbstractStep):
    """All units of one of two layers are drawn from their law given the other."""

    root: Float[Array, "first second"]
    """`√p(own | other)` at all states, by layer."""
    axis: int = eqx.field(static=True)
    """Which of the two layers is drawn."""
    order: tuple[int, ...] | None = eqx.field(static=True, default=None)
    """The units of the first layer, and then those of the second; None if that is the
    order in which they are."""
    sector: int = eqx.field(static=True, default=0)
    """1 for even functions under the global flip, -1 for odd ones, 0 for all."""

    @property
    def products(self) -> int:
        return 2 * self.root.size

    def _whole(self, y: Array) -> Array:
        y = y if self.sector == 0 else unfold(y, self.sector)
        if self.order is not None:
            y = permuted(y, self.order)
        return y.reshape(*self.root.shape, *y.shape[1:])

    def _folded(self, table: Array) -> Array:
        y = table.reshape(self.root.size, *table.shape[2:])
        if self.order is not None:
            y = permuted(y, inverse_order(self.order))
        return y if self.sector == 0 else fold(y, self.sector)

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        root = self.root[:, :, None]
        mean = jnp.sum(root * self._whole(y), axis=self.axis, keepdims=True)
        return self._folded(root * mean)

    def average(self, x: Float[Array, "n k"]) -> Float[Array, "n k"]:
        table = self._whole(x)
        mean = jnp.sum(
            (self.root**2)[:, :, None] * table, axis=self.axis, keepdims=True
        )
        return self._folded(jnp.broadcast_to(mean, table.shape))

    def transposed(self) -> "LayerRedraw":
        return self

    def leaving(self) -> Float[Array, " n"]:
        # What is missing to one, and where that is little the sum of the others.
        given = self.root**2
        top = jnp.argmax(given, axis=self.axis, keepdims=True)
        on = jnp.arange(given.shape[self.axis])
        largest = jnp.expand_dims(on, 1 - self.axis) == top
        others = jnp.sum(jnp.where(largest, 0, given), axis=self.axis, keepdims=True)
        left = jnp.where(largest, others, 1 - given)
        flat = left.reshape(-1)
        if self.order is not None:
            flat = permuted(flat, inverse_order(self.order))
        return flat if self.sector == 0 else flat[: flat.shape[0] // 2]

    def dirichlet(
        self, z: Array, x: Array, root: Float[Array, " n"], pairing: Pairing
    ) -> Array:
        z, x = (root[:, None] * (f - self.average(f)) for f in (z, x))
        return pair(z, x, pairing)


class Flips(AbstractStep):
    """A step that flips one unit at most."""

    generator: FlipGenerator

    @property
    def products(self) -> int:
        return self.generator.hops.size

    @property
    def left(self) -> float:
        return 8.0

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return y - self.generator.mv(y)

    def average(self, x: Float[Array, "n k"]) -> Float[Array, "n k"]:
        generator, law = self.generator, self.generator.log_law
        total = (1 - generator.diagonal)[:, None] * x
        for hops, mask in zip(generator.hops, generator.masks, strict=True):
            moves = ratio_scaled(hops, (xor(law, mask) - law) / 2)
            total = total + moves[:, None] * xor(x, mask)
        return total

    def transposed(self) -> "Flips":
        return self

    def leaving(self) -> Float[Array, " n"]:
        return self.generator.diagonal

    def dirichlet(
        self, z: Array, x: Array, root: Float[Array, " n"], pairing: Pairing
    ) -> Array:
        del root
        return self.generator.dirichlet(z, x, pairing)


class Words(AbstractStep):
    """One of several sequences of steps, with their probabilities. The empty one stays
    where it is."""

    parts: tuple[AbstractStep, ...]
    words: tuple[tuple[float, tuple[int, ...]], ...] = eqx.field(static=True)
    """The probability of each, and the numbers of its parts, in order."""

    @property
    def products(self) -> int:
        return sum(self.parts[i].products for _, word in self.words for i in word)

    @property
    def left(self) -> float:
        return sum(self.parts[i].left for _, word in self.words for i in word)

    def _sum(self, act: Any, y: Array) -> Array:
        total = []
        for probability, word in self.words:
            part = y
            # (P f)(x) = E[f(X₁) | x]: the last one is averaged over first.
            for i in reversed(word):
                part = act(self.parts[i], part)
            total.append(probability * part)
        return sum(total[1:], total[0])

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return self._sum(lambda part, y: part.mv(y), y)

    def average(self, x: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return self._sum(lambda part, x: part.average(x), x)

    def transposed(self) -> "Words":
        parts = tuple(part.transposed() for part in self.parts)
        return Words(parts, tuple((p, word[::-1]) for p, word in self.words))

    def leaving(self) -> Float[Array, " n"]:
        each = [part.leaving() for part in self.parts]
        total = jnp.zeros_like(each[0])
        for probability, word in self.words:
            left = jnp.zeros_like(total)
            for i in word:
                left = left + (1 - left) * each[i]
            total = total + probability * left
        return total

    def dirichlet(
        self, z: Array, x: Array, root: Float[Array, " n"], pairing: Pairing
    ) -> Array:
        # I - P₁P₂⋯ = (I - P_n) + (I - P_n-1) P_n + …, and averages are taken of
        # functions, which stay as flat as they are.
        total = []
        for probability, word in self.words:
            after = x
            for i in reversed(word):
                part = self.parts[i]
                form = part.dirichlet(z, after, root, pairing)
                total.append(probability * form)
                after = part.average(after)
        return sum(total[1:], total[0])


class Repeated(AbstractStep):
    """A step, several times."""

    step: AbstractStep
    times: int = eqx.field(static=True)

    @property
    def products(self) -> int:
        return self.times * self.step.products

    @property
    def left(self) -> float:
        return 2 * self.times + self.step.left

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return _times(self.step.mv, y, self.times)

    def average(self, x: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return _times(self.step.average, x, self.times)

    def transposed(self) -> "Repeated":
        return Repeated(self.step.transposed(), self.times)

    def leaving(self) -> Float[Array, " n"]:
        once = jnp.minimum(self.step.leaving(), 1 - jnp.finfo(self._dtype).eps)
        return -jnp.expm1(self.times * jnp.log1p(-once))

    @property
    def _dtype(self) -> Any:
        return jax.tree.leaves(self.step)[0].dtype

    def dirichlet(
        self, z: Array, x: Array, root: Float[Array, " n"], pairing: Pairing
    ) -> Array:
        # I - Pⁿ = (I - P)(I + P + … + Pⁿ⁻¹)
        @jax.checkpoint
        def once(after, _):
            form = self.step.dirichlet(z, after, root, pairing)
            return self.step.average(after), form

        return jnp.sum(jax.lax.scan(once, x, length=self.times)[1], axis=0)


def _times(act: Any, y: Array, times: int) -> Array:
    return jax.lax.scan(lambda y, _: (act(y), None), y, length=times)[0]
