"""The primitive: bilinear forms of the resolvent, with a backward pass free of solves.

A chain with kernel `P` and stationary law `π` has the symmetrised generator
`L = D^½ (I - P) D^-½`, `D = diag π`, whose null vector is `φ = √π`. All that this
library asks of a chain is sums like `⟨u, L⁺ w⟩` for `u` and `w` orthogonal to `φ`;
there `L⁺` is the inverse of the regular operator `L + φφᵀ`, which is what an
`AbstractGenerator` holds.

The derivative. Let `y = (L + φφᵀ)⁻¹ w` and `z = (L + φφᵀ)⁻ᵀ u`. The form is the
stationary value, at these `y` and `z`, of

    J(y, z) = ⟨u, y⟩ + ⟨z, w⟩ - ⟨z, (L + φφᵀ) y⟩,

so its first derivative is that of `J` with `y` and `z` held fixed (the envelope
theorem): `d⟨u, L⁺w⟩ = ⟨du, y⟩ + ⟨z, dw⟩ - ⟨z, d(L + φφᵀ) y⟩`. The forward pass has
solved for `y`, and `z` comes from the same factorisation, or is `y` itself where
`u = w` and `L` is symmetric. The backward pass solves nothing. It is also how the rule
is written below: the derivative of `J`, taken by autodiff through the structure of `L`
alone.

Where the chain mixes slowly, `y` is nearly the slowest mode, `L y` is nearly zero, and
its derivative a difference of large numbers. So what is held fixed are not `y` and `z`
but the functions `x = D^-½ y` and `ξ = D^-½ z`, at which `J` is stationary as well; and
the last term is the Dirichlet form `½ Σ π(s) P(s, t) (ξ(s) - ξ(t)) (x(s) - x(t))`, a
sum over differences that are small where the functions are flat.

Higher derivatives need how `y` and `z` move, `dy = (L + φφᵀ)⁻¹ (dw - d(L + φφᵀ) y)`:
that is the rule of `lax.custom_linear_solve`, again with the same factors.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from ._base import AbstractSolver, SolveOptions, SolverStats, worst
from ._generators import AbstractGenerator, without_subtraction
from ._systems import AbstractSystem, Pairing, column_norms, pair


# The name of what `jax.checkpoint` should keep: the solutions.
SOLUTION = "trainq_solution"
"""The name of solutions for `jax.checkpoint`, which may save them by it."""


class Solution(NamedTuple):
    """The solutions of a system, what the solver says, and where the next solve of a
    system nearby may start."""

    value: Float[Array, "n k"]
    stats: SolverStats
    guess: Any


class Form(eqx.Module):
    """A bilinear form of the resolvent, with what the solver says.

    `guess` is where the next solve of a system nearby may start.
    """

    value: Array
    stats: SolverStats | None
    guess: Any


def total(forms: Sequence[Form]) -> Form:
    """The sum of forms over the sectors of a chain."""
    value = sum((form.value for form in forms[1:]), forms[0].value)
    stats = worst([form.stats for form in forms if form.stats is not None])
    return Form(value, stats, [form.guess for form in forms])


def _freeze(tree: Any) -> Any:
    return jax.tree.map(lax.stop_gradient, tree)


# The memory for it is set aside whether it is used or not: with more states, that alone
# would cost a warm model half its speed.
MAX_ELIMINATED = 2**10
"""Up to this many states, a system that is nearly singular is solved once more by the
slower elimination that does not subtract."""


class LinearSolve:
    """`(L + φφᵀ)⁻¹` of one generator, prepared once for all right-hand sides.

    It is differentiable to any order. It raises, when run, if a right-hand side is not
    solved: the chain is then reducible in floating point.
    """

    def __init__(
        self,
        generator: AbstractGenerator,
        solver: AbstractSolver,
        n_columns: int,
        size: Float[Array, ""] | None = None,
    ):
        """**Arguments:**

        - `generator`: the generator.
        - `solver`: how to solve.
        - `n_columns`: the number of right-hand sides to come, for the choice of a
            solver.
        - `size`: the norm of what the columns are parts of: a part that is zero but for
            rounding is not held to an accuracy of its own.
        """
        self.generator, self.size = generator, size
        self.fixed = _freeze(generator)
        if solver.is_differentiated_through:
            self.system: AbstractSystem = generator.regular()
            self.solver, self.state = solver, solver.init(self.system)
        else:
            self.system = self.fixed.system()
            self.solver = solver.select(self.system, n_columns)
            self.state = _freeze(self.solver.init(self.system))

    def __call__(
        self,
        b: Float[Array, "n k"],
        *,
        guess: Any = None,
        transpose: bool = False,
        bulk: Float[Array, "n k"] | None = None,
        beside: Float[Array, " k"] | None = None,
    ) -> Solution:
        """Solve, for the transposed operator if asked to.

        - `guess`: the `guess` of a solution for a system nearby.
        - `bulk`: what the rounding errors in `b` are proportional to: sums of the
            absolute values of what was summed to `b`.
        - `beside`: the size of what each form `⟨b, y⟩` is added to, and so need not be
            known better than.
        """
        norm = jnp.linalg.norm(lax.stop_gradient(b), axis=0)
        most = jnp.max(norm, initial=0)
        size = most if self.size is None else lax.stop_gradient(self.size)
        # The norm up to which a column is zero but for rounding.
        floor = 16 * float(jnp.finfo(b.dtype).eps) ** 0.5 * size

        def solve(b, transpose):
            return self._solve(b, SolveOptions(guess, floor), transpose)

        if self.solver.is_differentiated_through:
            y, (guess, count, error) = solve(b, transpose)
        else:
            operator = self.generator.transposed() if transpose else self.generator
            y, (guess, count, error) = lax.custom_linear_solve(
                operator.regular().mv,
                b,
                lambda _, b: solve(b, transpose),
                lambda _, b: solve(b, not transpose),
                symmetric=self.generator.is_self_adjoint,
                has_aux=True,
            )
        fixed = self.fixed.transposed() if transpose else self.fixed
        y, stats = _judged(fixed, self.solver, y, b, floor, count, error, bulk, beside)
        return Solution(y, stats, _freeze(guess))

    def _solve(
        self, b: Array, options: SolveOptions, transpose: bool
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        """The solutions; those of the system that is left, with the number of
        iterations and an estimate of the error of each."""
        # How near to singular a system is cannot be seen in the solutions: the
        # right-hand sides may hardly have a part along the slowest mode, as those of a
        # symmetric model do. So one more is solved for, that has a part along
        # everything.
        probe = _probe(b)
        reduced = self.system.restrict(jnp.append(b, probe[:, None], axis=1))
        guess = options.guess
        if guess is not None and guess.shape != reduced.shape:
            raise ValueError(
                f"The guess has shape {guess.shape} where {reduced.shape} is "
                "needed: it is of another model, kernel or solver. Start anew, "
                "with None or `cold`."
            )
        turned = transpose and not self.system.is_self_adjoint
        state = self.solver.transpose(self.state) if turned else self.state
        y, count = self.solver.compute(state, reduced, options)
        whole = self.system.prolong(y[:, :-1], b)
        # What follows is about the digits of the solution, and not a part of it.
        system = self.fixed.transposed().system() if turned else self.system
        system, reduced, fixed_y = _freeze((system, reduced, y))
        smallest = _smallest(system, fixed_y[:, -1], reduced[:, -1], probe)
        error = self.solver.error(system, reduced, fixed_y, smallest, options.floor)
        error = error[:-1]
        few = self.generator.n_states <= MAX_ELIMINATED
        if few and self.solver.may_eliminate:
            fixed = self.fixed.transposed() if transpose else self.fixed
            known = smallest >= float(jnp.finfo(b.dtype).eps) ** 0.4
            whole, error = _eliminated(fixed, b, whole, error, known)
        return whole, (y, count[:-1], error)


def _probe(b: Float[Array, "n k"]) -> Float[Array, " n"]:
    """Numbers between -1 and 1, by a hash of their place."""
    bits = jnp.arange(b.shape[0], dtype=jnp.uint32) * jnp.uint32(0x9E3779B1)
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = bits ^ (bits >> 13)
    return bits.astype(b.dtype) * 2.0**-31 - 1


def _smallest(system: AbstractSystem, z: Array, reduced: Array, probe: Array) -> Array:
    """The smallest eigenvalue of a system, or singular value, from the solution `z` for
    what is left of the probe: about right if it is much smaller than others, and
    otherwise larger. One, if constants are all that there is."""
    squared = z @ z
    squared = jnp.where(squared > 0, squared, 1)
    if system.is_self_adjoint:
        smallest = z @ reduced / squared
    else:
        smallest = jnp.linalg.norm(reduced) / jnp.sqrt(squared)
    rounding = float(jnp.finfo(z.dtype).eps) ** 0.5 * jnp.linalg.norm(probe)
    return jnp.where(jnp.linalg.norm(reduced) <= rounding, 1, smallest)


@custom_vmap
def _eliminated(
    generator: AbstractGenerator, b: Array, y: Array, error: Array, known: Array
) -> tuple[Array, Array]:
    """The solution as it is if it is known well; otherwise that of elimination without
    subtraction."""

    def again():
        y, is_regular = without_subtraction(generator, b)
        return y, jnp.where(is_regular, jnp.zeros_like(error), jnp.inf)

    return lax.cond(known, lambda: (y, error), again)


@_eliminated.def_vmap
def _eliminated_batch(size, batched, *args):
    # A condition under `vmap` computes both sides. So it is asked of all models at once
    # and, if one of them needs the elimination, of each of them by itself.
    args = jax.tree.map(
        lambda b, x: x if b else jnp.broadcast_to(x, (size, *x.shape)),
        tuple(batched),
        args,
    )
    _, _, y, error, known = args
    out = lax.cond(
        jnp.all(known),
        lambda: (y, error),
        lambda: lax.map(lambda one: _eliminated(*one), args),
    )
    return out, (True, True)


def _judged(fixed, solver, y, b, floor, count, error, bulk, beside):
    # Three things can go wrong in a solve of finite precision. The residual is not
    # small, of which rounding in the operator alone leaves some ε ‖y‖. Or it is, but
    # the operator is so close to singular that this says nothing about y, and `error`
    # does. Or the right-hand sides are not known: their rounding errors make ⟨b, y⟩
    # wrong by twice what they are along y. Where the slowest mode is very slow, and a
    # function flat along it, that may be all there is. Slower still, and it is the
    # derivative that is lost: the differences in y along flat stretches are wrong by
    # ε ‖y‖, their squares by ε² ‖y‖², and the derivative is a sum of these.
    eps, accuracy = float(jnp.finfo(b.dtype).eps), solver.accuracy(b.dtype)
    fixed_y, fixed_b, error = _freeze((y, b, error))
    norm = jnp.linalg.norm(fixed_b, axis=0)
    scale = jnp.maximum(norm, floor)
    residual = column_norms(fixed.regular().mv(fixed_y) - fixed_b)
    rounding = 4096 * eps * jnp.linalg.norm(fixed_y, axis=0)
    good = residual <= jnp.maximum(accuracy * scale, rounding)
    good &= error <= solver.tolerance(b.dtype)
    if bulk is not None:
        beside = 0.0 if beside is None else _freeze(beside)
        bulk, size = _freeze(bulk), jnp.linalg.norm(fixed_y, axis=0)
        blurred = 2 * eps * jnp.sum(bulk * jnp.abs(fixed_y), axis=0)
        form = jnp.abs(jnp.sum(fixed_b * fixed_y, axis=0))
        blurred = blurred + (eps * size) ** 2
        whole = jnp.maximum(form + beside, floor**2)
        sharp = blurred <= solver.tolerance(b.dtype) * whole
        # A function without variance is nothing but rounding errors.
        bulk = jnp.linalg.norm(bulk, axis=0)
        nothing = (norm <= 64 * eps * bulk) & (size <= eps**0.5 * bulk)
        good &= sharp | nothing
    limit = getattr(solver, "max_steps", None)
    exhausted = jnp.zeros_like(good) if limit is None else ~good & (count >= limit)
    result = jnp.where(exhausted, 1, jnp.where(good, 0, 2))
    size = scale + 2 * jnp.linalg.norm(fixed_y, axis=0)
    relative = jnp.where(size > 0, residual / jnp.where(size > 0, size, 1), residual)
    stats = SolverStats(relative, count, result)
    if solver.throw:
        # A factor of one carries the check: passing `y` itself through the conditional
        # would gather it on one device.
        y = y * eqx.error_if(
            jnp.ones((), y.dtype),
            jnp.any(result > 0),
            "The resolvent could not be solved: a residual is large, or the chain so "
            "slow that the solution is not known to half of its digits, or an "
            "iteration reached its `max_steps`. The likely causes, in order: the model "
            "is so cold that its chain is reducible in floating point (lower beta or "
            "the weights, use float64, `Direct()`, or a block kernel); the chain is "
            "one of your own that falls apart into several, each of which has a "
            "resolvent of its own; an observable or a parameter is not finite; a "
            "solver or a chain of your own is not what "
            "it says (`trainq.certify` checks the chain). With `throw=False` the "
            "solver returns its statistics instead.",
        )
    return y, stats


@partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _form(
    generator: AbstractGenerator,
    u: Array,
    w: Array | None,
    size: Array,
    bulk: Array | None,
    beside: Array | None,
    guess: Any,
    pairing: Pairing,
    solver: AbstractSolver,
) -> Form:
    return _form_fwd(generator, u, w, size, bulk, beside, guess, pairing, solver)[0]


def _form_fwd(generator, u, w, size, bulk, beside, guess, pairing, solver):
    solve = LinearSolve(generator, solver, u.shape[1], size)
    if not generator.is_self_adjoint:
        b = u if w is None else w
        y, stats, guess_ = solve(b, guess=guess, bulk=bulk, beside=beside)
        z = solve(u, transpose=True, bulk=bulk, beside=beside).value
    elif w is None:
        y, stats, guess_ = solve(u, guess=guess, bulk=bulk, beside=beside)
        z = None
    else:
        both = jnp.concatenate([w, u], axis=1)
        twice = [None if x is None else jnp.tile(x, 2) for x in (bulk, beside)]
        both, stats, guess_ = solve(both, guess=guess, bulk=twice[0], beside=twice[1])
        y, z = jnp.split(both, 2, axis=1)
        half = u.shape[1]
        first, second = (
            jax.tree.map(lambda x, part=part: x[part], stats)
            for part in (slice(half), slice(half, None))
        )
        stats = worst([first, second])
    y = checkpoint_name(y, SOLUTION)
    form = Form(pair(u, y, pairing), stats, guess_)
    return form, (generator, u, w, (size, bulk, beside, guess), y, z)


def _form_bwd(pairing, solver, residuals, cotangents):
    del solver
    generator, u, w, constants, y, z = residuals
    derivative = form_derivative(generator, u, w, y, z, pairing)
    moved = derivative(cotangents.value)
    return (*moved, *jax.tree.map(jnp.zeros_like, constants))


def form_derivative(
    generator: AbstractGenerator,
    u: Array,
    w: Array | None,
    y: Array,
    z: Array | None,
    pairing: Pairing,
) -> Callable[[Array], tuple[Any, Array, Array | None]]:
    """The map from the cotangent of `⟨u, L⁺w⟩` to those of `L`, `u` and `w`, given the
    solutions `y` for `w` and `z` for `u`, where these differ."""
    x = generator.functions(y)
    left = x if z is None else generator.functions(z)

    def stationary(generator, u, w):
        w = u if w is None else w
        form = pair(u, generator.densities(x), pairing)
        form = form + pair(generator.densities(left), w, pairing)
        return form - generator.dirichlet(left, x, pairing)

    return jax.vjp(stationary, generator, u, w)[1]


_form.defvjp(_form_fwd, _form_bwd)


def column_size(u: Float[Array, "n k"]) -> Float[Array, ""]:
    """The largest norm of a column."""
    return jnp.max(jnp.linalg.norm(lax.stop_gradient(u), axis=0), initial=0)


def bilinear_form(
    generator: AbstractGenerator,
    u: Float[Array, "n k"],
    w: Float[Array, "n k"] | None = None,
    *,
    pairing: Pairing = "diagonal",
    solver: AbstractSolver,
    size: Float[Array, ""] | None = None,
    bulk: Float[Array, "n k"] | None = None,
    beside: Float[Array, " k"] | None = None,
    guess: Any = None,
) -> Form:
    """`⟨u_a, L⁺ w_b⟩` of shape `(k,)` or `(k, k)`, with a backward pass free of solves.

    It is a `jax.custom_vjp`: use reverse mode, to any order, and forward over reverse
    (`jax.hessian`). Forward mode alone raises; `PlainAutodiff()` allows it.

    **Arguments:**

    - `generator`: the operator `L + φφᵀ`.
    - `u`, `w`: columns orthogonal to the null vector of `L`. `w` is `u` by default.
    - `pairing`: `"diagonal"` for `a = b` only, `"gram"` for all pairs.
    - `solver`: how to solve.
    - `size`: the norm of what the columns are parts of, which sets their accuracy.
    - `bulk`: what the rounding errors in `u` are proportional to.
    - `beside`: the size of what the forms for `a = b` are added to, and so need not be
        known better than.
    - `guess`: where an iteration starts, from the `Form` of a system nearby.
    """
    if solver.is_differentiated_through:
        y, stats, _ = LinearSolve(generator, solver, 1)(u if w is None else w)
        return Form(pair(u, y, pairing), stats, None)
    if size is None:
        size = column_size(u)
    size, bulk, beside, guess = _freeze((size, bulk, beside, guess))
    return _form(generator, u, w, size, bulk, beside, guess, pairing, solver)
