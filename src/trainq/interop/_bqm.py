"""Binary quadratic models and sample sets of dimod, and back."""

from collections.abc import Hashable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from .._checks import needed_for, require_concrete
from .._spins import check_spins
from ..models import AbstractEnergyModel, BoltzmannMachine, checked
from ._pairwise import pairwise, units_of


with needed_for("trainq.interop.dimod", "dimod"):
    import dimod


WHAT = "A binary quadratic model"


def to_bqm(model: AbstractEnergyModel) -> dimod.BinaryQuadraticModel:
    """The binary quadratic model of a pairwise model, in spins, with its energies:
    `Σ J_ij s_i s_j + Σ h_i s_i`. Its signs are the other way round than those of
    trainq, where a coupling that is positive aligns spins, and so couplings and fields
    change theirs.

    **Arguments:**

    - `model`: an [`trainq.RBM`][], a [`trainq.BoltzmannMachine`][], one with a
        temperature, which is multiplied in, or a model with such an `equivalent`.

    **Returns:** a `dimod.BinaryQuadraticModel` whose variables are the units, numbered
    from 0, visible units first. Its `change_vartype("BINARY")` makes bits of them.

    **Raises:** `ValueError` for a model that is not pairwise, and under `jax.jit` and
    its like; a run-time error if a parameter is not finite.

    !!! example

        ```python
        from trainq.interop.dimod import to_bqm

        bqm = to_bqm(model)
        assert bqm.num_variables == model.n_units
        ```
    """
    require_concrete(WHAT, model=model)
    edges, couplings, fields = pairwise(checked(model), WHAT)
    linear = dict(enumerate(-np.asarray(fields, float)))
    pairs = map(tuple, edges.tolist())
    quadratic = dict(zip(pairs, -np.asarray(couplings, float), strict=True))
    return dimod.BinaryQuadraticModel(linear, quadratic, 0.0, dimod.SPIN)


def from_bqm(
    bqm: dimod.BinaryQuadraticModel,
    n_visible: int | None = None,
    *,
    variables: Iterable[Hashable] | None = None,
    with_biases: bool = True,
) -> BoltzmannMachine:
    """The Boltzmann machine of a binary quadratic model, of spins or of bits: the
    inverse of [`trainq.interop.dimod.to_bqm`][].

    A machine has no constant of energy, on which no law depends. Energies of dimod are
    `model.energy(x) + bqm.spin.offset`.

    **Arguments:**

    - `bqm`: the model, such as dimod's `coo.load` or `BinaryQuadraticModel.from_file`
        reads.
    - `n_visible`: how many of the units are visible, which come first. All, by default.
    - `variables`: the variable of each unit, in order, where these are not the numbers
        of the units. One that the model lacks is a unit that stands alone.
    - `with_biases`: whether the biases are parameters. A binary quadratic model always
        has them; where all of them are zero, in spins, False makes a machine without,
        which is symmetric under the global flip.

    **Returns:** a [`trainq.BoltzmannMachine`][] with an edge for every interaction,
    sorted by the units, also where its bias is zero.

    **Raises:** `ValueError` for another thing than such a model, variables that are not
    those of the model, or biases that are left out and not zero.

    !!! example

        ```python
        import dimod
        from trainq.interop.dimod import from_bqm

        qubo = {("a", "a"): -1.0, ("a", "b"): 2.0}
        bqm = dimod.BinaryQuadraticModel.from_qubo(qubo)
        model = from_bqm(bqm, variables=["a", "b"])
        energy = model.energy(jnp.array([1, 1])) + bqm.spin.offset
        assert jnp.isclose(energy, bqm.energy({"a": 1, "b": 1}))
        ```
    """
    if not isinstance(bqm, dimod.BinaryQuadraticModel):
        raise ValueError(
            "bqm is a `dimod.BinaryQuadraticModel`, but a "
            f"{type(bqm).__name__} was given."
        )
    units = units_of(bqm.variables, variables, "variables", may_add=True)
    spin = bqm.change_vartype(dimod.SPIN, inplace=False)
    bias = np.zeros(len(units))
    for name, field in spin.linear.items():
        bias[units[name]] = -field
    if not with_biases and np.any(bias):
        raise ValueError(
            "with_biases=False leaves biases out that are zero, but those of this "
            "model are not, in spins."
        )
    pairs = [[units[one] for one in pair] for pair in spin.quadratic]
    edges = np.sort(np.array(pairs, int).reshape(-1, 2), axis=1)
    order = np.lexsort(edges.T[::-1])
    couplings = -np.array(list(spin.quadratic.values()), float)
    return BoltzmannMachine.from_edges(
        edges[order],
        couplings[order],
        bias if with_biases else None,
        n_visible,
        n_units=len(units),
    )


def to_sampleset(
    model: AbstractEnergyModel, x: Num[Array | np.ndarray, "*batch n_units"]
) -> dimod.SampleSet:
    """States as a sample set of dimod: each of them once, with its energy and with how
    often it occurs.

    **Arguments:**

    - `model`: any model, also one that is not pairwise.
    - `x`: ±1 spins of any leading shape, such as the states of chains.

    **Returns:** a `dimod.SampleSet` of spins, whose variables are the units, numbered
    from 0.

    **Raises:** `ValueError` for a wrong shape, another value than ±1, and under
    `jax.jit` and its like; a run-time error for a parameter that is not finite.

    !!! example

        ```python
        from trainq.interop.dimod import to_sampleset

        samples = to_sampleset(model, tq.start_chains(key, model, 100).x)
        assert samples.record.num_occurrences.sum() == 100
        ```
    """
    require_concrete("A sample set", model=model, x=x)
    model = checked(model)
    x = check_spins(jnp.asarray(x), model.n_units).reshape(-1, model.n_units)
    energies = jax.vmap(model.energy)(x.astype(model.dtype))
    return dimod.SampleSet.from_samples(
        (np.asarray(x, np.int8), range(model.n_units)),
        dimod.SPIN,
        energy=np.asarray(energies, float),
        aggregate_samples=True,
    )


def from_sampleset(
    samples: dimod.SampleSet, *, variables: Iterable[Hashable] | None = None
) -> tuple[Float[Array, "samples n_units"], Int[Array, " samples"]]:
    """The states of a sample set, of spins or of bits, and how often each occurs: what
    functions of trainq take for samples and their `weights`, and for the starts of
    chains.

    **Arguments:**

    - `samples`: what a sampler of D-Wave returns.
    - `variables`: as for [`trainq.interop.dimod.from_bqm`][], all of which have a
        value.

    **Returns:** `(samples, n_units)` spins, and `(samples,)` numbers of occurrences.

    **Raises:** `ValueError` for another thing than a sample set, one of integers, or
    variables that are not those of the sample set.

    !!! example

        ```python
        from trainq.interop.dimod import from_sampleset, to_sampleset

        drawn = to_sampleset(model, model.draw(key, 100))
        x, weights = from_sampleset(drawn)
        visible = x[:, : model.n_visible]
        print(tq.log_likelihood(model, visible, weights))
        ```
    """
    if not isinstance(samples, dimod.SampleSet):
        raise ValueError(
            f"samples is a `dimod.SampleSet`, but a {type(samples).__name__} was given."
        )
    if samples.vartype not in (dimod.SPIN, dimod.BINARY):
        raise ValueError(
            "samples are of spins or of bits, but a sample set of the type "
            f"{samples.vartype.name} was given."
        )
    units = units_of(samples.variables, variables, "variables")
    values = samples.record.sample
    values = values if samples.vartype is dimod.SPIN else 2 * values - 1
    x = np.empty(values.shape)
    x[:, [units[one] for one in samples.variables]] = values
    return jnp.asarray(x), jnp.asarray(samples.record.num_occurrences)
