"""The symmetrised `I - P` of a chain that is known by its steps alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._generators import AbstractReversible
from ._steps import AbstractStep
from ._systems import AbstractScaledSystem, Pairing, shifted


# Columns whose derivative is taken at once: what a sequence of steps leaves in between
# is kept for so many.
COLUMNS_AT_ONCE = 8


class StepGenerator(AbstractReversible):
    """`I - P` for a step on half densities: without a matrix, unless asked for one.

    In the odd sector of the global flip `whole` is the step on all states, of which
    elimination needs the rates; None where there are too many.
    """

    step: AbstractStep
    log_law: Float[Array, " n"]
    is_self_adjoint: bool = eqx.field(static=True)
    whole: AbstractStep | None = None
    is_odd: bool = eqx.field(static=True, default=False)
    leak: None = eqx.field(static=True, default=None, init=False)

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        return y - self.step.mv(y)

    def matrix(self) -> Float[Array, "n n"]:
        return self.mv(jnp.eye(self.n_states, dtype=self.log_law.dtype))

    def transposed(self) -> "StepGenerator":
        if self.is_self_adjoint:
            return self
        return StepGenerator(
            step=self.step.transposed(),
            log_law=self.log_law,
            is_self_adjoint=False,
            whole=None if self.whole is None else self.whole.transposed(),
            is_odd=self.is_odd,
        )

    def system(self) -> "StepSystem":
        # A state that is never left has nothing to be scaled by.
        leaves = self.step.leaving()
        root = jnp.sqrt(jnp.where(leaves > 0, leaves, 1))
        return StepSystem(
            step=self.step,
            root=root,
            null=self.null,
            is_self_adjoint=self.is_self_adjoint,
        )

    def rates(self) -> tuple[Float[Array, "m m"], None]:
        n = self.n_states
        step = self.step
        if self.is_odd:
            if self.whole is None:
                raise ValueError(f"The rates between {2 * n} states are too many.")
            step, n = self.whole, 2 * n
        return step.average(jnp.eye(n, dtype=self.log_law.dtype)), None

    def dirichlet(self, z: Array, x: Array, pairing: Pairing) -> Array:
        form = jax.checkpoint(
            lambda z, x: self.step.dirichlet(z, x, self.root, pairing)
        )
        k = x.shape[1]
        if pairing == "gram" or k <= COLUMNS_AT_ONCE:
            return form(z, x)
        some = [jnp.pad(f, ((0, 0), (0, -k % COLUMNS_AT_ONCE))) for f in (z, x)]
        some = [f.reshape(f.shape[0], -1, COLUMNS_AT_ONCE).swapaxes(0, 1) for f in some]
        return jax.lax.map(lambda pair: form(*pair), tuple(some)).reshape(-1)[:k]


class StepSystem(AbstractScaledSystem):
    """`D^-½ (I - P) D^-½`, with `D` about the rates at which states are left."""

    step: AbstractStep
    root: Float[Array, " n"]
    null: Float[Array, " n"] | None
    is_self_adjoint: bool = eqx.field(static=True)

    @property
    def products(self) -> int:
        return self.step.products

    @property
    def assembly(self) -> int:
        return self.products * self.n_states

    def mv(self, y: Float[Array, "n k"]) -> Float[Array, "n k"]:
        y = y / self.root[:, None]
        return (y - self.step.mv(y)) / self.root[:, None]

    def matrix(self) -> Float[Array, "n n"]:
        matrix = self.mv(jnp.eye(self.n_states, dtype=self.root.dtype))
        return shifted(matrix, self._scaled_null)

    def transposed(self) -> "StepSystem":
        return StepSystem(
            step=self.step.transposed(),
            root=self.root,
            null=self.null,
            is_self_adjoint=self.is_self_adjoint,
        )
