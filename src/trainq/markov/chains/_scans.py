"""Scans: in which order a step redraws blocks of units.

A block that is redrawn from its law given all other units is a conditional expectation:
redrawing block `b` is the projection `E_b f = E[f | all units outside b]`. A step that
redraws blocks `b₁, b₂, …, b_n`, in this order, is the kernel `E_b₁ E_b₂ ⋯ E_b_n`, and a
step that picks one of several orders at random is a mixture of these. So a scan is a
list of orders with their probabilities; the sampler, the exact chain, what a step costs
and whether it is reversible all follow.

Two blocks have more to give: alternating projections of two layers reduce to one of
them. How is the rest of a scan, for those that know it. Let `f` be of mean zero,
`f_v = E[f | v]` and `f_h = E[f | h]`; let `K_vh = E[· | v]` of functions of `h` and
`K_hv = E[· | h]` of functions of `v`, `M_h = K_hv K_vh` and `M_v = K_vh K_hv`. In half
densities, `√π(v) f_v` and `√π(h) f_h`, `K_vh` is the matrix `B(v, h) = π(v, h) /
√(π(v) π(h))`, `K_hv` is `Bᵀ`, and `M_h` and `M_v` are `BᵀB` and `BBᵀ`. Systems are on
the smaller layer; `M_h K_hv = K_hv M_v` brings one form into the other.
"""

import abc
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...solvers import (
    Contraction,
    Exchange,
    GramGenerator,
    Pairing,
    SymmetrisedExchange,
    pair,
)
from ._reductions import Powers


class Order(NamedTuple):
    """An order in which a step may redraw blocks.

    - `probability`: with what probability it does so.
    - `blocks`: the numbers of the blocks, in order.
    """

    probability: float
    blocks: tuple[int, ...]


class AbstractScan(eqx.Module):
    """In which order a step redraws blocks of units.

    A scan of your own has one method, `orders`.
    """

    @abc.abstractmethod
    def orders(self, n_blocks: int) -> tuple[Order, ...]:
        """The orders that a step picks from, with probabilities that sum to one."""

    @property
    def on_two_layers(self) -> "AbstractTwoLayerScan | None":
        """The scan itself, if it knows what two layers reduce to."""
        return None

    @property
    def is_positive(self) -> bool:
        """Whether the chain is reversible and has no negative eigenvalues: sums over
        its powers then need fewer terms."""
        return False

    # Scans from scans. Redrawing a block is self-adjoint, so the adjoint of a step is
    # the same blocks backwards.

    def reversed(self) -> "AbstractScan":
        """The scan of the adjoint `P*`: every order backwards."""
        return Backwards(self)

    def symmetrised(self) -> "AbstractScan":
        """The scan of `½ (P + P*)`."""
        return EitherWay(self)

    def palindrome(self) -> "AbstractScan":
        """The scan of `P P*`: there, and back again."""
        return ThereAndBack(self)

    def checked_orders(self, n_blocks: int) -> tuple[Order, ...]:
        """`orders`, having checked that they are orders of so many blocks.

        **Raises:** `ValueError` if a probability is not positive, they do not sum to
        one, or an order is empty or names a block that is not there.
        """
        orders = tuple(Order(*order) for order in self.orders(n_blocks))
        wrong = [
            order
            for order in orders
            if not (
                0 < order.probability <= 1
                and order.blocks
                and all(0 <= block < n_blocks for block in order.blocks)
            )
        ]
        total = sum(order.probability for order in orders)
        if wrong or not math.isclose(total, 1, abs_tol=1e-9):
            raise ValueError(
                f"The orders of a {type(self).__name__} of {n_blocks} blocks have "
                "positive probabilities that sum to 1, and each names blocks from 0 to "
                f"{n_blocks - 1}, but {wrong or orders} were given."
            )
        return orders

    def is_reversible(self, n_blocks: int) -> bool:
        """Whether the chain is reversible: every order is picked as often as the same
        one backwards, since conditional expectations are self-adjoint.

        **Raises:** `ValueError` as `checked_orders`.
        """
        forwards: dict[tuple[int, ...], float] = defaultdict(float)
        backwards: dict[tuple[int, ...], float] = defaultdict(float)
        for probability, blocks in self.checked_orders(n_blocks):
            distinct = _distinct(blocks)
            forwards[distinct] += probability
            backwards[distinct[::-1]] += probability
        return all(
            math.isclose(forwards[order], backwards[order], abs_tol=1e-12)
            for order in {*forwards, *backwards}
        )


def _distinct(blocks: tuple[int, ...]) -> tuple[int, ...]:
    """The blocks without repetitions: redrawing one twice in a row is redrawing it
    once."""
    pairs = zip(blocks, (-1, *blocks), strict=False)
    return tuple(block for block, last in pairs if block != last)


class Backwards(AbstractScan):
    """Every order of a scan backwards: `P*`."""

    scan: AbstractScan

    def orders(self, n_blocks: int) -> tuple[Order, ...]:
        return tuple(Order(p, b[::-1]) for p, b in self.scan.checked_orders(n_blocks))

    def reversed(self) -> AbstractScan:
        return self.scan

    def symmetrised(self) -> AbstractScan:
        return self.scan.symmetrised()


class EitherWay(AbstractScan):
    """Every order of a scan forwards or backwards, each half of the time:
    `½ (P + P*)`."""

    scan: AbstractScan

    def orders(self, n_blocks: int) -> tuple[Order, ...]:
        back = self.scan.reversed().checked_orders(n_blocks)
        both = (*self.scan.checked_orders(n_blocks), *back)
        return tuple(Order(order.probability / 2, order.blocks) for order in both)

    def reversed(self) -> AbstractScan:
        return self

    def symmetrised(self) -> AbstractScan:
        return self


class ThereAndBack(AbstractScan):
    """An order of a scan and then one backwards, each picked for itself: `P P*`."""

    scan: AbstractScan

    @property
    def is_positive(self) -> bool:
        return True

    def orders(self, n_blocks: int) -> tuple[Order, ...]:
        there = self.scan.checked_orders(n_blocks)
        back = self.scan.reversed().checked_orders(n_blocks)
        return tuple(
            Order(p * q, _distinct(first + second))
            for p, first in there
            for q, second in back
        )

    def reversed(self) -> AbstractScan:
        return self

    def symmetrised(self) -> AbstractScan:
        return self


class OnTwoLayers(NamedTuple):
    """Functions on two layers, in half densities: on the layer that a system is about
    (`own`), on the other, and `pulled`, the image of the latter on the former."""

    own: Float[Array, "n k"]
    other: Float[Array, "m k"]
    pulled: Float[Array, "n k"]
    own_is_hidden: bool


class Means(NamedTuple):
    """`f_v` and `f_h`, and the matrices `K_vh` and `K_hv`."""

    f_v: Float[Array, "v k"]
    f_h: Float[Array, "h k"]
    k_vh: Float[Array, "v h"]
    k_hv: Float[Array, "h v"]
    own_is_hidden: bool


class LayerForm(NamedTuple):
    """`rest + weight ⟨left, (I - c M)⁻¹ right⟩` on the own layer; `right` is `left` if
    None."""

    left: Float[Array, "n k"]
    right: Float[Array, "n k"] | None = None
    rest: Array | float = 0.0
    weight: float = 1.0


class PairModes(NamedTuple):
    """What a pair of singular vectors of `B` makes a mode of: its gap, and how much of
    the vector on `v` and of that on `h` it is the sum of, so that its norm is one."""

    gap: Float[Array, "*n"]
    on_visible: Float[Array, "*n"]
    on_hidden: Float[Array, "*n"]


class AbstractTwoLayerScan(AbstractScan):
    """A scan that knows what two layers reduce to: systems `I - c M` on one of them,
    one for each `c` of the `shares`."""

    @property
    def on_two_layers(self) -> "AbstractTwoLayerScan":
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The `c` of the systems. The first is one: its modes are those of the
        chain."""
        return (1.0,)

    @abc.abstractmethod
    def sides(self, at: OnTwoLayers, pairing: Pairing) -> tuple[LayerForm, ...]:
        """One form for each share, so that `⟨f, R f⟩` is `Cov f` and their sum."""

    @abc.abstractmethod
    def start(self, at: Means) -> tuple[Float[Array, "n k"], ...]:
        """The functions of the own layer whose half densities are `right`, one for each
        share."""

    @abc.abstractmethod
    def finish(
        self, s: Sequence[Float[Array, "n k"]], at: Means
    ) -> tuple[Array, Array]:
        """From the solutions `s = (I - c M)⁻¹ right` for each share, the functions of
        `v` and of `h` whose sum is `R f - f`."""

    @abc.abstractmethod
    def powers(self, f_v: Array, f_h: Array, hidden: GramGenerator) -> Powers:
        """`⟨f, P^t f⟩` for `t ≥ 1`, from half densities and the hidden layer. That for
        `t = 0` is `Cov f`, and the `rest` is what is to be added to it."""

    @abc.abstractmethod
    def modes(self, value: Array, sigma: Array) -> tuple[PairModes, ...]:
        """The modes that a singular value `σ` of `B` makes, the slowest first, with
        `1 - σ²` given. Where `σ` is zero, the own layer has a vector and the other has
        none."""

    @property
    def rest_gap(self) -> float | None:
        """The gap of all functions that no pair of singular vectors makes a mode of; by
        default they have several."""
        return None

    @property
    def lone_gap(self) -> float:
        """The gap of a function of one layer that is not correlated with the other."""
        return 1.0


class RandomOrder(AbstractTwoLayerScan):
    """One block, chosen uniformly: `P = (1/n) Σ_b E_b`. Reversible, and positive.

    Two layers: `P = ½ (E_V + E_H)`, and for `t ≥ 1`, on pairs of a function of `v` and
    one of `h`, to which one step maps everything,

        P^t f = ½ S^(t-1) (f_v, f_h),        S = ½ [[I, B], [Bᵀ, I]].

    The sum over all `t ≥ 1` is `½ (I - S)⁻¹ = [[I, -B], [-Bᵀ, I]]⁻¹`, which block
    elimination brings onto one layer: `(I - M)⁻¹ (f_own + K f_other)` there, and that
    pulled back plus `f_other` on the other. A singular value `σ` of `B` makes the
    eigenvalues `½ (1 ± σ)` of `S`, on the sum and on the difference of its two singular
    vectors. A function of one layer that is not correlated with the other has the
    eigenvalue `½`, and one without a mean given either layer is forgotten at once.

    ??? cite "Source"

        Liu, Wong and Kong, *Covariance structure and convergence rate of the Gibbs
        sampler with various scans*, J. R. Stat. Soc. B 57, 157, 1995.
    """

    def orders(self, n_blocks: int) -> tuple[Order, ...]:
        return tuple(Order(1 / n_blocks, (b,)) for b in range(n_blocks))

    @property
    def is_positive(self) -> bool:
        return True

    def reversed(self) -> AbstractScan:
        return self

    def symmetrised(self) -> AbstractScan:
        return self

    def sides(self, at, pairing):
        rest = pair(at.other, at.other, pairing)
        return (LayerForm(at.own + at.pulled, rest=rest),)

    def start(self, at):
        if at.own_is_hidden:
            return (at.f_h + at.k_hv @ at.f_v,)
        return (at.f_v + at.k_vh @ at.f_h,)

    def finish(self, s, at):
        (s,) = s
        if at.own_is_hidden:
            return at.f_v + at.k_vh @ s, s
        return s, at.f_h + at.k_hv @ s

    def powers(self, f_v, f_h, hidden):
        both = jnp.concatenate([f_v, f_h]) / math.sqrt(2)
        return Powers(Exchange(overlap=hidden.overlap), both, shifted=True)

    def modes(self, value, sigma):
        slow, fast = value / (2 + 2 * sigma), (1 + sigma) / 2
        return sum_and_difference(slow, fast, value, sigma)

    @property
    def lone_gap(self) -> float:
        return 0.5


class PalindromicOrder(AbstractTwoLayerScan):
    """All blocks in order and back again, `P = E_1 ⋯ E_n ⋯ E_1`. Reversible, and
    positive.

    Two layers: `P = E_V E_H E_V`, whose powers act on functions of `h` alone,

        ⟨f, P^t f⟩ = ⟨f_h, M_h^t f_h⟩        for t ≥ 1,

    so that `⟨f, R f⟩ = Var f - ‖f_h‖² + ⟨f_h, (I - M_h)⁻¹ f_h⟩`, or, on the visible
    layer, `Var f + ⟨K_vh f_h, (I - M_v)⁻¹ K_vh f_h⟩`. A singular value `σ` of `B` is an
    eigenvalue `σ²`, on the singular vector of `h`.

    ??? cite "Source"

        Liu, Wong and Kong, as for `RandomOrder`.
    """

    def orders(self, n_blocks: int) -> tuple[Order, ...]:
        forth = tuple(range(n_blocks))
        return (Order(1.0, forth + forth[-2::-1]),)

    @property
    def is_positive(self) -> bool:
        return True

    def reversed(self) -> AbstractScan:
        return self

    def symmetrised(self) -> AbstractScan:
        return self

    def sides(self, at, pairing):
        if at.own_is_hidden:
            return (LayerForm(at.own, rest=-pair(at.own, at.own, pairing)),)
        return (LayerForm(at.pulled),)

    def start(self, at):
        return (at.f_h if at.own_is_hidden else at.k_vh @ at.f_h,)

    def finish(self, s, at):
        (s,) = s
        image = at.k_vh @ s if at.own_is_hidden else s
        return jnp.zeros_like(at.f_v), at.k_hv @ image

    def powers(self, f_v, f_h, hidden):
        contraction = Contraction(generator=hidden, lowest=0)
        return Powers(contraction, f_h, rest=-jnp.sum(f_h**2, axis=0))

    def modes(self, value, sigma):
        # A function of v that has no image is annihilated by E_V.
        alone = jnp.where(sigma > 0, 0, jnp.ones_like(sigma))
        return (PairModes(value, alone, jnp.ones_like(sigma)),)

    @property
    def rest_gap(self) -> float:
        return 1.0


class FixedOrder(AbstractTwoLayerScan):
    """All blocks in order: `P = E_1 E_2 ⋯ E_n`; or backwards, which is the adjoint. It
    leaves the law invariant but is **not** reversible.

    Two layers: `P = E_V E_H`, and

        ⟨f, P^t f⟩ = ⟨f_h, M_h^(t-1) K_hv f_v⟩        for t ≥ 1,

    whose sum is `⟨f_h, (I - M_h)⁻¹ K_hv f_v⟩`, or `⟨K_vh f_h, (I - M_v)⁻¹ f_v⟩`.
    Backwards it is the same with the two sides exchanged.

    ??? cite "Source"

        Liu, Wong and Kong, as for `RandomOrder`.
    """

    is_backwards: bool = eqx.field(static=True, default=False)

    def orders(self, n_blocks: int) -> tuple[Order, ...]:
        forth = tuple(range(n_blocks))
        return (Order(1.0, forth[::-1] if self.is_backwards else forth),)

    def reversed(self) -> AbstractScan:
        return FixedOrder(not self.is_backwards)

    def symmetrised(self) -> AbstractScan:
        return SymmetrisedOrder()

    def palindrome(self) -> AbstractScan:
        return ThereAndBack(self) if self.is_backwards else PalindromicOrder()

    def sides(self, at, pairing):
        # The layer that is drawn last is where the function goes.
        ends_here = at.own_is_hidden != self.is_backwards
        left, right = at.own, at.pulled
        return (LayerForm(left, right) if ends_here else LayerForm(right, left),)

    def start(self, at):
        if self.is_backwards:
            return (at.f_h if at.own_is_hidden else at.k_vh @ at.f_h,)
        return (at.k_hv @ at.f_v if at.own_is_hidden else at.f_v,)

    def finish(self, s, at):
        (s,) = s
        if self.is_backwards:
            on_v = at.k_vh @ s if at.own_is_hidden else s
            return on_v, jnp.zeros_like(at.f_h)
        return jnp.zeros_like(at.f_v), s if at.own_is_hidden else at.k_hv @ s

    def powers(self, f_v, f_h, hidden):
        contraction = Contraction(generator=hidden, lowest=0)
        return Powers(contraction, f_h, hidden.overlap.pull(f_v), shifted=True)

    def modes(self, value, sigma):
        raise ValueError("A chain that is not reversible has no spectral gap.")


FixedOrder.__init__.__doc__ = """**Arguments:**

- `is_backwards`: whether the last block comes first.
"""


class SymmetrisedOrder(AbstractTwoLayerScan):
    """All blocks in order, or all of them backwards, each half of the time:
    `P = ½ (E_1 ⋯ E_n + E_n ⋯ E_1)`. Reversible, but not positive.

    Two layers: `P = ½ (E_V E_H + E_H E_V)`, and for `t ≥ 1`, on pairs of a function of
    `v` and one of `h`, to which one step maps everything,

        P^t f = S^(t-1) ½ (B f_h, Bᵀ f_v),        S = ½ [[BBᵀ, B], [Bᵀ, BᵀB]].

    A singular value `σ` of `B` makes two eigenvalues `½ σ (σ ± 1)` of `S`, on the sum
    and on the difference of its singular vectors, between -1/8 and 1. So `det(I - S)`
    is `(1 - σ²)(1 - σ²/4)` there, and partial fractions bring the sum over all `t ≥ 1`
    onto one layer. With `q` the function of that layer, and `p` the other one, pulled
    back,

        s = (I - M)⁻¹ (q + p),    r = (I - M/4)⁻¹ (q - p/2),
        ⅓ (s - r) on the own layer,    ⅓ K (s + r/2) on the other,

    and `⟨f, R f⟩ = Cov f + ⅓ ⟨q + p, s⟩ - ⅓ ⟨q - p/2, r⟩`. The second system has
    eigenvalues between 3/4 and 1.
    """

    def orders(self, n_blocks: int) -> tuple[Order, ...]:
        forth = tuple(range(n_blocks))
        return Order(0.5, forth), Order(0.5, forth[::-1])

    def reversed(self) -> AbstractScan:
        return self

    def symmetrised(self) -> AbstractScan:
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        return 1.0, 0.25

    def sides(self, at, pairing):
        return (
            LayerForm(at.own + at.pulled, weight=1 / 3),
            LayerForm(at.own - at.pulled / 2, weight=-1 / 3),
        )

    def start(self, at):
        if at.own_is_hidden:
            own, pulled = at.f_h, at.k_hv @ at.f_v
        else:
            own, pulled = at.f_v, at.k_vh @ at.f_h
        return own + pulled, own - pulled / 2

    def finish(self, s, at):
        s, r = s
        own, onto = (s - r) / 3, (s + r / 2) / 3
        if at.own_is_hidden:
            return at.k_vh @ onto, own
        return own, at.k_hv @ onto

    def powers(self, f_v, f_h, hidden):
        overlap = hidden.overlap
        left = jnp.concatenate([f_v, f_h])
        right = jnp.concatenate([overlap @ f_h, overlap.pull(f_v)]) / 2
        return Powers(SymmetrisedExchange(overlap=overlap), left, right, shifted=True)

    def modes(self, value, sigma):
        # 1 - ½ σ (σ + 1) = ½ (1 - σ) (2 + σ), and with the other sign
        # 1 + ½ σ (1 - σ).
        slow = value * (2 + sigma) / (2 + 2 * sigma)
        fast = 1 + sigma * value / (2 + 2 * sigma)
        return sum_and_difference(slow, fast, value, sigma)

    @property
    def rest_gap(self) -> float:
        return 1.0


def sum_and_difference(
    slow: Array, fast: Array, value: Array, sigma: Array
) -> tuple[PairModes, PairModes]:
    """The modes of a scan in which both layers have the same part: the sum and the
    difference of two singular vectors, with these gaps. Their squared norms are
    `2 (1 ± σ)`, with `value = 1 - σ²`."""
    paired = sigma > 0
    plus = jnp.where(paired, 1 / jnp.sqrt(2 + 2 * sigma), 1)
    # Near σ = 1 the difference is nothing but rounding errors, and one that is hardly
    # anything is left to the rest.
    less = value / (1 + sigma)
    known = paired & (less > float(jnp.finfo(sigma.dtype).eps) ** 1.2)
    minus = jnp.where(known, 1 / jnp.sqrt(2 * jnp.where(known, less, 1)), 0)
    return PairModes(slow, plus, plus), PairModes(fast, minus, -minus)
