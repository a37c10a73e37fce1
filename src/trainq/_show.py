"""Objects that show what is in them, and tables in plain text."""

import abc
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Num


class AbstractShown(eqx.Module):
    """Something that shows its numbers, at a prompt and in a notebook as by `print`.

    Where there are none, as under `jax.jit`, it shows the shapes of its arrays.
    """

    @abc.abstractmethod
    def _text(self) -> str:
        """What to show, of arrays that are there."""

    def __str__(self) -> str:
        if all(map(_is_there, jax.tree.leaves(self))):
            return self._text()
        return eqx.tree_pformat(self)

    def __repr__(self) -> str:
        return str(self)


def _is_there(leaf: Any) -> bool:
    """Whether a leaf of a tree has a value that this process can read."""
    if isinstance(leaf, Tracer):
        return False
    if isinstance(leaf, jax.Array):
        return leaf.is_fully_addressable and not leaf.is_deleted()
    return isinstance(leaf, np.ndarray | np.generic | bool | int | float | str)


def number(x: Num[Any, "*batch"]) -> str:
    """A number, or the range of many."""
    low, high = np.min(x), np.max(x)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def count(n: int, what: str) -> str:
    """A number of things: `1 chain`, `3 chains`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, with its columns aligned."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
