"""Binary quadratic models of dimod, and what D-Wave's samplers know of them exactly."""

from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, Num

from .._checks import check_key, needed_for, require_concrete, whole_number
from .._show import AbstractShown, Table
from ..models import (
    AbstractEnergyModel,
    Data,
    SampleWeights,
    check_data,
    check_weights,
    data_phase,
)
from ._bqm import (
    WHAT,
    from_bqm as from_bqm,
    from_sampleset as from_sampleset,
    to_bqm as to_bqm,
    to_sampleset as to_sampleset,
)
from ._pairwise import pairwise


# Of which the tables of D-Wave's solver take a GiB.
_MAX_TREEWIDTH = 25


class ExactLaw(AbstractShown):
    """What is known exactly of a model whose graph has a low treewidth."""

    model: AbstractEnergyModel
    """The model."""
    log_partition: Float[Array, ""]
    """`log Z`, nats."""
    mean_observables: Float[Array, " n_parameters"]
    """`E_π[f_a]` for every parameter, as of [`trainq.mean_observables`][]."""
    treewidth: int = eqx.field(static=True)
    """The treewidth of the graph in the order of elimination that was found: work and
    memory grow as `2**treewidth`."""
    order: tuple[int, ...] = eqx.field(static=True)
    """The order in which units are eliminated."""

    def draw(self, key: Key[Array, ""], n_states: SupportsIndex) -> Num[Array, "..."]:
        """Independent states from the law of the model, exactly.

        **Arguments:**

        - `key`: random key: of it comes the seed of D-Wave's sampler.
        - `n_states`: their number.

        **Returns:** `(n_states, n_units)` spins, such as
        `trainq.sampling.ChainState.begin` starts chains from.

        **Raises:** `ValueError` under `jax.jit` and its like.
        """
        check_key(key)
        require_concrete("A draw by D-Wave's sampler", key=key)
        n_states = whole_number("n_states", n_states)
        found = _solve(
            self.model, self.order, num_reads=n_states, marginals=False, seed=_seed(key)
        )
        x = np.empty((n_states, self.model.n_units))
        x[:, list(found.variables)] = found.record.sample
        return jnp.asarray(x, self.model.dtype)

    def log_likelihood(
        self, samples: Data, weights: SampleWeights | None = None
    ) -> Float[Array, ""]:
        """[`trainq.log_likelihood`][] of samples, nats.

        **Arguments:**

        - `samples`: `(samples, n_visible)` spins.
        - `weights`: `(samples,)`, how much each sample counts. All alike, by default.

        **Returns:** a number.

        **Raises:** as `trainq.log_likelihood`; `ValueError` for hidden units of which
        more than 20 have to be enumerated.
        """
        data = check_data(samples, self.model)
        shares = check_weights(weights, data)
        energies = self.model.free_energy(data)
        mean = jnp.mean(energies) if shares is None else shares @ energies
        return -mean - self.log_partition

    def kl_gradient(
        self, data: Data, weights: SampleWeights | None = None
    ) -> Float[Array, " n_parameters"]:
        """[`trainq.kl_gradient`][] of samples, or of a law: what
        [`trainq.sampling.QSampled`][] takes for the true `gradient`.

        **Arguments:**

        - `data`, `weights`: as for `trainq.kl_gradient`.

        **Returns:** one number for each parameter.

        **Raises:** as `log_likelihood`.
        """
        data = check_data(data, self.model)
        phase = data_phase(self.model, data, check_weights(weights, data))
        return phase - self.mean_observables

    def _shown(self) -> list[str | Table]:
        return [
            f"{self.model.n_units} units of a graph of treewidth {self.treewidth}: "
            f"log Z = {float(self.log_partition):.10g}"
        ]


def exact(model: AbstractEnergyModel) -> ExactLaw:
    """`log Z`, the means of all observables and independent draws of a pairwise model
    with any number of units, exactly, by eliminating one unit after another, as
    D-Wave's `TreeDecompositionSampler` does. What counts is the treewidth of the graph:
    1 of a tree, 2 of a ring, `L` of a grid of `L × L`.

    Numbers are those of C++ code in float64: they have no derivatives.

    **Arguments:**

    - `model`: as for [`trainq.interop.dimod.to_bqm`][].

    **Returns:** a [`trainq.interop.dimod.ExactLaw`][].

    **Raises:** `ImportError` without the package dwave-samplers; `ValueError` for a
    treewidth above [25](../choosing.md#low-treewidth); and as `to_bqm`.

    !!! example

        ```python
        from trainq.interop.dimod import exact

        law = exact(model)
        x = law.draw(key, 100)
        chains = tq.sampling.ChainState.begin(x, key)
        ```

    ??? cite "Source"

        Dechter, *Bucket elimination: a unifying framework for reasoning*, Artif.
        Intell. 113, 41, 1999; Gogate and Dechter, *A complete anytime algorithm for
        treewidth*, UAI 2004, for the order.
    """
    require_concrete("An exact law", model=model)
    width, order = _tree_solver()[0](to_bqm(model))
    order = tuple(map(int, order))
    if width > _MAX_TREEWIDTH:
        raise ValueError(
            f"An exact law takes a treewidth of at most {_MAX_TREEWIDTH}, but the "
            f"graph of this {type(model).__name__} has one of {width}, in the best "
            "order that was found. `trainq.sampling.annealed_importance` estimates log "
            "Z of any model."
        )
    found = _solve(model, order, num_reads=1, marginals=True, seed=0).info
    (edges, couplings, _), pull = _vjp(model)
    pairs = {frozenset(k): p for k, p in found["interaction_marginals"].items()}
    products = np.empty(len(edges))
    for i, edge in enumerate(edges.tolist()):
        products[i] = sum(s * t * p for (s, t), p in pairs[frozenset(edge)].items())
    up = np.array([found["variable_marginals"][i] for i in range(model.n_units)])
    dtype = couplings.dtype
    means = pull((jnp.asarray(-products, dtype), jnp.asarray(1 - 2 * up, dtype)))
    return ExactLaw(
        model=model,
        log_partition=jnp.asarray(found["log_partition_function"], dtype),
        mean_observables=ravel_pytree(means)[0],
        treewidth=int(width),
        order=order,
    )


def _vjp(model: AbstractEnergyModel) -> tuple[tuple[np.ndarray, Array, Array], Any]:
    """As `pairwise`, and the way back: means `E[∂E/∂θ]` of the parameters of a model
    from those of `∂E/∂J = -x_i x_j` and `∂E/∂b = -x_i`."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    edges = pairwise(model, WHAT)[0]
    both, pull = jax.vjp(lambda p: pairwise(eqx.combine(p, static), WHAT)[1:], params)
    return (edges, *both), lambda means: pull(means)[0]


def _tree_solver() -> tuple[Any, Any]:
    """D-Wave's heuristic for orders of elimination, and its sampler."""
    with needed_for("trainq.interop.dimod.exact", "dwave-samplers"):
        from dwave.samplers import TreeDecompositionSampler
        from dwave.samplers.tree.utilities import min_fill_heuristic
    return min_fill_heuristic, TreeDecompositionSampler()


def _solve(model: AbstractEnergyModel, order: tuple[int, ...], **options: Any) -> Any:
    _, sampler = _tree_solver()
    bqm = to_bqm(model)
    # D-Wave's solver forgets what is zero: the marginals of an interaction, and of a
    # unit that stands alone also its share of log Z. So it is too small to matter.
    for (i, j), coupling in list(bqm.quadratic.items()):
        bqm.set_quadratic(i, j, coupling or np.finfo(float).tiny)
    for i, field in list(bqm.linear.items()):
        bqm.set_linear(i, field or np.finfo(float).tiny)
    return sampler.sample(bqm, elimination_order=list(order), **options)


def _seed(key: Key[Array, ""]) -> int:
    return int(jr.bits(key, (), jnp.uint32)) >> 1
