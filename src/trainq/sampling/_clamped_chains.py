"""The data phase by chains of the hidden units, with the visible ones held."""

from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from .._checks import check_key, steps, whole_number
from ..markov import AbstractKernel, checked_kernel
from ..models import AbstractEnergyModel
from ._averages import average
from ._chain_state import ChainState


# Samples whose chains run side by side.
_AT_ONCE = 256


class ClampedChains(eqx.Module):
    """How to sample the data phase of a model whose hidden units interact: chains of
    them for each sample, with the visible units clamped to it, in place of `E[f | v]`
    in closed form.

    They start uniformly in every call. Their noise is part of the Q of an estimate, the
    bias of a burn-in that is too short is not.

    !!! example

        ```python
        chain = [[0, 3], [3, 4], [4, 5]]  # three visible, three hidden
        machine = tq.BoltzmannMachine(jnp.ones(3), None, 3, chain)
        clamped = tq.sampling.ClampedChains(
            tq.RandomScanGibbs(), window=30, burn_in=10
        )
        estimator = tq.GradientEstimator(
            tq.RandomScanGibbs(), window=60, clamped=clamped
        )
        samples = jax.random.rademacher(key, (20, 3))
        chains = tq.start_chains(key, machine, n_chains=16)
        print(estimator(chains, machine, samples))
        ```
    """

    kernel: AbstractKernel
    window: Int[Array, ""]
    burn_in: Int[Array, ""]
    n_chains: int = eqx.field(static=True)

    def __init__(
        self,
        kernel: AbstractKernel,
        window: SupportsIndex | Int[Array, ""],
        burn_in: SupportsIndex | Int[Array, ""] = 0,
        n_chains: SupportsIndex = 2,
    ):
        """**Arguments:**

        - `kernel`: a kernel of the hidden units alone: what has blocks has them of
            `model.clamp(range(n_visible), v)`, in which hidden unit 0 is unit 0.
        - `window`: the number of states that a chain averages over, one a step.
        - `burn_in`: the number of states dropped before.
        - `n_chains`: the number of chains of each sample, at least 2 where the samples
            are all of the data: how two of them differ is the noise.

        **Raises:** as [`trainq.sampling.GradientEstimator`][].
        """
        self.kernel = checked_kernel(kernel)
        self.window = jnp.asarray(steps("window", window))
        self.burn_in = jnp.asarray(steps("burn_in", burn_in, 0))
        self.n_chains = whole_number("n_chains", n_chains)

    def phases(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        samples: Num[Array, "samples n_visible"],
    ) -> Float[Array, "samples chains n_parameters"]:
        """The average of the observables along each chain of each sample.

        **Arguments:**

        - `key`: random key.
        - `model`: the model.
        - `samples`: `(samples, n_visible)` spins.

        **Returns:** `(samples, n_chains, n_parameters)` averages.

        **Raises:** `ValueError` for a kernel of other units; a run-time error if a
        gradient of the energy is not finite.
        """
        check_key(key)
        units = range(model.n_visible)

        def one(key_and_sample):
            key, v = key_and_sample
            first, rest = jr.split(key)
            hidden = model.clamp(units, v)
            x = jr.rademacher(first, (self.n_chains, model.n_hidden), model.dtype)
            state = ChainState.begin(x, rest)
            moments = average(self.kernel, hidden, state, self.burn_in, self.window)[1]
            return moments.mean

        keys = jr.split(key, samples.shape[0])
        return jax.lax.map(one, (keys, samples), batch_size=_AT_ONCE)


def scatter_of_chains(
    phases: Float[Array, "samples chains n_parameters"],
    shares: Float[Array, " samples"],
) -> Float[Array, "replicates n_parameters"]:
    """What each chain adds to the error of the data phase, for samples that are all
    there is: they differ, and only the chains of one are replicates of each other."""
    # Contrasts of R chains, (x_1 + ... + x_k - k x_{k+1}) / sqrt(k (k + 1)), are R - 1
    # independent replicates of one chain about its mean. That mean has 1/R of the
    # variance of one chain.
    n_samples, n_chains, size = phases.shape
    contrasts = np.zeros((n_chains - 1, n_chains))
    for k in range(1, n_chains):
        contrasts[k - 1, :k] = 1 / np.sqrt(k * (k + 1))
        contrasts[k - 1, k] = -k / np.sqrt(k * (k + 1))
    contrasts /= np.sqrt(n_chains * (n_chains - 1))
    own = jnp.einsum("kr,srp,s->skp", contrasts.astype(phases.dtype), phases, shares)
    return own.reshape(-1, size)
