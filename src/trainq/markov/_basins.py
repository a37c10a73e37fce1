"""Basins of the energy, and the passes between them."""

import jax
import numpy as np
import scipy  # which imports its parts, `sparse` here, where they are first used
from jaxtyping import Float, Int

from .._checks import require_concrete
from .._memory import require_memory
from .._show import AbstractShown, Table, count
from .._spins import check_enumerable, unit_mask
from .chains import AbstractChain, require_chain


# Some arrays of 2**24 states take 128 MiB each.
_MAX_UNITS = 24
# A matrix of so many basins takes 128 MiB.
_MAX_BASINS = 2**12
# Rows of a table at the prompt.
_SHOWN = 8


class Basins(AbstractShown):
    """The basins of `E = -log π` on the hypercube, from the deepest to the shallowest,
    and the passes between them.

    Energies and barriers are in units of kT at the model's own temperature, and
    energies are above the lowest state.
    """

    label: Int[np.ndarray, " states"]
    """The basin of each state: an index into the others."""
    minima: Int[np.ndarray, " basins"]
    """The state of the lowest energy in each basin, as its flat index; the first one,
    where several are at the bottom."""
    energy: Float[np.ndarray, " basins"]
    """The energy at the bottom of each."""
    log_mass: Float[np.ndarray, " basins"]
    """The logarithm of the stationary probability of each."""
    joined: Int[np.ndarray, "passes 2"]
    """The two basins on the lowest path over each pass, the passes by height. They are
    the edges of a minimum spanning tree of the basins."""
    height: Float[np.ndarray, " passes"]
    """The energy of each pass."""
    saddle: Int[np.ndarray, " passes"]
    """The state on top of each pass, as its flat index."""
    mirror: Int[np.ndarray, " basins"] | None
    """The basin that has the mirror image `-x` of the bottom of each, for a model that
    is symmetric under the global flip: itself or another."""

    @property
    def mass(self) -> Float[np.ndarray, " basins"]:
        """The stationary probability of each basin."""
        return np.exp(self.log_mass)

    @property
    def spins(self) -> Float[np.ndarray, "basins n_units"]:
        """The spins of the bottom of each basin, visible units first."""
        n_units = (self.label.size - 1).bit_length()
        bits = self.minima[:, None] >> np.arange(n_units)[::-1] & 1
        return 2.0 * bits - 1

    @property
    def way_out(self) -> Float[np.ndarray, " basins"]:
        """How far the lowest path out of each basin climbs from its bottom, in kT;
        infinite for a basin that is alone."""
        out = np.full(len(self.minima), np.inf)
        # The lowest way out leads over the first pass that joins a basin.
        for (a, b), height in zip(self.joined[::-1], self.height[::-1], strict=True):
            out[a] = out[b] = height
        return out - self.energy

    def heights(self) -> Float[np.ndarray, "basins basins"]:
        """The highest energy on the lowest path between the bottoms of any two basins,
        in kT; of a basin with itself, the energy at its bottom.

        These are minimax heights, and so an ultrametric: the two largest of any three
        are the same.

        **Raises:** `ValueError` for more than 4096 basins, whose matrix is too large:
        `joined` and `height` say the same, or leave out shallow ones by `least`.
        """
        n = len(self.minima)
        if n > _MAX_BASINS:
            raise ValueError(
                f"The heights between {n} basins are too many: at most {_MAX_BASINS} "
                "basins are allowed. Use `joined` and `height`, or leave out shallow "
                "basins: `basins(chain, least=1.0)`."
            )
        out = np.diag(self.energy)
        groups = {k: [k] for k in range(n)}
        head = np.arange(n)
        for (a, b), height in zip(self.joined, self.height, strict=True):
            one, other = groups[int(head[a])], groups.pop(int(head[b]))
            out[np.ix_(one, other)] = out[np.ix_(other, one)] = height
            one += other
            head[other] = head[a]
        return out

    def barriers(self) -> Float[np.ndarray, "basins basins"]:
        """How far a path must climb from the bottom of the basin of the row to reach
        that of the column, in kT: zero on the diagonal.

        **Raises:** `ValueError` as `heights`.
        """
        return self.heights() - self.energy[:, None]

    def _shown(self) -> list[str | Table]:
        n, out = len(self.minima), self.way_out
        head = ("basin", "bottom", "energy / kT", "mass", "way out / kT", "mirror")
        rows: Table = [head]
        for k in range(min(n, _SHOWN)):
            mirror = "" if self.mirror is None else str(self.mirror[k])
            row = (k, self.minima[k], self.energy[k], self.mass[k])
            cells = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in row]
            rows.append((*cells, f"{out[k]:.4g}", mirror))
        more = [f"and {n - _SHOWN} more"] if n > _SHOWN else []
        return [f"{count(n, 'basin')} of {self.label.size} states", rows, *more]


def basins(chain: AbstractChain, *, least: float | int = 0.0) -> Basins:
    """The basins of the energy on single flips, their masses, and the lowest passes
    between them.

    From each state one goes to the neighbour of the lowest energy, as long as it is
    lower: steepest descent. Neighbours are the states that one flip reaches, and the
    energy is `-log π`: so this is about the model and not about the kernel. A chain of
    single flips has to climb from basin to basin, at a rate `exp(-barrier)` but for
    prefactors. One that redraws a layer can step across, and its passes may be lower;
    no barrier here is one of such a chain.

    Ties are settled by the order of the units alone. Energies that differ by rounding
    are the same. Of neighbours that are equally low the one of the first unit is taken;
    on level ground one goes to the nearest state that has a way down; and level ground
    without one is the bottom of one basin. So the mirror image of a basin is a basin,
    where the model is symmetric; with `least`, a shallow one between two that mirror
    each other goes to one of them.

    All is done with NumPy and SciPy on the host, in `O(N 2^N)` steps.

    **Arguments:**

    - `chain`: a chain of `N` units, up to 24. Only its law is looked at.
    - `least`: a depth in kT: basins that are left over a barrier of less become part of
        the basin that they first join, from the lowest pass on.

    **Returns:** [`trainq.markov.Basins`][].

    **Raises:** `ValueError` if the chain is traced, has more than 24 units, or a number
    of states that is no power of two, or `least` is negative; `MemoryError`, with an
    estimate, for more than there is memory for; a run-time error, of the chain itself,
    if a parameter is not finite.

    ??? cite "Source"

        Stillinger and Weber, *Packing structures and transitions in liquids and
        solids*, Science 225, 983, 1984, for basins; Becker and Karplus, *The topology
        of multidimensional potential energy surfaces*, J. Chem. Phys. 106, 1495, 1997,
        for the tree of passes.

    !!! example

        ```python
        found = tq.markov.basins(tq.RandomScanGibbs().chain(model))
        print(found)
        print(found.barriers()[0])  # kT, from the deepest basin
        ```
    """
    require_chain(chain)
    require_concrete("A table of basins", chain=chain)
    n_states = chain.n_states
    n_units = n_states.bit_length() - 1
    check_enumerable(n_units, _MAX_UNITS, "basins", "Use a smaller model.")
    if n_states != 2**n_units:
        raise ValueError(
            "Basins are those of 2**N states of N units, on which single flips are the "
            f"steps, but a chain of {n_states} states was given."
        )
    if not least >= 0:
        raise ValueError(
            f"least is a depth in kT, at least 0, but {least!r} was given."
        )
    # A dozen tables of energies, ranks and labels.
    what = f"Finding basins among {n_states:,} states"
    require_memory(107.0 * n_states, what, "Use a smaller model.")
    log_law = np.asarray(jax.device_get(chain.log_stationary))
    if not np.isfinite(log_law).all():
        raise ValueError(
            "The law of the chain has states whose probability is zero or not a "
            "number, which have no energy."
        )
    energy = log_law.max() - log_law
    if chain.is_symmetric:
        energy = (energy + energy[::-1]) / 2
    level, levels = _levels(energy)
    masks = [unit_mask(unit, n_units) for unit in range(n_units)]
    label, bottoms = _descend(level, masks)
    passes = _passes(level, label, len(bottoms), masks)
    energy = levels[level]
    keep, number, (joined, top) = _merge(energy, bottoms, passes, least)
    label, minima = number[label], bottoms[keep]
    lowest = energy[minima]
    # In each basin relative to its bottom, where the law is largest.
    shares = np.bincount(label, np.exp(lowest[label] - energy), len(minima))
    return Basins(
        label=label,
        minima=minima,
        energy=lowest,
        log_mass=np.log(shares) - lowest + log_law.max(),
        joined=joined,
        height=energy[top],
        saddle=top,
        mirror=label[n_states - 1 - minima] if chain.is_symmetric else None,
    )


def _levels(energy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rank of the energy of each state, the same where they differ by rounding, and
    the energy of each rank."""
    order = np.argsort(energy, kind="stable")
    sorted_ = energy[order]
    rounding = 64 * np.finfo(energy.dtype).eps * max(1.0, float(sorted_[-1]))
    begins = np.concatenate([[False], np.diff(sorted_) > rounding])
    rank = np.cumsum(begins)
    level = np.empty(len(energy), np.int64)
    level[order] = rank
    return level, sorted_[np.concatenate([[0], np.flatnonzero(begins)])]


def _descend(level: np.ndarray, masks: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The basin of each state, and a state at the bottom of each, from the lowest."""
    n = len(level)
    states = np.arange(n)
    best, to = level.copy(), states.copy()
    for mask in masks:
        there = level[states ^ mask]
        lower = there < best
        best[lower] = there[lower]
        to[lower] = states[lower] ^ mask
    # Level ground: towards the nearest state that goes down, in rounds.
    down = best < level
    stuck = states[~down]
    while len(stuck):
        goes = np.zeros(len(stuck), bool)
        for mask in masks:
            there = stuck ^ mask
            now = ~goes & down[there] & (level[there] == level[stuck])
            to[stuck[now]] = there[now]
            goes |= now
        if not goes.any():
            break
        down[stuck[goes]] = True
        stuck = stuck[~goes]
    # What is left are bottoms, of one state or of several that are level neighbours.
    number = np.full(n, -1)
    number[stuck] = np.arange(len(stuck))
    pairs = []
    for mask in masks:
        there = stuck ^ mask
        same = (number[there] >= 0) & (level[there] == level[stuck])
        pairs.append(np.stack([number[stuck[same]], number[there[same]]]))
    rows, columns = np.concatenate(pairs, axis=1)
    graph = scipy.sparse.coo_array(
        (np.ones(len(rows), bool), (rows, columns)), shape=(len(stuck),) * 2
    )
    _, part = scipy.sparse.csgraph.connected_components(graph, directed=False)
    _, first = np.unique(part, return_index=True)
    first = first[np.lexsort((stuck[first], level[stuck[first]]))]
    rank = np.empty(len(first), np.int64)
    rank[part[first]] = np.arange(len(first))
    bottom = np.full(n, -1)
    bottom[stuck] = rank[part]
    # Each round goes twice as far.
    while True:
        further = to[to]
        if np.array_equal(further, to):
            return bottom[to], stuck[first]
        to = further


def _passes(
    level: np.ndarray, label: np.ndarray, n_basins: int, masks: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of basins, and the state on the pass between the two, of a minimum
    spanning tree, from the lowest pass."""
    # By height, then by index: the first edge of a pair of basins is the lowest one.
    order = np.argsort(level, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    pairs, tops = [], []
    for mask in masks:
        there = order ^ mask
        crosses = (place[there] < np.arange(len(order))) & (
            label[there] != label[order]
        )
        top, below = order[crosses], there[crosses]
        low, high = np.sort(np.stack([label[top], label[below]]), axis=0)
        pair, first = np.unique(low * n_basins + high, return_index=True)
        pairs.append(pair)
        tops.append(top[first])
    pair, top = np.concatenate(pairs), np.concatenate(tops)
    by_height = np.argsort(place[top], kind="stable")
    pair, top = pair[by_height], top[by_height]
    pair, first = np.unique(pair, return_index=True)
    top = top[first]
    # Weights are places, which no two states share; zero would be no edge.
    graph = scipy.sparse.coo_array(
        (place[top] + 1.0, (pair // n_basins, pair % n_basins)), shape=(n_basins,) * 2
    )
    tree = scipy.sparse.csgraph.minimum_spanning_tree(graph.tocsr()).tocoo()
    by_height = np.argsort(tree.data, kind="stable")
    joined = np.stack([tree.row, tree.col], axis=1)[by_height]
    return joined, order[tree.data[by_height].astype(np.int64) - 1]


def _merge(
    energy: np.ndarray,
    bottoms: np.ndarray,
    passes: tuple[np.ndarray, np.ndarray],
    least: float,
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Leave out basins that are left over a barrier of less than `least`: those that
    stay, the new number of each, and the passes that are left."""
    # `group` is a union-find of what is joined so far, whose heads are the lowest
    # basins; `into` is one of what has become part of a basin. A group of several
    # basins is left over more than `least`, as its lowest basin is at least as deep as
    # one of them that stayed. So what is to be left out is a group by itself.
    group, into = list(range(len(bottoms))), list(range(len(bottoms)))

    def head(of: list[int], k: int) -> int:
        while of[k] != k:
            of[k] = of[of[k]]
            k = of[k]
        return k

    joined, tops = [], []
    for (a, b), top in zip(*(part.tolist() for part in passes), strict=True):
        one, other = head(group, a), head(group, b)
        if one > other:
            a, b, one, other = b, a, other, one
        group[other] = one
        if energy[top] - energy[bottoms[other]] < least:
            into[other] = head(into, a)
        else:
            joined.append((head(into, a), head(into, b)))
            tops.append(top)
    keep, number = np.unique([head(into, k) for k in into], return_inverse=True)
    pairs = np.searchsorted(keep, np.array(joined, np.int64).reshape(-1, 2))
    return keep, number, (pairs, np.array(tops, np.int64))
