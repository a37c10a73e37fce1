"""Chains that redraw blocks of units: two layers, or the colours of a graph."""

import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._spins import MAX_TABLE
from ...solvers import (
    MAX_ELIMINATED,
    GramGenerator,
    Pairing,
    Words,
    column_size,
    inverse_root,
    pair,
)
from ._base import AbstractChain
from ._functions import AbstractFunctions, Table
from ._layers import AbstractLayers, Colours, Layers
from ._reductions import (
    AbstractCoordinates,
    AbstractReduction,
    Powers,
    Sector,
    Sides,
    fold_bulk,
    fold_sector,
    scale,
    unfold_sector,
)
from ._scans import AbstractScan, AbstractTwoLayerScan, Means, OnTwoLayers


# States up to which all functions fit into a table: 64 MiB for a thousand of them.
_MAX_TABLE = 2**13


class AbstractScanChain(AbstractChain):
    """Redraw blocks of units, each given all others, in the order of a scan."""

    partition: eqx.AbstractVar[AbstractLayers | Colours]
    scan: eqx.AbstractVar[AbstractScan]

    @property
    def log_stationary(self) -> Float[Array, " states"]:
        return self.partition.log_law

    # Of which there may be too many to list.

    @property
    def n_states(self) -> int:
        return self.partition.n_states

    @property
    def dtype(self) -> np.dtype:
        return self.partition.dtype

    @property
    def is_reversible(self) -> bool:
        return self.scan.is_reversible(len(self.partition.blocks))

    @property
    def is_positive(self) -> bool:
        return self.scan.is_positive

    def step_in(self, sector: Sector | None = None) -> Words:
        steps = self.partition.steps(sector)
        orders = self.scan.checked_orders(len(steps))
        return Words(steps, tuple((p, blocks) for p, blocks in orders))

    def apply(self, f: Float[Array, "states *obs"]) -> Float[Array, "states *obs"]:
        return self.operator()(f)

    def operator(self) -> Callable[[Array], Array]:
        redraws = self.partition.redraws()
        orders = self.scan.checked_orders(len(redraws))

        def step(f):
            parts = []
            for probability, blocks in orders:
                part = f
                # (P f)(x) = E[f(X₁) | x]: the last one drawn is averaged over first.
                for block in reversed(blocks):
                    part = redraws[block](part)
                parts.append(part if len(orders) == 1 else probability * part)
            return sum(parts[1:], parts[0])

        return step


class ScanChain(AbstractScanChain):
    """Redraw any blocks of units in the order of any scan, without a matrix."""

    partition: AbstractLayers | Colours
    scan: AbstractScan
    is_symmetric: bool = eqx.field(static=True)

    def __init__(
        self,
        partition: AbstractLayers | Colours,
        scan: AbstractScan,
        is_symmetric: bool,
    ):
        self.partition = partition
        self.scan = scan
        self.is_symmetric = is_symmetric


class TwoLayerChain(AbstractScanChain):
    """Redraw the visible units given the hidden ones (`E_V f = E[f | h]`) and the
    hidden given the visible (`E_H f = E[f | v]`), in the order of a scan. Any two
    blocks may stand in for the layers.

    With `B(v, h) = π(v, h) / √(π(v) π(h))`, alternating conditional expectations are
    `BBᵀ` on visible functions and `BᵀB` on hidden ones. Every sum of powers of the
    chain reduces to one with `BᵀB` or `BBᵀ`, by formulas that stand with the scan: the
    smaller layer is taken.
    """

    partition: AbstractLayers
    scan: AbstractTwoLayerScan
    is_symmetric: bool = eqx.field(static=True)

    def __init__(
        self, partition: AbstractLayers, scan: AbstractTwoLayerScan, is_symmetric: bool
    ):
        self.partition = partition
        self.scan = scan
        self.is_symmetric = is_symmetric

    @property
    def layers(self) -> AbstractLayers:
        """Both layers."""
        return self.partition

    @property
    def width(self) -> int:
        return sum(self.layers.shape)

    def coordinates(
        self,
        f: AbstractFunctions,
        pairing: Pairing = "diagonal",
        sector: Sector | None = None,
    ) -> "LayerCoordinates":
        del sector  # they are small, and folded by the reductions
        layers = self.layers
        if layers.n_states <= _MAX_TABLE:
            # Closed forms know the means up to `ε`, and in the cold all that matters
            # may be smaller: a sum over the states that differ from the most frequent
            # one knows every digit of it.
            table = f.table()
            f = Table(table - table[jnp.argmax(self.log_stationary)][None])
        on_visible, on_hidden = f.layer_means(layers)
        within = f.covariance_given_visible(layers, on_visible, pairing)
        mean = (jnp.exp(layers.log_visible) @ on_visible)[None]
        on_visible = scale(jnp.exp(layers.log_visible / 2), on_visible - mean)
        on_hidden = scale(jnp.exp(layers.log_hidden / 2), on_hidden - mean)
        offset = jnp.abs(mean[0])
        return LayerCoordinates(
            on_visible=on_visible,
            on_hidden=on_hidden,
            covariance=within + pair(on_visible, on_visible, pairing),
            bulk_visible=_bulk(on_visible, layers.log_visible, offset),
            bulk_hidden=_bulk(on_hidden, layers.log_hidden, offset),
        )

    def coordinate_numbers(
        self, block: int, n_blocks: int, sector: Sector | None = None
    ) -> tuple[float, float]:
        on_visible, on_hidden = (block * size for size in self.layers.shape)
        values = 5 * on_visible + 3.5 * on_hidden
        slopes = 3 * on_visible + 1.1 * on_hidden
        n_pairs = self.layers.n_states
        if not isinstance(self.layers, Layers):
            # What they are made of by blocks: tables of fields and of energies.
            return values + 6 * MAX_TABLE, slopes
        # The table of all pairs, of which one parity has a quarter.
        some = n_pairs if sector is None else n_pairs / 4
        return values + 1.6 * n_pairs + 3.5 * some, slopes + 0.4 * n_pairs + 2.8 * some

    def reductions(self, sector: Sector | None = None) -> tuple["LayerReduction", ...]:
        n_visible, n_hidden = self.layers.shape
        parts = len(self.scan.shares)
        return self._reductions(sector, n_hidden <= n_visible, parts)

    def window_reductions(
        self, sector: Sector | None = None
    ) -> tuple["LayerReduction", ...]:
        n_visible, n_hidden = self.layers.shape
        return self._reductions(sector, n_hidden <= n_visible)

    def spectral_reductions(
        self, sector: Sector | None = None
    ) -> tuple["LayerReduction", ...]:
        # An empty layer has no mode, and the other one has all.
        n_visible, n_hidden = self.layers.shape
        smaller_is_hidden = n_hidden <= n_visible
        is_empty = 1 in self.layers.shape
        return self._reductions(sector, smaller_is_hidden != is_empty)

    def _reductions(
        self, sector: Sector | None, on_hidden: bool, parts: int = 1
    ) -> tuple["LayerReduction", ...]:
        self.check_sector(sector)
        sectors: tuple[Sector | None, ...] = (sector,)
        if 1 in self.layers.shape:
            # The one state of an empty layer is not paired with another by the flip.
            sectors = (None,)
        elif self.is_symmetric and sector is None:
            sectors = ("even", "odd")
        return tuple(
            LayerReduction(
                generator=layer(self.layers, s, on_hidden, self.scan.shares[part]),
                layers=self.layers,
                scan=self.scan,
                sector=s,
                on_hidden=on_hidden,
                part=part,
            )
            for s in sectors
            for part in range(parts)
        )

    def solution(
        self, f: Float[Array, "states k"], y: Float[Array, "n k"]
    ) -> Float[Array, "states k"]:
        layers = self.layers
        n_visible, n_hidden = layers.shape
        given_visible, given_hidden = layers.conditionals()
        at = Means(
            *layers.means(f), given_visible, given_hidden.T, n_hidden <= n_visible
        )
        own = layers.log_hidden if at.own_is_hidden else layers.log_visible
        found, shares = [], self.scan.shares
        for start, share, part in zip(
            self.scan.start(at), shares, jnp.split(y, len(shares)), strict=True
        ):
            x = scale(inverse_root(own), part)
            # Once more through the layers, as in `jacobi_sweeps`: rare states take
            # their values from others.
            first, second = (at.k_vh, at.k_hv)[:: 1 if at.own_is_hidden else -1]
            found.append(start + share * (second @ (first @ x)))
        on_v, on_h = self.scan.finish(found, at)
        return self.centre(f + layers.flat(on_v[:, None] + on_h[None, :]))


class LayerCoordinates(AbstractCoordinates):
    """`√π(v) E[f̃ | v]` and `√π(h) E[f̃ | h]`, the covariance of `f`, and what the
    rounding errors in the first two are proportional to."""

    on_visible: Float[Array, "v k"]
    on_hidden: Float[Array, "h k"]
    covariance: Float[Array, "*k"]
    bulk_visible: Float[Array, "v k"]
    bulk_hidden: Float[Array, "h k"]

    @property
    def at_once(self) -> Array:
        return self.covariance

    @property
    def variance(self) -> Float[Array, " k"]:
        paired = self.covariance.ndim == 2
        return jnp.diagonal(self.covariance) if paired else self.covariance

    @property
    def beside(self) -> Float[Array, " k"]:
        # Where the layers hardly interact all is variance, and the parts that reduce
        # are smaller than rounding leaves of them.
        return self.variance

    @property
    def size(self) -> Float[Array, ""]:
        return jnp.maximum(column_size(self.on_visible), column_size(self.on_hidden))


class LayerReduction(AbstractReduction):
    """Functions of one parity on one of two layers, in one of the systems that the scan
    leaves there."""

    generator: GramGenerator
    layers: AbstractLayers
    scan: AbstractTwoLayerScan
    sector: Sector | None = eqx.field(static=True)
    on_hidden: bool = eqx.field(static=True)
    part: int = eqx.field(static=True, default=0)

    def sides(self, at: LayerCoordinates, pairing: Pairing) -> Sides:
        def fold(visible, hidden, folded):
            pair = folded(visible, self.sector), folded(hidden, self.sector)
            return pair[::-1] if self.on_hidden else pair

        own, other = fold(at.on_visible, at.on_hidden, fold_sector)
        bulk, other_bulk = fold(at.bulk_visible, at.bulk_hidden, fold_bulk)

        def pull(block, f, size):
            return block.T @ f, jnp.abs(block).T @ size

        # By B itself, and not by what of it is in the system; and what the rounding
        # errors in `own` and in `pulled` are proportional to.
        pulled, more = self.generator.overlap.sum(pull, other, other_bulk)
        whole = math.sqrt(self.scan.shares[self.part])
        at_layers = OnTwoLayers(own, other, pulled / whole, self.on_hidden)
        form = self.scan.sides(at_layers, pairing)[self.part]
        bulk = bulk + more / whole
        return Sides(form.left, form.right, bulk, form.rest, form.weight)

    def powers(self, at: LayerCoordinates) -> Powers:
        f_v = fold_sector(at.on_visible, self.sector)
        f_h = fold_sector(at.on_hidden, self.sector)
        hidden = self.generator
        if not self.on_hidden:
            hidden = layer(self.layers, self.sector, True)
        return self.scan.powers(f_v, f_h, hidden)

    def unfold(self, y: Float[Array, "n k"]) -> Float[Array, "whole k"]:
        # The solutions of several systems are stacked.
        whole = unfold_sector(y, self.sector)
        after = len(self.scan.shares) - 1 - self.part
        n = whole.shape[0]
        return jnp.pad(whole, ((self.part * n, after * n), (0, 0)))

    def _images(self, y: Float[Array, "n r"]) -> tuple[Array, Array]:
        """The singular values of singular vectors, and their partners on the other
        layer."""
        image = self.generator.overlap @ y
        squared = jnp.sum(image * image, axis=0)
        # Where the layers are independent σ = 0, and rounding is all there is.
        correlated = squared > (16 * jnp.finfo(image.dtype).eps) ** 2
        sigma = jnp.where(correlated, jnp.sqrt(jnp.where(correlated, squared, 1)), 0)
        size = jnp.where(correlated, sigma, 1)
        return sigma, jnp.where(correlated[None], image / size[None], 0)

    def modes(
        self, values: Float[Array, " r"], vectors: Float[Array, "n r"]
    ) -> tuple[Float[Array, " modes"], Float[Array, "width modes"]]:
        sigma, image = self._images(vectors)
        v, h = (image, vectors) if self.on_hidden else (vectors, image)
        # 1 - σ² is at most one.
        found = self.scan.modes(jnp.minimum(values, 1), sigma)
        columns = [
            jnp.concatenate([m.on_visible[None] * v, m.on_hidden[None] * h])
            for m in found
        ]
        gap = jnp.concatenate([mode.gap for mode in found])
        return gap, jnp.concatenate(columns, axis=1)

    def columns(self, at: LayerCoordinates) -> Float[Array, "width k"]:
        both = at.on_visible, at.on_hidden
        return jnp.concatenate([fold_sector(f, self.sector) for f in both])

    def densities(
        self, columns: Float[Array, "width modes"]
    ) -> Float[Array, "states modes"]:
        n_visible = self.layers.shape[0] // (1 if self.sector is None else 2)
        v, h = columns[:n_visible], columns[n_visible:]
        # √π(v, h) y(h) / √π(h) = √p(v | h) y(h), and the same for v.
        given_visible, given_hidden = self.layers.conditionals()
        on_h = unfold_sector(h, self.sector)[None]
        on_v = unfold_sector(v, self.sector)[:, None]
        sums = jnp.sqrt(given_hidden)[..., None] * on_h
        return self.layers.flat(sums + jnp.sqrt(given_visible)[..., None] * on_v)

    @property
    def rest_gap(self) -> float | None:
        return self.scan.rest_gap

    @property
    def least_rest_gap(self) -> float:
        other, own = self.generator.overlap.shape
        n_functions = self.layers.n_states // (1 if self.sector is None else 2)
        if n_functions == int(self.sector != "odd"):  # constants alone
            return math.inf
        # A larger layer has functions that are not correlated with the smaller one;
        # what has no mean given either layer is forgotten at once.
        return self.scan.lone_gap if other > own else 1.0


def layer(
    layers: AbstractLayers, sector: Sector | None, on_hidden: bool, share: float = 1.0
) -> GramGenerator:
    """`I - c M` on a layer, with `c` the share, in one sector of the global flip or in
    both. Its `overlap` is `√c B` or `√c Bᵀ`: it maps functions of this layer to the
    other."""
    visible, hidden = layers.log_visible, layers.log_hidden
    own, other = (hidden, visible) if on_hidden else (visible, hidden)
    if sector is not None:
        # A class {x, -x} has the law of both its members.
        own, other = (x[: x.size // 2] + math.log(2) for x in (own, other))
    # Only what may be nearly singular is ever eliminated.
    eliminated = sector == "odd" and (share == 1 or own.size <= MAX_ELIMINATED)
    return GramGenerator(
        overlap=layers.overlap(sector, on_hidden, share),
        log_law=own,
        log_other=other,
        whole=layers.overlap(None, on_hidden, share) if eliminated else None,
        is_odd=sector == "odd",
        leak=None if share == 1 else jnp.full_like(own, 1 - share),
    )


def _bulk(f: Array, log_law: Array, offset: Array) -> Array:
    return jnp.abs(f) + jnp.outer(jnp.exp(log_law / 2), offset)
