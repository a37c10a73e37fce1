"""Polynomials of a chain, by Chebyshev's recurrence: no solve, and no power of `P`.

A polynomial of degree `K` in a symmetric operator with its spectrum in `[-1, 1]`, such
as the average over a window of `K` steps, takes `K` products with it. But `λ^K` is
`Σ_k p_k T_k(λ)` with `p_k` the probability that a random walk of `K` steps ends at
distance `k`, so that about `√(2 K log 1/ε)` terms are all that double precision can
see; and `T_2k = 2 T_k² - 1` halves the number of products once more. A window of 10⁴
steps takes 340 of them where no eigenvalue is negative, and 480 otherwise.
"""

import abc
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from .._loops import Steps, largest
from ._generators import AbstractGenerator
from ._overlaps import AbstractOverlap


# Terms of a series are summed, or left out, so many at a time.
_AT_ONCE = 16


class AbstractContraction(eqx.Module):
    """A symmetric operator `A` with its spectrum in `[-1, 1]`, that stands for the
    chain: `P = ½ (1 + lowest) + ½ (1 - lowest) A`."""

    lowest: eqx.AbstractVar[int]

    @abc.abstractmethod
    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """`A y`, for `k` columns at once."""


class Contraction(AbstractContraction):
    """That of a generator `L = I - P` with its spectrum in `[0, 1 - lowest]`."""

    generator: AbstractGenerator
    lowest: int = eqx.field(static=True)

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return y - 2 / (1 - self.lowest) * self.generator.mv(y)


class Exchange(AbstractContraction):
    """`[[0, B], [Bᵀ, 0]]` on functions of the visible units stacked upon functions of
    the hidden ones: that of `½ [[I, B], [Bᵀ, I]]`."""

    overlap: AbstractOverlap
    lowest: int = eqx.field(static=True, default=0, init=False)

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        visible, hidden = jnp.split(y, [self.overlap.shape[0]])
        return jnp.concatenate([self.overlap @ hidden, self.overlap.pull(visible)])


class SymmetrisedExchange(AbstractContraction):
    """`½ [[BBᵀ, B], [Bᵀ, BᵀB]]` on functions of both layers, stacked as in `Exchange`.
    A singular value `σ` of `B` makes the eigenvalues `½ σ (σ ± 1)`, of at least -1/8.
    """

    overlap: AbstractOverlap
    lowest: int = eqx.field(static=True, default=-1, init=False)

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        visible, hidden = jnp.split(y, [self.overlap.shape[0]])
        pulled, pushed = self.overlap.pull(visible), self.overlap @ hidden
        on_visible = self.overlap @ pulled + pushed
        return jnp.concatenate([on_visible, pulled + self.overlap.pull(pushed)]) / 2


class Series(eqx.Module):
    """A polynomial `p` of a chain, for `polynomial_form`.

    With `t_k = T_k(A) u` the form `⟨u, p(P) u⟩` is `Σ_k weights[k, 0] ⟨t_k, t_k⟩ +
    weights[k, 1] ⟨t_k, t_k+1⟩`. Terms from `n_terms` on are zero.
    """

    weights: Float[Array, "terms 2"]
    n_terms: Int[Array, ""]


def window_series(
    window: Steps, dtype: Any, lowest: int, divided: bool = False
) -> Series:
    """The polynomial `w(λ) = (1/K²) Σ_{s,t < K} λ^|s-t|` of a window of `K` steps, so
    that `⟨f̃, w(P) f̃⟩_π` is the variance of the average of `f` over it; or, with the
    constant term taken out, `(w(λ) - w(0)) / λ`.

    **Arguments:**

    - `window`: the number of steps.
    - `dtype`: the precision of what the series is used on.
    - `lowest`: no eigenvalue `λ` is below it, 0 or -1.
    - `divided`: whether the constant term is taken out.
    """
    eps = float(jnp.finfo(dtype).eps)
    # One half of the terms, in whole blocks.
    most = int(_terms(window.at_most, lowest, eps, np))
    size = 2 * _AT_ONCE * math.ceil(most / 2 / _AT_ONCE)
    # At the Chebyshev points of the first kind the series is a cosine transform.
    points = np.cos(np.pi * (np.arange(size) + 0.5) / size)
    points = (1 + lowest) / 2 + (1 - lowest) / 2 * points
    series = _cosine_transform(_window(window, divided, jnp.asarray(points))) / size
    number = window.number.astype(float)
    degree = jnp.maximum(number - (2 if divided else 1), 0)
    terms = jnp.minimum(_terms(number, lowest, eps, jnp), 1 + degree).astype(int)
    # The other terms are rounding alone.
    series = jnp.where(jnp.arange(size) < terms, series, 0).at[0].divide(2)
    return Series(_halved(series), (terms + 1) // 2)


def _terms(window: Any, lowest: int, eps: float, xp: Any) -> Any:
    """How many terms of a series matter, by NumPy or its like."""
    # For λ^K on [-1, 1] what is left after d terms is the chance that a walk of K steps
    # ends further away than d, at most 2 exp(-d²/2K); on [0, 1] it is a walk of 2K half
    # steps, and 2 exp(-d²/K). The variance of an average over K steps is at least about
    # 1/K of that of one, so that what is left shall be below eps/K.
    variance = window / (2 if lowest == 0 else 1)
    return 1 + xp.ceil(xp.sqrt(2 * variance * xp.log(2 * window / eps)))


def _cosine_transform(values: Array) -> Array:
    """`2 Σ_j x_j cos(πk(2j + 1) / 2n)`: the Fourier transform of `x` and its mirror
    image, turned by half a point."""
    n = len(values)
    both = jnp.fft.rfft(jnp.concatenate([values, values[::-1]]))[:n]
    half = np.pi * np.arange(n) / (2 * n)
    return both.real * np.cos(half) + both.imag * np.sin(half)


def _window(window: Steps, divided: bool, x: Array) -> Array:
    # Let s_n = Σ_{i<n} λ^i and v_n = (Σ_{s,t<n} λ^|s-t| - n) / λ. Of two spans in a row
    # the cross terms are λ s_i s_j, so v_i+j = v_i + v_j + 2 s_i s_j, and n is built
    # from its binary digits: a few operations, none of which cancels where λ is near
    # one.
    def appended(spans, digit):
        v, s, power = spans
        v, s, power = 2 * v + 2 * s * s, s + power * s, power * power
        longer = v + 2 * s, s + power, power * x
        spans = (v, s, power)
        return tuple(
            jnp.where(digit, *pair) for pair in zip(longer, spans, strict=True)
        ), None

    n_digits = window.at_most.bit_length()
    digits = (window.number >> jnp.arange(n_digits)[::-1]) & 1
    nothing = (jnp.zeros_like(x), jnp.zeros_like(x), jnp.ones_like(x))
    v = lax.scan(appended, nothing, digits == 1)[0][0]
    number = window.number.astype(x.dtype)
    v = v / number**2
    return v if divided else 1 / number + x * v


def _halved(series: Array) -> Array:
    """The weights of a `Series`, half as many as terms: `⟨u, t_2k⟩` is
    `2⟨t_k, t_k⟩ - ⟨t_0, t_0⟩`, and `⟨u, t_2k+1⟩` is `2⟨t_k, t_k+1⟩ - ⟨t_0, t_1⟩`."""
    weights = 2 * series.reshape(-1, 2)
    return weights.at[0].subtract(jnp.sum(weights, axis=0) / 2)


def polynomial_form(
    contraction: AbstractContraction,
    series: Series,
    u: Float[Array, "n k"],
    w: Float[Array, "n k"] | None = None,
) -> Float[Array, " k"]:
    """`⟨u_a, p(P) w_a⟩`, with `w` being `u` by default.

    **Arguments:**

    - `contraction`: what stands for `P`.
    - `series`: the polynomial `p`.
    - `u`, `w`: the columns.
    """
    if w is not None:
        # Polarised, because the halved number of products needs equal sides.
        both = jnp.concatenate([u + w, u - w], axis=1) / 2
        plus, minus = jnp.split(polynomial_form(contraction, series, both), 2)
        return plus - minus
    weights = jnp.asarray(series.weights, u.dtype)
    return _chebyshev_sum(contraction, u, weights, jnp.asarray(series.n_terms))


@jax.custom_vjp
def _chebyshev_sum(
    contraction: AbstractContraction,
    u: Float[Array, "n k"],
    weights: Float[Array, "terms 2"],
    n_terms: Int[Array, ""],
) -> Float[Array, " k"]:
    return _forward(contraction, u, weights, n_terms)[0]


def _for_each(
    body: Callable, carry: Any, weights: Array, n_terms: Array, *, reverse: bool
) -> Any:
    """`carry = body(carry, weight)` for the first `n_terms` weights, rounded up to
    whole blocks, and if mapped over to the most of all: weights of zero do no harm."""

    def step(carry, weight):
        return body(carry, weight), None

    def block(carry, some):
        first, weights = some

        def all_of_it(carry):
            return lax.scan(step, carry, weights, reverse=reverse)[0]

        return lax.cond(first < most, all_of_it, lambda carry: carry, carry), None

    most = largest(n_terms)
    blocks = weights.reshape(-1, _AT_ONCE, 2)
    firsts = _AT_ONCE * jnp.arange(len(blocks))
    return lax.scan(block, carry, (firsts, blocks), reverse=reverse)[0]


def _forward(contraction, u, weights, n_terms):
    def body(carry, weight):
        here, after, total = carry  # t_k, t_k+1, and the sum so far
        total = total + weight[0] * jnp.sum(here * here, axis=0)
        total = total + weight[1] * jnp.sum(here * after, axis=0)
        return after, 2 * contraction.mv(after) - here, total

    start = (u, contraction.mv(u), jnp.zeros(u.shape[1], u.dtype))
    here, after, total = _for_each(body, start, weights, n_terms, reverse=False)
    return total, (contraction, weights, n_terms, here, after)


class _Backward(NamedTuple):
    """`t_k` and `t_k+1`, and the cotangents that have reached them and the operator
    from all that was computed after them."""

    here: Array
    after: Array
    to_here: Array
    to_after: Array
    to_operator: AbstractContraction


# The recurrence t_k+2 = 2 A t_k+1 - t_k runs backwards as well, and is as stable there.
# So the backward pass recomputes the t_k from the last two of them, and needs no more
# memory than the forward pass. At step k it knows t_k+1 and t_k+2, and all that reaches
# t_k+2, which is pulled back through the recurrence; and ⟨t_k, t_k⟩ and ⟨t_k, t_k+1⟩
# have their own derivatives.


def _backward(residuals, cotangent):
    contraction, weights, n_terms, here, after = residuals

    def double(contraction, y):
        return 2 * contraction.mv(y)

    def pulled_back(to, at):
        return jax.vjp(double, contraction, at)[1](to)

    def body(now: _Backward, weight) -> _Backward:
        before = double(contraction, now.here) - now.after
        to_operator, to_here = pulled_back(now.to_after, now.here)
        even, odd = (weight[:, None] * cotangent[None])[:, None]
        return _Backward(
            here=before,
            after=now.here,
            to_here=2 * even * before + odd * now.here - now.to_after,
            to_after=now.to_here + to_here + odd * before,
            to_operator=jax.tree.map(jnp.add, now.to_operator, to_operator),
        )

    nothing = jax.tree.map(jnp.zeros_like, contraction)
    start = _Backward(here, after, jnp.zeros_like(here), jnp.zeros_like(here), nothing)
    end = _for_each(body, start, weights, n_terms, reverse=True)
    # The first product, t_1 = A u, has no factor of two.
    to_operator, to_u = pulled_back(end.to_after / 2, end.here)
    to_operator = jax.tree.map(jnp.add, end.to_operator, to_operator)
    return to_operator, end.to_here + to_u, None, None


_chebyshev_sum.defvjp(_forward, _backward)
