"""Spins, their order and their symmetries: the only file that knows the conventions.

Spins are -1/+1. Unit `i` is axis `i` of a `(2,) * N` array in C order, and index 0 on
an axis is spin -1. A flat state index therefore reads unit 0 as its most significant
bit, flipping unit `i` is an exclusive or with `unit_mask(i, N)`, and flipping every
unit sends index `s` to `2**N - 1 - s`: it reverses an array.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Int, Key, Num, Shaped

from ._meshes import raise_if


_Fn = TypeVar("_Fn", bound=Callable[..., Any])

# A vector over 2**28 states takes 2 GiB in float64.
MAX_UNITS = 28
# Pairs of states of two layers that are gone through, and not held.
MAX_PAIRED = 32
# States that are drawn by enumeration, such as those of a block in every step.
MAX_BLOCK = 20
# Numbers in an intermediate table: what needs more of them goes block by block.
MAX_TABLE = 2**21

_SPINS = "Spins are -1 or +1, but"
_BITS = "Convert bits, 0 and 1, with `2 * x - 1`."
_SAMPLE = (
    "Use a smaller model, or sample it: `trainq.QSampled` estimates Q, and "
    "`trainq.run` any mean."
)


def check_enumerable(
    n_units: int, limit: int = MAX_UNITS, what: str = "states", instead: str = _SAMPLE
) -> None:
    """Raise a `ValueError` if `2**n_units` is too many to enumerate."""
    if n_units > limit:
        raise ValueError(
            f"Cannot enumerate the {what} of {n_units} units: 2**{n_units} is too "
            f"many, and at most {limit} units are allowed here. {instead}"
        )


def state_spins(index: Int[Array, "*batch"], n_units: int, dtype) -> Num[Array, "..."]:
    """Spins of the states with the given flat indices, of shape `(*batch, n_units)`."""
    shifts = jnp.arange(n_units - 1, -1, -1)
    bits = (index[..., None] >> shifts.reshape((1,) * index.ndim + (-1,))) & 1
    return (2 * bits - 1).astype(dtype)


def spins(n_units: int, dtype=None) -> Num[Array, "states n_units"]:
    """All `2**n_units` spin states in order, one a row."""
    check_enumerable(n_units)
    dtype = jnp.result_type(float) if dtype is None else dtype
    return state_spins(jnp.arange(2**n_units), n_units, dtype)


def draw_states(
    key: Key[Array, ""], log_weights: Float[Array, " states"], n_draws: int
) -> Int[Array, " n_draws"]:
    """Independent indices of states with these logarithms of weights, as by
    `jax.random.categorical`, which takes a random number for every state and draw."""
    # First the leading half of the bits, then the others given these: the square root
    # of the states at a time.
    n_units = (log_weights.size - 1).bit_length()
    table = log_weights.reshape(2 ** (n_units // 2), -1)
    first, second = jr.split(key)
    row = jr.categorical(first, jax.nn.logsumexp(table, axis=1), shape=(n_draws,))
    return row * table.shape[1] + jr.categorical(second, table[row])


def state_index(x: Num[Array, "*batch n_units"]) -> Int[Array, "*batch"]:
    """Flat indices of spin states: the inverse of `state_spins`."""
    n_units = x.shape[-1]
    return (x > 0).astype(int) @ (1 << jnp.arange(n_units - 1, -1, -1))


def unit_mask(unit: int, n_units: int) -> int:
    """The bit of a flat state index that holds `unit`."""
    return 1 << (n_units - 1 - unit)


def xor(f: Shaped[Array, "states *rest"], mask: int) -> Shaped[Array, "states *rest"]:
    """The array `g[s] = f[s ^ mask]` for a mask whose bits are contiguous.

    Exclusive or with `g` contiguous ones reverses the axis of length `2**g` that these
    bits index, so no gather is needed.
    """
    if mask == 0:
        return f
    low = (mask & -mask).bit_length() - 1
    width = mask.bit_count()
    if mask != ((1 << width) - 1) << low:
        raise ValueError(f"The bits of the mask {mask:b} are not contiguous.")
    blocks = f.reshape(-1, 2**width, 2**low, *f.shape[1:])
    return blocks[:, ::-1].reshape(f.shape)


def neighbours(masks: Sequence[int], n: int) -> Int[Array, "masks n"]:
    """`s ^ masks[i]` for every mask and state."""
    # Scalars in place of an array: that would be a constant, and JAX 0.10 cannot map
    # over those of a `custom_vmap` in the third derivative.
    column = jnp.stack([jax.lax.full((1,), mask, int) for mask in masks])
    return jnp.arange(n)[None, :] ^ column


def at_neighbours(
    f: Shaped[Array, " states"], masks: Sequence[int]
) -> Shaped[Array, "masks states"]:
    """The array `g[i, s] = f[s ^ masks[i]]`."""
    # A gather would be one kernel to compile in place of many, but its transpose is a
    # loop over all entries.
    return jnp.stack([xor(f, mask) for mask in masks])


def ends(
    f: Shaped[Array, "states *rest"], mask: int
) -> tuple[Shaped[Array, "half *rest"], Shaped[Array, "half *rest"]]:
    """The values at `s` and at `s ^ mask`, each pair once, for a mask as of `xor`."""
    low = (mask & -mask).bit_length() - 1
    size = 2 ** mask.bit_count()
    blocks = f.reshape(-1, size, 2**low, *f.shape[1:])
    first, second = blocks[:, : size // 2], blocks[:, : size // 2 - 1 : -1]
    shape = (f.shape[0] // 2, *f.shape[1:])
    return first.reshape(shape), second.reshape(shape)


def shard(f: Shaped[Array, "..."], axis: int = 0) -> Shaped[Array, "..."]:
    """Place the states, which are along one axis, over the devices of the ambient mesh.

    They go along its axis named `"states"`; without one nothing happens. The leading
    bits of the state index then number the devices, and flipping one of their units is
    an exchange between pairs of devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "states" not in mesh.axis_names:
        return f
    n_devices = mesh.shape["states"]
    kind = mesh.axis_types[mesh.axis_names.index("states")]
    if n_devices & (n_devices - 1) or kind != jax.sharding.AxisType.Auto:
        raise ValueError(
            'The mesh axis "states" has a power of two of devices and the type '
            f"AxisType.Auto, but {n_devices} devices and {kind} were given. Make it by "
            '`jax.make_mesh((n,), ("states",), axis_types=(AxisType.Auto,))`.'
        )
    if f.shape[axis] % n_devices:
        return f
    spec = ["states" if i == axis else None for i in range(f.ndim)]
    return jax.lax.with_sharding_constraint(f, jax.P(*spec))


def permuted(
    f: Shaped[Array, "states *rest"], order: Sequence[int]
) -> Shaped[Array, "states *rest"]:
    """The function of the units in another order: unit `order[i]` becomes unit `i`."""
    n, rest = len(order), f.shape[1:]
    axes = (*order, *range(n, n + len(rest)))
    return f.reshape((2,) * n + rest).transpose(axes).reshape(f.shape)


def inverse_order(order: Sequence[int]) -> tuple[int, ...]:
    """The order that takes `permuted` back."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def global_flip(f: Shaped[Array, "states *rest"]) -> Shaped[Array, "states *rest"]:
    """The array `g(x) = f(-x)`."""
    return f[::-1]


def fold(f: Float[Array, "states *rest"], sign: int) -> Float[Array, "half *rest"]:
    """Coordinates of `f` in one sector of the global flip.

    The sector of functions with `f(-x) = sign f(x)` has the orthonormal basis
    `(δ_x + sign δ_{-x}) / √2`, with `x` over the first half of the states: those with
    unit 0 down.
    """
    half = f.shape[0] // 2
    return (f[:half] + sign * global_flip(f)[:half]) / math.sqrt(2)


def unfold(f: Float[Array, "half *rest"], sign: int) -> Float[Array, "states *rest"]:
    """The function with the given coordinates: the transpose of `fold`."""
    return jnp.concatenate([f, sign * f[::-1]]) / math.sqrt(2)


def parity(n_bits: int) -> Bool[Array, " indices"]:
    """Whether each of the `2**n_bits` indices has an odd number of ones."""
    return jax.lax.population_count(jnp.arange(2**n_bits)) % 2 == 1


def as_spins(
    x: Shaped[Array, "*batch n_units"], n_units: int | None, dtype=None
) -> Num[Array, "*batch n_units"]:
    """Return states in another dtype, having checked their shape and their own dtype.

    **Raises:** `ValueError` for a wrong shape, or a dtype that lacks one of the spins.
    """
    try:
        x = jnp.asarray(x)
    except TypeError:  # JAX's own speaks of tracers
        raise TypeError(
            "States are an array of spins, such as the `x` of a `ChainState`, but an "
            f"object of type {type(x).__name__} was given."
        ) from None
    if x.ndim == 0 or (n_units is not None and x.shape[-1] != n_units):
        raise ValueError(
            f"States have shape (..., {'n_units' if n_units is None else n_units}), "
            f"visible units first, but an array of shape {x.shape} was given."
        )
    if not _is_signed(x.dtype):
        raise ValueError(
            f"Spins are -1 or +1, but an array of {x.dtype} was given. Use floats or "
            "signed integers; convert bits with `2 * x.astype(float) - 1`."
        )
    return x if dtype is None else x.astype(dtype)


def _is_signed(dtype: Any) -> bool:
    signed = (jnp.signedinteger, jnp.floating)
    return any(jnp.issubdtype(dtype, kind) for kind in signed)


def check_spins(x: Shaped[Array, "..."], n_units: int | None) -> Shaped[Array, "..."]:
    """Return `x`, having checked that it holds spin states.

    **Raises:** as `as_spins`; where a spin is neither -1 nor +1, `ValueError` if the
    values are there, and a run-time error if they are traced.
    """
    x = as_spins(x, n_units)
    require_spins(x)
    wrong = jnp.any(jnp.abs(x) != 1)
    return raise_if(x, wrong, f"{_SPINS} another value was given. {_BITS}")


def require_spins(x: Any) -> None:
    """Raise a `ValueError` that names the first entry which is neither -1 nor +1, if
    these are numbers with a sign whose values are there: not traced, nor with another
    process."""
    if isinstance(x, Tracer) or not hasattr(x, "dtype") or not _is_signed(x.dtype):
        return
    if isinstance(x, Array) and not x.is_fully_addressable:
        return
    if AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types:
        return  # in a `shard_map` nothing is computed at once
    with jax.ensure_compile_time_eval():  # constants are there while others are traced
        wrong = jnp.abs(x) != 1
        if not jnp.any(wrong):
            return
        at = np.argwhere(np.asarray(wrong))[0].tolist()
        value = float(x[tuple(at)])
    raise ValueError(f"{_SPINS} the entry {at} is {value:g}. {_BITS}")


def compiled_with_spins(name: str, least_axes: int = 1) -> Callable[[_Fn], _Fn]:
    """As `eqx.filter_jit`, of a function one argument of which holds spin states if it
    has so many axes: these are looked at by `require_spins` before they are traced."""

    def compiled(fn: _Fn) -> _Fn:
        inner, signature = eqx.filter_jit(fn), inspect.signature(fn)

        @functools.wraps(fn)
        def outer(*args: Any, **kwargs: Any) -> Any:
            x = signature.bind(*args, **kwargs).arguments[name]
            if getattr(x, "ndim", 0) >= least_axes:
                require_spins(x)
            return inner(*args, **kwargs)

        return cast(_Fn, outer)

    return compiled


def merge(parts: Sequence[Array], dtype) -> Array:
    """Concatenate arrays along their last axis, broadcast over the leading ones."""
    shape = jnp.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return jnp.concatenate(
        [jnp.broadcast_to(p, shape + p.shape[-1:]).astype(dtype) for p in parts], -1
    )


def map_states(fn, n_units: int, dtype, chunk: int = 4096):
    """Stack `fn(x)` over all states `x`, in order, never holding more than a chunk of
    the intermediate values, in the forward pass or in the backward one."""
    check_enumerable(n_units)
    one = jax.checkpoint(lambda index: fn(state_spins(index, n_units, dtype)))
    return jax.lax.map(one, jnp.arange(2**n_units), batch_size=chunk)


def map_blocks(
    fn: Callable[[Num[Array, "some n_units"]], Float[Array, " some"]],
    n_units: int,
    dtype,
    width: int,
) -> Float[Array, " states"]:
    """`fn` of all states, in order, for a function of many states at once whose largest
    intermediate value has `width` numbers for each. A table of these that is large is
    never there as a whole, in the forward pass or in the backward one."""
    check_enumerable(n_units)
    n_bits = min(n_units, max(0, (MAX_TABLE // max(width, 1)).bit_length() - 1))
    if n_bits == n_units:
        return fn(spins(n_units, dtype))

    @jax.checkpoint
    def block(start):
        return fn(state_spins(start + jnp.arange(2**n_bits), n_units, dtype))

    return jax.lax.map(block, jnp.arange(0, 2**n_units, 2**n_bits)).reshape(-1)
