"""The error of the gradient for every burn-in and window, and budgets read off it."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num
from scipy.special import stdtrit

from ..markov import AbstractKernel
from ..markov._functions import EnergyGradients
from ..models import AbstractEnergyModel, observables
from ..models._base import checked
from ..models._laws import check_law, gradient_of_kl
from ..predictors import QOperational
from ..predictors._qoperational import Start, check_counts, data_variance, start_law
from ._qsampled import QSampled, checked_data, data_phase, draw_starts
from ._run import bar


# Times of a grid grow by about a third.
_GROWTH = 4 / 3
_MAX_EXACT_UNITS = 14
# With which a calibration reaches its target.
_CONFIDENCE = 0.95


class BudgetError(ValueError):
    """No number of steps and chains within the limits reaches the target."""


class Budget(eqx.Module):
    """Numbers of burn-in steps, steps of the window and chains; the `Q` of the gradient
    estimated from them; and their cost in single-unit updates.

    If they come from a calibration run, `Q` is at least `q_low` with a confidence of
    95 %. Where `q` is exact, `q_low` is None.
    """

    burn_in: int
    window: int
    chains: int
    q: float
    cost: float
    q_low: float | None = None

    @property
    def plan(self) -> str:
        """The numbers in words."""
        chains = "1 chain" if self.chains == 1 else f"{self.chains} chains"
        return f"burn-in {self.burn_in}, window {self.window}, {chains}"

    def __str__(self) -> str:
        text = f"{self.plan}: Q = {self.q:.4g} for {self.cost:.4g} unit updates"
        if self.q_low is None:
            return text
        return f"{text} (calibrated: at least {self.q_low:.4g} with 95 % confidence)"


class LeftOut(eqx.Module):
    """What a calibration finds without one of its replicates, for each of them: the
    jackknife, whose scatter is the error of all that is computed from the table."""

    bias2: Float[np.ndarray, "replicates candidates"]
    variance: Float[np.ndarray, "replicates candidates"]
    signal: Float[np.ndarray, " replicates"]


class ErrorTable(eqx.Module):
    """The error of an estimate of the gradient for many burn-ins and windows: with `M`
    chains it is `E‖ĝ - g‖² = bias2 + variance / M + data_variance`.

    From a calibration run every entry is an estimate, and `bias2` one on the large
    side: what its chains can tell. `left_out` then holds what gives their errors.
    """

    burn_in: Int[np.ndarray, " candidates"]
    window: Int[np.ndarray, " candidates"]
    bias2: Float[np.ndarray, " candidates"]
    variance: Float[np.ndarray, " candidates"]
    signal: float
    data_variance: float
    site_updates: float
    left_out: LeftOut | None = None

    @property
    def steps(self) -> Int[np.ndarray, " candidates"]:
        """The steps of one chain, burn-in and window."""
        return self.burn_in + self.window

    def cheapest(self, target_q: float, max_chains: int | None = None) -> Budget:
        """The budget of the least cost that reaches a target: in a calibration, with
        `q_low`.

        **Raises:** [`trainq.sampling.BudgetError`][] if there is none, saying why.
        """
        return self.cheapest_by_chains(target_q, max_chains)[0]

    def cheapest_by_chains(
        self, target_q: float, max_chains: int | None = None
    ) -> list[Budget]:
        """The budget of the least cost that reaches a target for each number of chains
        that one does, the cheapest first.

        **Raises:** as `cheapest`.
        """
        if not (math.isfinite(target_q) and target_q > 0):
            raise ValueError(f"target_q is positive, but {target_q} was given.")
        check_counts(max_chains=max_chains)
        self._require_signal()
        left = self.signal / target_q - self.data_variance
        if left <= 0:
            raise BudgetError(
                "The batch of data alone limits Q to "
                f"{self.signal / self.data_variance:.4g}, below {target_q:.4g}: use a "
                "larger batch."
            )
        chains = self._needed(target_q)
        if np.isinf(chains).all():
            low = self._lower(np.full(len(self.steps), np.inf))
            raise BudgetError(
                f"The bias of the start limits Q to {low.max():.4g} within "
                f"{self.steps.max()} steps, below {target_q:.4g}, and more chains do "
                "not help: allow more steps, or use a kernel that mixes faster."
                + self._advice
            )
        if max_chains is not None and chains.min() > max_chains:
            low = self._lower(np.full(len(self.steps), float(max_chains)))
            raise BudgetError(
                f"max_chains={max_chains} limits Q to {low.max():.4g}, below "
                f"{target_q:.4g}, within {self.steps.max()} steps: allow more of "
                "either." + self._advice
            )
        if max_chains is not None:
            chains = np.where(chains <= max_chains, chains, np.inf)
        # Of equal costs, the one with the smallest error.
        order = np.lexsort((self._errors(chains), chains * self.steps))
        _, first = np.unique(chains[order], return_index=True)
        best = order[np.sort(first)]
        return [
            self._budget(i, chains) for i in best.tolist() if np.isfinite(chains[i])
        ]

    def best(self, cost: float, max_chains: int | None = None) -> Budget:
        """The budget of the largest `Q` for at most some cost, in unit updates.

        **Raises:** [`trainq.sampling.BudgetError`][] if it does not pay for one chain.
        """
        check_counts(max_chains=max_chains)
        self._require_signal()
        chains = np.floor(cost / (self.steps * self.site_updates) * (1 + 1e-12))
        if max_chains is not None:
            chains = np.minimum(chains, max_chains)
        if chains.max() < 1:
            least = self.steps.min() * self.site_updates
            raise BudgetError(
                f"{cost:.4g} unit updates do not pay for one chain, which takes at "
                f"least {least:.4g}."
            )
        error = np.where(chains >= 1, self._errors(np.maximum(chains, 1)), np.inf)
        return self._budget(int(np.argmin(error)), chains)

    def _require_signal(self) -> None:
        signals = [] if self.left_out is None else self.left_out.signal
        if min([self.signal, *signals]) <= 0:
            raise BudgetError(
                "The gradient is zero, or not told from zero: Q is then zero for any "
                "number of samples." + self._advice
            )

    @property
    def _advice(self) -> str:
        if self.left_out is None:
            return ""
        return " This comes from a calibration, and more replicates tell more."

    def _errors(self, chains: np.ndarray) -> np.ndarray:
        return self.bias2 + self.variance / chains + self.data_variance

    def _q(self, chains: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return self.signal / self._errors(chains)

    def _lower(self, chains: np.ndarray) -> np.ndarray:
        """What the `Q` of each candidate with its number of chains is at least."""
        q = self._q(chains)
        if self.left_out is None:
            return q
        left = self.left_out
        error = left.bias2 + left.variance / chains + self.data_variance
        log_q = np.log(left.signal)[:, None] - np.log(error)
        n = len(left.signal)
        reach = stdtrit(n - 1, _CONFIDENCE) * math.sqrt(n - 1)
        return q * np.exp(-reach * np.std(log_q, axis=0))

    def _needed(self, target_q: float) -> np.ndarray:
        """The smallest number of chains with which each candidate reaches a target;
        infinite if none does."""
        target = np.full(len(self.steps), target_q)
        chains = low = np.zeros(len(self.steps))
        # How far the estimate must be above the target depends on the number of chains,
        # but little: some rounds settle it.
        for _ in range(1 if self.left_out is None else 20):
            spare = self.signal / target - self.data_variance - self.bias2
            needed = np.ceil(self.variance / np.where(spare > 0, spare, 1))
            chains = np.where(spare > 0, np.maximum(needed, 1), np.inf)
            low = self._lower(chains)
            target = target_q * self._q(chains) / low
        return np.where(low >= target_q * (1 - 1e-9), chains, np.inf)

    def _budget(self, i: int, chains: np.ndarray) -> Budget:
        m = int(chains[i])
        low = None if self.left_out is None else float(self._lower(chains)[i])
        return Budget(
            burn_in=int(self.burn_in[i]),
            window=int(self.window[i]),
            chains=m,
            q=float(self._q(chains)[i]),
            cost=float(m * self.steps[i] * self.site_updates),
            q_low=low,
        )


def error_table(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: Float[Array, " visible_states"] | Num[Array, "samples n_visible"],
    *,
    start: Start | Num[Array, " start"] = "uniform",
    batch: int | None = None,
    max_steps: int = 10_000,
    key: Key[Array, ""] | None = None,
    replicates: int = 256,
    progress: bool = False,
) -> ErrorTable:
    """The error of the gradient for burn-ins and windows of up to `max_steps` steps in
    all, on a grid of times that grow by a third.

    Without a key it is exact: one pass of `max_steps` products with the chain, for all
    of the grid. With a key it comes from a calibration run of `replicates` chains, of
    any model: the true gradient is then that of the second half of the run, and its
    own noise is taken out.

    **Arguments:**

    - `kernel`, `model`, `data`: as for [`trainq.QOperational`][] or, for a
        calibration, [`trainq.sampling.QSampled`][].
    - `start`: where chains start, as for these.
    - `batch`: number of independent samples in the data phase, or None for all.
    - `max_steps`: the largest number of steps of one chain.
    - `key`: random key of a calibration run.
    - `replicates`: the number of its chains, at least 8.
    - `progress`: show a bar, in a calibration; needs `rich`.

    **Returns:** a [`trainq.sampling.ErrorTable`][].

    **Raises:** `ValueError` for an exact table of more than 14 units, and as these.
    """
    check_counts(max_steps=max_steps, batch=batch)
    grid = _grid(max_steps)
    if key is not None:
        return _calibrate(
            key, kernel, model, data, start, batch, grid, replicates, progress
        )
    burn_ins = np.zeros(1, int) if is_named(start, "stationary") else np.append(0, grid)
    return exact_table(kernel, model, data, start, batch, burn_ins, grid, max_steps)


def is_named(start: Any, name: str) -> bool:
    return isinstance(start, str) and start == name


def _grid(max_steps: int) -> np.ndarray:
    """Times from 1 to `max_steps`."""
    powers = _GROWTH ** np.arange(math.ceil(math.log(max_steps, _GROWTH)) + 1)
    times = np.append(np.round(powers), max_steps).astype(int)
    return np.unique(times[times <= max_steps])


def exact_table(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: Any,
    start: Any,
    batch: int | None,
    burn_ins: np.ndarray,
    windows: np.ndarray,
    max_steps: int,
) -> ErrorTable:
    if model.n_units > _MAX_EXACT_UNITS:
        raise ValueError(
            f"An exact table takes at most {_MAX_EXACT_UNITS} units, but the model "
            f"has {model.n_units}. Give `key=jax.random.key(0)` for a table from a "
            "calibration run."
        )
    errors = _exact_errors(
        QOperational(kernel, 1, start=start, batch=batch),
        model,
        jnp.asarray(data),
        jnp.asarray(burn_ins),
        jnp.asarray(windows),
    )
    bias2, variance, signal, data_variance = jax.tree.map(np.asarray, errors)
    burn_in, window = np.meshgrid(burn_ins, windows, indexing="ij")
    allowed = burn_in + window <= max_steps
    return ErrorTable(
        burn_in=burn_in[allowed],
        window=window[allowed],
        bias2=bias2[allowed],
        variance=variance[allowed],
        signal=float(signal),
        data_variance=float(data_variance),
        site_updates=float(kernel.site_updates(model)),
    )


@eqx.filter_jit
def _exact_errors(
    estimate: QOperational,
    model: AbstractEnergyModel,
    data: Array,
    burn_ins: Int[Array, " burn_ins"],
    windows: Int[Array, " windows"],
) -> tuple[Array, Array, Array, Array]:
    """Squared bias and variance for all pairs, the signal, and the data variance.

    With `S_n` the sum of `f(X_t)` over `n` steps, `s_n(x) = E[S_n | X_0 = x]` and
    `h_n(x) = Σ_a E[S_n,a² | X_0 = x]` follow step by step, as in
    `AbstractChain.window_moments`; pairing them with the law after each burn-in gives
    every entry.
    """
    chain = estimate.kernel.chain(model)
    data = check_law(data, model)
    f = chain.centre(observables(model))
    law = start_law(estimate.start, model, data)
    step = chain.stepper()
    back = jax.linear_transpose(step, law)

    def push(carry, burn_in):
        done, law = carry
        law = jax.lax.fori_loop(done, burn_in, lambda _, law: back(law)[0], law)
        return (jnp.maximum(done, burn_in), law), law

    zero = jnp.zeros((), burn_ins.dtype)
    _, laws = jax.lax.scan(push, (zero, law), burn_ins)

    def longer(_, carry):
        s, h = carry
        moved = step(jnp.concatenate([s, h[:, None]], axis=1))
        s = f + moved[:, :-1]
        return s, jnp.sum(f * (2 * s - f), axis=1) + moved[:, -1]

    def grow(carry, window):
        done, moments = carry
        s, h = jax.lax.fori_loop(done, window, longer, moments)
        n = window.astype(f.dtype)
        return (window, (s, h)), (laws @ s / n, laws @ h / n**2)

    start = (zero, (jnp.zeros_like(f), jnp.zeros_like(law)))
    _, (means, squares) = jax.lax.scan(grow, start, windows)
    bias2 = jnp.sum(means**2, axis=-1).T
    variance = jnp.maximum(squares.T - bias2, 0)
    noise = data_variance(EnergyGradients(model), data, estimate.batch)
    signal = jnp.sum(gradient_of_kl(data, model) ** 2)
    # What rounding leaves of a gradient that is zero is no signal.
    rounding = 64 * jnp.finfo(f.dtype).eps
    size = jnp.sum(jnp.max(observables(model) ** 2, axis=0))
    signal = jnp.where(signal > rounding**2 * size, signal, 0)
    return bias2, variance, signal, jnp.sum(noise)


def _calibrate(
    key: Array,
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: Any,
    start: Any,
    batch: int | None,
    grid: np.ndarray,
    replicates: int,
    progress: bool,
) -> ErrorTable:
    if replicates < 8:
        raise ValueError(f"replicates is at least 8, but {replicates} was given.")
    if grid[-1] < 8:
        raise ValueError("A calibration takes at least 8 steps: raise max_steps.")
    if hasattr(start, "shape"):
        raise ValueError(
            'A calibration starts from "uniform", "data" or "stationary", but an array '
            "was given."
        )
    QSampled(kernel, 1, start=start, batch=batch)  # which checks them
    data = checked_data(data, model)
    start_key, key = jr.split(key)
    x = draw_starts(start_key, model, data, replicates, start)
    times = np.append(0, grid)
    sums = [jnp.zeros(jax.eval_shape(model.observables, x).shape, model.dtype)]
    with bar(int(times[-1]), progress) as advance:
        for first, last in zip(times[:-1], times[1:], strict=True):
            x, more = _segment(
                kernel, model, x, key, jnp.asarray(first), jnp.asarray(last)
            )
            sums.append(sums[-1] + more)
            if progress:
                jax.block_until_ready(x)
            advance(int(last - first))

    # The truth is what the second half of the run says.
    half = int(np.argmin(abs(times - times[-1] // 2)))
    late = (sums[-1] - sums[half]) / float(times[-1] - times[half])
    truth = jnp.mean(late, axis=0)
    doubt = late - truth[None]
    (square, noise), left_out = _square(data_phase(model, data) - truth, -doubt)
    signal, signals = square - noise, left_out[0] - left_out[1]

    burn_in, window, entries = [], [], []
    for i, first in enumerate(times[:-1]):
        for j in range(i + 1, len(times)):
            burn_in.append(first)
            window.append(times[j] - first)
            means = (sums[j] - sums[i]) / float(window[-1])
            entries.append(_bias_and_variance(means, truth, doubt))
    (bias2, variance), (biases, variances) = jax.tree.map(
        lambda *entry: np.stack(entry, axis=-1), *entries
    )
    return ErrorTable(
        burn_in=np.array(burn_in),
        window=np.array(window),
        bias2=bias2,
        variance=variance,
        signal=float(signal),
        data_variance=_batch_variance(model, data, batch),
        site_updates=float(kernel.site_updates(model)),
        left_out=LeftOut(bias2=biases, variance=variances, signal=np.asarray(signals)),
    )


def _square(
    mean: Float[Array, " n_obs"], scatter: Float[Array, "replicates n_obs"]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The square of a mean over replicates and the noise in it, from all of them and
    without each; `scatter` is what each has about the mean."""
    n = scatter.shape[0]
    squares = jnp.sum(scatter**2, axis=1)
    noise = jnp.sum(squares) / (n * (n - 1))
    noises = (jnp.sum(squares) - squares * n / (n - 1)) / ((n - 1) * (n - 2))
    means = mean[None] - scatter / (n - 1)
    return (jnp.sum(mean**2), noise), (jnp.sum(means**2, axis=1), noises)


@jax.jit
def _bias_and_variance(
    means: Float[Array, "replicates n_obs"],
    truth: Float[Array, " n_obs"],
    doubt: Float[Array, "replicates n_obs"],
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Squared bias and variance from all replicates, and without each of them."""
    n = means.shape[0]
    mean = jnp.mean(means, axis=0)
    scatter = means - mean[None]
    whole, left_out = _square(mean - truth, scatter - doubt)
    (_, noise), (_, noises) = _square(mean, scatter)

    # A square is too large by its noise, and not known better than to about as much.
    def known(square, noise):
        return jnp.maximum(square - noise, 0) + noise

    return (known(*whole), n * noise), (known(*left_out), (n - 1) * noises)


@eqx.filter_jit
def _segment(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    x: Array,
    key: Array,
    first: Array,
    last: Array,
) -> tuple[Array, Array]:
    """The states after some steps, and the sums of the observables before each."""
    model = checked(model)
    move = kernel.stepper(model)

    def body(step, carry):
        x, sums = carry
        return move(jr.fold_in(key, step), x), sums + model.observables(x)

    zeros = jnp.zeros(jax.eval_shape(model.observables, x).shape, model.dtype)
    return jax.lax.fori_loop(first, last, body, (x, zeros))


@eqx.filter_jit
def _sample_variance(model: AbstractEnergyModel, data: Array) -> Array:
    """The variance of the data phase of one sample, over all samples."""

    def one(v):
        return data_phase(model, v[None])

    phases = jax.lax.map(one, data, batch_size=256)
    return jnp.sum(jnp.var(phases, axis=0))


def _batch_variance(
    model: AbstractEnergyModel, data: Array, batch: int | None
) -> float:
    if batch is None:
        return 0.0
    if data.ndim == 2:
        return float(_sample_variance(model, data)) / batch
    return float(jnp.sum(data_variance(EnergyGradients(model), data, batch)))
