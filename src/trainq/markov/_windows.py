"""Averages over a finite window of a chain: their exact bias and variance."""

from typing import SupportsIndex

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import require_law, whole_number
from ..solvers._forms import Form
from ..solvers._solvers import ConjugateGradient
from .chains._base import AbstractChain, Sector
from .chains._functions import AbstractFunctions, Table, in_blocks


class WindowMoments(eqx.Module):
    """The bias and the variance of averages over a window of a chain."""

    bias: Float[Array, "*obs"]
    variance: Float[Array, "*obs"]

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
    n_steps = whole_number("window", window, of="kernel steps")
    dropped = whole_number("burn_in", burn_in, 0, of="kernel steps")
    return _window_moments(chain, jnp.asarray(f), n_steps, law, dropped, sector)


@eqx.filter_jit
def _window_moments(
    chain: AbstractChain,
    f: Float[Array, "states *obs"],
    window: int,
    law: Float[Array, " states"] | None,
    burn_in: int,
    sector: Sector | None,
) -> WindowMoments:
    f = eqx.error_if(
        f,
        ~jnp.all(jnp.isfinite(f)),
        "A function of the states is not finite: every state needs a value.",
    )
    if law is None:
        columns = chain.centre(f).reshape(chain.n_states, -1)
        variance = chain.window_variance(Table(columns), window, sector)
        variance = variance.reshape(f.shape[1:])
        return WindowMoments(jnp.zeros_like(variance), variance)
    chain.sectors(sector)
    law = jnp.asarray(law)
    if law.shape != (chain.n_states,):
        raise ValueError(
            f"law is a law of the {chain.n_states} states, of shape "
            f"({chain.n_states},), but {law.shape} was given."
        )
    law = require_law(law, chain.log_stationary.dtype, "law")
    columns = chain.centre(f).reshape(chain.n_states, -1)
    bias, variance = from_law(chain, Table(columns), window, law, burn_in)
    return WindowMoments(bias.reshape(f.shape[1:]), variance.reshape(f.shape[1:]))


def from_law(
    chain: AbstractChain, f: AbstractFunctions, window: int, law: Array, burn_in: int
) -> tuple[Float[Array, " n_obs"], Float[Array, " n_obs"]]:
    """The bias and the variance from a law that has been checked."""
    law = chain.push(law, burn_in)

    def some(f, _):
        first, second = chain.window_moments(chain.centre(f.table()), window)
        bias = law @ first
        variance = jnp.maximum(law @ second - bias**2, 0)
        return Form(jnp.stack([bias, variance], axis=1), None, None)

    dtype = chain.log_stationary.dtype
    block = ConjugateGradient().block_size(chain.n_states, f.n_functions, dtype)
    moments = in_blocks(some, f, block).value
    return moments[:, 0], moments[:, 1]
