"""Whether what is about to be computed fits into memory."""

import contextlib
import functools
import os
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array


_VARIABLE = "TRAINQ_MEMORY"


def require_memory(n_bytes: float, what: str, instead: str) -> None:
    """Raise a `MemoryError` if something needs more than there is."""
    limit = _limit()
    if limit is None or n_bytes <= limit:
        return
    raise MemoryError(
        f"{what} takes about {_gib(n_bytes)} GiB, and there are {_gib(limit)} GiB. "
        f"{instead} If more may be used, as of a swap file, set the environment "
        f"variable {_VARIABLE} to that many GiB."
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def with_memory(
    x: Array, value: float, gradient: float, what: str, instead: str
) -> Array:
    """`x`, having required the bytes that it takes; and those that it takes with its
    derivative, once that is asked for."""
    del gradient
    require_memory(value, what, instead)
    return x


@with_memory.defjvp
def _(value, gradient, what, instead, primals, tangents):
    require_memory(max(value, gradient), f"The gradient of {_lower(what)}", instead)
    return primals[0], tangents[0]


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


def _gib(n_bytes: float) -> str:
    gib = n_bytes / 2**30
    return f"{gib:.1f}" if gib < 100 else f"{gib:.0f}"


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]
