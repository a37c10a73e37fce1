"""Kernels: recipes that hold no parameters, each a sampler and an exact chain."""

import abc
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import AxisType
from jaxtyping import Array, Int, Key, Num

from ..._numbers import positive_number
from ..._spins import check_spins, draw_spins, happens
from ...models import AbstractEnergyModel, log_stationary
from ...models._base import checked
from ...models._laws import log_laws
from ..chains._base import AbstractChain
from ..chains._scan import RelabelledChain, SystematicScanChain
from ..chains._single_flip import (
    AbstractFlipRule,
    HeatBath,
    Metropolis,
    SingleFlipChain,
)
from ..chains._two_block import Scan, TwoBlockChain


# Pyright knows an abstract class variable only by the name of a concrete one.
if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


# The next states, from a key and the states.
Stepper = Callable[
    [Key[Array, ""], Num[Array, "*batch n_units"]], Num[Array, "*batch n_units"]
]


_Method = TypeVar("_Method", bound=Callable[..., Stepper])


class AbstractKernel(eqx.Module):
    """A Markov kernel that leaves the law of every model invariant.

    A kernel has three faces: `step` samples, `chain` is the exact operator, and
    `site_updates` is the cost of a step. It holds no parameters, so every call takes
    the model. For a kernel of your own, `chain` may return a
    [`trainq.markov.DenseChain`][].
    """

    is_reversible: AbstractClassVar[bool]

    @eqx.filter_jit
    def step(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        x: Num[Array, "*batch n_units"],
    ) -> Num[Array, "*batch n_units"]:
        """One step of every chain in the batch, which are independent.

        **Arguments:**

        - `key`: random key.
        - `model`: the model.
        - `x`: ±1 spins of shape `(..., n_units)`, visible units first.

        **Returns:** the next states, in the shape and dtype of `x`.

        **Raises:** `ValueError` for a wrong shape or dtype; a run-time error for
        another value than ±1, or a parameter that is not finite.
        """
        step = on_any_mesh(type(self).stepper)(self, checked(model))
        return step(key, check_spins(x, model.n_units))

    @abc.abstractmethod
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        """`step` as a function of the key and the states, with what every step needs
        computed once: the body of a loop. The model has been checked, and the states
        will have been."""

    @abc.abstractmethod
    def chain(self, model: AbstractEnergyModel) -> AbstractChain:
        """The exact chain on all `2**n_units` states.

        **Raises:** `ValueError` if there are too many states; a run-time error if a
        parameter is not finite.
        """

    @abc.abstractmethod
    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        """Number of single-unit updates in one step, on average."""

    def steps(self, model: AbstractEnergyModel, sweeps: SupportsIndex | float) -> int:
        """A number of sweeps in kernel steps: what windows and burn-ins are counted in.

        **Arguments:**

        - `model`: the model.
        - `sweeps`: number of sweeps. One is `n_units` single-unit updates.

        **Returns:** the nearest whole number of steps, at least 1.

        **Raises:** `ValueError` if `sweeps` is not positive.
        """
        sweeps = positive_number("sweeps", sweeps)
        return max(1, round(sweeps * model.n_units / self.site_updates(model)))


def on_any_mesh(stepper: _Method) -> _Method:
    """A `stepper` that also takes chains over a mesh with *explicit* axes, where the
    type of an array says how it is laid out.

    A step gathers, scatters and draws, and its layouts are none of its business: it is
    compiled as on a mesh with automatic axes, and the states come out as they came in.
    """

    @wraps(stepper)
    def anywhere(kernel: Any, model: AbstractEnergyModel) -> Any:
        automatic = stepper(kernel, model)
        arrays, static = eqx.partition(model, eqx.is_array)

        def with_arrays(key, x, arrays):
            return stepper(kernel, eqx.combine(arrays, static))(key, x)

        def step(key, x):
            layout = jax.typeof(x).sharding
            if AxisType.Explicit not in layout.mesh.axis_types:
                return automatic(key, x)
            explicit: Any = jax.sharding.auto_axes(with_arrays, out_sharding=layout)
            return explicit(key, x, arrays)

        return step

    wrapped: Any = anywhere
    return wrapped


def checked_kernel(kernel: Any) -> AbstractKernel:
    """Return the kernel; a `TypeError` if it is none."""
    if isinstance(kernel, AbstractKernel):
        return kernel
    if isinstance(kernel, type):
        given = f"the class {kernel.__name__} was given: make an instance of it."
    else:
        given = f"an object of type {type(kernel).__name__} was given. Look at the "
        given += "order of the arguments."
    raise TypeError(f"kernel is a kernel such as `RandomScanGibbs()`, but {given}")


class AbstractSingleFlipKernel(AbstractKernel):
    """Choose a unit uniformly, and flip it with the probability of a rule."""

    rule: AbstractClassVar[AbstractFlipRule]

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        def step(key, x):
            flat = x.reshape(-1, model.n_units)
            unit_key, accept_key = jr.split(key)
            units = jr.randint(unit_key, flat.shape[:1], 0, model.n_units)
            field = jax.vmap(model.local_fields)(flat, units[:, None])[:, 0]
            chain = jnp.arange(flat.shape[0])
            spin = flat[chain, units]
            change = -2 * spin.astype(field.dtype) * field
            flips = happens(accept_key, self.rule.acceptance(change))
            new = jnp.where(flips, -spin, spin)
            return flat.at[chain, units].set(new).reshape(x.shape)

        return step

    def chain(self, model: AbstractEnergyModel) -> SingleFlipChain:
        return SingleFlipChain(
            log_stationary=log_stationary(model),
            rule=self.rule,
            is_symmetric=model.is_symmetric,
        )

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        del model
        return 1


class RandomScanGibbs(AbstractSingleFlipKernel):
    """Single-site Gibbs sampling (heat bath, Glauber dynamics) in random order.

    A step chooses one unit uniformly and draws it from its law given all others: it
    flips with probability `1 / (1 + exp(-Δ))`, where `Δ` is the change of `log π`.
    Reversible, and positive semi-definite. A sweep is `n_units` steps.

    ??? cite "Source"

        Glauber, *Time-dependent statistics of the Ising model*, J. Math. Phys. 4, 294,
        1963; Geman and Geman, IEEE Trans. Pattern Anal. 6, 721, 1984.
    """

    rule: ClassVar[AbstractFlipRule] = HeatBath()
    is_reversible: ClassVar[bool] = True


class RandomScanMetropolis(AbstractSingleFlipKernel):
    """Single-site Metropolis sampling in random order.

    A step chooses one unit uniformly and flips it with probability `min(1, exp(Δ))`,
    where `Δ` is the change of `log π`. Reversible, and by Peskun's ordering never
    noisier than [`trainq.RandomScanGibbs`][]. A sweep is `n_units` steps.

    ??? cite "Source"

        Metropolis et al., *Equation of state calculations by fast computing machines*,
        J. Chem. Phys. 21, 1087, 1953; Peskun, Biometrika 60, 607, 1973.
    """

    rule: ClassVar[AbstractFlipRule] = Metropolis()
    is_reversible: ClassVar[bool] = True


class AbstractBlockKernel(AbstractKernel):
    """Redraw whole layers, each from its law given the other."""

    scan: AbstractClassVar[Scan]

    def chain(self, model: AbstractEnergyModel) -> TwoBlockChain:
        return TwoBlockChain(
            *log_laws(model),
            scan=self.scan,
            is_symmetric=model.is_symmetric,
        )


class RandomScanBlockGibbs(AbstractBlockKernel):
    """Two-block Gibbs sampling in random order: `P = ½ (E_V + E_H)`.

    A step redraws all visible units given the hidden ones, or all hidden units given
    the visible ones, with probability one half each. Reversible. A step is
    `n_units / 2` site updates on average.

    ??? cite "Source"

        Liu, Wong and Kong, *Covariance structure and convergence rate of the Gibbs
        sampler with various scans*, J. R. Stat. Soc. B 57, 157, 1995.
    """

    scan: ClassVar[Scan] = "random"
    is_reversible: ClassVar[bool] = True

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        def step(key, x):
            coin, visible, hidden = jr.split(key, 3)
            heads = jr.bernoulli(coin, shape=(*x.shape[:-1], 1))
            return jnp.where(
                heads,
                model.sample_block(visible, x, "visible"),
                model.sample_block(hidden, x, "hidden"),
            )

        return step

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        return model.n_units / 2


class PalindromicBlockGibbs(AbstractBlockKernel):
    """Two-block Gibbs sampling visible–hidden–visible: `P = E_V E_H E_V`.

    Reversible, and positive semi-definite. A step is `2 n_visible + n_hidden` site
    updates.

    ??? cite "Source"

        Liu, Wong and Kong, *Covariance structure and convergence rate of the Gibbs
        sampler with various scans*, J. R. Stat. Soc. B 57, 157, 1995.
    """

    scan: ClassVar[Scan] = "palindromic"
    is_reversible: ClassVar[bool] = True

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        def step(key, x):
            first, middle, last = jr.split(key, 3)
            x = model.sample_block(first, x, "visible")
            x = model.sample_block(middle, x, "hidden")
            return model.sample_block(last, x, "visible")

        return step

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        return 2 * model.n_visible + model.n_hidden


class AlternatingBlockGibbs(AbstractBlockKernel):
    """Two-block Gibbs sampling, visible then hidden: `P = E_V E_H`.

    What block-Gibbs hardware and contrastive divergence run. It leaves the law
    invariant but is **not reversible**: it has no real spectrum, no gap and no Cheeger
    bound, and functions that need these raise. A step is one sweep, `n_units` site
    updates. A layer without a closed form is drawn by enumeration, and a model without
    hidden units is then drawn independently in every step, at no honest cost.

    ??? cite "Source"

        Hinton, *Training products of experts by minimizing contrastive divergence*,
        Neural Computation 14, 1771, 2002.
    """

    scan: ClassVar[Scan] = "alternating"
    is_reversible: ClassVar[bool] = False

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        def step(key, x):
            visible, hidden = jr.split(key)
            x = model.sample_block(visible, x, "visible")
            return model.sample_block(hidden, x, "hidden")

        return step

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        return model.n_units


class SystematicScanGibbs(AbstractKernel):
    """Gibbs sampling in a fixed order, block after block (the chromatic sampler).

    A step is one sweep: every block in turn is redrawn at once, given all other units.
    The units of a block must not interact. It leaves the law invariant but is **not
    reversible**. It is what sparse hardware and thrml run, and how models with tens of
    thousands of units are sampled. A step is `n_units` site updates.

    Two blocks make an exact chain that reduces to the smaller one; more make a chain
    whose systems are solved densely, for up to 13 units.

    !!! example

        ```python
        kernel = tq.SystematicScanGibbs(model.colouring())
        ```

    ??? cite "Source"

        Gonzalez, Low, Gretton and Guestrin, *Parallel Gibbs sampling: from colored
        fields to thin junction trees*, AISTATS 2011.
    """

    blocks: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    is_reversible: ClassVar[bool] = False

    def __init__(self, blocks: Iterable[Sequence[int] | Int[Any, " units"]]):
        """**Arguments:**

        - `blocks`: the units of each block, in the order of the scan. Together they are
            all units of the model, each of them once, as in
            [`trainq.BoltzmannMachine.colouring`][].

        **Raises:** `ValueError` for blocks that are empty, or do not hold every unit
        once. Using the kernel raises a `ValueError` for a model with another number of
        units, or if two units of a block interact.
        """
        if isinstance(blocks, AbstractEnergyModel):
            raise ValueError(
                "A scan takes blocks of units, but a model was given: use "
                "`SystematicScanGibbs(model.colouring())`."
            )
        arrays = [np.asarray(block) for block in blocks]
        if any(b.ndim != 1 or b.size == 0 or b.dtype.kind not in "iu" for b in arrays):
            raise ValueError(
                "A scan takes a sequence of blocks, each a sequence of at least one "
                "unit by number, as `model.colouring()` makes them, but "
                f"{blocks!r} was given."
            )
        self.blocks = tuple(tuple(block.tolist()) for block in arrays)
        if not arrays:
            raise ValueError("A scan has at least one block, but none was given.")
        units, counts = np.unique(np.concatenate(arrays), return_counts=True)
        missing = np.setdiff1d(np.arange(units[-1] + 1), units)
        wrong = [f"unit {unit} is missing" for unit in missing[:3]]
        wrong += [f"unit {unit} is there twice" for unit in units[counts > 1][:3]]
        if wrong or units[0] < 0:
            raise ValueError(
                "The blocks of a scan hold every unit from 0 on once, but in "
                f"{self} {', '.join(wrong) or f'there is a unit {units[0]}'}. "
                "`model.colouring()` makes such blocks."
            )

    def __repr__(self) -> str:
        sizes = [len(block) for block in self.blocks]
        return f"SystematicScanGibbs({len(sizes)} blocks, of {sizes} units)"

    def _check_size(self, model: AbstractEnergyModel) -> None:
        n_units = sum(map(len, self.blocks))
        if n_units != model.n_units:
            raise ValueError(
                f"This scan has {n_units} units in its blocks, but the model has "
                f"{model.n_units}. Use `SystematicScanGibbs(model.colouring())`."
            )

    def _check(self, model: AbstractEnergyModel) -> None:
        self._check_size(model)
        colours = np.empty(model.n_units, int)
        for colour, block in enumerate(self.blocks):
            colours[list(block)] = colour
        conflict = model.conflict(colours)
        if conflict is not None:
            raise ValueError(
                f"Two units of one block interact, {conflict[0]} and {conflict[1]}: "
                "they cannot be redrawn at once. Blocks that can are those of "
                "`model.colouring()`."
            )

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        self._check(model)

        # States go along the last axis in here: what moves then are rows.
        def redraw(key, rows, units):
            spins = draw_spins(key, model.local_fields(rows.T, units).T)
            return rows.at[units].set(spins.astype(rows.dtype)), None

        def step(key, x):
            rows = x.reshape(-1, model.n_units).T
            keys = jr.split(key, len(self.blocks))
            if max(map(len, self.blocks)) == 1:
                # One by one: too many to write out.
                units = jnp.asarray(self.blocks, jnp.int32)
                rows, _ = jax.lax.scan(
                    lambda rows, now: redraw(now[0], rows, now[1]), rows, (keys, units)
                )
            else:
                for key, block in zip(keys, self.blocks, strict=True):
                    rows, _ = redraw(key, rows, jnp.asarray(block, jnp.int32))
            return rows.T.reshape(x.shape)

        return step

    def chain(self, model: AbstractEnergyModel) -> AbstractChain:
        self._check(model)
        if len(self.blocks) == 2:
            visible, hidden = map(tuple, map(sorted, self.blocks))
            if visible == tuple(range(model.n_visible)):
                return AlternatingBlockGibbs().chain(model)
            blocks = (visible, hidden)
            law = log_stationary(model)
            return RelabelledChain(law, blocks, "alternating", model.is_symmetric)
        return SystematicScanChain(
            log_stationary=log_stationary(model),
            order=sum(self.blocks, ()),
            is_symmetric=model.is_symmetric,
        )

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        self._check_size(model)
        return model.n_units
