"""Whether what is about to be computed fits into memory."""

import contextlib
import functools
import math
import os
from pathlib import Path
from typing import Any

import jax
from jax.core import Tracer
from jaxtyping import Array


_VARIABLE = "TRAINQ_MEMORY"


def require_memory(
    n_bytes: float, what: str, instead: str, gradient: float = 0.0
) -> None:
    """Raise a `MemoryError` if something needs more than there is."""
    limit = _limit()
    if limit is None or n_bytes <= limit:
        return
    also = f", {gib(gradient)} with its gradient" if gradient > n_bytes else ""
    raise MemoryError(
        f"{what} takes about {gib(n_bytes)} GiB{also}, and there are {gib(limit)} GiB. "
        f"{instead} If more may be used, as of a swap file, set the environment "
        f"variable {_VARIABLE} to that many GiB."
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4, 5))
def with_memory(
    x: Array, value: float, gradient: float, what: str, instead: str, once: float = 0.0
) -> Array:
    """`x`, having required the bytes that it takes; those that it takes with its
    derivative, once that is asked for; and as many times as much under `jax.vmap`,
    but for those that a batch takes `once`."""
    require_memory(value, what, instead, gradient)
    return _mapped_over(x, value, gradient, what, instead, once)


@with_memory.defjvp
def _(value, gradient, what, instead, once, primals, tangents):
    most = max(value, gradient)
    what = f"The gradient of {_lower(what)}"
    return with_memory(*primals, most, most, what, instead, once), tangents[0]


def _mapped_over(
    x: Array, value: float, gradient: float, what: str, instead: str, once: float
) -> Array:
    @jax.custom_batching.custom_vmap
    def same(x):
        return x

    @same.def_vmap
    def _(size, mapped, x):
        values, gradients = (once + size * (n - once) for n in (value, gradient))
        fits = ((_limit() or math.inf) - once) / max(gradient - once, 1.0)
        few = f"batch_size={int(fits)}" if 1 <= fits < size else "batch_size=1"
        some = f"`jax.lax.map(..., {few})` takes fewer at a time. Each alone: {instead}"
        times = f"{what}, {size} times at once by `jax.vmap`,"
        require_memory(values, times, some, gradients)
        return _mapped_over(x, values, gradients, what, instead, once), mapped[0]

    return same(x)


def _limit() -> float | None:
    """The bytes of memory, and not those that are free now: the same program would be
    refused at one time and not at another. None if they are not known."""
    given = os.environ.get(_VARIABLE)
    if given is not None:
        try:
            return float(given) * 2**30
        except ValueError:
            raise ValueError(
                f"The environment variable {_VARIABLE} is a number of GiB, but "
                f"{given!r} was given."
            ) from None
    each = _of_device()
    return None if each is None else each * _n_shares()


def n_memories(x: Array) -> int:
    """Over how many memories an array is spread, as far as that is known."""
    if isinstance(x, Tracer) or x.sharding.is_fully_replicated:
        return 1
    devices = x.sharding.device_set
    on_cpu = all(device.platform == "cpu" for device in devices)
    return len({device.process_index for device in devices}) if on_cpu else len(devices)


def _n_shares() -> int:
    """How many memories the states are spread over."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "states" not in mesh.axis_names:
        return 1
    on_cpu = jax.default_backend() == "cpu"
    return jax.process_count() if on_cpu else mesh.shape["states"]


@functools.cache
def _of_device() -> float | None:
    """The memory of a device, or of the machine that it is a processor of."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats: dict[str, Any] = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else float(limit)
    known = []
    with contextlib.suppress(ValueError, OSError, AttributeError):  # not on Windows
        pages = os.sysconf("SC_PHYS_PAGES")
        known.append(float(os.sysconf("SC_PAGE_SIZE") * pages))
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
        with contextlib.suppress(ValueError, OSError):
            known.append(float((Path("/sys/fs/cgroup") / file).read_text()))
    return min(known, default=None)


def gib(n_bytes: float) -> str:
    """A size in GiB, as text."""
    size = n_bytes / 2**30
    if size < 1:
        return f"{size:.2g}"
    return f"{size:.1f}" if size < 100 else f"{size:.0f}"


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]
