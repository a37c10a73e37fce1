"""Checks of arguments: numbers, keys, types of floats and laws.

Everything that sets the shape of a program is fixed while it is traced. A NumPy integer
is welcome and becomes a plain `int` at the boundary: kept as it is, it would wrap round
in arithmetic, and compare equal to the plain number that a cache holds another program
for.
"""

import contextlib
import functools
import math
import operator
import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, Num


_T = TypeVar("_T")
_TRACED = "It is fixed when a program is compiled, and cannot be traced."


@contextlib.contextmanager
def needed_for(what: str, package: str) -> Iterator[None]:
    """Around imports that need more than trainq does: if one fails, an `ImportError`
    names the package, as it is called where it is installed from.

    **Arguments:**

    - `what`: what needs it, such as a module.
    - `package`: its name.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what} needs {package}: pip install {package}.") from error


def whole_number(name: str, value: Any, least: int = 1, of: str = "") -> int:
    """Return a whole number as an `int`.

    **Arguments:**

    - `name`: the name of the argument, for the message.
    - `value`: what was given.
    - `least`: the smallest value allowed.
    - `of`: what it counts, as in `"kernel steps"`.

    **Raises:** `ValueError` for anything else: a float, a boolean, a traced number, or
    one that is too small.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        counted = f" of {of}" if of else ""
        hint = ""
        if isinstance(value, Tracer):
            hint = " " + _TRACED
        elif isinstance(value, float | np.floating | jax.Array):
            hint = " Round it by `int`, or all of an array by `.astype(int)`."
        raise ValueError(
            f"{name} is a whole number{counted}, at least {least}, but {value!r} was "
            f"given.{hint}"
        )
    return number


def positive_number(name: str, value: Any, of: str = "") -> int | float:
    """Return a finite positive number as an `int` or a `float`.

    **Raises:** `ValueError` for anything else, a traced number included.
    """
    try:
        if isinstance(value, bool | str):
            raise TypeError
        try:
            number = operator.index(value)
        except TypeError:
            number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        counted = f" of {of}" if of else ""
        hint = " " + _TRACED if isinstance(value, Tracer) else ""
        raise ValueError(
            f"{name} is a finite positive number{counted}, but {value!r} was given."
            f"{hint}"
        )
    return number


def steps(
    name: str, value: Any, least: int = 1, most: int | None = None
) -> np.integer | Int[Array, ""]:
    """A whole number of kernel steps as data: it may be traced, and what is made with
    another one is the same program.

    **Arguments:**

    - `name`, `value`, `least`: as above.
    - `most`: the largest value allowed of one that is traced.

    **Raises:** as `whole_number`; a run-time error for a traced number that is too
    small or too large.
    """
    if not isinstance(value, Tracer):
        return np.int64(whole_number(name, value, least, of="kernel steps"))
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(
            f"{name} is a whole number of kernel steps, at least {least}, but "
            f"{value.aval} was given."
        )
    value = value.astype(int)
    message = f"{name} is at least {least} kernel steps, but a smaller one was given."
    value = eqx.error_if(value, value < least, message)
    if most is None:
        return value
    return eqx.error_if(
        value,
        value > most,
        f"{name} is at most {most} kernel steps where it is traced, but a larger one "
        "was given. Give a larger `max_steps`.",
    )


def length(name: str, value: Any) -> np.number | Num[Array, ""]:
    """A number of kernel steps that need not be whole, as data: it may be traced.

    **Raises:** as `positive_number`; a run-time error for a traced number that is not
    finite and positive.
    """
    if not isinstance(value, Tracer):
        number = positive_number(name, value, of="kernel steps")
        # Without 64-bit numbers an integer has 31 bits.
        is_short = isinstance(number, int) and number < 2**31
        return np.int64(number) if is_short else np.float64(number)
    if value.shape != () or not any(
        jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, jnp.floating)
    ):
        raise ValueError(
            f"{name} is a finite positive number of kernel steps, but {value.aval} "
            "was given."
        )
    return eqx.error_if(
        value,
        ~((value > 0) & jnp.isfinite(value)),
        f"{name} is a finite positive number of kernel steps, but another one was "
        "given.",
    )


def check_key(key: Any) -> None:
    """Raise a `TypeError` if this is not one random key."""
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and key.ndim == 0 or dtype == jnp.uint32 and key.ndim == 1):
        raise TypeError(
            "key is one random key, such as `jax.random.key(0)`, but "
            f"{f'shape {key.shape}' if typed else repr(key)} was given."
        )


def require_precision(dtype: Any, what: str) -> None:
    """Raise a `ValueError` for other numbers than those of float32 and float64."""
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"{what} is in float32 or float64, but {dtype} was given. Convert it with "
            f"`x{'.real' * (dtype.kind == 'c')}.astype(jnp.float32)`."
        )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def no_derivative(message: str, x: _T) -> _T:
    """A tree of arrays as it is, where a derivative would be a zero, or a part of one,
    in silence: to differentiate it raises a `ValueError` with the message."""
    return x


@no_derivative.defjvp
def _(message, primals, tangents):
    raise ValueError(message)


class PrecisionWarning(UserWarning):
    """An exact function computes in float32, because `jax_enable_x64` is off.

    Told once in a process. If that is your choice, silence it by a filter.

    !!! example

        ```python
        import warnings

        warnings.simplefilter("ignore", tq.PrecisionWarning)
        ```
    """


def tell_precision(dtype: Any) -> None:
    """Warn if an exact result is in float32, and could not be in float64."""
    if dtype == jnp.float32 and jnp.result_type(float) == jnp.float32:
        _tell_precision()


@functools.cache  # once, also where filters show every warning
def _tell_precision() -> None:
    warnings.warn(
        "Exact results are computed in float32: they are known to about 1e-3 in place "
        "of 1e-7, and slow chains are refused sooner. Put "
        '`jax.config.update("jax_enable_x64", True)` at the top of the script, before '
        "arrays are made. If float32 is your choice: "
        '`warnings.simplefilter("ignore", trainq.PrecisionWarning)`.',
        PrecisionWarning,
        stacklevel=3,
    )


def require_law(law: Num[Array, " states"], dtype: Any, what: str) -> Array:
    """Return `law` in another dtype, having checked that it is one.

    **Raises:** `ValueError` for numbers that are not in float32 or float64; a run-time
    error for a negative entry, or a sum that is not one.
    """
    if not jnp.issubdtype(law.dtype, jnp.inexact):
        law = law.astype(dtype)
    require_precision(law.dtype, what)
    # A law that was computed in float32 sums to one in float32.
    tolerance = math.sqrt(max(jnp.finfo(t).eps for t in (law.dtype, dtype)))
    law = law.astype(dtype)
    is_law = (jnp.abs(jnp.sum(law) - 1) <= tolerance) & jnp.all(law >= 0)
    return eqx.error_if(
        law,
        ~is_law,
        f"{what} is not a law: its entries must be at least 0 and sum to 1. "
        "Divide counts by their sum.",
    )


def require_concrete(what: str, /, **given: Any) -> None:
    """Raise a `ValueError` that names the arguments which are traced, for `what` is
    made of numbers that have to be there."""
    traced = [
        name
        for name, value in given.items()
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))
    ]
    if traced:
        raise ValueError(
            f"{what} is made of numbers, which are not there while a function is "
            f"traced, but a traced {' and '.join(traced)} was given. Call it outside "
            "of `jax.jit`, `jax.vmap` and `jax.grad`."
        )
