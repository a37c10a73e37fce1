"""Kernels: recipes that hold no parameters, each a sampler and an exact chain."""

import abc
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

import equinox as eqx
from jaxtyping import Array, Key, Num

from ..._checks import positive_number
from ..._meshes import explicit_layout, on_automatic_axes
from ..._spins import check_spins, compiled_with_spins
from ...models import AbstractEnergyModel, checked
from ..chains import AbstractChain, AbstractScan
from ._visits import Visit


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

    @compiled_with_spins("x")
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

        **Raises:** `ValueError` for a wrong shape or dtype, or another value than ±1;
        a run-time error for a parameter that is not finite.
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

    def adjoint(self) -> "AbstractKernel":
        """The kernel of the reversed chain `P*`, with `π(x) P*(x, y) = π(y) P(y, x)`.

        A reversible kernel is its own. A block kernel redraws its blocks backwards, and
        a kernel made of others is made of their adjoints.

        **Raises:** `ValueError` if the kernel is not reversible and does not know it.
        """
        if self.is_reversible:
            return self
        raise ValueError(
            f"{type(self).__name__} is not reversible and does not know its adjoint. "
            "Give it a method `adjoint`, that returns the kernel of the reversed chain."
        )

    def rescanned(
        self, change: Callable[[AbstractScan], AbstractScan]
    ) -> "AbstractKernel | None":
        """The kernel with another scan in the place of its own; None if it has no scan.

        **Arguments:**

        - `change`: the other scan, from its own.

        **Returns:** a kernel, or None.
        """
        del change
        return None

    @property
    def shares_coins(self) -> bool:
        """Whether one random number decides for all chains of a step: each chain is
        right by itself, but they are not independent of each other."""
        return False

    def visits(self, model: AbstractEnergyModel) -> tuple[Visit, ...] | None:
        """What one step shows of its redraws: the units that are drawn from their law
        given all others, and which of these were new by then. What a sampler that
        claims to be this kernel is held to, by [`trainq.certify_sampler`][].

        **Arguments:**

        - `model`: the model.

        **Returns:** a [`trainq.markov.Visit`][] for every such block; None if the
        states before and after a step do not tell.
        """
        del model
        return None

    def replicas(self, model: AbstractEnergyModel) -> tuple[AbstractEnergyModel, ...]:
        """The models that run side by side, the first of which is the model itself:
        that alone, but in [`trainq.ParallelTempering`][]. The law of the kernel is the
        product of theirs, and a state that of all of them, `(..., replicas, n_units)`,
        if there are several."""
        return (model,)

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
    """A `stepper` that also takes chains over a mesh with *explicit* axes: the states
    come out as they came in."""

    @wraps(stepper)
    def anywhere(kernel: Any, model: AbstractEnergyModel) -> Any:
        automatic = stepper(kernel, model)

        def anew(trees):
            key, x, model = trees
            return stepper(kernel, model)(key, x)

        def step(key, x):
            layout = explicit_layout(x)
            if layout is None:
                return automatic(key, x)
            return on_automatic_axes(anew, (key, x, model), layout)

        return step

    wrapped: Any = anywhere
    return wrapped


def checked_kernel(kernel: Any) -> AbstractKernel:
    """Return the kernel.

    **Raises:** `TypeError` if it is none.
    """
    if isinstance(kernel, AbstractKernel):
        return kernel
    if isinstance(kernel, type):
        given = f"the class {kernel.__name__} was given: make an instance of it."
    else:
        given = f"an object of type {type(kernel).__name__} was given. Look at the "
        given += "order of the arguments."
    raise TypeError(f"kernel is a kernel such as `RandomScanGibbs()`, but {given}")
