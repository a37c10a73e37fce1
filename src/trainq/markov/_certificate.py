"""Certificates: every check of a chain in one place, with a verdict."""

from typing import TYPE_CHECKING, ClassVar, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from .._compiled import compiled_quickly
from .._progress import parts
from .._show import AbstractShown, Table
from .._spins import check_enumerable
from ..models import AbstractEnergyModel, require_model
from ._conductance import CheegerMargins, margins
from ._residuals import (
    detailed_balance_residual,
    law_residual,
    positivity_residual,
    row_sum_residual,
    stationarity_residual,
    symmetry_residual,
)
from .chains import AbstractChain, EnergyGradients, Sector
from .kernels._base import AbstractKernel, checked_kernel


# Pyright knows an abstract class variable only by the name of a concrete one.
if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


_Certificate = TypeVar("_Certificate", bound="AbstractCertificate")

# Up to so many units a chain has a matrix, and up to so many a certificate.
_MAX_MATRIX = 13
_MAX_UNITS = 20
_SMALLER = "Certify a smaller model of the same kind."


class CertificateError(RuntimeError):
    """A chain, or a sampler, failed one of its checks."""


class Check(AbstractShown):
    """One check: a residual that should not exceed a tolerance.

    A check that does not apply has a `reason`, and neither a residual nor a verdict.
    """

    residual: Float[Array, "*batch"] | None
    """How far it is from what it claims to be; None if the check does not apply."""
    tolerance: float = eqx.field(static=True)
    """The largest residual that passes."""
    reason: str | None = eqx.field(static=True, default=None)
    """Why the check does not apply; None if it does."""

    @property
    def applicable(self) -> bool:
        """Whether the check applies."""
        return self.reason is None

    @property
    def passed(self) -> Bool[Array, "*batch"] | None:
        """Whether the residual is within the tolerance; None if it does not apply."""
        return None if self.residual is None else self.residual <= self.tolerance


class AbstractCertificate(AbstractShown):
    """Checks by name, with a verdict each: what a certificate is, of whatever it is.

    Another one needs `checks`, and says in `_trouble` what has failed and in `_causes`
    why that is likely.
    """

    checks: eqx.AbstractVar[dict[str, Check]]
    _trouble: AbstractClassVar[str]
    _causes: AbstractClassVar[str]

    @property
    def ok(self) -> Bool[Array, "*batch"]:
        """Whether every check that applies has passed."""
        passed = [c.passed for c in self.checks.values() if c.passed is not None]
        return jnp.all(jnp.stack(passed), axis=0)

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that have failed, in a batch for any of its members.

        For values: under `jit` look at `ok`.
        """
        return tuple(
            name
            for name, check in self.checks.items()
            if check.passed is not None and not np.all(check.passed)
        )

    def require(self: _Certificate) -> _Certificate:
        """Return the certificate if every check has passed.

        **Raises:** `CertificateError`, with the whole table, if one has failed; under
        `jit` a run-time error.
        """
        if isinstance(self.ok, Tracer):
            return eqx.error_if(
                self,
                ~jnp.all(self.ok),
                f"{self._trouble}: call `require` outside `jit` to see.",
            )
        if not np.all(self.ok):
            raise CertificateError(f"{self._trouble}.\n{self}")
        return self

    @property
    def _why(self) -> list[str | Table]:
        """What to look for, if a check has failed."""
        if not self.failed:
            return []
        return [f"The likely causes, in order: {self._causes}."]

    def _table(self, of: str, bar: str, digits: str) -> Table:
        """One check a row; of a batch, its worst residual."""
        rows: Table = [("check", of, bar, "verdict")]
        for name, check in self.checks.items():
            label = name.replace("_", " ")
            if check.residual is None:
                rows.append((label, "", "", f"does not apply: {check.reason}"))
                continue
            verdict = "passed" if np.all(check.passed) else "FAILED"
            worst = f"{float(np.max(check.residual)):{digits}}"
            rows.append((label, worst, f"{check.tolerance:{digits}}", verdict))
        return rows


class Certificate(AbstractCertificate):
    """What `trainq.certify` found: every check by name, and the numbers behind
    Cheeger's."""

    checks: dict[str, Check]
    """`"row_sums"`, `"positivity"`, `"stationarity"`, `"law"`, `"detailed_balance"`,
    `"symmetry"` and `"cheeger"`, each a [`trainq.markov.Check`][]."""
    cheeger: CheegerMargins | None
    """Gap, conductance and both margins, in inverse kernel steps, as
    [`trainq.markov.CheegerMargins`][]; None for a chain that is not reversible, or too
    large for its cuts."""
    _trouble: ClassVar[str] = "A chain failed its certificate"
    _causes: ClassVar[str] = (
        "a chain of your own that does not leave the law of the model as it is, as by "
        "a wrong acceptance; a chain of another model, or of another temperature; a "
        "model whose `is_symmetric` is not true; parameters so large that rounding "
        "matters (use float64)"
    )

    def _shown(self) -> list[str | Table]:
        return [self._table("residual", "tolerance", ".1e"), *self._why]


def certify(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    *,
    sector: Sector | None = None,
    tolerance: float | None = None,
    progress: bool = False,
) -> Certificate:
    """Check that a chain is what it claims to be, on the model at hand.

    Rows of `P` sum to one and have no negative entry; `π` is a stationary law, and that
    of the model; detailed balance holds; the law, the chain and the gradient
    observables are symmetric under the global flip; and the conductance of the slowest
    mode lies within Cheeger's bounds `γ/2 ≤ Φ ≤ √(2γ)`, where the residual is the share
    by which it does not, so that a bottleneck that is hardly ever crossed is checked
    like any other. A check that does not apply says why: symmetry of a model with
    biases, detailed balance of a chain that is not reversible, what needs a matrix of a
    chain that is too large.

    All of this is about the chain. That the steps of a kernel of your own do what its
    chain says is asked by
    `trainq.certify_sampler(key, kernel.stepper(model), model, kernel=kernel)`, of a
    model of at most 13 units.

    **Arguments:**

    - `kernel`: the kernel.
    - `model`: the model, with at most 13 units under `jax.jit`, and 20 outside: see the
        [limits](../choosing.md#limits).
    - `sector`: `"even"` or `"odd"` for Cheeger's inequality in this sector of the
        global flip, with its own gap and its own cuts.
    - `tolerance`: largest residual allowed. By default 4096 times the machine epsilon:
        9e-13 in float64.
    - `progress`: show a line that says which check is made, of a model of more than 13
        units; needs `tqdm`.

    **Returns:** a [`trainq.markov.Certificate`][]. `print` it, read `.ok`, or halt with
    `.require()`.

    **Raises:** `ValueError` if there are too many states, or a sector is asked for of a
    chain that is not symmetric; a run-time error if a parameter is not finite.
    """
    checked_kernel(kernel)
    require_model(model)
    n_units = sum(one.n_units for one in kernel.replicas(model))
    check_enumerable(n_units, _MAX_UNITS, "states of a certificate", _SMALLER)
    if n_units <= _MAX_MATRIX:
        return _certify_small(kernel, model, sector, tolerance)
    chain = eqx.filter_jit(kernel.chain)(model)
    return _certified(chain, kernel.replicas(model), sector, tolerance, progress)


@compiled_quickly
def _certify_small(
    kernel: AbstractKernel,
    model: AbstractEnergyModel,
    sector: Sector | None,
    tolerance: float | None,
) -> Certificate:
    return _certified(kernel.chain(model), kernel.replicas(model), sector, tolerance)


def _certified(
    chain: AbstractChain,
    replicas: tuple[AbstractEnergyModel, ...],
    sector: Sector | None,
    tolerance: float | None,
    progress: bool = False,
) -> Certificate:
    model = replicas[0]
    chain.check_sector(sector)
    if tolerance is None:
        tolerance = 4096 * float(jnp.finfo(chain.dtype).eps)

    def check(residual: Array | None, reason: str | None = None) -> Check:
        return Check(residual, tolerance, reason)

    def too_large(method: str) -> str | None:
        """Why a residual is not there, if it comes from the matrix."""
        own = getattr(type(chain), method) is not getattr(AbstractChain, method)
        if own or model.n_units <= _MAX_MATRIX:
            return None
        return f"it needs a matrix, which {_MAX_MATRIX} units have at most"

    not_reversible = "the chain is not reversible"
    not_symmetric = (
        "the chain makes no use of the global flip"
        if model.is_symmetric
        else "the model is not symmetric under the global flip"
    )
    whys = {
        "positivity": too_large("least_probability"),
        "detailed_balance": too_large("imbalance"),
        "symmetry": too_large("asymmetry"),
        "cheeger": too_large("log_cut_flows"),
    }
    if not chain.is_symmetric:
        whys["symmetry"] = not_symmetric
    if not chain.is_reversible:
        whys |= dict.fromkeys(("detailed_balance", "cheeger"), not_reversible)
    # A chain that is not what it claims to be may have no solution: not a number is not
    # within the tolerance.
    cheeger = None

    def violation() -> Array | None:
        nonlocal cheeger
        cheeger = margins(chain, sector, throw=False)
        return cheeger and cheeger.violation

    residuals = {
        "row_sums": lambda: row_sum_residual(chain),
        "positivity": lambda: positivity_residual(chain),
        "stationarity": lambda: stationarity_residual(chain),
        "law": lambda: law_residual(chain, replicas),
        "detailed_balance": lambda: detailed_balance_residual(chain),
        "symmetry": lambda: symmetry_residual(chain, EnergyGradients(model)),
        "cheeger": violation,
    }
    checks = {}
    with parts(len(residuals), progress) as begin:
        for name, residual in residuals.items():
            begin(name.replace("_", " "))
            why = whys.get(name)
            checks[name] = check(None, why) if why else check(residual())
    return Certificate(checks, cheeger)
