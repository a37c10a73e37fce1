"""What the modes of a chain weigh in observables: shares, levels and clusters.

With orthonormal eigenfunctions `P φ_j = (1 - γ_j) φ_j` and weights `w_ja = ⟨f̃_a, φ_j⟩²`

    Var f_a = Σ_j w_ja,        ⟨f̃_a, R f̃_a⟩ = Σ_j w_ja / γ_j,

so that each mode has a share of the variance, and one of the noise. What the modes that
are listed leave out is a rest with a variance and a time of its own.
"""

from collections.abc import Sequence
from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._checks import positive_number, whole_number
from .._show import AbstractShown, Table, count, percent
from .chains import scale


_ROWS = 6  # levels that a table shows


class Cluster(AbstractShown):
    """The modes that decide the noise: those that the observables feel and whose gap is
    within some factor of the slowest of them. The rest is the bulk."""

    gap: Float[Array, ""]
    """The observable-relevant gap: that of the slowest mode that the observables feel,
    in inverse kernel steps."""
    gamma_eff: Float[Array, ""]
    """`γ_eff = μ_C / Σ_C (μ_j / γ_j)`, the rate at which what the observables have of
    the cluster decays, in inverse kernel steps."""
    mu: Float[Array, ""]
    """`μ_C = Σ_C μ_j`: what the observables have of the cluster, with
    `μ_j = Σ_a ⟨f̃_a, φ_j⟩²`."""
    share: Float[Array, ""]
    """The share of the variance of the observables."""
    noise_share: Float[Array, ""]
    """The share of `T_O`."""
    bulk_rate: Float[Array, ""]
    """`γ_eff` of everything else, in inverse kernel steps; infinite if there is nothing
    else."""
    members: Bool[Array, " modes"]
    """Which of the modes are in it."""

    @property
    def size(self) -> Int[Array, ""]:
        """The number of its modes."""
        return jnp.sum(self.members)


class Sensitivity(AbstractShown):
    """How much a cluster depends on the two numbers that define it."""

    factors: tuple[float, ...] = eqx.field(static=True)
    """The factors `c` on the slowest gap, one a row."""
    thresholds: tuple[float, ...] = eqx.field(static=True)
    """The thresholds on a share of the variance, one a column."""
    gamma_eff: Float[Array, "factors thresholds"]
    """`γ_eff` for each of them, in inverse kernel steps."""
    size: Int[Array, "factors thresholds"]
    """The number of modes in the cluster."""

    @property
    def spread(self) -> Float[Array, ""]:
        """The largest `γ_eff` over the smallest."""
        return jnp.max(self.gamma_eff) / jnp.min(self.gamma_eff)

    def _shown(self) -> list[str | Table]:
        if self.gamma_eff.ndim > 2:
            return super()._shown()
        head = ("c", *(f"share > {t:.0e}" for t in self.thresholds))
        rows: Table = [head]
        for c, gammas, sizes in zip(
            self.factors, self.gamma_eff, self.size, strict=True
        ):
            cells = [f"{g:.4g} ({n})" for g, n in zip(gammas, sizes, strict=True)]
            rows.append((f"{c:g}", *cells))
        return ["γ_eff, and the number of modes in the cluster", rows]


class Modes(AbstractShown):
    """The modes of a reversible chain, from the slowest, and what each of them weighs
    in some observables.

    Modes of one gap and one parity are a *level*. Which functions stand for a level is
    arbitrary, as with any degenerate eigenvalue, and so are the weights, shares and
    times of its single modes; their sums over the level are not. Relevance is decided
    by such sums, so that `relevant_gap`, `cluster` and all that is printed do not
    depend on the choice.

    Shares are of the sum over all observables, and with those of the rest they sum to
    one.
    """

    gap: Float[Array, " modes"]
    """`γ_j = 1 - λ_j`, ascending, in inverse kernel steps."""
    weight: Float[Array, "modes n_obs"]
    """`⟨f̃_a, φ_j⟩_π²`, with `φ_j` of unit variance."""
    parity: Int[Array, " modes"]
    """1 for modes that are even under the global flip, -1 for odd ones, 0 where the
    chain is not symmetric."""
    rest_weight: Float[Array, " n_obs"]
    """What the modes leave out of each variance: functions that one step annihilates,
    in a two-layer chain, and modes that were not asked for."""
    rest_t_o: Float[Array, " n_obs"]
    """What they leave out of each `⟨f̃_a, R f̃_a⟩`, in kernel steps."""
    function: Float[Array, "states modes"] | None
    """`φ_j` at every state, if it was asked for."""
    is_complete: bool = eqx.field(static=True)
    """Whether the rest is nothing but what one step annihilates."""

    @property
    def observable_variance(self) -> Float[Array, " n_obs"]:
        """`Var f_a`."""
        return jnp.sum(self.weight, axis=0) + self.rest_weight

    @property
    def observable_t_o(self) -> Float[Array, " n_obs"]:
        """`⟨f̃_a, R f̃_a⟩`, in kernel steps."""
        times = jnp.sum(scale(1 / self.gap, self.weight), axis=0)
        return times + self.rest_t_o

    @property
    def variance(self) -> Float[Array, ""]:
        """`V = Σ_a Var f_a`."""
        return jnp.sum(self.observable_variance)

    @property
    def t_o(self) -> Float[Array, ""]:
        """`T_O = Σ_a ⟨f̃_a, R f̃_a⟩`, in kernel steps."""
        return jnp.sum(self.observable_t_o)

    @property
    def mu(self) -> Float[Array, " modes"]:
        """`μ_j = Σ_a ⟨f̃_a, φ_j⟩²`: what all observables have of a mode."""
        return jnp.sum(self.weight, axis=1)

    @property
    def time(self) -> Float[Array, " modes"]:
        """`μ_j / γ_j`, what each mode contributes to `T_O`, in kernel steps."""
        return self.mu / self.gap

    @property
    def share(self) -> Float[Array, " modes"]:
        """The share of each mode of the variance."""
        return _over(self.mu, self.variance)

    @property
    def noise_share(self) -> Float[Array, " modes"]:
        """The share of each mode of `T_O`."""
        return _over(self.time, self.t_o)

    @property
    def rest_share(self) -> Float[Array, ""]:
        """The share of the rest of the variance."""
        return _over(jnp.sum(self.rest_weight), self.variance)

    @property
    def rest_noise_share(self) -> Float[Array, ""]:
        """The share of the rest of `T_O`."""
        return _over(jnp.sum(self.rest_t_o), self.t_o)

    @property
    def level(self) -> Int[Array, " modes"]:
        """The number of the level of each mode. Gaps are one level if they differ by
        less than half of their digits."""
        return self._levels()[2]

    @eqx.filter_jit
    def _levels(self) -> tuple[Array, Array, Array]:
        """An order of the modes by levels, the levels in it, and those of the modes."""
        order = jnp.lexsort((self.gap, self.parity))
        gap, parity = self.gap[order], self.parity[order]
        near = float(jnp.finfo(gap.dtype).eps) ** 0.5
        new = (gap[1:] - gap[:-1] > near * gap[1:]) | (parity[1:] != parity[:-1])
        ids = jnp.cumsum(jnp.append(jnp.zeros(1, int), new.astype(int)))
        return order, ids, jnp.zeros_like(ids).at[order].set(ids)

    @eqx.filter_jit
    def over_level(self, x: Float[Array, " modes"]) -> Float[Array, " modes"]:
        """The sum of `x` over the level of each mode, which does not depend on the
        choice of functions in it."""
        level = self.level
        return jax.ops.segment_sum(x, level, self.gap.shape[0])[level]

    def relevant(self, threshold: float | int = 1e-6) -> Bool[Array, " modes"]:
        """Which modes the observables feel.

        **Arguments:**

        - `threshold`: the share of the variance above which a level counts.

        **Raises:** `ValueError` if the threshold is not positive.
        """
        threshold = positive_number("threshold", threshold)
        return self.over_level(self.share) > threshold

    def relevant_gap(self, threshold: float | int = 1e-6) -> Float[Array, ""]:
        """The observable-relevant gap: that of the slowest mode that the observables
        feel, in inverse kernel steps. If that is none of the list, the rate of the
        rest.

        **Arguments:**

        - `threshold`: as for `relevant`.

        **Raises:** as `relevant`.
        """
        slowest = _slowest(self.gap, self.relevant(threshold))
        rest = jnp.sum(self.rest_weight), jnp.sum(self.rest_t_o)
        return jnp.where(jnp.isinf(slowest), _over(*rest, jnp.inf), slowest)

    def cluster(
        self, factor: float | int = 3.0, threshold: float | int = 1e-6
    ) -> Cluster:
        """The modes that decide the noise, and the rate `γ_eff` that stands for them.

        **Arguments:**

        - `factor`: relevant modes belong to it whose gap is at most so many times that
            of the slowest one.
        - `threshold`: as for `relevant`.

        **Returns:** a [`trainq.markov.Cluster`][].

        **Raises:** `ValueError` if the factor is below one, or as `relevant`.
        """
        if positive_number("factor", factor) < 1:
            raise ValueError(
                f"factor is at least 1, so that the slowest mode is in the cluster, "
                f"but {factor!r} was given."
            )
        # Numbers, so that another choice compiles nothing anew.
        threshold = positive_number("threshold", threshold)
        choice = (jnp.asarray(x, self.gap.dtype) for x in (factor, threshold))
        return self._cluster(*choice)

    @eqx.filter_jit
    def _cluster(self, factor: Array, threshold: Array) -> Cluster:
        relevant = self.over_level(self.share) > threshold
        slowest = _slowest(self.gap, relevant)
        # Modes of one level are all in it, or none is.
        near = 1 + float(jnp.finfo(self.gap.dtype).eps) ** 0.5
        members = relevant & (self.gap <= factor * near * slowest)
        mu = jnp.sum(jnp.where(members, self.mu, 0))
        time = jnp.sum(jnp.where(members, self.time, 0))
        outside = jnp.where(members, 0, self.mu), jnp.where(members, 0, self.time)
        bulk = jnp.sum(outside[0]) + jnp.sum(self.rest_weight)
        bulk_time = jnp.sum(outside[1]) + jnp.sum(self.rest_t_o)
        rounding = 64 * float(jnp.finfo(self.gap.dtype).eps) * self.variance
        bulk = jnp.where(bulk > rounding, bulk, jnp.inf)
        return Cluster(
            gap=slowest,
            gamma_eff=_over(mu, time, jnp.inf),
            mu=mu,
            share=_over(mu, self.variance),
            noise_share=_over(time, self.t_o),
            bulk_rate=_over(bulk, bulk_time, jnp.inf),
            members=members,
        )

    def sensitivity(
        self,
        factors: Sequence[float | int] = (2.0, 3.0, 5.0),
        thresholds: Sequence[float | int] = (1e-8, 1e-6, 1e-4),
    ) -> Sensitivity:
        """`γ_eff` for other choices of what a cluster is.

        **Arguments:**

        - `factors`, `thresholds`: what `cluster` takes, several of each.

        **Returns:** a [`trainq.markov.Sensitivity`][].

        **Raises:** as `cluster`.
        """
        found = [[self.cluster(c, t) for t in thresholds] for c in factors]
        return Sensitivity(
            factors=tuple(map(float, factors)),
            thresholds=tuple(map(float, thresholds)),
            gamma_eff=jnp.array([[one.gamma_eff for one in row] for row in found]),
            size=jnp.array([[one.size for one in row] for row in found]),
        )

    def power(self, n: SupportsIndex) -> "Modes":
        """The modes of the chain that takes `n` steps at once, `P^n`: the same
        functions, with gaps `1 - (1 - γ)^n`. A sweep of single flips is a power.

        **Arguments:**

        - `n`: the number of steps.

        **Returns:** a [`trainq.markov.Modes`][], whose times are in steps of `P^n`.

        **Raises:** `ValueError` if `n` is not a positive whole number, or modes are
        missing, so that the rest cannot be told.
        """
        n = whole_number("n", n, of="kernel steps")
        if not self.is_complete:
            raise ValueError(
                "These are not all modes of the chain, and what a power makes of the "
                "rest is not known. Ask for all, by `modes(chain, f)` with up to 13 "
                "units, or for those of the chain of the power itself."
            )
        # 1 - (1 - γ)^n without rounding γ off; beyond one the base is negative.
        slow = -jnp.expm1(n * jnp.log1p(-jnp.minimum(self.gap, 1)))
        gap = jnp.where(self.gap < 1, slow, 1 - (1 - self.gap) ** n)
        order = jnp.argsort(gap)
        function = None if self.function is None else self.function[:, order]
        return Modes(
            gap=gap[order],
            weight=self.weight[order],
            parity=self.parity[order],
            rest_weight=self.rest_weight,
            rest_t_o=self.rest_t_o,
            function=function,
            is_complete=True,
        )

    def _shown(self) -> list[str | Table]:
        if self.gap.ndim > 1:
            return super()._shown()
        rows: Table = [("gap", "modes", "parity", "of the variance", "of T_O")]
        names = {1: "even", -1: "odd", 0: ""}
        level, noise = self.level, self.over_level(self.noise_share)
        shares = self.over_level(self.share)
        _, first = jnp.unique(level, return_index=True)
        # Of those that are equal but for rounding, the first.
        ranked = sorted(first.tolist(), key=lambda i: -round(float(noise[i]), 9))
        shown = [i for i in ranked[:_ROWS] if noise[i] > 0]
        for i in sorted(shown, key=lambda i: float(self.gap[i])):
            size = int(jnp.sum(level == level[i]))
            cells = f"{self.gap[i]:.4g}", str(size), names[int(self.parity[i])]
            rows.append((*cells, percent(shares[i]), percent(noise[i])))
        left = [i for i in ranked if i not in shown]
        if left:
            among = jnp.array(left)
            cells = "others", str(int(jnp.sum(jnp.isin(level, level[among])))), ""
            sums = jnp.sum(shares[among]), jnp.sum(noise[among])
            rows.append((*cells, *map(percent, sums)))
        if float(self.rest_share) > 0:
            cells = "the rest", "", ""
            sums = self.rest_share, self.rest_noise_share
            rows.append((*cells, *map(percent, sums)))
        n = count(self.gap.shape[0], "mode")
        return [f"{n}, T_O = {self.t_o:.4g} kernel steps", rows]


def pool_modes(several: Sequence[Modes]) -> Modes:
    """The modes of several chains taken together, as those of one gradient with a block
    for each model: [`trainq.pool`][] of modes.

    Each has observables of its own, which follow each other. Two chains may have modes
    of one gap and parity, which are then one level.

    **Arguments:**

    - `several`: the modes of each chain.

    **Returns:** a [`trainq.markov.Modes`][], without functions.

    **Raises:** `ValueError` if there is none.

    !!! example

        ```python
        kernel = tq.RandomScanGibbs()
        found = [
            tq.markov.modes(kernel.chain(one), tq.observables(one))
            for one in (model, model.tempered(2.0))
        ]
        print(tq.markov.pool_modes(found))
        ```
    """
    several = list(several)
    if not several:
        raise ValueError("There are no modes to pool: the list is empty.")
    gap = jnp.concatenate([one.gap for one in several])
    order = jnp.argsort(gap)
    weight = jax.scipy.linalg.block_diag(*(one.weight for one in several))
    return Modes(
        gap=gap[order],
        weight=weight[order],
        parity=jnp.concatenate([one.parity for one in several])[order],
        rest_weight=jnp.concatenate([one.rest_weight for one in several]),
        rest_t_o=jnp.concatenate([one.rest_t_o for one in several]),
        function=None,
        is_complete=all(one.is_complete for one in several),
    )


def _over(x: Array, y: Array, otherwise: float = 0.0) -> Array:
    """`x / y`, and something else where there is nothing."""
    some = y > 0
    return jnp.where(some, x / jnp.where(some, y, 1), otherwise)


def _slowest(gap: Array, among: Array) -> Array:
    return jnp.min(jnp.where(among, gap, jnp.inf), initial=jnp.inf)
