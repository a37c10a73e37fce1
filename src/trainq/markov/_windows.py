"""Averages over a finite window of a chain: their exact bias and variance."""

from typing import SupportsIndex

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import require_law, whole_number
from .._loops import Steps, repeat
from .._memory import with_memory
from .._show import AbstractShown
from ..solvers import (
    Form,
    GramGenerator,
    columns_in,
    polynomial_form,
    sum_numbers,
    window_series,
)
from .chains import (
    AbstractChain,
    AbstractFunctions,
    Sector,
    Table,
    blocks_alike,
    in_blocks,
    parity_of,
    require_chain,
)


_MEMORY = 4.0  # GiB for the functions that are held at once
_LEAST = 8  # columns next to each other that fill a cache line


class WindowMoments(AbstractShown):
    """The bias and the variance of averages over a window of a chain."""

    bias: Float[Array, "*obs"]
    """The expectation of the average, less `π(f)`."""
    variance: Float[Array, "*obs"]
    """The variance of the average about its own expectation."""

    @property
    def mse(self) -> Float[Array, "*obs"]:
        """The mean squared error, `bias² + variance`."""
        return self.bias**2 + self.variance


def window_moments(
    chain: AbstractChain,
    f: Float[Array, "states *obs"],
    window: SupportsIndex,
    *,
    law: Float[Array, " states"] | None = None,
    burn_in: SupportsIndex = 0,
    sector: Sector | None = None,
) -> WindowMoments:
    """The bias and the variance of `(1/K) Σ_{B ≤ t < B+K} f(X_t)` as an estimate of
    `π(f)`: exact, and differentiable.

    From the stationary law the bias is zero, and the variance is that of a polynomial
    of the chain, which takes `O(√K)` products with it, by Chebyshev's recurrence. From
    another law it takes `B + K` products.

    **Arguments:**

    - `chain`: the chain.
    - `f`: `(states,)` or `(states, n_obs)`.
    - `window`: the number `K` of steps, at least 1.
    - `law`: `(states,)`, the law of `X_0`. The stationary law by default.
    - `burn_in`: the number `B` of steps that are dropped.
    - `sector`: `"even"` or `"odd"`, to promise that every column of `f` has this parity
        under the global flip. It saves work if the law is stationary.

    **Returns:** [`trainq.markov.WindowMoments`][], with arrays of the shape of `f` at
    one state.

    **Raises:** `ValueError` for wrong shapes, a window that is not a positive whole
    number, or a burn-in that is negative; a run-time error if `law` is not a law.

    ??? cite "Source"

        Sachdeva and Vishnoi, *Faster algorithms via approximation theory*, Found.
        Trends Theor. Comput. Sci. 9, 125, 2014, for powers in `O(√K)` products.
    """
    require_chain(chain)
    n_steps = Steps.of(whole_number("window", window, of="kernel steps"))
    dropped = Steps.of(whole_number("burn_in", burn_in, 0, of="kernel steps"))
    return _window_moments(chain, jnp.asarray(f), n_steps, law, dropped, sector)


@eqx.filter_jit
def _window_moments(
    chain: AbstractChain,
    f: Float[Array, "states *obs"],
    window: Steps,
    law: Float[Array, " states"] | None,
    burn_in: Steps,
    sector: Sector | None,
) -> WindowMoments:
    f = eqx.error_if(
        f,
        ~jnp.all(jnp.isfinite(f)),
        "A function of the states is not finite: every state needs a value.",
    )
    if law is None:
        columns = chain.centre(f).reshape(chain.n_states, -1)
        variance = window_variance(chain, Table(columns), window, sector)
        variance = variance.reshape(f.shape[1:])
        return WindowMoments(jnp.zeros_like(variance), variance)
    chain.check_sector(sector)
    law = jnp.asarray(law)
    if law.shape != (chain.n_states,):
        raise ValueError(
            f"law is a law of the {chain.n_states} states, of shape "
            f"({chain.n_states},), but {law.shape} was given."
        )
    law = require_law(law, chain.dtype, "law")
    columns = chain.centre(f).reshape(chain.n_states, -1)
    bias, variance = moments_from_law(chain, Table(columns), window, law, burn_in)
    return WindowMoments(bias.reshape(f.shape[1:]), variance.reshape(f.shape[1:]))


def variance(chain: AbstractChain, f: AbstractFunctions) -> Float[Array, " n_obs"]:
    """`Var_π f_a`."""

    def some(f: AbstractFunctions, _: None) -> Form:
        return Form(chain.coordinates(f).variance, None, None)

    return in_blocks(some, f, _at_once(chain, chain.width, f)).value


def window_variance(
    chain: AbstractChain,
    f: AbstractFunctions,
    window: Steps,
    sector: Sector | None = None,
) -> Float[Array, " n_obs"]:
    """The variance of the average of `f_a` over `window` steps of the chain, from its
    stationary law. `sector` promises a parity of `f` under the global flip."""
    reductions = chain.window_reductions(sector)
    if reductions is None:
        law = chain.stationary
        return moments_from_law(chain, f, window, law)[1]
    only = parity_of(reductions)
    dtype = chain.dtype
    n_steps = window.number.astype(dtype)

    def some(f: AbstractFunctions, _: None) -> Form:
        at = chain.coordinates(f, sector=only)
        value: Array = at.at_once / n_steps
        for reduction in reductions:
            powers = reduction.powers(at)
            contraction = powers.contraction
            series = window_series(window, dtype, contraction.lowest, powers.shifted)
            form = polynomial_form(contraction, series, powers.left, powers.right)
            value = value + powers.rest / n_steps + form
        return Form(value, None, None)

    block = _at_once(chain, chain.width, f)
    form = in_blocks(some, f, block)
    _, block = blocks_alike(f.n_functions, block)
    values, slopes = chain.coordinate_numbers(block, 1, only)
    for held, more in (sum_numbers(r.generator, block) for r in reductions):
        values, slopes = values + held, slopes + more
    instead = "`QSampled` takes samples."
    if not all(isinstance(r.generator, GramGenerator) for r in reductions):
        instead = f"A two-layer kernel of an RBM takes less, and {instead}"
    return _with_memory(form.value, chain, f, values, values + slopes, instead)


def moments(
    chain: AbstractChain, f: Float[Array, "states n_obs"], window: Steps
) -> tuple[Float[Array, "states n_obs"], Float[Array, "states n_obs"]]:
    """First and second moment of the average of `f` over `window` steps, given the
    first state. It takes as many applications of the chain as there are steps."""
    # With s_n(x) the mean and h_n(x) the mean square of f(X_0) + … + f(X_n-1),
    #   s_n+1 = f + P s_n,
    #   h_n+1 = f² + 2 f P s_n + P h_n = f (2 s_n+1 - f) + P h_n.
    step, n_obs = chain.operator(), f.shape[1]

    def longer(both):
        s, h = jnp.split(step(both), [n_obs], axis=1)
        s = f + s
        return jnp.concatenate([s, f * (2 * s - f) + h], axis=1)

    zero = jnp.zeros((chain.n_states, 2 * n_obs), f.dtype)
    s, h = jnp.split(repeat(longer, zero, window), [n_obs], axis=1)
    n = window.number.astype(f.dtype)
    return s / n, h / n**2


def moments_from_law(
    chain: AbstractChain,
    f: AbstractFunctions,
    window: Steps,
    law: Array,
    burn_in: int | Steps = 0,
) -> tuple[Float[Array, " n_obs"], Float[Array, " n_obs"]]:
    """The bias and the variance from a law that has been checked."""
    law = chain.push(law, burn_in)

    def some(f, _):
        first, second = moments(chain, chain.centre(f.table()), window)
        bias = law @ first
        variance = jnp.maximum(law @ second - bias**2, 0)
        return Form(jnp.stack([bias, variance], axis=1), None, None)

    # The backward pass keeps both moments of up to 64 steps: see `repeat`.
    block = max(_LEAST, _at_once(chain, 24 * chain.n_states, f))
    both = in_blocks(some, f, block).value
    # For each function, and for the tables of the kernel.
    _, block = blocks_alike(f.n_functions, block)
    n_units = (chain.n_states - 1).bit_length()
    kept = 62 * window.n_digits + 46
    values = (5.0 * block + n_units) * chain.n_states
    slopes = (kept * block + 18.0 * n_units) * chain.n_states
    instead = (
        "Chains that start in the law of the model, `start=tq.Stationary()`, take "
        "less, if their kernel is reversible or one of two layers; `QSampled` takes "
        "samples."
    )
    both = _with_memory(both, chain, f, values, slopes, instead)
    return both[:, 0], both[:, 1]


def _with_memory(
    x: Array,
    chain: AbstractChain,
    f: AbstractFunctions,
    value: float,
    gradient: float,
    instead: str,
) -> Array:
    size = chain.dtype.itemsize
    what = f"The variance of {f.n_functions} averages over {chain.n_states:,} states"
    return with_memory(x, value * size, gradient * size, what, instead)


def _at_once(chain: AbstractChain, width: int, f: AbstractFunctions) -> int:
    return columns_in(_MEMORY, width, f.n_functions, chain.dtype)
