"""log Z of any model by annealed importance sampling, forward and backward.

Let `f_k(x) = exp(-E_k(x))` go from a law of independent units, `k = 0`, to the model,
`k = K`. A chain `x_0, ..., x_{K-1}` with `x_0 ~ f_0` and `x_k ~ T_k(x_{k-1}, ·)`, where
`T_k` leaves `f_k` invariant, has the weight `w = Π_k f_{k+1}(x_k) / f_k(x_k)`, and

    E[w] = Z_K / Z_0.

The same chain backwards, from `x_{K-1} ~ f_K` by the adjoints of `T_k`, has
`E[1/w] = Z_0 / Z_K`. By Jensen's inequality the mean of `log w` is below `log Z_K/Z_0`
forward, and above it backward, and so are, for finitely many chains, the expectations
of the logarithms of the averages of `w` and `1/w`.

For these two expectations any kernels will do that leave `f_k` invariant. That the way
back is by the adjoints is what makes it the reverse of the way there, and the bound of
a likelihood one of the model that draws by annealing.
"""

from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from .._checks import check_key, whole_number
from .._show import AbstractShown, Table, count
from .._spins import check_spins
from ..markov import AbstractKernel
from ..models import (
    AbstractEnergyModel,
    AbstractStart,
    Data,
    SampleWeights,
    check_data,
    check_weights,
    checked,
    initial_states,
    require_model,
)
from ._annealing_path import AnnealingPath, Betas
from ._statistics import student_reach


States = Num[Array | np.ndarray, "draws n_units"]

# Nats between the two bounds, and the share of the chains that are effective, up to
# which an estimate is called good.
_GAP = 1.0
_SHARE = 0.1

ANNEALING_STATUS = {
    0: "bounded: the bounds from both ends are within a nat of each other",
    1: "one-sided: many chains count, but there are no draws for the other bound",
    2: "apart: the bounds are more than a nat from each other. Anneal more slowly",
    3: "few: less than a tenth of the chains count. Anneal more slowly",
}
"""What the codes in `AnnealedPartition.status` mean."""


class AnnealedPartition(AbstractShown):
    """An estimate of `log Z` by annealed importance sampling.

    `E[Z]` of it is exact, so that `log_partition` is a stochastic lower bound: its
    expectation is below `log Z`, and it is `x` nats above with a probability of at most
    `exp(-x)`. With draws from the model there is an upper bound of the same kind. Where
    both agree the estimate is good, whatever the model; an interval from the scatter
    alone knows only of what the chains have seen. Numbers of a batch, by
    `eqx.filter_vmap`, have leading axes.
    """

    log_base: Float[Array, "*batch"]
    """`log Z` of the base, the law of independent units."""
    log_weights: Float[Array, "*batch chains"]
    """`log w` of each forward chain, nats."""
    reverse_log_weights: Float[Array, "*batch draws"] | None
    """`log w` of each chain back from a draw, if there were any, nats."""
    states: Num[Array, "*batch chains n_units"]
    """Where the forward chains ended: weighted by `w` they are from the model."""
    n_betas: int = eqx.field(static=True)
    """The number of steps from the base to the model."""

    @property
    def log_partition(self) -> Float[Array, "*batch"]:
        """The estimate of `log Z`, nats: the average of the forward weights."""
        return self.log_base + _log_mean(self.log_weights)

    @property
    def upper(self) -> Float[Array, "*batch"]:
        """The bound from the other end, nats: a stochastic upper bound of `log Z`.
        Infinite where there were no draws."""
        if self.reverse_log_weights is None:
            return jnp.full_like(self.log_base, jnp.inf)
        return self.log_base - _log_mean(-self.reverse_log_weights)

    @property
    def error(self) -> Float[Array, "*batch"]:
        """The standard error of `log_partition` from the scatter of the weights, nats:
        the larger one of that of a mean, and that of a law whose logarithm is normal.
        """
        return _log_mean_error(self.log_weights)

    @property
    def effective_chains(self) -> Float[Array, "*batch"]:
        """`(Σ w)² / Σ w²`: how many equal weights are worth as much."""
        return _effective(self.log_weights)

    @property
    def status(self) -> Int[Array, "*batch"]:
        """A key of [`trainq.sampling.ANNEALING_STATUS`][]: zero where both bounds are
        there and close to each other."""
        n = self.log_weights.shape[-1]
        apart = self.upper - self.log_partition > _GAP
        few = self.effective_chains < _SHARE * n
        sided = 1 if self.reverse_log_weights is None else 0
        known = jnp.where(apart & (sided == 0), 2, sided)
        return jnp.where(few & (known > 0), 3, known).astype(int)

    def interval(self, confidence: float = 0.95) -> Float[Array, "*batch 2"]:
        """A confidence interval for `log Z`, nats, from Student's `t` and `error`: as
        good as the chains have seen the model. It covers as often as it says where many
        chains are effective: see `status`."""
        degrees = self.log_weights.shape[-1] - 1
        reach = student_reach(confidence, degrees) * self.error
        centre = self.log_partition
        return jnp.stack([centre - reach, centre + reach], axis=-1)

    def _shown(self) -> list[str | Table]:
        if self.log_base.ndim:  # a batch, by `eqx.filter_vmap`
            return super()._shown()
        low, high = self.interval()
        status = ANNEALING_STATUS[int(self.status)].partition(":")[0]
        lines: list[str | Table] = [
            f"log Z = {float(self.log_partition):.6g}, {low:.6g} to {high:.6g} with "
            f"95 % confidence ({status})",
            f"{count(self.log_weights.shape[0], 'chain')} of {self.n_betas} steps, "
            f"{float(self.effective_chains):.3g} of them effective",
        ]
        if self.reverse_log_weights is not None:
            draws = count(self.reverse_log_weights.shape[0], "draw")
            lines.append(f"at most {float(self.upper):.6g}, from {draws}")
        return lines


class AnnealedLikelihood(AbstractShown):
    """The log-likelihood of samples between two stochastic bounds, nats a sample."""

    partition: AnnealedPartition
    """`log Z`, from the forward chains, and the weights of the chains back from the
    samples."""
    free_energies: Float[Array, "*batch samples"]
    """`F(v)` of each sample."""
    weights: Float[Array, "*batch samples"]
    """How much each sample counts, with the sum one."""

    @property
    def upper(self) -> Float[Array, "*batch"]:
        """The estimate by `log Z` of the forward chains: too large on average."""
        mean = jnp.sum(self.weights * self.free_energies, axis=-1)
        return -mean - self.partition.log_partition

    @property
    def lower(self) -> Float[Array, "*batch"]:
        """The conservative estimate by the chains back from the samples. What it bounds
        is the likelihood of the *annealed* model, which draws by as many steps from the
        base: that of the model itself is approached as these become more, and the bound
        may then be trusted (Burda et al. 2015)."""
        back = self.partition.reverse_log_weights
        assert back is not None
        # One over w of several chains of a sample is averaged.
        per_sample = back.reshape(*self.free_energies.shape, -1)
        bounds = _log_mean(-per_sample) - self.free_energies
        return jnp.sum(self.weights * bounds, axis=-1) - self.partition.log_base

    @property
    def gap(self) -> Float[Array, "*batch"]:
        """`upper - lower`, nats a sample: what annealing leaves open."""
        return self.upper - self.lower

    def _shown(self) -> list[str | Table]:
        if self.partition.log_base.ndim:
            return super()._shown()
        n = count(self.free_energies.shape[0], "sample")
        return [
            f"log-likelihood of {n} between {float(self.lower):.6g} and "
            f"{float(self.upper):.6g} nats a sample",
            *self.partition._shown()[:2],
        ]


def annealed_importance(
    key: Key[Array, ""],
    model: AbstractEnergyModel,
    *,
    kernel: AbstractKernel | None = None,
    betas: Betas = 1000,
    n_chains: SupportsIndex = 128,
    data: Data | None = None,
    draws: States | AbstractStart | None = None,
    progress: bool = False,
) -> AnnealedPartition:
    """`log Z` of any model by annealed importance sampling: chains go from a law of
    independent units, whose `log Z` is known, to the model, through the energies
    `(1 - β) E_0(x) + β E(x)`, and what the energy changes on the way is their weight.

    It works under `jax.jit` and `jax.vmap`, the number of chains and of steps being
    fixed. To differentiate raises: the derivative of `log Z` is minus the mean of the
    observables.

    **Arguments:**

    - `key`: random key.
    - `model`: the model.
    - `kernel`: what moves the chains at each temperature, one step of it; its
        `adjoint` moves them back. By default [`trainq.AlternatingBlockGibbs`][], of the
        two layers of an RBM, or of the colours of the model.
    - `betas`: the number of steps, evenly spaced, or increasing inverse temperatures
        from 0 to 1.
    - `n_chains`: the number of independent chains, at least 8.
    - `data`: a law of the visible states, or samples. The units of the base then have
        the means of the data (times 0.95): a start closer to what has learnt them. By
        default all its states are alike, and chains go through `model.tempered(β)`.
    - `draws`: `(n_draws, n_units)` independent states from the model itself, from
        which chains go back, for the upper bound; or a start that draws as many as
        there are chains, such as [`trainq.Stationary`][]. What
        [`trainq.interop.dimod.exact`][] draws will do; what a run has sampled will not,
        unless it has mixed.
    - `progress`: show a line of progress, from compiling on; needs `tqdm`.

    **Returns:** an [`trainq.sampling.AnnealedPartition`][].

    **Raises:** `ValueError` for inverse temperatures that do not increase from 0 to 1,
    numbers that are too small, a wrong shape, or a kernel that runs replicas, or does
    not know its adjoint; a run-time error if a parameter or a weight is not finite.

    !!! example

        ```python
        found = tq.sampling.annealed_importance(key, model, betas=100)
        print(found)
        assert abs(found.log_partition - tq.log_partition(model)) < 0.1
        ```

    ??? cite "Source"

        Neal, *Annealed importance sampling*, Stat. Comput. 11, 125, 2001; Salakhutdinov
        and Murray, *On the quantitative analysis of deep belief networks*, ICML 2008,
        for Boltzmann machines and the base of the data; Grosse, Ghahramani and Adams,
        *Sandwiching the marginal likelihood using bidirectional Monte Carlo*,
        arXiv:1511.02543, for the way back.
    """
    check_key(key)
    require_model(model)
    n_chains = whole_number("n_chains", n_chains, least=8)
    path = AnnealingPath.of(model, kernel, betas, data)
    forward, backward, start = jr.split(key, 3)
    log_weights, states = path.forward(forward, n_chains, progress)
    reverse = None
    if draws is not None:
        if isinstance(draws, AbstractStart):
            draws = initial_states(start, draws, model, None, n_chains)
        x = check_spins(jnp.asarray(draws), model.n_units).astype(model.dtype)
        if x.ndim != 2 or x.shape[0] == 0:
            raise ValueError(
                f"draws are states of shape (n_draws, {model.n_units}), but {x.shape} "
                "was given."
            )
        reverse = path.backward(backward, x, progress)
    return AnnealedPartition(
        path.log_base, log_weights, reverse, states, path.betas.shape[0] - 1
    )


def annealed_likelihood(
    key: Key[Array, ""],
    model: AbstractEnergyModel,
    data: Num[Array | np.ndarray, "samples n_visible"],
    weights: SampleWeights | None = None,
    *,
    kernel: AbstractKernel | None = None,
    betas: Betas = 1000,
    n_chains: SupportsIndex = 128,
    per_sample: SupportsIndex = 1,
    base_of_data: bool = True,
    progress: bool = False,
) -> AnnealedLikelihood:
    """The mean log-likelihood of samples under any model, between two stochastic
    bounds: from above by `log Z` of chains that go from independent units to the model,
    from below by chains that go back from the samples.

    **Arguments:**

    - `key`, `model`, `kernel`, `betas`, `n_chains`, `progress`: as for
        [`trainq.sampling.annealed_importance`][].
    - `data`: `(samples, n_visible)` spins. The free energy of each is needed.
    - `weights`: as for [`trainq.log_likelihood`][].
    - `per_sample`: the number of chains back from each sample: the average of more of
        them is less conservative.
    - `base_of_data`: whether the base has the means of the data.

    **Returns:** an [`trainq.sampling.AnnealedLikelihood`][].

    **Raises:** as `annealed_importance`.

    !!! example

        ```python
        samples = jax.random.rademacher(key, (20, 3), float)
        found = tq.sampling.annealed_likelihood(key, model, samples)
        print(found)
        ```

    ??? cite "Source"

        Burda, Grosse and Salakhutdinov, *Accurate and conservative estimates of MRF
        log-likelihood using reverse annealing*, AISTATS 2015.
    """
    check_key(key)
    require_model(model)
    n_chains = whole_number("n_chains", n_chains, least=8)
    per_sample = whole_number("per_sample", per_sample)
    data = check_data(data, model)
    if data.ndim != 2:
        raise ValueError(
            "data are samples, of shape (samples, n_visible): of a law every state is "
            "known, and so is log Z."
        )
    shares = check_weights(weights, data)
    n = data.shape[0]
    shares = jnp.full(n, 1 / n, data.dtype) if shares is None else shares
    path = AnnealingPath.of(model, kernel, betas, data if base_of_data else None)
    forward, backward, hidden = jr.split(key, 3)
    log_weights, states = path.forward(forward, n_chains, progress)
    x = _with_hidden(hidden, model, jnp.repeat(data, per_sample, axis=0))
    reverse = path.backward(backward, x, progress)
    partition = AnnealedPartition(
        path.log_base, log_weights, reverse, states, path.betas.shape[0] - 1
    )
    return AnnealedLikelihood(partition, model.free_energy(data), shares)


@eqx.filter_jit
def _with_hidden(key: Array, model: AbstractEnergyModel, v: Array) -> Array:
    """Samples, each once, with hidden units from their law."""
    if model.n_hidden == 0:
        return v
    hidden = jnp.ones((v.shape[0], model.n_hidden), v.dtype)
    x = jnp.concatenate([v, hidden], axis=1)
    return checked(model).sample_block(key, x, "hidden")


def _log_mean(log_values: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """The logarithm of a mean, from logarithms."""
    return jax.nn.logsumexp(log_values, axis=-1) - jnp.log(log_values.shape[-1])


def _effective(log_weights: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """`(Σ w)² / Σ w²`."""
    total = jax.nn.logsumexp(log_weights, axis=-1)
    return jnp.exp(2 * total - jax.nn.logsumexp(2 * log_weights, axis=-1))


def _log_mean_error(log_weights: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """The standard error of the logarithm of a mean of weights."""
    # Relative to the mean, the variance of n weights is n/ESS - 1 (times n/(n-1)), and
    # that of their mean is an n-th of it. Where few weights count that is no more than
    # 1, while weights whose logarithm is normal, with variance s², have a mean of
    # exp(μ + s²/2), which is known from μ and s² with a variance of
    # s²/n + s⁴/(2(n - 1)) (Cox).
    n = log_weights.shape[-1]
    direct = (n / _effective(log_weights) - 1) / (n - 1)
    s2 = jnp.var(log_weights, axis=-1, ddof=1)
    normal = s2 / n + s2**2 / (2 * (n - 1))
    return jnp.sqrt(jnp.maximum(jnp.maximum(direct, normal), 0))
