"""Symmetrised generators: the operators `L + φφᵀ` that a chain reduces to."""

import abc
import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._spins import MAX_TABLE, at_neighbours, ends, fold, neighbours, unfold
from ._elimination import eliminate, solve_eliminated
from ._overlaps import AbstractOverlap
from ._systems import (
    AbstractSystem,
    DenseSystem,
    GramSystem,
    Pairing,
    flip_system,
    hop,
    pair,
)


class AbstractGenerator(eqx.Module):
    """The symmetrised `L = I - P` of a chain, or of one symmetry sector of it.

    Its states have the law `exp(log_law)`, and functions `x` of them are held as half
    densities `y = √π x`. A sector without the constant function, and a chain that leaks
    into a target, have no null vector: `null` is None there, and `φ` is zero.
    """

    is_self_adjoint: eqx.AbstractVar[bool]
    log_law: eqx.AbstractVar[Float[Array, " n"]]
    leak: eqx.AbstractVar[Float[Array, " n"] | None]
    is_odd: eqx.AbstractVar[bool]

    @property
    def n_states(self) -> int:
        """The length of the law."""
        return self.log_law.shape[0]

    @property
    def root(self) -> Float[Array, " n"]:
        """`√π`."""
        return jnp.exp(self.log_law / 2)

    @property
    def is_closed(self) -> bool:
        """Whether it is about a chain that keeps its constants: not one that leaks, and
        not the odd sector."""
        return self.leak is None and not self.is_odd

    @property
    def null(self) -> Float[Array, " n"] | None:
        """`φ = √π`, the null vector of `L`; None if it has none."""
        return self.root if self.is_closed else None

    @abc.abstractmethod
    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """`L y`, for `k` columns at once."""

    @abc.abstractmethod
    def matrix(self) -> Float[Array, "n n"]:
        """The matrix `L`."""

    def transposed(self) -> "AbstractGenerator":
        """The generator of the reversed chain, which has the same factors."""
        return self

    def regular(self) -> "RegularSystem":
        """The regular system `L + φφᵀ`."""
        return RegularSystem(self)

    @abc.abstractmethod
    def system(self) -> AbstractSystem:
        """The system that is left to solve after what the structure eliminates."""

    @abc.abstractmethod
    def rates(self) -> tuple[Float[Array, "m m"], Float[Array, " m"] | None]:
        """The rates between different states and those out of the system, for a solve
        without subtraction. In the odd sector of the global flip they are those between
        all states, in both halves."""

    # Derivatives are taken of functions, and not of half densities: see `_forms`.

    def functions(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """What is held fixed where a form is differentiated: the function `y / √π`, or
        `y` itself if `dirichlet` is about half densities."""
        return y

    def densities(self, x: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """The inverse of `functions`."""
        return x

    def dirichlet(self, z: Array, x: Array, pairing: Pairing) -> Array:
        """`⟨z_a, (I - P) x_b⟩_π` of two functions, for `a = b` or all pairs."""
        return pair(z, self.regular().mv(x), pairing)


class RegularSystem(AbstractSystem):
    """`L + φφᵀ`, on all states of a generator."""

    generator: AbstractGenerator
    is_self_adjoint: bool = eqx.field(static=True)

    def __init__(self, generator: AbstractGenerator):
        self.generator = generator
        self.is_self_adjoint = generator.is_self_adjoint

    @property
    def n_states(self) -> int:
        return self.generator.n_states

    @property
    def products(self) -> int:
        return self.n_states**2

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        out, null = self.generator.mv(y), self.generator.null
        return out if null is None else out + jnp.outer(null, null @ y)

    def matrix(self) -> Float[Array, "n n"]:
        matrix, null = self.generator.matrix(), self.generator.null
        return matrix if null is None else matrix + jnp.outer(null, null)


class AbstractReversible(AbstractGenerator):
    """One whose Dirichlet form is a sum of products of differences."""

    def functions(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return y * inverse_root(self.log_law)[:, None]

    def densities(self, x: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return self.root[:, None] * x


class FlipGenerator(AbstractReversible):
    """A diagonal minus weighted exclusive ors of the state index.

    `(L y)[s] = diagonal[s] y[s] - Σ_i hops[i, s] y[s ^ masks[i]]`. With single-bit
    masks this is a single-flip kernel on the hypercube; in a sector of the global flip
    one mask has all bits set, and its hops are negative in the odd one.
    """

    diagonal: Float[Array, " n"]
    hops: Float[Array, "masks n"]
    log_law: Float[Array, " n"]
    leak: Float[Array, " n"] | None
    masks: tuple[int, ...] = eqx.field(static=True)
    is_odd: bool = eqx.field(static=True, default=False)
    is_self_adjoint: bool = eqx.field(static=True, default=True, init=False)

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return self.diagonal[:, None] * y - hop(self.hops, self.masks, y)

    def matrix(self) -> Float[Array, "n n"]:
        return jnp.diag(self.diagonal) - self._scattered(self.hops)

    def _scattered(self, hops: Float[Array, "masks n"]) -> Float[Array, "n n"]:
        columns = neighbours(self.masks, self.n_states)
        rows = jnp.broadcast_to(jnp.arange(self.n_states), columns.shape)
        zeros = jnp.zeros((self.n_states, self.n_states), hops.dtype)
        return zeros.at[rows, columns].add(hops)

    def system(self) -> AbstractSystem:
        return flip_system(self.diagonal, self.hops, self.null, self.masks)

    def rates(self):
        law = self.log_law
        towards = at_neighbours(law, self.masks)
        moves = ratio_scaled(jnp.abs(self.hops), (towards - law[None]) / 2)
        if not self.is_odd:
            return self._scattered(moves), self.leak
        positive = (jnp.arange(len(self.masks)) > 0)[:, None]
        same = self._scattered(jnp.where(positive, moves, 0))
        return _both_sheets(same, self._scattered(jnp.where(positive, 0, moves))), None

    def dirichlet(self, z: Array, x: Array, pairing: Pairing) -> Array:
        sign = -1 if self.is_odd else 1
        if self.n_states == 1:  # the class of one pair, which is its own neighbour
            flow = sign * self.hops[0] * self.root**2 / 2
            return pair((1 - sign) * z, flow[:, None] * (1 - sign) * x, pairing)
        flows = []
        for hops, mask in zip(self.hops, self.masks, strict=True):
            (here, there), (weight, _) = ends(self.root, mask), ends(hops, mask)
            flows.append(weight * here * there)
        signs = (sign,) + (1,) * (len(self.masks) - 1)
        flows[0] = sign * flows[0]
        edges = tuple(zip(self.masks, signs, strict=True))
        return _along_edges(jnp.stack(flows), z, None if z is x else x, edges, pairing)


def _sum_along_edges(
    flows: Float[Array, "edges half"],
    z: Float[Array, "n k"],
    x: Float[Array, "n k"] | None,
    edges: tuple[tuple[int, int], ...],
    pairing: Pairing,
) -> Array:
    """`Σ flow (z(s) ∓ z(s ^ mask)) (x(s) ∓ x(s ^ mask))` over the edges of a hypercube,
    with the masks and the signs of `edges`; `x` is `z` if it is None.

    The functions depend on parameters as well where the chain makes several steps, of
    which others come before this one: so the derivative is in all three.
    """
    parts = []
    for flow, edge in zip(flows, edges, strict=True):
        left = _along(edge, z)
        right = left if x is None else _along(edge, x)
        parts.append(pair(left, flow[:, None] * right, pairing))
    return sum(parts[1:], parts[0])


_along_edges = jax.custom_vjp(_sum_along_edges, nondiff_argnums=(3, 4))


def _along_edges_fwd(flows, z, x, edges, pairing):
    # Not by the rule's own name, which has no forward mode: `jax.hessian` needs it.
    return _sum_along_edges(flows, z, x, edges, pairing), (flows, z, x)


def _along_edges_bwd(edges, pairing, saved, cotangent):
    flows, z, x = saved
    of_functions = _pulled(flows, z, x, edges, pairing, cotangent)
    slopes = []
    for edge in edges:
        if slopes and z.size * len(edges) > MAX_TABLE:
            # XLA would begin with the differences along all edges, and hold them at
            # once: many times the memory, in twice the time.
            z = z + 0 * slopes[-1][0]
        left = _along(edge, z)
        right = left if x is None else _along(edge, x)
        if pairing == "diagonal":
            slopes.append((left * right) @ cotangent)
        else:
            slopes.append(jnp.sum((left @ cotangent) * right, axis=1))
    return (jnp.stack(slopes), *of_functions)


def _pulled(
    flows: Array,
    z: Array,
    x: Array | None,
    edges: tuple[tuple[int, int], ...],
    pairing: Pairing,
    cotangent: Array,
) -> tuple[Array, Array | None]:
    """The cotangents of `z` and `x`. Where these are fixed nothing needs them, and a
    compiled program leaves them out."""

    def of(other, weights):
        total = jnp.zeros_like(other)
        for flow, edge in zip(flows, edges, strict=True):
            steps, back = jax.vjp(partial(_along, edge), other)
            steps = steps * weights[None] if pairing == "diagonal" else steps @ weights
            total = total + back(flow[:, None] * steps)[0]
        return total

    turned = cotangent if pairing == "diagonal" else cotangent.T
    if x is None:
        return of(z, turned + cotangent), None
    return of(x, turned), of(z, cotangent)


_along_edges.defvjp(_along_edges_fwd, _along_edges_bwd)


def _along(edge: tuple[int, int], f: Float[Array, "n k"]) -> Float[Array, "half k"]:
    """The differences along the edges of one mask."""
    mask, sign = edge
    here, there = ends(f, mask)
    return here - sign * there


class GramGenerator(AbstractReversible):
    """`I - BᵀB + φφᵀ`: one layer of a two-block kernel.

    With `p = exp(log_law)` on our own layer, `q = exp(log_other)` on the other one and
    `π(v, h) = √q(v) B(v, h) √p(h)`. In the odd sector of the global flip `whole` is `B`
    of all states. With a leak it is `I - c BᵀB`, of a chain that stops with probability
    `1 - c` in every step; `overlap` and `whole` are then `√c B`.
    """

    overlap: AbstractOverlap
    log_law: Float[Array, " n"]
    log_other: Float[Array, " rows"]
    whole: AbstractOverlap | None = None
    is_odd: bool = eqx.field(static=True, default=False)
    leak: Float[Array, " n"] | None = None
    is_self_adjoint: bool = eqx.field(static=True, default=True, init=False)

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return y - self.overlap.gram(y)

    def matrix(self) -> Float[Array, "n n"]:
        identity = jnp.eye(self.n_states, dtype=self.log_law.dtype)
        return identity - self.overlap.gram_matrix()

    def _given_other(self, block: Array, log_other: Array) -> Float[Array, "some n"]:
        """`p(h | v)` for a block of the overlap."""
        return ratio_scaled(block, (self.log_law[None, :] - log_other[:, None]) / 2)

    def system(self) -> AbstractSystem:
        if not self.is_closed:
            # Folded, B has both signs, and its diagonal is known only up to rounding:
            # without scaling, how near to singular the system is says how well. And
            # one that leaks everywhere is far from singular.
            ones = jnp.ones_like(self.log_law)
            return GramSystem(overlap=self.overlap, root=ones, null=None)
        # 1 - Σ_v p(h|v) p(v|h) = Σ_v (1 - p(h|v)) p(v|h), and where p(h|v) is near one
        # what is missing to it is the sum of the others.
        on = jnp.arange(self.n_states)

        def rates(block, log_other):
            given = self._given_other(block, log_other)
            largest = jnp.argmax(given, axis=1)[:, None] == on[None, :]
            others = jnp.sum(jnp.where(largest, 0, given), axis=1)[:, None]
            missing = jnp.where(largest, others, 1 - given)
            half = (log_other[:, None] - self.log_law[None, :]) / 2
            return jnp.sum(ratio_scaled(block, half) * missing, axis=0)

        leaves = self.overlap.sum(rates, self.log_other)
        # A layer of one state cannot be left.
        leaves = jnp.where(leaves > 0, leaves, 1)
        return GramSystem(overlap=self.overlap, root=jnp.sqrt(leaves), null=self.null)

    def rates(self):
        overlap, law, leak = self.overlap, self.log_law, self.leak
        if self.whole is not None:
            law = jnp.concatenate([law, law[::-1]])
            leak = None if leak is None else jnp.concatenate([leak, leak[::-1]])
            overlap = self.whole
        half = (law[None, :] - law[:, None]) / 2
        return ratio_scaled(overlap.gram_matrix(), half), leak

    def functions(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return super().functions(y) if self.is_closed else y

    def densities(self, x: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return super().densities(x) if self.is_closed else x

    def dirichlet(self, z: Array, x: Array, pairing: Pairing) -> Array:
        if not self.is_closed or pairing == "gram":
            z, x = self.densities(z), self.densities(x)
            images = self.overlap.sum(lambda b: pair(b @ z, b @ x, pairing))
            return pair(z, x, pairing) - images

        # ⟨x, (I - BᵀB) x⟩ = Σ π(v, h) (x(h) - E[x | v])².
        def differences(block, log_other):
            flow = jnp.exp(log_other / 2)[:, None] * block * self.root[None, :]
            given = self._given_other(block, log_other)
            return _differences(flow, given @ z, z, given @ x, x)

        return self.overlap.sum(differences, self.log_other)


class DenseGenerator(AbstractReversible):
    """Any chain, as a matrix: `diagonal` minus `hops`, which are not negative.

    The `hops` are `√π(i) P(i, j) / √π(j)` between different states, and the diagonal is
    the rate at which each of them is left.
    """

    diagonal: Float[Array, " n"]
    hops: Float[Array, "n n"]
    log_law: Float[Array, " n"]
    leak: Float[Array, " n"] | None
    is_self_adjoint: bool = eqx.field(static=True)
    is_odd: bool = eqx.field(static=True, default=False, init=False)

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return self.diagonal[:, None] * y - self.hops @ y

    def matrix(self) -> Float[Array, "n n"]:
        return jnp.diag(self.diagonal) - self.hops

    def transposed(self) -> "DenseGenerator":
        return DenseGenerator(
            diagonal=self.diagonal,
            hops=self.hops.T,
            log_law=self.log_law,
            leak=self.leak,
            is_self_adjoint=self.is_self_adjoint,
        )

    def system(self) -> AbstractSystem:
        root = jnp.sqrt(jnp.where(self.diagonal > 0, self.diagonal, 1))
        scaled = self.hops / (root[:, None] * root[None, :])
        return DenseSystem(
            hops=scaled, root=root, null=self.null, is_self_adjoint=self.is_self_adjoint
        )

    def rates(self):
        half = (self.log_law[None, :] - self.log_law[:, None]) / 2
        return ratio_scaled(self.hops, half), self.leak

    def functions(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return super().functions(y) if self.is_self_adjoint else y

    def densities(self, x: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return super().densities(x) if self.is_self_adjoint else x

    def dirichlet(self, z: Array, x: Array, pairing: Pairing) -> Array:
        if not self.is_self_adjoint or pairing == "gram":
            z, x = self.densities(z), self.densities(x)
            return pair(z, self.regular().mv(x), pairing)
        flow = self.root[:, None] * self.hops * self.root[None, :]
        return _differences(flow, z, z, x, x) / 2


def without_subtraction(
    generator: AbstractGenerator, b: Float[Array, "n k"]
) -> tuple[Float[Array, "n k"], Array]:
    """The solution `y` of `(L + φφᵀ) y = b`, right however slowly the chain mixes, and
    whether there is one. See `_elimination`."""
    rates, leak = generator.rates()
    law = generator.log_law
    is_odd = rates.shape[0] != law.shape[0]
    null = generator.null
    along = jnp.zeros(b.shape[1], b.dtype) if null is None else null @ b
    if null is not None:
        b = b - jnp.outer(null, along)
    if is_odd:
        law, b = jnp.concatenate([law, law[::-1]]), unfold(b, -1)
    factors = eliminate(rates, leak, jnp.argsort(law))
    y = (
        solve_eliminated(factors, b * inverse_root(law)[:, None])
        * jnp.exp(law / 2)[:, None]
    )
    if is_odd:
        y = fold(y, -1)
    if null is not None:
        y = y + jnp.outer(null, along - null @ y)
    is_regular = factors.is_regular & jnp.all(jnp.isfinite(y))
    return jnp.where(is_regular, y, 0), is_regular


def inverse_root(log_law: Float[Array, " n"]) -> Float[Array, " n"]:
    """`1 / √π`, kept finite: what it multiplies underflows before it would overflow."""
    return jnp.exp(jnp.minimum(-log_law / 2, _largest(log_law)))


def ratio_scaled(x: Float[Array, "*n"], log_ratio: Float[Array, "*n"]) -> Array:
    """`x exp(log_ratio)` where that is at most about one: zero where `x` is."""
    return x * jnp.exp(jnp.minimum(log_ratio, _largest(x)))


def _largest(x: Array) -> float:
    """The largest logarithm whose exponential is finite."""
    return math.log(float(jnp.finfo(x.dtype).max)) - 1


def _both_sheets(same: Array, opposite: Array) -> Array:
    """The rates between all states from those between `x` and `y`, and between `x` and
    `-y`, with `x` and `y` in the first half: `-y` is as far from the end as `y` is from
    the start."""
    return jnp.block([[same, opposite[:, ::-1]], [opposite[::-1], same[::-1, ::-1]]])


def _sum_of_differences(
    weights: Array, z_row: Array, z: Array, x_row: Array, x: Array
) -> Array:
    """`Σ_ij weights[i, j] (z[j] - z_row[i]) (x[j] - x_row[i])` of every column.

    Its derivative is that in the weights alone: `z` and `x` are held fixed where a form
    is differentiated, and the rows are either the same, or the means at which the sum
    is stationary.
    """

    def one(columns):
        z_row, z, x_row, x = columns
        steps = (z[None, :] - z_row[:, None]) * (x[None, :] - x_row[:, None])
        return jnp.sum(weights * steps)

    return jax.lax.map(one, (z_row.T, z.T, x_row.T, x.T))


_differences = jax.custom_vjp(_sum_of_differences)


def _differences_fwd(weights, *functions):
    return _sum_of_differences(weights, *functions), functions


def _differences_bwd(functions, cotangent):
    # A few columns at a time: each of them passes over the whole matrix.
    some = 8
    z_row, z, x_row, x = (
        jnp.pad(f.T, ((0, -f.shape[1] % some), (0, 0))) for f in functions
    )
    cotangent = jnp.pad(cotangent, (0, -cotangent.shape[0] % some))
    columns = (z_row, z, x_row, x, cotangent)
    columns = [c.reshape(-1, some, *c.shape[1:]) for c in columns]

    def add(total, columns):
        for z_row, z, x_row, x, c in zip(*columns, strict=True):
            step = (z[None, :] - z_row[:, None]) * (x[None, :] - x_row[:, None])
            total = total + c * step
        return total, None

    zero = jnp.zeros((z_row.shape[1], z.shape[1]), z.dtype)
    slopes, _ = jax.lax.scan(add, zero, columns)
    return (slopes, *(jnp.zeros_like(f) for f in functions))


_differences.defvjp(_differences_fwd, _differences_bwd)
