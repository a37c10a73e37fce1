"""Series of a run as the `DataTree` of ArviZ, for its diagnostics, tables and plots."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from .._checks import needed_for, require_concrete
from ..models import (
    RBM,
    AbstractEnergyModel,
    BoltzmannMachine,
    Clamped,
    Tempered,
    parameters,
    require_model,
)


with needed_for("trainq.interop.arviz", "arviz-base"):
    import arviz_base
    from xarray import DataTree


def to_datatree(
    values: Float[Array | np.ndarray, "chains steps n_obs"],
    of: AbstractEnergyModel | Sequence[str],
    *,
    group: str = "posterior",
) -> DataTree:
    """The values that a run has kept as a `DataTree` with the dimensions `chain` and
    `draw`: what `ess`, `rhat`, `summary` and the plots of ArviZ take.

    **Arguments:**

    - `values`: `(chains, steps, n_obs)`, as [`trainq.sampling.run`][] keeps them.
    - `of`: the model, if they are those of its gradient observables, as they are by
        default: there is a variable for each of its parameters, by its name, with the
        values of `∂E/∂θ`, such as `-v_i h_j` for `weights`. Or a list of names, one for
        each of the functions that were given.
    - `group`: the group that they are in. Functions of ArviZ look into `"posterior"`;
        the name says nothing here, as no law is conditioned on data.

    **Returns:** an `xarray.DataTree`. A variable has the shape of its parameter, with
    the dimensions

    - `visible` and `hidden` of an [`trainq.RBM`][], numbered as rows and columns of its
        weights;
    - `edge` of a [`trainq.BoltzmannMachine`][], named by the units, as `"0-1"`, and
        `unit`;
    - and those that ArviZ makes, of any other model.

    **Raises:** `ValueError` for a wrong shape, another number of names than there are
    functions, or one name twice, and under `jax.jit` and its like.

    !!! example

        ```python
        from arviz_stats import ess
        from trainq.interop.arviz import to_datatree

        kernel = tq.RandomScanGibbs()
        state = tq.start_chains(key, model, 4)
        run = tq.run(kernel, model, state, 200, keep=True)
        tree = to_datatree(run.values, model)
        print(ess(tree)["weights"].sel(visible=0, hidden=1))
        ```
    """
    require_concrete("A DataTree", values=values, of=of)
    shape = getattr(values, "shape", None)
    if shape is None or len(shape) != 3:
        given = f"a {type(values).__name__}" if shape is None else shape
        raise ValueError(
            "values have shape (chains, steps, n_obs), as `run(..., keep=True).values`,"
            f" but {given} was given."
        )
    if isinstance(of, AbstractEnergyModel):
        variables = _of_parameters(of)
    elif isinstance(of, str) or len(set(of)) != len(of):
        raise ValueError(
            f"of is a model, or a list of names, each another one, but {of!r} was "
            "given."
        )
    else:
        variables = {name: _Variable((), {}) for name in of}
    sizes = [math.prod(one.shape) for one in variables.values()]
    if sum(sizes) != np.shape(values)[2]:
        known = "parameters" if isinstance(of, AbstractEnergyModel) else "names"
        raise ValueError(
            f"There are values of {np.shape(values)[2]} functions, but {sum(sizes)} "
            f"{known}. Give a name for each of the functions of the run."
        )
    columns = np.split(np.asarray(values), np.cumsum(sizes)[:-1], axis=2)
    data = {
        name: column.reshape(*column.shape[:2], *one.shape)
        for (name, one), column in zip(variables.items(), columns, strict=True)
    }
    dims = {name: list(one.coords) for name, one in variables.items() if one.coords}
    coords = {k: c for one in variables.values() for k, c in one.coords.items()}
    return arviz_base.from_dict({group: data}, dims=dims, coords=coords)


class _Variable(NamedTuple):
    """The shape of a parameter, and the coordinates of its axes; none if they have no
    names."""

    shape: tuple[int, ...]
    coords: dict[str, Any]


def _of_parameters(model: AbstractEnergyModel) -> dict[str, _Variable]:
    """A variable for each parameter, in the order of the observables."""
    require_model(model)
    while isinstance(model, Clamped | Tempered):  # whose parameters are of this one
        model = model.model
    found = {}
    parts, _ = jax.tree_util.tree_flatten_with_path(
        parameters(model), is_leaf=lambda part: isinstance(part, _Machine)
    )
    for path, part in parts:
        name = jax.tree_util.keystr(path).lstrip(".")
        if not isinstance(part, _Machine):
            found[name] = _Variable(part.shape, {})
            continue
        prefix = f"{name}." if name else ""
        for field, coords in _coordinates(part).items():
            leaf = getattr(part, field)
            if leaf is not None:
                coords = {prefix + axis: numbers for axis, numbers in coords.items()}
                found[prefix + field] = _Variable(leaf.shape, coords)
    return found


_Machine = RBM | BoltzmannMachine


def _coordinates(machine: _Machine) -> dict[str, dict[str, Any]]:
    """Those of each parameter, in the order of the observables."""
    if isinstance(machine, RBM):
        visible = {"visible": np.arange(machine.n_visible)}
        hidden = {"hidden": np.arange(machine.n_hidden)}
        return {
            "weights": visible | hidden,
            "visible_bias": visible,
            "hidden_bias": hidden,
        }
    edges = [f"{i}-{j}" for i, j in machine.edges.tolist()]
    return {
        "couplings": {"edge": edges},
        "bias": {"unit": np.arange(machine.n_units)},
    }
