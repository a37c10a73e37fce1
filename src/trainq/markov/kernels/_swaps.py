"""Swaps of replicas as they are drawn: they permute states, and energies with them."""

from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ..._random import happens, split
from ...models import AbstractEnergyModel
from ..chains import AbstractSwapOrder, Round


class Swaps(NamedTuple):
    """What the swaps of one step did.

    - `came_from`: `(chains, replicas)`, the rung that the state of each rung was on.
    - `tried`: `(chains, replicas - 1)`, how often each pair was.
    - `accepted`: `(chains, replicas - 1)`, how often each pair was swapped.
    """

    came_from: Int[Array, "chains replicas"]
    tried: Int[Array, "chains pairs"]
    accepted: Int[Array, "chains pairs"]


def no_swaps(n_chains: int, n_replicas: int) -> Swaps:
    stays = jnp.broadcast_to(jnp.arange(n_replicas), (n_chains, n_replicas))
    zeros = jnp.zeros((n_chains, n_replicas - 1), int)
    return Swaps(stays, zeros, zeros)


def swapper(
    order: AbstractSwapOrder,
    shared: bool,
    betas: Float[Array, " replicas"],
    model: AbstractEnergyModel,
) -> Callable[[Key[Array, ""], Array, Swaps, Array], tuple[Array, Swaps]]:
    """All swaps of a step, in those chains that are active. Swapping states only
    permutes their energies, so that these are computed once, and states moved once."""
    n = betas.shape[0]
    runs = [(one, len(list(same))) for one, same in groupby(order.checked_rounds(n))]

    def energies(x):
        flat = x.reshape(-1, model.n_units).astype(model.dtype)
        return jax.vmap(model.energy)(flat).astype(model.dtype).reshape(x.shape[:2])

    def swap(key, x, swaps, active):
        carry = energies(x), no_swaps(*x.shape[:2])
        for (sets, times), one in zip(runs, split(key, len(runs)), strict=True):
            body = _round(sets, shared, betas, active)
            carry, _ = jax.lax.scan(body, carry, split(one, times))
        came_from, tried, accepted = carry[1]
        new = Swaps(
            jnp.take_along_axis(swaps.came_from, came_from, axis=1),
            swaps.tried + tried,
            swaps.accepted + accepted,
        )
        return jnp.take_along_axis(x, came_from[:, :, None], axis=1), new

    return swap


def _round(
    sets: Round,
    shared: bool,
    betas: Float[Array, " replicas"],
    active: Bool[Array, " chains"],
) -> Callable[..., Any]:
    """A round as the body of a scan over keys."""
    n, most = betas.shape[0], max(map(len, sets))
    # Of each set: its pairs, padded; which of these decides about each rung; the rung
    # that each is paired with, itself if with none; and which pairs are tried.
    pair = np.zeros((len(sets), most), int)
    decides = np.zeros((len(sets), n), int)
    partner = np.tile(np.arange(n), (len(sets), 1))
    tried = np.zeros((len(sets), n - 1), bool)
    for row, pairs in enumerate(sets):
        for k, i in enumerate(pairs):
            pair[row, k] = i
            decides[row, [i, i + 1]] = k
            partner[row, [i, i + 1]] = i + 1, i
            tried[row, i] = True
    tables = tuple(map(jnp.asarray, (pair, decides, partner, tried)))

    def step(carry, key):
        energies, swaps = carry
        pick, accept = split(key)
        rows = jr.randint(pick, () if shared else active.shape, 0, len(sets))
        rows = jnp.broadcast_to(rows, active.shape)
        pair, decides, partner, tried = (table[rows] for table in tables)
        # By how much a swap changes log π.
        cold, hot = (jnp.take_along_axis(energies, pair + k, axis=1) for k in (0, 1))
        change = (betas[pair] - betas[pair + 1]) * (cold - hot)
        swapped = happens(accept, jnp.exp(jnp.minimum(change, 0)))
        swapped = jnp.take_along_axis(swapped, decides, axis=1) & active[:, None]
        source = jnp.where(swapped, partner, jnp.arange(n)[None])
        tried = tried & active[:, None]
        swaps = Swaps(
            jnp.take_along_axis(swaps.came_from, source, axis=1),
            swaps.tried + tried.astype(int),
            swaps.accepted + (swapped[:, :-1] & tried).astype(int),
        )
        return (jnp.take_along_axis(energies, source, axis=1), swaps), None

    return step
