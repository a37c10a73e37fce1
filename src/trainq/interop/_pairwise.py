"""Pairwise models, and the names that other libraries have for units."""

from collections.abc import Hashable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..models import RBM, AbstractEnergyModel, BoltzmannMachine


def pairwise(
    model: AbstractEnergyModel, what: str
) -> tuple[
    Int[np.ndarray, "n_edges 2"], Float[Array, " n_edges"], Float[Array, " n_units"]
]:
    """The edges, couplings and fields of a pairwise model, for `what` is made of these:
    the energy is `-Σ J_ij x_i x_j - Σ b_i x_i`."""
    while model.equivalent is not None:
        model = model.equivalent
    if isinstance(model, RBM):
        m, n = model.n_visible, model.n_hidden
        edges = np.stack(np.divmod(np.arange(m * n), n), axis=1) + [0, m]
        sizes = ((model.visible_bias, m), (model.hidden_bias, n))
        biases = [jnp.zeros(k, model.dtype) if b is None else b for b, k in sizes]
        return edges, model.weights.reshape(-1), jnp.concatenate(biases)
    if isinstance(model, BoltzmannMachine):
        zeros = jnp.zeros(model.n_units, model.dtype)
        fields = zeros if model.bias is None else model.bias
        return model.edges, model.couplings, fields
    raise ValueError(
        f"{what} is pairwise: an `RBM` or a `BoltzmannMachine` is needed, or a model "
        f"with such an `equivalent`, but a {type(model).__name__} was given."
    )


def units_of(
    known: Iterable[Hashable],
    order: Iterable[Hashable] | None,
    name: str,
    *,
    may_add: bool = False,
) -> dict[Any, int]:
    """The unit of each name: its place in an order. Without one, names are the numbers
    of the units.

    Other libraries have an order of their own, but not the same one in all that is
    about one model, and which units are visible hangs on it.

    **Arguments:**

    - `known`: the names.
    - `order`: those of all units, or None.
    - `name`: the argument that the order comes by, for messages.
    - `may_add`: whether an order may have further names, of units that stand alone.
    """
    known = list(known)
    n = len(known)
    if order is None:
        if set(known) != set(range(n)):
            one = next(one for one in known if one not in set(range(n)))
            hint = ", or `range(n_units)` if some that stand alone are left out"
            raise ValueError(
                f"Names are the numbers of units, from 0 to {n - 1}, but {one!r} was "
                f"given. Say which unit each is: `{name}` has all of them in order"
                f"{hint * may_add}."
            )
        order = range(n)
    order = list(order)
    units = {one: i for i, one in enumerate(order)}
    names = set(known)
    wrong = [f"{one!r} is missing" for one in known if one not in units]
    if not may_add:
        wrong += [f"{one!r} is not known" for one in order if one not in names]
    if len(units) != len(order):
        wrong.append("one is there twice")
    if wrong:
        raise ValueError(f"{name} has the name of every unit once, but {wrong[0]}.")
    return units
