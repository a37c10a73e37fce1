"""Autocovariances summed up while chains run, with bins for the long lags."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._meshes import n_devices
from .._show import AbstractShown, Table, count
from ._sums import add_up


# Each level has bins twice as long as the one before: 2**19 values in the last one.
_LEVELS = 20
# Chains are summed in so many groups, whose scatter tells errors.
_GROUPS, _FEW = 32, 8


class Autocovariances(AbstractShown):
    """Autocovariances of the values of a run, without the values: what
    [`trainq.sampling.run`][] sums up if it is told how many `lags`.

    Lags `0, …, L` of the values themselves are one *level*. The next one has those of
    *bins*, means of two values, then of four, and so on for 20 levels: where a time is
    so long that the lags of a level do not hold it, those of a coarser one do. All of
    them are summed from the first value on, so that they are the autocovariances of the
    binned series. A longest lag of `L · 2**19` values is what can be seen.

    The memory does not depend on the number of steps: for each observable it is `20 (L
    + 1)` numbers for each chain, and 8 times as many for each group of chains. There
    are as many groups as the largest divisor of the number of chains up to 32, with the
    largest power of two in it, or as many as chains if that is below 8.

    ??? cite "Source"

        Frenkel and Smit, *Understanding Molecular Simulation*, 2nd edition, section
        4.4.2, 2002; Ramírez et al., *Efficient on the fly calculation of time
        correlation functions in computer simulations*, J. Chem. Phys. 133, 154103,
        2010, with means of bins, and bins of 2.
    """

    count: Int[Array, ""]
    """The number of values of each chain."""
    reference: Float[Array, " n_obs"]
    """What is taken from each value before it is multiplied: the very first one."""
    recent: Float[Array, "levels lags chains n_obs"] = eqx.field(repr=False)
    """The last bins of each level, less the reference: bin `j` at `j mod (L + 1)`."""
    first: Float[Array, "levels lags groups n_obs"] = eqx.field(repr=False)
    """The first bins of each level, summed over the chains of a group."""
    sums: "Sums" = eqx.field(repr=False)
    """Sums of products and of bins, of all values so far."""
    halves: "tuple[Half, Half]" = eqx.field(repr=False)
    """What there was at the last two counts that are powers of two."""

    @classmethod
    def begin(cls, shape: tuple[int, ...], dtype: Any, lags: int) -> "Autocovariances":
        """Those of no values yet, for values of a shape `(chains, n_obs)`."""
        chains, n_obs = shape
        groups = n_groups(chains)
        each = jnp.zeros((_LEVELS, lags + 1, groups, n_obs), dtype)
        total, no = jnp.zeros((_LEVELS, groups, n_obs), dtype), jnp.zeros((), int)
        sums = Sums((each,) * 3, (total,) * 3)
        half = Half(no, each, total, each, *[jnp.zeros(shape, dtype)] * 2)
        recent = jnp.zeros((_LEVELS, lags + 1, *shape), dtype)
        return cls(no, jnp.zeros(n_obs, dtype), recent, each, sums, (half, half))

    @classmethod
    def layouts(cls, of: Callable[..., Any], chains: Any, n_chains: int) -> Any:
        """How the arrays lie on a mesh, over whose axes `chains` so many chains are
        spread: groups as well, if the devices divide their number."""
        recent, groups = of(None, None, *chains), n_groups(n_chains)
        spread = chains if groups % n_devices(recent) == 0 else ()
        lags, level = of(None, None, *spread), of(None, *spread)
        sums = Sums((lags,) * 3, (level,) * 3)
        half = Half(of(), lags, level, lags, *[of(*chains)] * 2)
        return cls(of(), of(), recent, lags, sums, (half, half))

    @property
    def lags(self) -> int:
        """The longest lag of a level, in bins."""
        return self.recent.shape[1] - 1

    @property
    def n_chains(self) -> int:
        """Number of chains."""
        return self.recent.shape[2]

    @property
    def bins(self) -> Int[Array, " levels"]:
        """How many values make a bin, on each level."""
        return 2 ** jnp.arange(_LEVELS)

    @property
    def value(self) -> Float[Array, "levels lags n_obs"]:
        """`(1/N) Σ_j (b_j - m) (b_j+k - m)`, averaged over chains, of the `N` complete
        bins of each level about the mean `m` of all of them. Zero for a lag that no two
        bins have."""
        return jnp.mean(self.of_groups(), axis=2)

    def of_groups(self) -> Float[Array, "levels lags groups n_obs"]:
        """The same, averaged over the chains of each group."""
        return self._centred(self.count, *self.sums.read(), self._last())

    def of_half(self) -> "tuple[Half, Float[Array, 'levels lags n_obs']]":
        """The first half of the values, or what there was at the largest power of two
        up to it, and `value` then."""
        older, newer = self.halves
        old = newer.count > self.count // 2  # twice may be more than an integer holds
        half = jax.tree.map(lambda a, b: jnp.where(old, a, b), older, newer)
        found = self._centred(half.count, half.products, half.totals, half.last)
        return half, jnp.mean(found, axis=2)

    def _centred(self, count: Array, products: Array, totals: Array, last: Array):
        # Σ_j (b_j - m) (b_j+k - m) over the N - k pairs of a chain is
        # P_k - m (T_k + T'_k) + (N - k) m², with T_k the sum of all but the last k bins
        # and T'_k that of all but the first k.
        dtype = products.dtype
        chains, groups = self.n_chains, totals.shape[1]
        n_bins = count // self.bins
        lags = jnp.arange(self.lags + 1)
        some = jnp.maximum(n_bins, 1).astype(dtype)[:, None, None]
        mean = (jnp.sum(totals, axis=1, keepdims=True) / (some * chains))[:, None]
        pairs = (n_bins[:, None] - lags[None])[..., None, None]
        cut = _before(self.first) + last
        sums = products - mean * (2 * totals[:, None] - cut)
        sums = sums + pairs.astype(dtype) * (chains // groups) * mean**2
        each = some[:, None] * (chains // groups)
        return jnp.where(pairs > 0, sums / each, 0)

    def refer(self, values: Float[Array, "chains n_obs"]) -> "Autocovariances":
        """With a reference, if there is none yet: what a device has to tell others."""
        new = jnp.where(self.count == 0, values[0], self.reference)
        return eqx.tree_at(lambda c: c.reference, self, new)

    @property
    def room(self) -> Int[Array, ""]:
        """How many values there are until their number is a power of two."""
        bits = jnp.iinfo(self.count.dtype).bits - jax.lax.clz(self.count)
        return jnp.where(self.count > 0, jnp.left_shift(1, bits) - self.count, 1)

    def add(self, values: Float[Array, "chains n_obs"]) -> "Autocovariances":
        """With one more value for every chain. It takes no chains together but those of
        a group."""
        groups = self.sums.totals[0].shape[1]
        size = self.lags + 1

        def push(carry):
            level, bin_, _, recent, first, sums = carry
            index = jnp.right_shift(self.count, level)
            # In place: what is there already of a level is only read.
            recent = _put(recent, bin_, level, index % size)
            newest = recent[level][(index - jnp.arange(size)) % size]
            total = _grouped(bin_, groups)
            sums = sums.add(level, _grouped(newest * bin_[None], groups), total)
            early = jnp.minimum(index, size - 1)
            kept = jnp.where(index < size, total, first[level, early])
            first = _put(first, kept, level, early)
            # With the one before it, which is complete if this one is odd.
            pair = (newest[0] + newest[1]) / 2
            return level + 1, pair, index % 2 == 1, recent, first, sums

        carry = jnp.zeros((), int), values - self.reference[None], jnp.array(True)
        *_, recent, first, sums = jax.lax.while_loop(
            lambda carry: carry[2] & (carry[0] < _LEVELS),
            push,
            (*carry, self.recent, self.first, self.sums),
        )
        return Autocovariances(
            self.count + 1, self.reference, recent, first, sums, self.halves
        )

    def _last(self) -> Float[Array, "levels lags groups n_obs"]:
        """The sums of the last bins of each level, `0, …, L` of them."""
        sums = _grouped(self.recent, self.sums.totals[0].shape[1])
        size = self.lags + 1
        newest = (self.count // self.bins)[:, None] - 1 - jnp.arange(size)[None]
        order = (newest % size)[..., None, None]
        return _before(jnp.take_along_axis(sums, order, axis=1))

    def close(
        self, mean: Array, deviations: Array, full: Bool[Array, ""]
    ) -> "Autocovariances":
        """With the sums of the last values counted in, if it is time for that, and what
        there is as a half of what will be, if the number of values is a power of two;
        `mean` and `deviations` are those of each chain."""
        now = jax.lax.population_count(self.count) == 1
        sums = self.sums.close(full)
        products, totals = sums.read()
        half = Half(self.count, products, totals, self._last(), mean, deviations)
        halves = jax.tree.map(
            lambda new, old: jnp.where(now, new, old),
            (self.halves[1], half),
            self.halves,
        )
        return eqx.tree_at(lambda c: (c.sums, c.halves), self, (sums, halves))

    def _shown(self) -> list[str | Table]:
        if self.count.ndim:  # a batch, by `eqx.filter_vmap`
            return super()._shown()
        return [
            f"autocovariances of {count(int(self.count), 'value')} of "
            f"{count(self.reference.size, 'observable')} in "
            f"{count(self.n_chains, 'chain')}: {self.lags} lags, of values and of bins"
        ]


class Sums(eqx.Module):
    """Sums of products and of bins: what rounding has taken from a sum comes after it,
    and then what has been added since."""

    products: tuple[Float[Array, "levels lags groups n_obs"], ...]
    totals: tuple[Float[Array, "levels groups n_obs"], ...]

    def read(self) -> tuple[Array, Array]:
        """The sums."""
        products, totals = self.products, self.totals
        return products[0] + products[2], totals[0] + totals[2]

    def add(self, level: Array, products: Array, total: Array) -> "Sums":
        """With those of one more bin of a level."""

        def added(sums, term):
            return *sums[:2], sums[2].at[level].add(term)

        return Sums(added(self.products, products), added(self.totals, total))

    def close(self, full: Array) -> "Sums":
        """With what has been added counted in, or not yet."""

        def closed(sums):
            new = *add_up(*sums), jnp.zeros_like(sums[2])
            return tuple(
                jnp.where(full, x, old) for x, old in zip(new, sums, strict=True)
            )

        return Sums(closed(self.products), closed(self.totals))


class Half(eqx.Module):
    """Sums over the first values: how many, products and bins by groups, the last bins,
    and the mean of each chain with the squared deviations from it."""

    count: Int[Array, ""]
    products: Float[Array, "levels lags groups n_obs"]
    totals: Float[Array, "levels groups n_obs"]
    last: Float[Array, "levels lags groups n_obs"]
    mean: Float[Array, "chains n_obs"]
    deviations: Float[Array, "chains n_obs"]


def n_groups(chains: int) -> int:
    """In how many groups of equal size chains are summed."""
    # Of as many powers of two as there are, so that a group is on one device.
    twos = min(chains & -chains, _GROUPS)
    rest, most = chains // twos, _GROUPS // twos
    groups = twos * max(n for n in range(1, most + 1) if rest % n == 0)
    return groups if groups >= _FEW else chains


def _grouped(x: Array, groups: int) -> Array:
    """Sums over the chains of each group."""
    *lags, chains, n_obs = x.shape
    return jnp.sum(x.reshape(*lags, groups, chains // groups, n_obs), axis=-2)


def _put(x: Array, part: Array, level: Array, place: Array) -> Array:
    """With one lag of a level."""
    zero = jnp.zeros_like(level)
    at = level, place, *(zero,) * part.ndim
    return jax.lax.dynamic_update_slice(x, part[None, None], at)


def _before(x: Array) -> Array:
    """Sums over all lags below each."""
    return jnp.cumsum(x, axis=1) - x
