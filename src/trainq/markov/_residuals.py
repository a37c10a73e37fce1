"""How far a chain is from what it claims to be: residuals that are zero up to
rounding."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._spins import global_flip
from ..models import AbstractEnergyModel, log_stationary
from ..solvers import Form, columns_in
from .chains import (
    AbstractChain,
    AbstractFunctions,
    Table,
    in_blocks,
    largest,
    require_chain,
)


_MEMORY = 1.0  # GiB for the functions that are held at once


@eqx.filter_jit
def row_sum_residual(chain: AbstractChain) -> Float[Array, ""]:
    """`max_x |Σ_y P(x, y) - 1|`.

    **Raises:** `TypeError` for another thing than a chain.
    """
    require_chain(chain)
    ones = jnp.ones_like(chain.log_stationary)
    return largest(chain.apply(ones) - 1)


@eqx.filter_jit
def positivity_residual(chain: AbstractChain) -> Float[Array, ""]:
    """`max_{x,y} max(-P(x, y), 0)`: by how much a probability is negative.

    **Raises:** `TypeError` for another thing than a chain.
    """
    require_chain(chain)
    return jnp.maximum(-chain.least_probability(), 0)


@eqx.filter_jit
def stationarity_residual(chain: AbstractChain) -> Float[Array, ""]:
    """`max_y |Σ_x π(x) P(x, y) - π(y)|`, or `|Σ_x π(x) - 1|` if that is more. Every
    chain must have this, reversible or not.

    **Raises:** `TypeError` for another thing than a chain.
    """
    require_chain(chain)
    law = chain.stationary
    moved = largest(chain.push(law) - law)
    return jnp.maximum(moved, jnp.abs(jnp.sum(law) - 1))


@eqx.filter_jit
def law_residual(
    chain: AbstractChain, models: Sequence[AbstractEnergyModel]
) -> Float[Array, ""]:
    """`max_x |π(x) - Π_r p_r(x_r)|`: how far the law of a chain is from that of the
    models it should sample, one but for replicas.

    The other residuals know the chain alone: one that is sound, of another temperature
    or of other parameters, has none of them.

    **Arguments:**

    - `chain`: the chain.
    - `models`: what its kernel runs side by side, `kernel.replicas(model)`.

    **Returns:** the largest difference of two probabilities.

    **Raises:** `TypeError` for another thing than a chain; `ValueError` if the chain
    has other states than the models.

    !!! example

        ```python
        kernel = tq.RandomScanGibbs()
        chain = kernel.chain(model.tempered(0.5))
        assert tq.markov.stationarity_residual(chain) < 1e-12
        assert tq.markov.law_residual(chain, [model]) > 1e-3
        ```
    """
    require_chain(chain)
    n_states = 2 ** sum(model.n_units for model in models)
    if chain.n_states != n_states:
        raise ValueError(
            f"The law of a chain is over the {n_states} states of what it samples, but "
            f"this {type(chain).__name__} has {chain.n_states}."
        )
    law, *others = (log_stationary(model) for model in models)
    for other in others:
        law = (law[:, None] + other[None]).reshape(-1)
    return largest(chain.stationary - jnp.exp(law))


@eqx.filter_jit
def detailed_balance_residual(chain: AbstractChain) -> Float[Array, ""]:
    """`max_{x,y} |π(x) P(x, y) - π(y) P(y, x)|`: zero for a reversible chain only.

    **Raises:** `TypeError` for another thing than a chain.
    """
    require_chain(chain)
    return chain.imbalance()


@eqx.filter_jit
def symmetry_residual(
    chain: AbstractChain,
    f: Float[Array, "states *obs"] | AbstractFunctions | None = None,
) -> Float[Array, ""]:
    """How far a chain is from symmetric under the global flip `x → -x`.

    **Arguments:**

    - `chain`: the chain, on the states of `n_units` spins.
    - `f`: functions of shape `(states,)` or `(states, n_obs)` that should have a
        parity; or functions that need not exist all at once.

    **Returns:** the largest of `|π(x) - π(-x)|`, `|P(x, y) - P(-x, -y)|` and, for every
    column of `f`, the smaller of `max |f(x) - f(-x)|` and `max |f(x) + f(-x)|`.

    **Raises:** `TypeError` for another thing than a chain.
    """
    require_chain(chain)
    law = chain.stationary
    residual = jnp.maximum(largest(law - global_flip(law)), chain.asymmetry())
    if f is None:
        return residual
    if not isinstance(f, AbstractFunctions):
        f = Table(f.reshape(f.shape[0], -1))

    def some(f: AbstractFunctions, _: None) -> Form:
        columns = chain.lift(f.table())
        even = jnp.max(jnp.abs(columns - global_flip(columns)), axis=0)
        odd = jnp.max(jnp.abs(columns + global_flip(columns)), axis=0)
        return Form(jnp.minimum(even, odd), None, None)

    block = columns_in(_MEMORY, chain.n_states, f.n_functions, law.dtype)
    return jnp.maximum(residual, largest(in_blocks(some, f, block).value))
