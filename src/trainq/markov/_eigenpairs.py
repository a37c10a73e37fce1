"""Eigenvalues and eigenvectors of the generators that a chain reduces to.

All of them from dense matrices, or the smallest of large ones by Lanczos' iteration. An
eigenvalue that LAPACK or Lanczos finds is known up to an absolute error of `ε`, and a
gap of that size not at all. So the small ones are found in other ways: dense, as one
over the largest of the resolvent, which elimination knows in every digit; by Lanczos,
from the Dirichlet form of the eigenvectors, a sum of squares in which nothing is
subtracted. An error `δ` of an eigenvector then changes an eigenvalue by `⟨δ, L δ⟩`: of
second order, and smaller still where the mode is slow.
"""

from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy  # which imports its parts, `sparse` here, where they are first used
from jax import lax
from jaxtyping import Array, Float

from .._checks import no_derivative, require_concrete
from .._spins import check_enumerable, fold, unfold
from ..solvers import (
    MAX_ELIMINATED,
    AbstractGenerator,
    Direct,
    LinearSolve,
    eigenpairs,
    one_by_one,
    without_subtraction,
)
from .chains import AbstractChain, AbstractReduction, Sector


# A matrix over half of 2**13 states takes 128 MiB, and minutes at most.
_MAX_DENSE = 2**13
# Lanczos holds some dozens of vectors over the states.
_MAX_UNITS = 20
# Eigenvalues below are refined where they are found as those of a dense matrix.
_SLOW = 1e-4
# How many restarts of Lanczos' iteration are too many.
_MAX_RESTARTS = 3000
_T = TypeVar("_T")


class Operator(eqx.Module):
    """A symmetrised generator, on the functions of one sign under the global flip if it
    has one, and otherwise on all."""

    generator: AbstractGenerator
    sign: int | None = eqx.field(static=True)

    @property
    def is_closed(self) -> bool:
        """Whether constants are among its functions."""
        return self.generator.is_closed and self.sign != -1

    @property
    def size(self) -> int:
        """How many functions there are, constants included."""
        n = self.generator.n_states
        return n if self.sign is None else n // 2

    def fold(self, f: Array) -> Array:
        """The part of this sign, of functions as the generator takes them."""
        return f if self.sign is None else fold(f, self.sign)

    def unfold(self, f: Array) -> Array:
        """The inverse of `fold`."""
        return f if self.sign is None else unfold(f, self.sign)


class Part(eqx.Module):
    """One symmetry sector of a chain: a reduction, and the sign under the global flip
    of the functions that are meant, if the reduction has both."""

    reduction: AbstractReduction
    sign: int | None = eqx.field(static=True)

    @property
    def operator(self) -> Operator:
        """What has its modes."""
        return Operator(self.reduction.generator, self.sign)

    @property
    def sector(self) -> Sector | None:
        """The parity of its functions; None if they have both, or none."""
        if self.sign is None:
            return self.reduction.sector
        return "even" if self.sign > 0 else "odd"

    @property
    def n_modes(self) -> int:
        """How many modes it has, without constants."""
        return self.operator.size - int(self.operator.is_closed)

    @property
    def is_dense(self) -> bool:
        """Whether there are few enough for a dense eigenproblem."""
        return self._n_whole <= _MAX_DENSE

    @property
    def _n_whole(self) -> int:
        n_states = self.reduction.generator.n_states
        return n_states * (1 if self.reduction.sector is None else 2)

    def check_size(self) -> None:
        """Raise a `ValueError` if there are too many states for Lanczos' iteration."""
        check_enumerable(
            (self._n_whole - 1).bit_length(), _MAX_UNITS, "modes", _INSTEAD
        )


_INSTEAD = (
    "Use a two-layer kernel, whose chain lives on one layer, or a smaller model of the "
    "same kind."
)


def parts_of(chain: AbstractChain, sector: Sector | None) -> tuple[Part, ...]:
    """What has all modes of a chain, or those of one parity, sector by sector."""
    found = []
    for reduction in chain.spectral_reductions(sector):
        whole = reduction.generator.n_states == chain.n_states > 1
        if whole and chain.is_symmetric and reduction.sector is None:
            wanted = ("even", "odd") if sector is None else (sector,)
            found += [Part(reduction, 1 if s == "even" else -1) for s in wanted]
        else:
            found.append(Part(reduction, None))
    for part in found:
        if not part.is_dense:
            part.check_size()
    return tuple(found)


class Eigenpairs(NamedTuple):
    """Eigenvalues from the smallest, without that of constants, eigenvectors as columns
    in the coordinates of the generator, and whether they are known."""

    values: Float[Array, " r"]
    vectors: Float[Array, "n r"]
    known: Array


def dense_pairs(operator: Operator) -> Eigenpairs:
    """All of them, from dense matrices. No derivative."""
    return _dense_pairs(jax.tree.map(lax.stop_gradient, operator))


@one_by_one
def _dense_pairs(operator: Operator) -> Eigenpairs:
    generator, r = operator.generator, operator.size - int(operator.is_closed)
    null = generator.null
    matrix = generator.matrix()
    if null is not None:  # no eigenvalue of L is above 2
        matrix = matrix + 4 * jnp.outer(null, null)

    def folded(matrix):
        return operator.fold(operator.fold(matrix).T)

    values, vectors = eigenpairs(folded(matrix))
    values, vectors = values[:r], vectors[:, :r]
    if r == 0:
        return Eigenpairs(values, operator.unfold(vectors), jnp.asarray(True))

    def refined(values, vectors):
        # One over the j-th eigenvalue of the resolvent is known to ε γ_j / γ_1, that of
        # L to ε / γ_j: the second is better from √γ_1 on, and where the first would be
        # wrong in more than half of the digits. The set of those that are
        # taken from the resolvent ends at the widest step between two, so that it is
        # known as a set either way.
        inverse, known = _resolvent_matrix(generator)
        slowness, others = eigenpairs(folded(inverse))
        slowness, others = slowness[::-1][:r], others[:, ::-1][:, :r]
        some = slowness > 0.25  # no rate is above two
        slow = jnp.where(some, 1 / jnp.where(some, slowness, 1), 4)
        most = jnp.minimum(slow[0] ** -0.5, float(jnp.finfo(slow.dtype).eps) ** -0.6)
        allowed = slow <= most * slow[0]
        after = jnp.where(jnp.append(allowed[1:], False), jnp.append(slow[1:], 4), 4)
        beyond = jnp.append(values[1:], 4)
        after = jnp.where(after == 4, jnp.maximum(beyond, slow), after)
        step = jnp.where(allowed, after / slow, 0)
        taken = jnp.arange(r) <= jnp.argmax(step)
        values = jnp.where(taken, slow, values)
        return values, jnp.where(taken[None], others, vectors), known

    # NaN is slow as well, and not known then.
    values, vectors, known = lax.cond(
        values[0] >= _SLOW,
        lambda values, vectors: (values, vectors, jnp.asarray(True)),
        refined,
        *(values, vectors),
    )
    vectors = operator.unfold(vectors)
    return Eigenpairs(values, vectors, known & _is_one(generator, values, vectors))


def _is_one(
    generator: AbstractGenerator, values: Float[Array, " r"], vectors: Array
) -> Array:
    """Whether the slowest one is an eigenvector: a chain that is not what it says, and
    whose operator is not symmetric, has others."""
    residual = generator.mv(vectors[:, :1]) - values[0] * vectors[:, :1]
    return jnp.linalg.norm(residual) <= float(jnp.finfo(values.dtype).eps) ** 0.5


def _resolvent_matrix(
    generator: AbstractGenerator,
) -> tuple[Float[Array, "n n"], Array]:
    """`L⁺`, symmetric, of a slow chain, and whether it is known."""
    identity = jnp.eye(generator.n_states, dtype=generator.log_law.dtype)
    null = generator.null
    others = identity if null is None else identity - jnp.outer(null, null)
    if generator.n_states <= MAX_ELIMINATED:
        inverse, known = without_subtraction(generator, others)
    else:
        solve = LinearSolve(generator, Direct(throw=False), len(others))
        inverse, stats, _ = solve(others)
        known = stats.ok
    inverse = inverse if null is None else others @ inverse
    return (inverse + inverse.T) / 2, known


@eqx.filter_jit
def _product(operator: Operator, y: Float[Array, " n"]) -> Float[Array, " n"]:
    """`L y`, with constants moved out of the way, to the upper end."""
    y = operator.unfold(y[:, None])
    out, null = operator.generator.mv(y), operator.generator.null
    if null is not None:
        out = out + 2 * null[:, None] * (null @ y)[None]
    return operator.fold(out)[:, 0]


@eqx.filter_jit
def _rayleigh_ritz(operator: Operator, y: Float[Array, "n r"]) -> Eigenpairs:
    """Those in the span of columns, with eigenvalues from the Dirichlet form."""
    generator, y = operator.generator, operator.unfold(y)
    null = generator.null
    y = y if null is None else y - jnp.outer(null, null @ y)
    y = jnp.linalg.qr(y)[0]
    x = generator.functions(y)
    values, turn = jnp.linalg.eigh(generator.dirichlet(x, x, "gram"))
    y = y @ turn
    return Eigenpairs(values, y, _is_one(generator, values, y))


def lowest_pairs(operator: Operator, k: int) -> Eigenpairs:
    """The smallest ones, by Lanczos' iteration, which is SciPy's and takes numbers."""
    require_concrete("A spectrum found by Lanczos' iteration", chain=operator)
    n = operator.size
    generator = operator.generator
    start = np.random.default_rng(0).normal(size=n)
    dtype = np.dtype(generator.log_law.dtype)

    def product(y):
        return np.asarray(_product(operator, jnp.asarray(y, dtype).reshape(-1)))

    k = min(k, n - 1 - int(operator.is_closed))
    # SciPy's types know neither the arguments of an operator nor a tolerance between
    # whole numbers.
    make: Any = scipy.sparse.linalg.LinearOperator
    tolerance: Any = float(np.finfo(dtype).eps) ** 0.6
    try:
        _, vectors = scipy.sparse.linalg.eigsh(
            make((n, n), matvec=product, dtype=dtype),
            k,
            which="SA",
            v0=start.astype(dtype),
            ncv=min(n, max(2 * k + 1, 40)),
            tol=tolerance,
            maxiter=_MAX_RESTARTS,
        )
    except scipy.sparse.linalg.ArpackNoConvergence:
        raise RuntimeError(
            f"Lanczos' iteration did not find the {k} slowest modes of {n} states in "
            f"{_MAX_RESTARTS} restarts. The chain is so slow that they lie too close "
            "to each other: ask for fewer, raise the temperature, or use a two-layer "
            "kernel."
        ) from None
    return _rayleigh_ritz(operator, jnp.asarray(vectors))


def held_fixed(what: str, x: _T) -> _T:
    """What is made of eigenvectors as it is, where differentiating it raises."""
    return no_derivative(
        f"The {what} has no derivative: eigenfunctions turn abruptly where eigenvalues "
        "cross. Use `jax.lax.stop_gradient` on the model if you want it held fixed.",
        x,
    )
