"""Autocorrelation times, exactly."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..solvers import AbstractSolver, checked_solver
from ._resolvent import resolvent_form
from ._windows import variance
from .chains import AbstractChain, AbstractFunctions, Sector, Table, require_chain


TimeConvention = Literal["sokal", "half", "resolvent"]
"""What an autocorrelation time sums: `"sokal"` is `1 + 2 Σ_{t≥1} ρ(t)`, `"half"` is
half of that, `½ + Σ_{t≥1} ρ(t)`, and `"resolvent"` is `Σ_{t≥0} ρ(t)`."""


@eqx.filter_jit
def autocorrelation_times(
    chain: AbstractChain,
    f: Float[Array, "states *obs"] | AbstractFunctions,
    *,
    convention: TimeConvention = "sokal",
    sector: Sector | None = None,
    solver: AbstractSolver | None = None,
) -> Float[Array, "*obs"]:
    """The integrated autocorrelation time of every observable, in kernel steps: exact,
    and differentiable. One solve for each of them, and no covariance of pairs.

    Three conventions are in use. With `ρ_a(t)` the autocorrelation and
    `T_a = ⟨f̃_a, R f̃_a⟩`:

    | convention | sum | from the resolvent | independent samples |
    |---|---|---|---|
    | `"sokal"` | `1 + 2 Σ_{t≥1} ρ` | `(2 T_a - Var f_a) / Var f_a` | 1 |
    | `"half"` | `½ + Σ_{t≥1} ρ` | `(T_a - ½ Var f_a) / Var f_a` | ½ |
    | `"resolvent"` | `Σ_{t≥0} ρ` | `T_a / Var f_a` | 1 |

    The first is what [`trainq.sampling.autocorrelation_time`][] estimates from samples,
    and what multiplies `Var f_a / K` in the error of a long window. The last is the
    mean relaxation time of the observable, one over the gap if it is a single mode.

    **Arguments:**

    - `chain`: the chain, reversible or not.
    - `f`: `(states,)` or `(states, n_obs)`; or functions that need not exist all at
        once, as [`trainq.markov.EnergyGradients`][].
    - `convention`: which sum.
    - `sector`: `"even"` or `"odd"` to promise a parity of every function, as for
        [`trainq.markov.resolvent_trace`][].
    - `solver`: how to solve, [`trainq.Auto`][] by default.

    **Returns:** a time for each observable, of the shape of `f` at one state.

    **Raises:** `ValueError` for a wrong shape, another convention, or too many states;
    a run-time error if an observable is constant, which has no correlation, or the
    chain is reducible in floating point.

    !!! example

        ```python
        chain = tq.AlternatingBlockGibbs().chain(model)
        f = tq.observables(model)
        print(tq.markov.autocorrelation_times(chain, f))
        ```

    ??? cite "Source"

        Sokal, *Monte Carlo methods in statistical mechanics: foundations and new
        algorithms*, 1997.
    """
    require_chain(chain)
    if convention not in ("sokal", "half", "resolvent"):
        raise ValueError(
            'The convention of an autocorrelation time is "sokal", "half" or '
            f'"resolvent", but {convention!r} was given.'
        )
    shape = None
    if not isinstance(f, AbstractFunctions):
        f = jnp.asarray(f)
        shape = f.shape[1:]
        f = Table(chain.centre(f).reshape(chain.n_states, -1))
    form = resolvent_form(chain, f, solver=checked_solver(solver), sector=sector)
    var = variance(chain, f)
    var = eqx.error_if(
        var,
        ~jnp.all(var > 0),
        "An observable is constant: it has no autocorrelation. Leave it out.",
    )
    relaxation = form.value / var
    relaxation = relaxation if shape is None else relaxation.reshape(shape)
    if convention == "resolvent":
        return relaxation
    return 2 * relaxation - 1 if convention == "sokal" else relaxation - 0.5
