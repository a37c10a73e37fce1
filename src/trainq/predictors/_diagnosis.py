"""Why is Q low? Where the noise comes from, and which assumption fails."""

import itertools
import math
import textwrap
from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import positive_number, require_concrete, whole_number
from .._progress import parts
from .._show import AbstractShown, Table, percent
from ..markov import (
    AbstractChain,
    AbstractKernel,
    Basins,
    EnergyGradients,
    Modes,
    NoiseBySet,
    RandomScanGibbs,
    SingleFlipChain,
    basins,
    checked_kernel,
    detailed_balance_residual,
    law_residual,
    modes,
    noise_by_set,
    symmetry_residual,
    variance,
)
from ..models import AbstractEnergyModel, VisibleLaw, parameters
from ._qstruct import QStruct
from ._snr import GradientSNR
from ._why import why


# Up to so many units a chain has a matrix.
_MAX_MATRIX = 13
# Up to so many units the functions of the state are solved for one by one.
_MAX_BASINS = 20
# The bars. That of the burn-in is the published one, the others are ours.
_BURN_IN = 5.0  # relaxation times
_WINDOW = 10.0  # relaxation times
_BULK = 0.1  # per sweep
_SPREAD = 1.5
_DEEP = 1.0  # kT: a basin that is left over less is none
_ROWS = 3  # observables that a table shows
_WELLS = 6  # basins that a table shows


class Assumption(AbstractShown):
    """One assumption of a prediction of `Q`: its number, and whether it holds.

    One that does not apply has a `reason`, and neither a number nor a verdict.
    """

    what: str = eqx.field(static=True)
    """What the number is, and what is asked of it."""
    number: Float[Array, ""] | None
    """The number that decides; None if the assumption does not apply."""
    holds: bool | None = eqx.field(static=True)
    """The verdict; None if the assumption does not apply."""
    reason: str | None = eqx.field(static=True, default=None)
    """Why it does not apply; None if it does."""
    advice: str = eqx.field(static=True, default="")
    """What to change if it fails."""
    rounding: float = eqx.field(static=True, default=0.0)
    """Up to this the number is nothing but rounding errors, and is shown as zero."""


class Diagnosis(AbstractShown):
    """What `trainq.diagnose` found: `print` it."""

    snr: GradientSNR
    """The structural prediction, with what each parameter contributes."""
    modes: Modes | None
    """The modes of the chain; None for a chain that is not reversible."""
    relaxation: Float[Array, " n_parameters"]
    """`⟨f̃_a, R f̃_a⟩ / Var f_a`, the mean relaxation time of each observable, in kernel
    steps."""
    basins: Basins | None
    """The basins of the energy of at least 1 kT; None of more than 20 units."""
    noise_by_basin: NoiseBySet | None
    """What each of them adds to `T_O`, and what of it is between them."""
    parameter_names: tuple[str, ...] = eqx.field(static=True)
    """The parameter of each observable."""
    assumptions: dict[str, Assumption]
    """Each by name, as a [`trainq.predictors.Assumption`][]."""
    why: str = eqx.field(static=True)
    """In plain words, a line each: what makes most of the noise, whether the signal is
    small, and which assumptions fail."""

    @property
    def ok(self) -> bool:
        """Whether all assumptions hold that apply."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of those that do not hold."""
        return _failed(self.assumptions)

    def _shown(self) -> list[str | Table]:
        if self.relaxation.ndim > 1:
            return super()._shown()
        parts: list[str | Table] = [str(self.snr), "", "Where the noise comes from"]
        if self.modes is None:
            parts.append("modes: the chain is not reversible, and has no real ones")
        else:
            found = self.modes
            parts += found._shown()
            if bool(jnp.any(found.parity != 0)):
                even, odd = (
                    percent(jnp.sum(jnp.where(found.parity == s, found.noise_share, 0)))
                    for s in (1, -1)
                )
                parts.append(
                    f"even modes make {even} of T_O, odd ones {odd}; the slowest "
                    f"is {'even' if found.parity[0] > 0 else 'odd'}, with a gap of "
                    f"{found.gap[0]:.4g}"
                )
        parts += self._by_basin()
        share = np.asarray(self.snr.parameter_t_o) / float(self.snr.t_o)
        rows: Table = [("observable of", "of T_O", "relaxation time")]
        # Rounding errors do not decide between those that are alike.
        for i in np.argsort(-share.round(9), kind="stable")[:_ROWS]:
            time = f"{self.relaxation[i]:.4g} steps"
            rows.append((self.parameter_names[i], percent(share[i]), time))
        checks: Table = [("assumption", "number", "verdict", "change, or why not")]
        for name, one in self.assumptions.items():
            if one.number is None:
                checks.append((name, "", "does not apply", str(one.reason)))
                continue
            verdict = "holds" if one.holds else "FAILS"
            size = float(one.number)
            size = 0 if abs(size) <= one.rounding else size
            number = f"{size:.3g} {one.what}"
            checks.append((name, number, verdict, "" if one.holds else one.advice))
        parts += [rows, "", "Which assumption fails", checks]
        short = (textwrap.wrap(line, 88) for line in self.why.splitlines())
        return [*parts, "", "In short", *itertools.chain(*short)]

    def _by_basin(self) -> list[str | Table]:
        found, noise = self.basins, self.noise_by_basin
        if found is None or noise is None:
            return [f"basins: not looked for, of more than {_MAX_BASINS} units"]
        n = len(found.minima)
        if n == 1:
            return [f"one basin: no barrier of {_DEEP:g} kT"]
        rows: Table = [("basin", "mass", "way out / kT", "of the variance", "of T_O")]
        shares = [np.asarray(noise.variance_shares), np.asarray(noise.noise_shares)]
        for k in range(min(n, _WELLS)):
            cells = (f"{x[k]:.4g}" for x in (noise.mass, found.way_out))
            rows.append((str(k), *cells, *(percent(share[k]) for share in shares)))
        if n > _WELLS:
            rest = (percent(share[_WELLS:].sum()) for share in shares)
            mass = f"{float(noise.mass[_WELLS:].sum()):.4g}"
            rows.append((f"{n - _WELLS} others", mass, "", *rest))
        between = (
            f"between the basins: {percent(noise.variance_share)} of the variance, "
            f"{percent(noise.noise_share)} of T_O"
        )
        return [rows, between]


def _failed(assumptions: dict[str, Assumption]) -> tuple[str, ...]:
    return tuple(name for name, one in assumptions.items() if one.holds is False)


def diagnose(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    data: VisibleLaw,
    window: SupportsIndex | float,
    burn_in: SupportsIndex | None = None,
    *,
    progress: bool = False,
) -> Diagnosis:
    """Why is `Q` low? Where the noise of a gradient comes from, and which assumption of
    its prediction fails, each with its number and what to change.

    The noise is split by modes, by parity under the global flip, by observables, and by
    basins: of `T_O`, which sums covariances, the law of total covariance says what each
    basin of the energy adds, and what is between them. Basins are those of
    [`trainq.markov.basins`][], of at least 1 kT, on flips of single units: a kernel
    that crosses them in one step has no more noise between them than variance.
    The assumptions are those of the structural prediction and of the cluster of slow
    modes that stands for it: the law of the chain is that of the model; it is
    reversible, irreducible and aperiodic; chains start in that law, or after a burn-in
    of at least `5 / γ_eff`; the window is at least ten relaxation times of the
    slowest observable, so that the prediction is right to some 10 %; what is not in the
    cluster relaxes at a rate of order one per sweep, at least 0.1; `γ_eff` depends by
    at most a factor 1.5 on the threshold of relevance, from 1e-8 to 1e-4; and law,
    kernel and observables share the symmetry under the global flip. Of a chain that is
    not reversible, what needs a spectrum does not apply: relaxation times stand in for
    `1 / γ_eff`, and for a gap above zero that the resolvent's equation `(I - P) x = f̃`
    was solved. Its relative residual, what a solution leaves of it, is then rounding.

    The report ends in plain words, by rules of ours. An independent sample takes
    `2 T_O / V - 1` steps, with `V = Σ_a Var f_a`. If that is at most two sweeps, the
    samples are nearly independent. Otherwise, if the modes of one gap and parity make
    half of the noise, they are named, and if not, the cluster if it does. Independent
    samples, one a sweep, would have `Q = (K / sweep) ‖g‖² / V`: if that is below one,
    the signal is small for the window. A sweep is `kernel.steps(model, sweeps=1)`.

    It is made of numbers: call it outside of `jax.jit`.

    **Arguments:**

    - `kernel`, `model`, `data`: as for [`trainq.QStruct`][].
    - `window`: length `K` of the average, in kernel steps.
    - `burn_in`: steps that are dropped before, of chains that start elsewhere. By
        default none are, and the chains start in the law of the model, as the
        prediction assumes.
    - `progress`: show a line that says what is computed; needs `tqdm`.

    **Returns:** a [`trainq.predictors.Diagnosis`][]. `print` it. Its `modes` are
    those of [`trainq.markov.modes`][], for a look at the cluster or a figure.

    **Raises:** `ValueError` if the window is not positive, the burn-in negative, there
    are too many states, or an argument is traced; a run-time error as for
    [`trainq.QStruct`][].

    !!! example

        ```python
        kernel = tq.RandomScanGibbs()
        found = tq.diagnose(kernel, model, data, window=2500)
        print(found)
        print(found.failed)
        ```
    """
    checked_kernel(kernel)
    window = positive_number("window", window, of="kernel steps")
    if burn_in is not None:
        burn_in = whole_number("burn_in", burn_in, 0, of="kernel steps")
    require_concrete("A diagnosis", model=model, data=data)
    with parts(4, progress) as begin:
        begin("noise of the observables")
        snr = QStruct(kernel, window)(model, data)
        chain = _chain(kernel, model)
        f = EnergyGradients(model)
        var = _variance(chain, f)
        relaxation = _relaxation(snr, var)
        begin("modes")
        found = modes(chain, f) if chain.is_reversible else None
        sweep = kernel.steps(model, sweeps=1)
        begin("assumptions")
        assumptions = {
            "law of the model": _law(chain, kernel.replicas(model)),
            "reversible": _reversible(chain, model),
            "irreducible": _irreducible(found, snr),
            "aperiodic": _aperiodic(chain, found, model),
            **_times(found, relaxation, float(window), burn_in),
            "bulk relaxes": _bulk(found, sweep),
            "cluster is stable": _stable(found),
            "one symmetry": _symmetric(chain, model, f),
        }
        begin("noise of the basins")
        wells, by_basin = _noise_by_basin(kernel, model, chain, f)
    failed = _failed(assumptions)
    total = float(jnp.sum(var))
    text = why(snr, found, total, sweep, failed, by_basin)
    return Diagnosis(
        snr=snr,
        modes=found,
        relaxation=relaxation,
        basins=wells,
        noise_by_basin=by_basin,
        parameter_names=_names(model),
        assumptions=assumptions,
        why=text,
    )


@eqx.filter_jit
def _chain(kernel: AbstractKernel, model: AbstractEnergyModel) -> AbstractChain:
    return kernel.chain(model)


_variance = eqx.filter_jit(variance)


def _noise_by_basin(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    chain: AbstractChain,
    f: EnergyGradients,
) -> tuple[Basins | None, NoiseBySet | None]:
    if model.n_units > _MAX_BASINS:
        return None, None
    # Basins are of single flips, whatever the kernel, and of the replica that counts.
    flips = _chain(RandomScanGibbs(), kernel.replicas(model)[0])
    found = basins(flips, least=_DEEP)
    sector = "even" if model.is_symmetric and chain.is_symmetric else None
    return found, noise_by_set(chain, f, found.label, sector=sector)


def _relaxation(snr: GradientSNR, var: Array) -> Array:
    some = var > 0
    t_o = snr.parameter_t_o
    assert t_o is not None  # of a structural prediction
    return jnp.where(some, t_o, 0) / jnp.where(some, var, 1)


def _names(model: AbstractEnergyModel) -> tuple[str, ...]:
    """`weights[0, 1]` for each entry of each parameter, in the order of observables."""
    names = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(parameters(model))[0]:
        name = jax.tree_util.keystr(path).lstrip(".")
        for index in np.ndindex(leaf.shape):
            where = ", ".join(map(str, index))
            names.append(f"{name}[{where}]" if leaf.shape else name)
    return tuple(names)


_NOT_REVERSIBLE = "the chain is not reversible"


def _is_small(chain: AbstractChain, model: AbstractEnergyModel) -> bool:
    return model.n_units <= _MAX_MATRIX or isinstance(chain, SingleFlipChain)


def _tolerance(chain: AbstractChain) -> float:
    return 4096 * float(jnp.finfo(chain.dtype).eps)


def _not_applicable(reason: str) -> Assumption:
    return Assumption("", None, None, reason)


def _residual(
    chain: AbstractChain, what: str, residual: Array, advice: str, claims: bool = True
) -> Assumption:
    """One that a residual decides, of a chain that claims to meet it."""
    bar = _tolerance(chain)
    holds = bool(claims and residual <= bar)
    return Assumption(what, residual, holds, advice=advice, rounding=bar)


def _law(chain: AbstractChain, replicas: tuple[AbstractEnergyModel, ...]) -> Assumption:
    advice = "a chain with the law of the model; `device=` for another"
    return _residual(chain, "of another law", law_residual(chain, replicas), advice)


def _reversible(chain: AbstractChain, model: AbstractEnergyModel) -> Assumption:
    if not _is_small(chain, model):
        return _not_applicable("its flows need a matrix, of at most 13 units")
    residual = detailed_balance_residual(chain)
    advice = "for modes, PalindromicBlockGibbs or a random scan"
    return _residual(chain, "of imbalance", residual, advice, chain.is_reversible)


def _irreducible(found: Modes | None, snr: GradientSNR) -> Assumption:
    advice = "lower beta, or a kernel that crosses"
    if found is not None:
        gap = found.gap[0]
        return Assumption("smallest gap", gap, bool(gap > 0), None, advice)
    if snr.stats is None:
        return _not_applicable(_NOT_REVERSIBLE)
    # A chain that falls apart has no resolvent, and its equation no solution.
    what = "relative residual of the resolvent's equation"
    residual = jnp.max(snr.stats.residual)
    return Assumption(what, residual, bool(snr.stats.ok), None, advice)


def _aperiodic(
    chain: AbstractChain, found: Modes | None, model: AbstractEnergyModel
) -> Assumption:
    advice = "a kernel that may stay"
    tolerance = _tolerance(chain)
    if found is not None and found.is_complete:
        # The least eigenvalue, above -1.
        least = 2 - jnp.max(found.gap, initial=1)
        what = "least eigenvalue + 1"
        return Assumption(what, least, bool(least > tolerance), None, advice)
    if isinstance(chain, SingleFlipChain):
        least = 2 * (1 - jnp.max(chain.jumps()[0]))  # Gershgorin's bound
        what = "bounds least eigenvalue + 1"
        if least > tolerance:
            return Assumption(what, least, True, None, advice)
    if not _is_small(chain, model):
        return _not_applicable("it needs a matrix, of at most 13 units")
    stays = jnp.max(jnp.diagonal(chain.matrix()))
    what = "largest P(x, x)"
    return Assumption(what, stays, bool(stays > 0), None, advice)


def _times(
    found: Modes | None, relaxation: Array, window: float, burn_in: int | None
) -> dict[str, Assumption]:
    slowest = jnp.max(relaxation)
    name = "burn-in / τ" if found is None else "γ_eff × burn-in"
    rate = 1 / slowest if found is None else found.cluster().gamma_eff
    enough = math.ceil(_BURN_IN / float(rate))
    long = math.ceil(_WINDOW * float(slowest))
    ratio = window / slowest
    if burn_in is None:
        long_enough = _not_applicable(f"starts in the law; else {enough} steps")
    else:
        dropped = burn_in * rate
        long_enough = Assumption(
            f"{name}, ≥ {_BURN_IN:g}",
            dropped,
            bool(dropped >= _BURN_IN),
            advice=f"burn_in={enough} steps, or start in the law",
        )
    return {
        "burn-in is long": long_enough,
        "window is long": Assumption(
            f"relaxation times, ≥ {_WINDOW:g}",
            ratio,
            bool(ratio >= _WINDOW),
            advice=f"window={long} steps, or QOperational",
        ),
    }


def _bulk(found: Modes | None, sweep: int) -> Assumption:
    if found is None:
        return _not_applicable(_NOT_REVERSIBLE)
    rate = found.cluster().bulk_rate * sweep
    return Assumption(
        f"per sweep, ≥ {_BULK:g}",
        rate,
        bool(rate >= _BULK),
        advice="a larger factor, or T_O in place of γ_eff",
    )


def _stable(found: Modes | None) -> Assumption:
    if found is None:
        return _not_applicable(_NOT_REVERSIBLE)
    spread = found.sensitivity((3.0,)).spread
    return Assumption(
        f"spread of γ_eff, ≤ {_SPREAD:g}",
        spread,
        bool(spread <= _SPREAD),
        advice="T_O, which has no threshold",
    )


def _symmetric(
    chain: AbstractChain, model: AbstractEnergyModel, f: EnergyGradients
) -> Assumption:
    if not chain.is_symmetric:
        return _not_applicable("the model or the kernel has no global flip")
    if not _is_small(chain, model):
        return _not_applicable("it needs a matrix, of at most 13 units")
    residual = symmetry_residual(chain, f)
    return _residual(chain, "of asymmetry", residual, "an `is_symmetric` that is true")
