"""Kernels made of kernels."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, SupportsIndex

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax

from ..._checks import whole_number
from ..._random import split
from ...models import AbstractEnergyModel
from ..chains import AbstractChain, MixtureChain, PowerChain, ThereAndBackChain
from ._base import AbstractKernel, Stepper, checked_kernel, on_any_mesh


class Symmetrised(AbstractKernel):
    """`½ (P + P*)`: a step of a kernel or of its adjoint, each half of the time.

    It makes a reversible kernel of one that is not, such as a sweep in a fixed order:
    forwards or backwards, by a coin. With a real spectrum, a gap and a Cheeger bound,
    and for two layers solved on one of them, like the scans that it is made of. A
    reversible kernel stays what it is. A step costs as much as one of the kernel.

    One coin a step decides for all chains, so that only one of the two runs. Each chain
    by itself is the same as with a coin of its own. See [coins that are
    shared](../sampling.md#coins-that-are-shared).

    !!! example

        ```python
        sweep = tq.AlternatingBlockGibbs()
        kernel = tq.Symmetrised(sweep)
        print(tq.certify(kernel, model))
        print(tq.QStruct(kernel, window=250)(model, data))
        ```
    """

    kernel: AbstractKernel
    shared: bool = eqx.field(static=True)
    is_reversible: ClassVar[bool] = True

    def __init__(self, kernel: AbstractKernel, *, shared: bool = True):
        """**Arguments:**

        - `kernel`: the kernel, one that knows its adjoint.
        - `shared`: whether one coin decides for all chains of a step. Otherwise each
            has its own, and both kernels run.

        **Raises:** `ValueError` for a kernel that does not know its adjoint.
        """
        self.kernel = checked_kernel(kernel)
        self.shared = shared
        kernel.adjoint()

    def __repr__(self) -> str:
        return _shown(self, self.kernel, shared=(self.shared, True))

    @property
    def shares_coins(self) -> bool:
        return self.kernel.shares_coins or (
            self.shared and not self.kernel.is_reversible
        )

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        if self.kernel.is_reversible:
            return self.kernel.stepper(model)
        both = [k.stepper(model) for k in (self.kernel, self.kernel.adjoint())]
        return _one_of(both, (0.5, 0.5), self.shared, self.replicas(model))

    def chain(self, model: AbstractEnergyModel) -> AbstractChain:
        if self.kernel.is_reversible:
            return self.kernel.chain(model)
        scanned = self.kernel.rescanned(lambda scan: scan.symmetrised())
        if scanned is not None:
            return scanned.chain(model)
        there, back = self.kernel.chain(model), self.kernel.adjoint().chain(model)
        return MixtureChain((there, back), (0.5, 0.5), is_reversible=True)

    def replicas(self, model: AbstractEnergyModel) -> tuple[AbstractEnergyModel, ...]:
        return self.kernel.replicas(model)

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        return self.kernel.site_updates(model)


class Palindrome(AbstractKernel):
    """`P P*`: a step of a kernel, and then one of its adjoint. There and back again.

    Reversible, and positive semi-definite, since `⟨f, P P* f⟩ = ‖P* f‖²`: no function
    has a negative autocovariance, at any lag. The same holds for `P* P`, which begins
    at the other end: it is `Palindrome(kernel.adjoint())`, and has the same eigenvalues
    but for zeros.

    Of a block kernel it begins and ends with the first block, and the last one is
    redrawn once and not twice: that of [`trainq.AlternatingBlockGibbs`][] is
    [`trainq.PalindromicBlockGibbs`][].

    !!! example

        ```python
        kernel = tq.Palindrome(tq.AlternatingBlockGibbs())
        print(kernel.site_updates(model))
        ```
    """

    kernel: AbstractKernel
    is_reversible: ClassVar[bool] = True

    def __init__(self, kernel: AbstractKernel):
        """**Arguments:**

        - `kernel`: the kernel, one that knows its adjoint.

        **Raises:** `ValueError` for a kernel that does not know its adjoint.
        """
        self.kernel = checked_kernel(kernel)
        kernel.adjoint()

    def __repr__(self) -> str:
        return _shown(self, self.kernel)

    @property
    def _scanned(self) -> AbstractKernel | None:
        if self.kernel.is_reversible:
            return None
        return self.kernel.rescanned(lambda scan: scan.palindrome())

    @property
    def shares_coins(self) -> bool:
        return self.kernel.shares_coins

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        if self._scanned is not None:
            return self._scanned.stepper(model)
        there, back = (k.stepper(model) for k in (self.kernel, self.kernel.adjoint()))

        def step(key, x):
            first, second = split(key)
            return back(second, there(first, x))

        return step

    def chain(self, model: AbstractEnergyModel) -> AbstractChain:
        if self._scanned is not None:
            return self._scanned.chain(model)
        if self.kernel.is_reversible:
            return PowerChain(self.kernel.chain(model), 2)
        there, back = (k.chain(model) for k in (self.kernel, self.kernel.adjoint()))
        return ThereAndBackChain(there, back)

    def replicas(self, model: AbstractEnergyModel) -> tuple[AbstractEnergyModel, ...]:
        return self.kernel.replicas(model)

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        if self._scanned is not None:
            return self._scanned.site_updates(model)
        return 2 * self.kernel.site_updates(model)


class Mixture(AbstractKernel):
    """`Σ_i w_i P_i`: a step of one of several kernels, picked at random.

    Reversible if each of them is. Which one is picked is decided once a step for all
    chains, as in [`trainq.Symmetrised`][], so that only one runs.

    !!! example

        ```python
        single, block = tq.RandomScanGibbs(), tq.PalindromicBlockGibbs()
        kernel = tq.Mixture([single, block], weights=[0.9, 0.1])
        print(kernel, kernel.site_updates(model))
        print(tq.QStruct(kernel, window=1000)(model, data))
        ```

    ??? cite "Source"

        Tierney, *Markov chains for exploring posterior distributions*, Ann. Stat. 22,
        1701, 1994.
    """

    kernels: tuple[AbstractKernel, ...]
    weights: tuple[float, ...] = eqx.field(static=True)
    shared: bool = eqx.field(static=True)

    def __init__(
        self,
        kernels: Sequence[AbstractKernel],
        weights: Sequence[float] | None = None,
        *,
        shared: bool = True,
    ):
        """**Arguments:**

        - `kernels`: the kernels, at least one.
        - `weights`: with what probability each is picked: positive numbers that sum to
            one. All the same, by default.
        - `shared`: whether all chains of a step take the same one. Otherwise each picks
            for itself, and all kernels run.

        **Raises:** `ValueError` for no kernels, another number of weights, or weights
        that are not positive or do not sum to one.
        """
        kernels = tuple(checked_kernel(kernel) for kernel in kernels)
        if not kernels:
            raise ValueError("A mixture has at least one kernel, but none was given.")
        if weights is None:
            weights = [1 / len(kernels)] * len(kernels)
        numbers = tuple(float(weight) for weight in weights)
        good = len(numbers) == len(kernels) and all(weight > 0 for weight in numbers)
        if not good or not math.isclose(sum(numbers), 1, abs_tol=1e-9):
            raise ValueError(
                f"The weights of a mixture of {len(kernels)} kernels are as many "
                f"positive numbers that sum to 1, but {list(numbers)} were given."
            )
        self.kernels = kernels
        self.weights = numbers
        self.shared = shared

    @property
    def is_reversible(self) -> bool:
        return all(kernel.is_reversible for kernel in self.kernels)

    def __repr__(self) -> str:
        weights = list(self.weights)
        return _shown(self, list(self.kernels), weights, shared=(self.shared, True))

    def adjoint(self) -> "Mixture":
        adjoints = [kernel.adjoint() for kernel in self.kernels]
        return Mixture(adjoints, self.weights, shared=self.shared)

    @property
    def shares_coins(self) -> bool:
        return self.shared or any(one.shares_coins for one in self.kernels)

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        steppers = [kernel.stepper(model) for kernel in self.kernels]
        return _one_of(steppers, self.weights, self.shared, self.replicas(model))

    def chain(self, model: AbstractEnergyModel) -> AbstractChain:
        chains = tuple(kernel.chain(model) for kernel in self.kernels)
        return MixtureChain(chains, self.weights)

    def replicas(self, model: AbstractEnergyModel) -> tuple[AbstractEnergyModel, ...]:
        found = [kernel.replicas(model) for kernel in self.kernels]
        sizes = [len(each) for each in found]
        if len(set(sizes)) > 1:
            raise ValueError(
                "The kernels of a mixture have the same law, but these run "
                f"{sizes} replicas of the model. Mix kernels first, and temper the "
                "mixture."
            )
        return found[0]

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        total = sum(
            weight * kernel.site_updates(model)
            for weight, kernel in zip(self.weights, self.kernels, strict=True)
        )
        return round(total) if abs(total - round(total)) < 1e-9 else total


class Power(AbstractKernel):
    """`Pⁿ`: several steps of a kernel as one, such as a sweep of single flips.

    What is measured once in `n` steps, and times in units of them. The chain keeps the
    sectors of the global flip, and never has a power of a matrix; its gap is
    `1 - (1 - γ)ⁿ` to all digits. A step costs `n` steps.

    !!! example

        ```python
        sweep = tq.Power(tq.RandomScanGibbs(), model.n_units)
        print(tq.markov.spectral_gap(sweep.chain(model)))
        ```
    """

    kernel: AbstractKernel
    n: int = eqx.field(static=True)

    def __init__(self, kernel: AbstractKernel, n: SupportsIndex):
        """**Arguments:**

        - `kernel`: the kernel.
        - `n`: the number of its steps, at least 1.

        **Raises:** `ValueError` if `n` is not a positive whole number.
        """
        self.kernel = checked_kernel(kernel)
        self.n = whole_number("n", n, of="steps of the kernel")

    @property
    def is_reversible(self) -> bool:
        return self.kernel.is_reversible

    def __repr__(self) -> str:
        return _shown(self, self.kernel, self.n)

    def adjoint(self) -> "Power":
        return Power(self.kernel.adjoint(), self.n)

    @property
    def shares_coins(self) -> bool:
        return self.kernel.shares_coins

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        move = self.kernel.stepper(model)

        def step(key, x):
            def once(x, key):
                return move(key, x), None

            return lax.scan(once, x, split(key, self.n))[0]

        return step

    def chain(self, model: AbstractEnergyModel) -> AbstractChain:
        return PowerChain(self.kernel.chain(model), self.n)

    def replicas(self, model: AbstractEnergyModel) -> tuple[AbstractEnergyModel, ...]:
        return self.kernel.replicas(model)

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        return self.n * self.kernel.site_updates(model)


class Lazy(AbstractKernel):
    """`½ (I + P)`: a step of a kernel half of the time, and otherwise none.

    Positive semi-definite if the kernel is reversible, and aperiodic: what theorems ask
    for. All times are twice as long, and a step costs half as much.

    !!! example

        ```python
        kernel = tq.Lazy(tq.RandomScanMetropolis())
        print(tq.markov.spectral_gap(kernel.chain(model)))
        ```
    """

    kernel: AbstractKernel
    shared: bool = eqx.field(static=True)

    def __init__(self, kernel: AbstractKernel, *, shared: bool = True):
        """**Arguments:**

        - `kernel`: the kernel.
        - `shared`: whether one coin decides for all chains of a step.

        **Raises:** `TypeError` if it is no kernel.
        """
        self.kernel = checked_kernel(kernel)
        self.shared = shared

    @property
    def is_reversible(self) -> bool:
        return self.kernel.is_reversible

    def __repr__(self) -> str:
        return _shown(self, self.kernel, shared=(self.shared, True))

    def adjoint(self) -> "Lazy":
        return Lazy(self.kernel.adjoint(), shared=self.shared)

    @property
    def shares_coins(self) -> bool:
        return self.shared or self.kernel.shares_coins

    @on_any_mesh
    def stepper(self, model: AbstractEnergyModel) -> Stepper:
        move = self.kernel.stepper(model)
        both = [move, lambda key, x: x]
        return _one_of(both, (0.5, 0.5), self.shared, self.replicas(model))

    def chain(self, model: AbstractEnergyModel) -> AbstractChain:
        return MixtureChain((self.kernel.chain(model),), (0.5,))

    def replicas(self, model: AbstractEnergyModel) -> tuple[AbstractEnergyModel, ...]:
        return self.kernel.replicas(model)

    def site_updates(self, model: AbstractEnergyModel) -> int | float:
        return self.kernel.site_updates(model) / 2


def _one_of(
    steppers: Sequence[Stepper],
    weights: Sequence[float],
    shared: bool,
    replicas: Sequence[AbstractEnergyModel],
) -> Stepper:
    """A step of one of several, picked at random: once for all chains, so that only
    that one runs, or by each chain for itself, with all of its replicas."""
    ends = np.cumsum(weights)[:-1]
    axes = 1 if len(replicas) == 1 else 2  # of one state

    def step(key, x):
        coin, key = split(key)
        shape = () if shared else (*x.shape[:-axes], *(1,) * axes)
        which = sum(
            ((jr.uniform(coin, shape) >= end).astype(int) for end in ends),
            jnp.zeros(shape, int),
        )
        if shared:
            return lax.switch(which, steppers, key, x)
        keys = split(key, len(steppers))
        moved = [move(k, x) for k, move in zip(keys, steppers, strict=True)]
        return lax.select_n(jnp.broadcast_to(which, x.shape).astype(jnp.int32), *moved)

    return step


def _shown(kernel: AbstractKernel, *given: Any, **switches: tuple[bool, bool]) -> str:
    """The call that makes a kernel."""
    parts = [repr(value) for value in given]
    parts += [f"{k}={v}" for k, (v, default) in switches.items() if v is not default]
    return f"{type(kernel).__name__}({', '.join(parts)})"
