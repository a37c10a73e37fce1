"""Numbers that are Python numbers: counts of steps, of chains, of samples, and sizes.

Everything that sets the shape of a program is fixed while it is traced. A NumPy integer
is welcome and becomes a plain `int` at the boundary: kept as it is, it would wrap round
in arithmetic, and compare equal to the plain number that a cache holds another program
for.
"""

import math
import operator
from typing import Any


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
        raise ValueError(
            f"{name} is a whole number{counted}, at least {least}, but {value!r} was "
            "given. It is fixed when a program is compiled, and cannot be traced."
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
        raise ValueError(
            f"{name} is a finite positive number{counted}, but {value!r} was given. It "
            "is fixed when a program is compiled, and cannot be traced."
        )
    return number
