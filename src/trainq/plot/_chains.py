"""How a chain forgets: its spectrum, and the autocorrelation of samples."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes

from .._spins import fold
from ..markov import AbstractChain
from ..markov.chains import require_reversible
from ..sampling import STATUS, Windowing, autocorrelation_time, autocovariance
from ._style import COLOURS, NEUTRAL, axes, finite, style


# A dense eigenproblem of 2**10 states takes a second.
_MAX_STATES = 2**10
# Smaller shares of the variance are ticks at the bottom.
_LEAST = 1e-6


def spectrum(
    chain: AbstractChain,
    f: Float[Array | np.ndarray, "states *obs"],
    *,
    ax: Axes | None = None,
) -> Axes:
    """The relaxation rates `1 - λ` of a chain, in inverse kernel steps, and what each
    mode weighs in the observables: its share `Σ_a ⟨f̃_a, φ⟩² / Σ_a Var f_a`.

    A mode adds to the noise of a gradient in proportion to its weight over its rate:
    slow modes count, if the observables feel them. Shares below 1e-6, zero as a rule,
    are ticks at the bottom. Modes of one rate and one parity are drawn as one, since
    their weights by themselves depend on the choice of a basis.

    **Arguments:**

    - `chain`: a reversible chain, of at most 2**10 states, such as
        `kernel.chain(model)`. All of its modes are found, from a dense matrix.
    - `f`: `(states,)` or `(states, n_obs)`; for the gradient
        [`trainq.observables`][].
    - `ax`: the axes to draw on; a new figure by default.

    **Returns:** the axes. Modes of a chain that is symmetric under the global flip are
    in two colours, by parity.

    **Raises:** `ValueError` if the chain is not reversible, has too many states or is
    reducible in floating point, or for functions of a wrong shape or values that are
    not finite.

    !!! example

        ```python
        import jax
        import trainq as tq
        from trainq import plot

        model = tq.RBM(jax.random.normal(jax.random.key(0), (3, 2)))
        chain = tq.RandomScanGibbs().chain(model)
        ax = plot.spectrum(chain, tq.observables(model))
        ```
    """
    require_reversible(chain, "spectrum")
    if chain.n_states > _MAX_STATES:
        raise ValueError(
            f"The spectrum is found from a dense matrix of at most {_MAX_STATES} "
            f"states, but the chain has {chain.n_states}. "
            "`trainq.markov.spectral_gap` and `slowest_mode` find the slowest mode of "
            "larger ones."
        )
    f = jnp.asarray(finite("f", f))
    names = (("even", 1), ("odd", -1)) if chain.is_symmetric else (("", 0),)
    found = {name: _modes(chain, f, sign) for name, sign in names}
    total = sum(weights.sum() for _, weights in found.values())
    if not total > 0:
        raise ValueError("The observables f are constant: no mode has a weight.")
    ax = axes(ax)
    looks = {"even": (2, "o"), "odd": (1, "s"), "": (0, "o")}
    bottom = _LEAST / 2
    for name, (rates, weights) in found.items():
        share = weights / total
        some = share > _LEAST
        label = f"{name} modes".strip()
        place, marker = looks[name]
        look: dict[str, Any] = {"color": COLOURS[place], "ls": ""}
        if some.any():
            ax.vlines(rates[some], bottom, share[some], color=COLOURS[place], lw=0.6)
            ax.plot(rates[some], share[some], **look, marker=marker, ms=4, label=label)
        if not some.all():
            y = np.full((~some).sum(), 0.02)
            look |= {"marker": "|", "ms": 9, "transform": ax.get_xaxis_transform()}
            ax.plot(rates[~some], y, **look, label=f"{label}, share below 10⁻⁶")
    ax.set(xscale="log", yscale="log", ylim=(bottom, 30))
    ax.set(xlabel="relaxation rate 1 − λ, per kernel step")
    ax.set_ylabel("share of the variance of f")
    ax.legend(loc="upper right")
    return ax


def _modes(
    chain: AbstractChain, f: Float[Array, "states *obs"], sign: int
) -> tuple[Float[np.ndarray, " modes"], Float[np.ndarray, " modes"]]:
    """The rates of one sector of the global flip, or of all, each once, and the sums of
    squares of what the functions have of their modes."""
    matrix, columns = (np.asarray(x, float) for x in _symmetrised(chain, f, sign))
    rates, modes = np.linalg.eigh(matrix)
    weights = np.sum((modes.T @ columns) ** 2, axis=1)
    rates, weights = rates[rates < 3], weights[rates < 3]
    if rates.size and rates[0] < 1e-13:
        raise ValueError(
            f"The slowest rate, {rates[0]:.1e}, is lost in rounding: the chain is "
            "reducible in floating point. Lower beta or the weights, or use float64."
        )
    new = np.flatnonzero(np.diff(rates) > 1e-12 + 1e-9 * rates[1:]) + 1
    first = np.concatenate([[0], new]).astype(int)
    return rates[first], np.add.reduceat(weights, first)


@eqx.filter_jit
def _symmetrised(
    chain: AbstractChain, f: Float[Array, "states *obs"], sign: int
) -> tuple[Float[Array, "n n"], Float[Array, "n n_obs"]]:
    """`√π (I - P) / √π` and `√π f̃`, in one sector or in all of them."""
    # It takes √π to zero. Constants are no mode: they are sent where no rate is.
    root = chain.root
    matrix = chain.dense_generator().matrix() + 4 * jnp.outer(root, root)
    columns = root[:, None] * chain.centre(f).reshape(chain.n_states, -1)
    if sign:
        return fold(fold(matrix, sign).T, sign), fold(columns, sign)
    return matrix, columns


def autocorrelation(
    values: Float[Array | np.ndarray, "chains steps *obs"],
    *,
    names: Sequence[str] = (),
    windowing: Windowing = "sokal",
    ax: Axes | None = None,
) -> Axes:
    """The autocorrelation `ρ(t)` of observables along chains, up to three times the
    window that its sum was taken over, with the time `τ` and whether to trust it.

    A vertical line, or the shade of a single observable, ends the window. The legend
    has the status, as [`trainq.sampling.autocorrelation_time`][] says it.

    **Arguments:**

    - `values`: `(chains, steps)` or `(chains, steps, n_obs)` values, as
        [`trainq.sampling.run`][] keeps them; up to 7 observables.
    - `names`: a name for each observable; numbers by default.
    - `windowing`: how to stop the sum, as for the time.
    - `ax`: the axes to draw on; a new figure by default.

    **Returns:** the axes. Lags are in steps of the series.

    **Raises:** `ValueError` for a wrong shape, too many observables, names that do not
    fit, an observable that never changes, or a value that is not finite.

    !!! example

        ```python
        import jax
        import trainq as tq
        from trainq import plot

        model = tq.RBM(jax.random.normal(jax.random.key(0), (3, 2)))
        state = tq.start_chains(jax.random.key(1), model, 16)
        kernel = tq.RandomScanGibbs()
        run = tq.run(kernel, model, state, 500, keep=True)
        ax = plot.autocorrelation(run.values[..., :2], names=["W00", "W01"])
        ```
    """
    time = autocorrelation_time(values, windowing=windowing)
    if time.value.ndim > 1:
        raise ValueError(
            "values has shape (chains, steps) or (chains, steps, n_obs), but "
            f"{values.shape} was given."
        )
    finite("values", values)
    covariance = np.asarray(autocovariance(values), float).mean(axis=0)
    covariance = covariance.reshape(len(covariance), -1)
    n_obs = covariance.shape[1]
    if not 0 < n_obs <= len(COLOURS):
        raise ValueError(
            f"At most {len(COLOURS)} observables are told apart, but {n_obs} were "
            "given. Take some: `values[..., :3]`."
        )
    if names and len(names) != n_obs:
        raise ValueError(
            f"names has one name for each of the {n_obs} observables, but {len(names)} "
            "were given."
        )
    if (covariance[0] == 0).any():
        raise ValueError(
            f"Observable {np.argmin(covariance[0])} never changes: it has no "
            "autocorrelation."
        )
    rho = covariance / covariance[0]
    taus, errors, lags, states = (
        np.atleast_1d(x) for x in (time.value, time.error, time.lags, time.status)
    )
    ax = axes(ax)
    last = min(max(3 * int(lags.max()), 10), len(rho) - 1)
    ax.axhline(0, color=NEUTRAL, lw=0.8)
    for place in range(n_obs):
        look = style(place, marker="")
        status = STATUS[int(states[place])].partition(":")[0]
        name = names[place] if names else str(place) if n_obs > 1 else ""
        label = f"τ = {taus[place]:.3g} ± {errors[place]:.1g}, {status}"
        label = f"{name}: {label}" if name else label
        ax.plot(np.arange(last + 1), rho[: last + 1, place], **look, label=label)
        if n_obs > 1:
            ax.axvline(lags[place], lw=0.8, **look)
    if n_obs == 1:
        ax.axvspan(0, lags[0], color=COLOURS[6], alpha=0.2, lw=0, label="window of τ")
    ax.set(xlim=(0, last), xlabel="lag, steps of the series", ylabel="autocorrelation")
    ax.legend()
    return ax
