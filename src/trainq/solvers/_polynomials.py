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
from dataclasses import dataclass
from functools import lru_cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._generators import AbstractGenerator


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

    overlap: Float[Array, "visible hidden"]
    lowest: int = eqx.field(static=True, default=0, init=False)

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        visible, hidden = jnp.split(y, [self.overlap.shape[0]])
        return jnp.concatenate([self.overlap @ hidden, self.overlap.T @ visible])


@dataclass(frozen=True)
class WindowPolynomial:
    """`w(λ) = (1/K²) Σ_{s,t < K} λ^|s-t|`, so that `⟨f̃, w(P) f̃⟩_π` is the variance of
    the average of `f` over `K` steps; or, with the constant term taken out,
    `(w(λ) - w(0)) / λ`."""

    window: int
    divided: bool = False

    @property
    def degree(self) -> int:
        return max(self.window - (2 if self.divided else 1), 0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        # Let s_n = Σ_{i<n} λ^i and v_n = (Σ_{s,t<n} λ^|s-t| - n) / λ. Of two spans in a
        # row the cross terms are λ s_i s_j, so v_i+j = v_i + v_j + 2 s_i s_j, and n is
        # built from its binary digits: a few operations, none of which cancels
        # where λ is near one.
        power, s, v = np.ones_like(x), np.zeros_like(x), np.zeros_like(x)
        for digit in f"{self.window:b}":
            v, s, power = 2 * v + 2 * s * s, s + power * s, power * power
            if digit == "1":
                v, s, power = v + 2 * s, s + power, power * x
        v = v / self.window**2
        return v if self.divided else 1 / self.window + x * v


@lru_cache(maxsize=256)
def _series(polynomial: WindowPolynomial, lowest: int, accuracy: float) -> np.ndarray:
    """The Chebyshev series of a polynomial on `[lowest, 1]`, cut off where what is left
    is below `accuracy`."""
    # For λ^K on [-1, 1] what is left after d terms is the chance that a walk of K steps
    # ends further away than d, at most 2 exp(-d²/2K); on [0, 1] it is a walk of 2K half
    # steps, and 2 exp(-d²/K).
    variance = polynomial.window / (2 if lowest == 0 else 1)
    terms = math.ceil(math.sqrt(2 * variance * math.log(2 / accuracy)))
    size = 1 + min(terms, polynomial.degree)
    from scipy.fft import dct  # slow to load

    # At the Chebyshev points of the first kind the series is a cosine transform.
    points = np.cos(np.pi * (np.arange(size) + 0.5) / size)
    values = polynomial((1 + lowest) / 2 + (1 - lowest) / 2 * points)
    series = np.asarray(dct(values)) / size
    series[0] /= 2
    return series


def polynomial_form(
    contraction: AbstractContraction,
    polynomial: WindowPolynomial,
    u: Float[Array, "n k"],
    w: Float[Array, "n k"] | None = None,
) -> Float[Array, " k"]:
    """`⟨u_a, p(P) w_a⟩`, with `w` being `u` by default.

    **Arguments:**

    - `contraction`: what stands for `P`.
    - `polynomial`: the polynomial `p`.
    - `u`, `w`: the columns.
    """
    if w is not None:
        # Polarised, because the halved number of products needs equal sides.
        both = jnp.concatenate([u + w, u - w], axis=1) / 2
        plus, minus = jnp.split(polynomial_form(contraction, polynomial, both), 2)
        return plus - minus
    # The variance of an average over K steps is at least about 1/K of that of one.
    accuracy = float(jnp.finfo(u.dtype).eps) / polynomial.window
    series = _series(polynomial, contraction.lowest, accuracy)
    # With t_k = T_k(A) u,  ⟨u, t_2k⟩ = 2⟨t_k, t_k⟩ - ⟨t_0, t_0⟩  and
    # ⟨u, t_2k+1⟩ = 2⟨t_k, t_k+1⟩ - ⟨t_0, t_1⟩.
    series = np.append(series, [0] * (len(series) % 2))
    even, odd = 2 * series[::2], 2 * series[1::2]
    even[0] -= math.fsum(even) / 2
    odd[0] -= math.fsum(odd) / 2
    weights = jnp.asarray(np.stack([even, odd], axis=1), u.dtype)
    return _chebyshev_sum(contraction, u, weights)


@jax.custom_vjp
def _chebyshev_sum(
    contraction: AbstractContraction,
    u: Float[Array, "n k"],
    weights: Float[Array, "terms 2"],
) -> Float[Array, " k"]:
    """`Σ_k weights[k, 0] ⟨t_k, t_k⟩ + weights[k, 1] ⟨t_k, t_k+1⟩`."""
    return _forward(contraction, u, weights)[0]


# The recurrence t_k+2 = 2 A t_k+1 - t_k runs backwards as well, and is as stable there.
# So the backward pass recomputes the t_k from the last two of them, and needs no more
# memory than the forward pass.


def _forward(contraction, u, weights):
    def body(carry, weight):
        first, second, total = carry
        total = total + weight[0] * jnp.sum(first * first, axis=0)
        total = total + weight[1] * jnp.sum(first * second, axis=0)
        return (second, 2 * contraction.mv(second) - first, total), None

    start = (u, contraction.mv(u), jnp.zeros(u.shape[1], u.dtype))
    (first, second, total), _ = jax.lax.scan(body, start, weights)
    return total, (contraction, weights, first, second)


def _backward(residuals, cotangent):
    contraction, weights, first, second = residuals

    def apply(contraction, y):
        return contraction.mv(y)

    def body(carry, weight):
        second, third, moved_second, moved_third, moved = carry
        first = 2 * contraction.mv(second) - third
        slopes, pulled = jax.vjp(apply, contraction, second)[1](2 * moved_third)
        even, odd = (weight[:, None] * cotangent[None])[:, None]
        new_first = 2 * even * first + odd * second - moved_third
        new_second = moved_second + pulled + odd * first
        moved = jax.tree.map(jnp.add, moved, slopes)
        return (first, second, new_first, new_second, moved), None

    zero = jnp.zeros_like(first)
    start = (first, second, zero, zero, jax.tree.map(jnp.zeros_like, contraction))
    (u, _, moved_u, moved_next, moved), _ = jax.lax.scan(
        body, start, weights, reverse=True
    )
    slopes, pulled = jax.vjp(apply, contraction, u)[1](moved_next)
    return jax.tree.map(jnp.add, moved, slopes), moved_u + pulled, None


_chebyshev_sum.defvjp(_forward, _backward)
