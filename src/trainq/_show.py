"""Objects that show what is in them, and tables in plain text."""

import dataclasses
import html
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Shaped


# Rows of cells, the first of which is the heading.
Table = list[tuple[str, ...]]


class AbstractShown(eqx.Module):
    """Something that shows its numbers, at a prompt as by `print`, and with tables in a
    notebook.

    Where there are none, as under `jax.jit`, it shows the shapes of its arrays.
    """

    def _shown(self) -> list[str | Table]:
        """What to show, of arrays that are there: lines and tables. Every field, by
        default."""
        rows: Table = [("field", "value", "shape")]
        for field in dataclasses.fields(self):
            rows.append((field.name, *_cells(getattr(self, field.name))))
        return [type(self).__name__, rows]

    def _has_numbers(self) -> bool:
        return all(map(_is_there, jax.tree.leaves(self)))

    def __str__(self) -> str:
        if not self._has_numbers():
            return eqx.tree_pformat(self)
        return "\n".join(
            part if isinstance(part, str) else "\n".join(aligned(part))
            for part in self._shown()
        )

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        if not self._has_numbers():
            return f"<pre>{html.escape(str(self))}</pre>"
        return "\n".join(map(_as_html, self._shown()))


def _is_there(leaf: Any) -> bool:
    """Whether a leaf of a tree has a value that this process can read."""
    if isinstance(leaf, Tracer):
        return False
    if isinstance(leaf, jax.Array):
        return leaf.is_fully_addressable and not leaf.is_deleted()
    return isinstance(leaf, np.ndarray | np.generic | bool | int | float | str)


def _cells(value: Any) -> tuple[str, str]:
    """The value of a field in short, and its shape."""
    if isinstance(value, AbstractShown):
        return str(value).partition("\n")[0], ""
    if isinstance(value, jax.Array | np.ndarray):
        return number(value), str(value.shape) if value.shape else ""
    if isinstance(value, float):
        return f"{value:.4g}", ""
    if value is None or isinstance(value, bool | int | str):
        return str(value), ""
    return " ".join(eqx.tree_pformat(value).split()), ""


def _as_html(part: str | Table) -> str:
    if isinstance(part, str):
        return f"<div>{html.escape(part)}</div>"
    head, *body = (tuple(map(html.escape, row)) for row in part)
    heading = "".join(f"<th>{cell}</th>" for cell in head)
    rows = "".join(
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body
    )
    return f"<table><thead><tr>{heading}</tr></thead><tbody>{rows}</tbody></table>"


def number(x: Shaped[Any, "*batch"]) -> str:
    """A number, or the range of many; of answers, how many are true."""
    x = np.asarray(x)
    if x.size == 0:
        return "none"
    if x.dtype == bool:
        yes = int(x.sum())
        return str(bool(yes)) if yes in (0, x.size) else f"{yes} of {x.size} true"
    low, high = f"{np.min(x):.4g}", f"{np.max(x):.4g}"
    return low if low == high else f"{low} to {high}"


def count(n: int, what: str) -> str:
    """A number of things: `1 chain`, `3 chains`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def percent(x: Shaped[Any, ""]) -> str:
    """A share, in per cent; zero if it is no more than rounding."""
    share = 100 * float(x)
    return f"{share if abs(share) > 1e-10 else 0:.3g} %"


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, with its columns aligned."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
