"""What one step of a kernel shows of its redraws, to who sees the states alone."""

from collections.abc import Sequence
from typing import NamedTuple


class Visit(NamedTuple):
    """A block of units whose last redraw in a step can be told from the states before
    and after it: from their law given all other units, each independently.

    - `units`: the units of the block.
    - `probability`: with which a step comes to the block.
    - `renewed`: the units that had their new values by then; the others had their old
        ones.
    """

    units: tuple[int, ...]
    probability: float
    renewed: tuple[int, ...]


def visits_of(
    orders: Sequence[tuple[float, tuple[int, ...]]],
    blocks: Sequence[tuple[int, ...]],
) -> tuple[Visit, ...] | None:
    """The visits of a scan whose orders have these probabilities and blocks; None if a
    step does not show which order it took."""
    if any(len(order) > 1 for _, order in orders):
        # Of several orders, one of which has more than one block, nobody can tell
        # which one it was, and so what a redraw was given.
        return _visits_in(orders[0][1], blocks) if len(orders) == 1 else None
    shares: dict[int, float] = {}
    for probability, (block,) in orders:
        shares[block] = shares.get(block, 0.0) + probability
    return tuple(Visit(blocks[block], p, ()) for block, p in shares.items())


def _visits_in(
    order: tuple[int, ...], blocks: Sequence[tuple[int, ...]]
) -> tuple[Visit, ...]:
    """Those of one order: of each block the last one, if every other block had its old
    value by then, or has it still."""
    visits = []
    for at, block in enumerate(order):
        before, after = order[:at], order[at + 1 :]
        if block not in after and not set(before) & set(after):
            renewed = sum((blocks[b] for b in dict.fromkeys(before) if b != block), ())
            visits.append(Visit(blocks[block], 1.0, renewed))
    return tuple(visits)
