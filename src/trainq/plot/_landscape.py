"""Where a chain is held up: basins of the energy, and rungs of a ladder."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes

from ..markov import Basins
from ._style import COLOURS, NEUTRAL, axes, finite, short, style


# So many leaves of a tree are told apart.
_MAX_LEAVES = 40


def basins(basins: Basins, *, ax: Axes | None = None) -> Axes:
    """The tree of basins: a branch ends at the bottom of each, and two branches meet at
    the height of the lowest pass between them.

    The area of a point is in proportion to the mass of its basin, which stands below
    it, in per cent, and below the axis is its number. How far the branch of a basin is
    to climb is its barrier.

    **Arguments:**

    - `basins`: what [`trainq.markov.basins`][] found, at most 40 of them.
    - `ax`: the axes to draw on; a new figure by default.

    **Returns:** the axes. Energies are in kT at the model's own temperature.

    **Raises:** `ValueError` for more than 40 basins.

    !!! example

        ```python
        import jax
        import trainq as tq
        from trainq import plot

        patterns = tq.random_patterns(jax.random.key(0), 2, 8)
        chain = tq.RandomScanGibbs().chain(tq.hopfield(patterns, 3.0))
        ax = plot.basins(tq.markov.basins(chain))
        ```

    ??? cite "Source"

        Becker and Karplus, *The topology of multidimensional potential energy surfaces:
        theory and application to peptide structure and kinetics*, J. Chem. Phys. 106,
        1495, 1997.
    """
    n = len(basins.minima)
    if n > _MAX_LEAVES:
        raise ValueError(
            f"A tree of at most {_MAX_LEAVES} basins can be read, but there are {n}. "
            "Leave out shallow ones: `basins(chain, least=1.0)`."
        )
    # Branches that meet stand side by side.
    order = {k: [k] for k in range(n)}
    head = list(range(n))
    for a, b in basins.joined.tolist():
        one, other = head[a], head[b]
        moved = order.pop(other)
        order[one] += moved
        for k in moved:
            head[k] = one
    leaves = [k for group in order.values() for k in group]
    at = {k: (float(leaves.index(k)), float(basins.energy[k])) for k in range(n)}

    ax = axes(ax)
    node, head = dict(at), list(range(n))
    for (a, b), height in zip(basins.joined.tolist(), basins.height, strict=True):
        one, other = head[a], head[b]
        (x, y), (u, v) = node[one], node[other]
        ax.plot([x, x, u, u], [y, height, height, v], color=NEUTRAL, lw=1, zorder=1)
        node[one] = ((x + u) / 2, float(height))
        head = [one if k == other else k for k in head]
    x, y = np.array([at[k] for k in range(n)]).T
    mass = basins.mass
    ax.scatter(x, y, s=10 + 190 * mass, color=COLOURS[2], zorder=2)
    for k in range(n):
        text = f"{short(100 * mass[k])} %"
        offset = {"xytext": (0, -14), "textcoords": "offset points"}
        ax.annotate(text, (x[k], y[k]), ha="center", fontsize="small", **offset)
    ax.set_xticks(range(n), [str(k) for k in leaves], fontsize="small")
    ax.tick_params(axis="x", length=0)
    ax.set(xlim=(-0.7, n - 0.3), xlabel="number of the basin, and its mass")
    ax.margins(y=0.15)
    ax.set_ylabel("energy above the lowest, kT")
    return ax


def ladder(
    betas: Float[Array | np.ndarray, " replicas"],
    acceptance: Mapping[
        str, Float[Array | np.ndarray, " pairs"] | Sequence[float] | float
    ],
    *,
    ax: Axes | None = None,
) -> Axes:
    """How often neighbouring replicas are swapped, rung by rung.

    **Arguments:**

    - `betas`: the inverse temperatures, from the coldest.
    - `acceptance`: for each name a share of swaps for each pair of neighbours, or one
        for all: predicted, exact by [`trainq.markov.swap_acceptance`][], or counted.
    - `ax`: the axes to draw on; a new figure by default.

    **Returns:** the axes. Each rung is a step, from one inverse temperature to the
    next.

    **Raises:** `ValueError` if there is not one number for each pair, or one is none.

    !!! example

        ```python
        import jax
        import trainq as tq
        from trainq import plot

        model = tq.RBM(jax.random.normal(jax.random.key(0), (4, 4)))
        found = tq.markov.ladder(model, lowest=0.2, n_replicas=4)
        exact = tq.markov.swap_acceptance(model, found.betas)
        shares = {"predicted": found.acceptance, "exact": exact}
        ax = plot.ladder(found.betas, shares)
        ```
    """
    betas = finite("betas", betas)
    n_pairs = betas.size - 1
    ax = axes(ax)
    for i, (name, shares) in enumerate(acceptance.items()):
        values = np.atleast_1d(finite(f"acceptance[{name!r}]", shares))
        if values.shape not in ((1,), (n_pairs,)):
            raise ValueError(
                f"acceptance has a share for each of the {n_pairs} pairs of "
                f"neighbours, but {values.size} were given as {name!r}."
            )
        values = np.broadcast_to(values, n_pairs)
        look = style(i, marker="")
        ax.stairs(values, betas, baseline=None, color=look["c"], ls=look["ls"], lw=1.5)
        middle = (betas[1:] + betas[:-1]) / 2
        ax.plot(middle, values, **style(i, ls=""), ms=4, label=name)
    ax.set(xlabel="inverse temperature β", ylabel="share of swaps accepted")
    ax.set_ylim(0, 1)
    ax.invert_xaxis()
    ax.legend()
    return ax
