"""Chains that are spread over the devices of a mesh.

A chain is moved, and its values are summed up, where it is: what is done in a loop is
done along an axis of chains, and no device tells another anything. Random numbers too
depend on the place of a chain among all of them, and on no device.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool


_Fn = TypeVar("_Fn", bound=Callable[..., Any])


def spread(x: Array) -> Array:
    """Place chains, which are along the first axis, over the devices of the ambient
    mesh.

    They go along its axis named `"chains"`; without one, or if its devices do not
    divide their number, nothing happens.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "chains" not in mesh.axis_names:
        return x
    if x.shape[0] % mesh.shape["chains"]:
        return x
    spec = PartitionSpec("chains", *[None] * (x.ndim - 1))
    kind = mesh.axis_types[mesh.axis_names.index("chains")]
    if kind == AxisType.Manual:  # in a `shard_map`, each device has chains of its own
        return x
    if kind == AxisType.Explicit:
        return jax.sharding.reshard(x, spec)
    return jax.lax.with_sharding_constraint(x, spec)


def explicit_layout(x: Array) -> NamedSharding | None:
    """How an array lies on a mesh with *explicit* axes, where its type says so; None
    for any other."""
    layout: Any = jax.typeof(x).sharding
    return layout if AxisType.Explicit in layout.mesh.axis_types else None


def of_axes(layout: NamedSharding) -> Callable[..., NamedSharding]:
    """From the names of axes, or None, how an array lies on the mesh of another."""
    return lambda *axes: NamedSharding(layout.mesh, PartitionSpec(*axes))


def n_devices(layout: NamedSharding) -> int:
    """Over how many devices an array that lies so is spread."""
    names = jax.tree.leaves(tuple(layout.spec))
    return math.prod(layout.mesh.shape[name] for name in names)


def on_automatic_axes(body: Callable[[Any], Any], trees: Any, layouts: Any) -> Any:
    """`body(trees)`, compiled as on a mesh with automatic axes: it gathers, scatters
    and draws, and layouts are none of its business. `layouts` are those of what it
    returns, or of whole branches of that."""
    arrays, static = eqx.partition(trees, eqx.is_array)
    explicit: Any = jax.sharding.auto_axes(
        lambda arrays: body(eqx.combine(arrays, static)), out_sharding=layouts
    )
    return explicit(arrays)


def on_any_axes(fn: _Fn) -> _Fn:
    """A function of arrays that may be spread over explicit axes too: what it returns
    is then on every device."""

    @wraps(fn)
    def anywhere(*args: Any, **kwargs: Any) -> Any:
        arrays = jax.tree.leaves(eqx.filter((args, kwargs), eqx.is_array))
        layouts = [found for x in arrays if (found := explicit_layout(x)) is not None]
        if not layouts:
            return fn(*args, **kwargs)

        def body(trees):
            return fn(*trees[0], **trees[1])

        return on_automatic_axes(body, (args, kwargs), of_axes(layouts[0])())

    return cast(_Fn, anywhere)


def raise_if(x: Array, wrong: Bool[Array, "..."], message: str) -> Array:
    """`eqx.error_if`, of an array that stays where it is: what passes such a check
    comes together on one device, and so that is a one that the array is multiplied
    by."""
    return x * eqx.error_if(jnp.ones((), x.dtype), wrong, message)
