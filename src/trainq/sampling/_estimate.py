"""A gradient that knows how good it is: what an estimator returns."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._meshes import on_any_axes
from .._show import AbstractShown, Table, count, number
from ..predictors import AbstractSNR
from ._chain_state import ChainState
from ._statistics import student_reach


WINDOW_STATUS = {
    0: "long: it holds 10 independent states and more of each chain",
    1: "short: what a chain starts from is still felt at its end",
    2: "frozen: no observable of any chain has changed",
    3: "not known: a single chain has no scatter to compare with",
}
"""What the codes in `GradientEstimate.window_status` mean."""
LONG, SHORT, FROZEN, UNKNOWN = WINDOW_STATUS
_ENOUGH = 10
# Replicates of which all pairs are looked at.
_PAIRED = 64


class GradientEstimate(AbstractSNR):
    """A gradient of `KL(data ‖ model)` from samples, with its own signal-to-noise
    ratio: what a [`trainq.sampling.GradientEstimator`][] returns.

    The noise is the scatter between independent chains, and between samples where the
    data are a batch; `Q = ‖E ĝ‖² / E‖ĝ - E ĝ‖²` is that about the expectation of the
    estimate. **A bias is not in it**: that of chains which have not come to the law of
    the model moves all of them alike, and no scatter shows it. `window_status` says
    whether there may be one.

    Where the estimate is not told from zero `signal` may be negative, and `q` is then
    zero. Numbers of a batch, by `eqx.filter_vmap` or `jax.lax.scan`, have leading axes.
    """

    gradient: PyTree
    """`ĝ`, in the structure of the model, with None where it has no parameters: what
    Optax takes. To go against it lowers KL, and raises the likelihood of the data."""
    state: ChainState
    """Where the chains stand: to go on from."""
    square: Float[Array, "*batch"]
    """`‖ĝ‖²`, which is larger than the signal by the noise."""
    variance: Float[Array, "*batch"]
    """The estimate of `E‖ĝ - E ĝ‖²` from the scatter of the chains; not a number of a
    single one."""
    data_variance: Float[Array, "*batch"]
    """The part of the noise that comes from the data: of the choice of a batch, and of
    clamped chains. Zero where the data phase is exact."""
    log_error: Float[Array, "*batch"]
    """The standard error of `log(1 + Q)`."""
    states: Float[Array, "*batch"]
    """How many independent states the window of a chain is worth: the variance of the
    observables over that of their means along it. Zero for chains that never changed,
    and for a single one."""
    window: Int[Array, "*batch"]
    """Kernel steps that each chain averages over."""
    chain_scatter: Float[Array, "*batch chains n_parameters"] = eqx.field(repr=False)
    """What each chain adds to the error of `ĝ`: the sum of squares is `variance`."""
    data_scatter: Float[Array, "*batch n_data n_parameters"] = eqx.field(repr=False)
    """What each sample, or each clamped chain, adds: none where the data phase is
    exact."""
    degrees: int = eqx.field(static=True)
    """Degrees of freedom of `interval`: those of the smaller of the two groups."""
    parameter_device_bias: None = None
    """None: what ran is taken to be the model."""

    @property
    def n_chains(self) -> int:
        """Number of chains of the model."""
        return self.chain_scatter.shape[-2]

    @property
    def mse(self) -> Float[Array, "*batch"]:
        """The estimate of `E‖ĝ - E ĝ‖²`, from chains and data.

        **Raises:** `ValueError` for a single chain, of whose noise nothing is known.
        """
        self._require_chains()
        return self.variance + self.data_variance

    @property
    def signal(self) -> Float[Array, "*batch"]:
        """The estimate of `‖E ĝ‖²`, without bias: `‖ĝ‖²` less the noise in it.

        **Raises:** `ValueError` for a single chain.
        """
        return self.square - self.mse

    def interval(self, confidence: float = 0.95) -> Float[Array, "*batch 2"]:
        """A confidence interval for `Q`, by Student's `t` on the logarithm of `1 + Q`,
        which is `‖ĝ‖²` over the noise and never negative. All that there is, `0` to
        infinity, if nothing is known.

        It is the scatter of the chains that tells: `n_chains` of them, however long.
        From few it is wide.

        **Raises:** `ValueError` for a single chain, which has no scatter, or a
        confidence that is not between 0 and 1.
        """
        reach = student_reach(confidence, self.degrees) * self.log_error
        ratio = self.square / self.mse
        known = jnp.isfinite(reach) & jnp.isfinite(ratio)
        reach, ratio = jnp.where(known, reach, 0), jnp.where(known, ratio, 1)
        low = jnp.where(known, jnp.maximum(ratio * jnp.exp(-reach) - 1, 0), 0)
        high = jnp.where(known, jnp.maximum(ratio * jnp.exp(reach) - 1, 0), jnp.inf)
        return jnp.stack([low, high], axis=-1)

    @property
    def autocorrelation_time(self) -> Float[Array, "*batch"]:
        """The autocorrelation time that the window can see, in kernel steps: that of
        the observables together, weighted by their variance. It is never longer than
        the window, and means nothing where `window_status` is not zero."""
        return self.window.astype(self.states.dtype) / self.states

    @property
    def window_status(self) -> Int[Array, "*batch"]:
        """A key of [`trainq.sampling.WINDOW_STATUS`][], zero if the window is long
        against the autocorrelation time that it can see. Chains that all sit in one
        well, and have never seen another, look alike and long."""
        if self.n_chains == 1:
            return jnp.full(self.states.shape, UNKNOWN)
        status = jnp.where(self.states >= _ENOUGH, LONG, SHORT)
        return jnp.where(self.states > 0, status, FROZEN)

    @property
    def ok(self) -> Bool[Array, ""]:
        """Whether all windows are long."""
        return jnp.all(self.window_status == LONG)

    def along(
        self, directions: Float[Array | np.ndarray, "n_directions n_parameters"]
    ) -> "GradientEstimate":
        """The same for projections of the gradient: with a matrix `A`, for the step `A
        ĝ` of a preconditioned descent, such as that of a natural gradient. The matrix
        is held fixed: that it may come from the same samples is not part of the noise.

        **Arguments:**

        - `directions`: `(n_directions, n_parameters)` vectors, in the order of
            [`trainq.observables`][].

        **Returns:** a [`trainq.sampling.GradientEstimate`][], whose `gradient` is an
        array of one number for each direction.

        **Raises:** `ValueError` if the directions have another shape.

        !!! example

            ```python
            estimator = tq.sampling.GradientEstimator(
                tq.AlternatingBlockGibbs(), window=50, n_chains=16
            )
            state = estimator.init(key, model)
            estimate = estimator(state, model, data)
            f = tq.observables(model)
            law = jnp.exp(tq.log_stationary(model))
            fisher = jnp.cov(f, rowvar=False, aweights=law, ddof=0)
            damped = fisher + 1e-2 * jnp.eye(len(fisher))
            print(estimate.along(jnp.linalg.inv(damped)))
            ```
        """
        size = self.chain_scatter.shape[-1]
        if directions.ndim != 2 or directions.shape[1] != size:
            raise ValueError(
                f"directions has shape (n_directions, {size}), one entry for each "
                f"parameter, but {directions.shape} was given."
            )
        if self.square.ndim:
            raise ValueError(
                "These are estimates of a batch: map over them, as in "
                "`eqx.filter_vmap(lambda e: e.along(directions))(estimates)`."
            )
        directions = jnp.asarray(directions, self.chain_scatter.dtype)
        flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(self.gradient)])
        gradient = directions @ flat
        return summarised(
            gradient,
            gradient,
            self.state,
            self.states,
            self.window,
            self.chain_scatter @ directions.T,
            self.data_scatter @ directions.T,
            self.degrees,
        )

    def _require_chains(self) -> None:
        if self.n_chains == 1:
            raise ValueError(
                "Q is estimated from the scatter between chains, and this estimate has "
                "one: give `n_chains` of at least 2. `trainq.QSampled` repeats an "
                "estimate with one chain."
            )

    def _shown(self) -> list[str | Table]:
        if self.square.ndim:  # a batch, by `eqx.filter_vmap`
            return AbstractShown._shown(self)
        if self.n_chains == 1:
            length = f"‖ĝ‖² = {number(self.square)}, window of {self.window} steps"
            return [f"gradient of one chain, which does not tell its Q: {length}"]
        return super()._shown()

    def _remarks(self) -> list[str]:
        low, high = self.interval()
        status = int(self.window_status)
        what = WINDOW_STATUS[status].partition(":")[0]
        seen = f" ({number(self.states)} independent states)" if status < FROZEN else ""
        return [
            count(self.n_chains, "chain"),
            f"Q is {low:.4g} to {high:.4g} with 95 % confidence",
            f"the window is {what}{seen}",
            "any bias left out",
        ]


def summarised(
    gradient: PyTree,
    flat: Float[Array, " n_parameters"],
    state: ChainState,
    states: Float[Array, ""],
    window: Int[Array, ""],
    chains: Float[Array, "chains n_parameters"],
    of_data: Float[Array, "n_data n_parameters"],
    degrees: int,
) -> GradientEstimate:
    """An estimate from what each replicate adds to its error."""
    groups = [u for u in (chains, of_data) if u.shape[0]]
    square = jnp.sum(flat**2)
    variance, data_variance = jnp.sum(chains**2), jnp.sum(of_data**2)
    noise = variance + data_variance
    known = (noise > 0) & (square > 0)
    safe_square, safe_noise = (jnp.where(known, x, 1) for x in (square, noise))
    log_variance = _log_variance(flat, groups, safe_square, safe_noise, degrees)
    return GradientEstimate(
        gradient=gradient,
        state=state,
        square=square,
        variance=variance,
        data_variance=data_variance,
        log_error=jnp.where(known, jnp.sqrt(log_variance), jnp.inf),
        states=states,
        window=window,
        chain_scatter=chains,
        data_scatter=of_data,
        degrees=degrees,
    )


# Replicates j are independent, and u_j is what j adds to the error of ĝ: its covariance
# C is estimated by Σ_j u_j u_jᵀ, and the noise tr C by N = Σ_j |u_j|². Here are two
# estimates of the variance of log(1 + Q) = log(|ĝ|² / N). The first one knows of no
# law, and has hardly anything to go by if there are few chains, where the second one is
# right for averages along chains that are nearly normal. The larger one is taken.


@on_any_axes
def _log_variance(
    flat: Array, groups: list[Array], square: Array, noise: Array, degrees: int
) -> Float[Array, ""]:
    return jnp.maximum(
        _jackknife(flat, groups, square, noise),
        _normal(flat, groups, square, noise, degrees),
    )


def _jackknife(
    flat: Array, groups: list[Array], square: Array, noise: Array
) -> Float[Array, ""]:
    """To first order replicate j moves `log |ĝ|²` by `2 ĝ·u_j / |ĝ|²`, and `log N` by
    `|u_j|²` less the mean of its group, over `N` (the infinitesimal jackknife)."""
    total = jnp.zeros_like(square)
    for u in groups:
        sizes = jnp.sum(u**2, axis=1)
        moved = 2 * (u @ flat) / square - (sizes - jnp.mean(sizes)) / noise
        total = total + jnp.sum(moved**2)
    return total


def _normal(
    flat: Array, groups: list[Array], square: Array, noise: Array, degrees: int
) -> Float[Array, ""]:
    """Of normal replicates `|ĝ|²` has the variance `4 gᵀCg + 2 tr C²`, and does not
    depend on `N`, which has `2 tr C² / n` with `n` degrees of freedom. `ĝᵀCĝ` is larger
    than `gᵀCg` by `tr C²`."""
    along = sum((jnp.sum((u @ flat) ** 2) for u in groups), jnp.zeros_like(square))
    traces = jnp.zeros_like(square)
    for i, u in enumerate(groups):
        traces = traces + _trace_of_square(u)
        for v in groups[:i]:
            traces = traces + 2 * jnp.sum((_folded(u) @ _folded(v).T) ** 2)
    of_square = jnp.maximum(4 * along - 2 * traces, 2 * traces) / square**2
    return of_square + 2 * traces / (degrees * noise**2)


def _trace_of_square(u: Array) -> Float[Array, ""]:
    """`tr C²` without the bias that it has for normal replicates (Srivastava 2005),
    between its bounds `(tr C)² / n_parameters` and `(tr C)²`."""
    u = _folded(u)
    n, size = u.shape
    most = jnp.sum(u**2) ** 2
    if n < 3:
        return most
    biased = jnp.sum((u @ u.T) ** 2)
    factor = (n - 1) ** 2 / ((n - 2) * (n + 1))
    return jnp.clip(factor * (biased - most / (n - 1)), most / size, most)


def _folded(u: Array) -> Float[Array, "few n_parameters"]:
    """Sums of replicates, which are replicates too, so few that all pairs are cheap."""
    each = -(-u.shape[0] // _PAIRED)
    few = -(-u.shape[0] // each)
    padded = jnp.pad(u, ((0, few * each - u.shape[0]), (0, 0)))
    return jnp.sum(padded.reshape(few, each, u.shape[1]), axis=1)


def scatter(
    values: Float[Array, "replicates n_parameters"],
    weights: Float[Array, " replicates"] | None = None,
) -> Float[Array, "replicates n_parameters"]:
    """What each of some independent replicates adds to the error of their mean, by
    weights that sum to one; of a single replicate nothing is known, and it is zero."""
    # The variance of the mean is W σ², with W = Σ w². The mean is near to its own
    # replicates, and E Σ w² (x - m)² = (W - 2 Σ w³ + W²) σ²: for equal weights a share
    # of 1 - 1/n.
    n = values.shape[0]
    if weights is None:
        mean = jnp.mean(values, axis=0)
        return (values - mean[None]) / math.sqrt(n * max(n - 1, 1))
    square = jnp.sum(weights**2)
    seen = square - 2 * jnp.sum(weights**3) + square**2
    share = weights * jnp.sqrt(square / jnp.where(seen > 0, seen, 1))
    return share[:, None] * (values - (weights @ values)[None])
