"""Eigenvalues and eigenvectors of the generators that a chain reduces to.

All of them from dense matrices, the smallest alone from a factorisation, or some of
large ones by Lanczos' iteration. An eigenvalue that LAPACK or Lanczos finds is known up
to an absolute error of `ε`, and a gap of that size not at all. So the small ones are
found in other ways: dense, as one over the largest of the resolvent, which elimination
knows in every digit; otherwise from the Dirichlet form of the eigenvectors, a sum of
squares in which nothing is subtracted. An error `δ` of an eigenvector then changes an
eigenvalue by `⟨δ, L δ⟩`: of second order, and smaller still where the mode is slow.
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
from .._memory import require_memory
from .._spins import check_enumerable, fold, unfold
from ..solvers import (
    MAX_ELIMINATED,
    AbstractGenerator,
    Direct,
    FlipGenerator,
    LinearSolve,
    cholesky,
    cholesky_solve,
    eigenpairs,
    inverse_root,
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
# Up to so many functions, all modes take no more time than the slowest one alone.
_FEW = 64
# How many solves Lanczos' iteration on an inverse takes at most: from here on, all
# modes are found instead.
_SOLVES = 48
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

    @property
    def has_rates(self) -> bool:
        """Whether entries of its matrix off the diagonal are rates, which nothing was
        subtracted for, and sum to the diagonal."""
        flips = isinstance(self.generator, FlipGenerator)
        return self.sign is None and (self.generator.is_closed or flips)

    def fold(self, f: Array) -> Array:
        """The part of this sign, of functions as the generator takes them."""
        return f if self.sign is None else fold(f, self.sign)

    def unfold(self, f: Array) -> Array:
        """The inverse of `fold`."""
        return f if self.sign is None else unfold(f, self.sign)

    def fold_matrix(self, matrix: Array) -> Array:
        """The part of this sign of a matrix on what the generator takes."""
        return self.fold(self.fold(matrix).T)

    @property
    def null(self) -> Array | None:
        """The null vector among them, if there is one."""
        null = self.generator.null
        if null is None or not self.is_closed:
            return None
        return self.fold(null[:, None])[:, 0]

    def matrix(self) -> Array:
        """`L`, with constants moved out of the way: no eigenvalue of it is above 2."""
        matrix, null = self.fold_matrix(self.generator.matrix()), self.null
        return matrix if null is None else matrix + 4 * jnp.outer(null, null)


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


def check_memory(operator: Operator, matrices: int) -> None:
    """Raise a `MemoryError` if its eigenvalues are found by more than fits."""
    _require_numbers(operator, matrices * operator.size**2)


def _require_numbers(operator: Operator, numbers: int) -> None:
    what = f"Finding modes among {operator.size:,} functions"
    itemsize = operator.generator.log_law.dtype.itemsize
    require_memory(float(numbers * itemsize), what, _INSTEAD)


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
    folded = operator.fold_matrix
    values, vectors = eigenpairs(operator.matrix())
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


def slowest_pair(operator: Operator) -> Eigenpairs:
    """The smallest one alone, from dense matrices. No derivative.

    Lanczos' iteration on the inverse, by a Cholesky factor, takes some dozens of solves
    where all modes take ten times as long as a factorisation. Where it does not end, or
    what it finds is not known to be the smallest one, to rounding, all modes are found.
    """
    return _slowest_pair(jax.tree.map(lax.stop_gradient, operator))


@one_by_one
def _slowest_pair(operator: Operator) -> Eigenpairs:
    def from_all():
        pairs = _dense_pairs(operator)
        return Eigenpairs(pairs.values[:1], pairs.vectors[:, :1], pairs.known)

    if operator.size <= _FEW:
        return from_all()
    found = _by_inverse(operator)
    return lax.cond(found.known, lambda: found, from_all)


def _by_inverse(operator: Operator) -> Eigenpairs:
    matrix, null = operator.matrix(), operator.null
    n, eps = len(matrix), float(jnp.finfo(matrix.dtype).eps)
    identity = jnp.eye(n, dtype=matrix.dtype)
    # As much as rounding may take off the smallest eigenvalue; no eigenvector moves.
    factor = cholesky(matrix + 64 * eps * identity)
    zeros = jnp.zeros((n, _SOLVES + 1), matrix.dtype)

    def grow(carry):
        basis, images, i, *_ = carry
        image = cholesky_solve(factor, basis[:, i, None])[:, 0]
        images = images.at[:, i].set(image)
        form = basis[:, :-1].T @ images
        slowness, turn = eigenpairs((form + form.T) / 2)
        # Orthogonal to rounding, by doing it twice.
        new = image - basis @ (basis.T @ image)
        new = new - basis @ (basis.T @ new)
        norm = jnp.linalg.norm(new)
        missing = norm * jnp.abs(turn[i, -1]) / slowness[-1]
        basis = basis.at[:, i + 1].set(new / norm)
        return basis, images, i + 1, turn[:, -1], 1 / slowness[-2], missing

    def grows(carry):
        *_, i, _, _, missing = carry
        return (missing > eps) & (i < _SOLVES)

    start = np.random.default_rng(0).normal(size=n)
    basis = zeros.at[:, 0].set(jnp.asarray(start / np.linalg.norm(start), zeros.dtype))
    infinite = jnp.asarray(jnp.inf, zeros.dtype)
    first = basis, zeros[:, 1:], 0, zeros[0, 1:], infinite, infinite
    basis, _, _, turn, second, _ = lax.while_loop(grows, grow, first)
    y = basis[:, :-1] @ turn
    # Constants are no part of it; of a chain that is not what it says, they may be.
    if null is not None:
        y = y - null * (null @ y)
        y = y / jnp.linalg.norm(y)
    image = matrix @ y
    value = y @ image
    residual = jnp.linalg.norm(image - value * y)
    # That no other one is below a bar is not taken on trust: with this one moved out of
    # the way, a matrix has a Cholesky factor after the bar is taken off only if there
    # is none (Ericsson and Ruhe, The spectral transformation Lanczos method, Math.
    # Comp. 35, 1251, 1980). The bar is just below this one, by more than rounding
    # leaves of it; and where it is slow, between it and the second.
    bar = jnp.where(value >= _SLOW, (1 - eps**0.45) * value, second / 2)
    rest = cholesky(matrix + 4 * jnp.outer(y, y) - bar * identity)
    is_least = jnp.all(jnp.isfinite(jnp.diagonal(rest)))
    is_one, known = residual <= 64 * eps, value >= _SLOW
    if operator.has_rates:
        # A sum of squares has all its digits: an error `e` of the matrix, and of y as
        # its eigenvector, adds e² / (λ - value) from another mode λ, and these are at
        # least twice as fast.
        sum_of_squares = _sum_of_squares(operator.generator, y)
        is_one &= jnp.abs(sum_of_squares - value) <= 64 * eps
        value = sum_of_squares
        error = 2 * (residual + 8 * eps) ** 2 / bar
        known |= (bar >= 2 * value) & (error <= eps * value)
    known &= is_one & is_least
    return Eigenpairs(value[None], operator.unfold(y[:, None]), known)


def _sum_of_squares(generator: AbstractGenerator, y: Array) -> Array:
    """`⟨y, L y⟩ = ½ Σ_ij |L_ij| √π_i √π_j (x_i ± x_j)²` over pairs of different states,
    with `y = √π x`, and the sign that `L_ij` has."""
    matrix, root = generator.matrix(), generator.root
    hops = jnp.diag(jnp.diagonal(matrix)) - matrix
    x = y * inverse_root(generator.log_law)
    step = x[:, None] - jnp.sign(hops) * x[None, :]
    return jnp.sum(root[:, None] * jnp.abs(hops) * root[None, :] * step**2) / 2


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
    # A basis, and the vectors that are found, refined and unfolded.
    n_basis = min(n, max(2 * k + 1, 40))
    _require_numbers(operator, n * (n_basis + 18 * k))
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
            ncv=n_basis,
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
