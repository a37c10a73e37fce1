"""The modes of a reversible chain: how they are found."""

import math
from typing import SupportsIndex

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import whole_number
from .._compiled import compiled_quickly
from ..solvers import Auto, Form, columns_in, inverse_root
from ._decomposition import Modes
from ._eigenpairs import (
    Eigenpairs,
    Operator,
    Part,
    check_memory,
    dense_pairs,
    held_fixed,
    lowest_pairs,
    parts_of,
)
from ._resolvent import resolvent_form
from .chains import (
    AbstractChain,
    AbstractFunctions,
    Sector,
    Table,
    in_blocks,
    require_reversible,
    scale,
)


# Up to so many states all modes take less time than a few by Lanczos' iteration.
_FEW = 2**10
_SOME = 16
_MEMORY = 4.0  # GiB for the functions that are held at once


def modes(
    chain: AbstractChain,
    f: Float[Array, "states *obs"] | AbstractFunctions,
    k: SupportsIndex | None = None,
    *,
    sector: Sector | None = None,
    functions: bool = False,
) -> Modes:
    """The modes of a chain, and what each of them weighs in observables: why a chain is
    slow, and whether that matters.

    All of them come from a dense eigenproblem of each symmetry sector, or of one layer
    of a two-layer chain; a few of the slowest, of as many as 20 units, by Lanczos'
    iteration. Gaps have a small relative error, however slow the chain is: of a dense
    eigenproblem `ε` for the slowest, and at most `ε / √γ` for others, with `γ` the
    smallest gap. No derivative: modes turn abruptly where gaps cross.

    **Arguments:**

    - `chain`: a reversible chain.
    - `f`: `(states,)` or `(states, n_obs)`; or functions that need not exist all at
        once, as [`trainq.markov.EnergyGradients`][].
    - `k`: how many of the slowest modes of each sector to find. By default all, of up
        to 2**13 states, and 16 of more, which is done outside of `jax.jit`.
    - `sector`: `"even"` or `"odd"` to promise that every function has this parity
        under the global flip, and find modes of this parity alone.
    - `functions`: whether to return the modes themselves, at every state.

    **Returns:** a [`trainq.markov.Modes`][].

    **Raises:** `ValueError` if the chain is not reversible, not symmetric where a
    sector is asked for, or too large, for shapes that do not fit, or a `k` that is not
    a positive whole number; `MemoryError`, with an estimate, for more than there is
    memory for; `RuntimeError` if Lanczos' iteration does not converge; a
    run-time error if the chain is reducible in floating point.

    !!! example

        ```python
        chain = tq.RandomScanGibbs().chain(model)
        found = tq.markov.modes(chain, tq.observables(model))
        print(found)  # which modes make the noise
        print(found.cluster().gamma_eff, found.sensitivity())
        ```

    ??? cite "Source"

        Sokal, *Monte Carlo methods in statistical mechanics: foundations and new
        algorithms*, 1997, for the decomposition; Lehoucq, Sorensen and Yang, *ARPACK
        users' guide*, 1998.
    """
    require_reversible(chain, "list of modes")
    k = None if k is None else whole_number("k", k)
    if not isinstance(f, AbstractFunctions):
        f = Table(chain.centre(jnp.asarray(f)).reshape(chain.n_states, -1))
    parts = parts_of(chain, sector)
    found = []
    for part in parts:
        operator = part.operator
        if part.is_dense and (k is None or operator.size <= _FEW):
            check_memory(operator, 4 + len(parts))
            pairs = _all_pairs(operator)
            found.append(pairs if k is None else _first(pairs, k))
        else:
            found.append(lowest_pairs(operator, _SOME if k is None else k))
    return _modes(chain, f, parts, found, sector, functions)


@compiled_quickly
def _all_pairs(operator: Operator) -> Eigenpairs:
    pairs = dense_pairs(operator)
    lost = ~(pairs.known & jnp.all(pairs.values > 0))
    values = eqx.error_if(
        pairs.values,
        lost,
        "A gap is lost in rounding: the chain is reducible in floating point. Lower "
        "beta or the weights, use float64, or a block kernel.",
    )
    return pairs._replace(values=values)


def _first(pairs: Eigenpairs, k: int) -> Eigenpairs:
    return Eigenpairs(pairs.values[:k], pairs.vectors[:, :k], pairs.known)


@eqx.filter_jit
def _modes(
    chain: AbstractChain,
    f: AbstractFunctions,
    parts: tuple[Part, ...],
    found: list[Eigenpairs],
    sector: Sector | None,
    functions: bool,
) -> Modes:
    made = [
        part.reduction.modes(pairs.values, pairs.vectors)
        for part, pairs in zip(parts, found, strict=True)
    ]

    def some(f: AbstractFunctions, _: None) -> Form:
        at = chain.spectral_coordinates(f)
        overlaps = [
            columns.T @ part.reduction.columns(at)
            for part, (_, columns) in zip(parts, made, strict=True)
        ]
        rows = [*(x**2 for x in overlaps), at.variance[None]]
        return Form(jnp.concatenate(rows).T, None, None)

    dtype = chain.dtype
    block = columns_in(_MEMORY, chain.width, f.n_functions, dtype)
    value = in_blocks(some, f, block).value.T
    weight, variance = value[:-1], value[-1]
    parity = [
        jnp.full(len(gap), {"even": 1, "odd": -1, None: 0}[part.sector], int)
        for part, (gap, _) in zip(parts, made, strict=True)
    ]
    counts = [len(pairs.values) for pairs in found]
    gaps = [gap for gap, _ in made]
    rest_weight, rest_t_o, is_complete = _rest(
        chain, f, sector, parts, gaps, counts, weight, variance
    )
    gap = jnp.concatenate(gaps)
    order = jnp.argsort(gap)
    psi = None
    if functions:
        densities = [
            part.reduction.densities(columns)
            for part, (_, columns) in zip(parts, made, strict=True)
        ]
        psi = jnp.concatenate(densities, axis=1)[:, order]
        psi = scale(inverse_root(chain.log_stationary), psi)
        psi = chain.jacobi_sweeps(psi, gap[order][None] * psi)
    modes = Modes(
        gap=gap[order],
        weight=weight[order],
        parity=jnp.concatenate(parity)[order],
        rest_weight=rest_weight,
        rest_t_o=rest_t_o,
        function=psi,
        is_complete=is_complete,
    )
    return held_fixed("list of modes", modes)


def _rest(
    chain: AbstractChain,
    f: AbstractFunctions,
    sector: Sector | None,
    parts: tuple[Part, ...],
    gaps: list[Array],
    counts: list[int],
    weight: Array,
    variance: Array,
) -> tuple[Array, Array, bool]:
    """What the modes leave out of each variance and each `⟨f̃, R f̃⟩`, and whether it is
    nothing but what one step annihilates."""
    missing = [count < part.n_modes for part, count in zip(parts, counts, strict=True)]
    kinds = {part.reduction.rest_gap for part in parts}
    if not any(missing) and kinds == {math.inf}:
        return jnp.zeros_like(variance), jnp.zeros_like(variance), True
    rest = jnp.maximum(variance - jnp.sum(weight, axis=0), 0)
    if not any(missing) and kinds == {1.0}:
        return rest, rest, True
    whole = resolvent_form(chain, f, solver=Auto(), sector=sector).value
    left = whole - jnp.sum(scale(1 / jnp.concatenate(gaps), weight), axis=0)
    # What is left of a sector relaxes at least as fast as the last one that was found
    # there; within two layers, what is not a pair of singular vectors halves in a step.
    least = [
        gap[count - 1]
        for gap, count, some in zip(gaps, counts, missing, strict=True)
        if some
    ]
    if kinds != {math.inf}:
        least.append(jnp.asarray(0.5, variance.dtype))
    return rest, jnp.clip(left, rest / 2, rest / jnp.min(jnp.stack(least))), False
