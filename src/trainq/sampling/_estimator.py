"""The gradient of a training step, with its own signal-to-noise ratio."""

from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key

from .._checks import no_derivative, steps, whole_number
from .._meshes import spread
from ..markov import AbstractKernel, checked_kernel, first_states, with_replicas
from ..models import (
    AbstractEnergyModel,
    AbstractStart,
    Data,
    FromData,
    Uniform,
    check_data,
    check_start,
    check_weights,
    checked,
    data_phase,
    require_data_phase,
    require_model,
)
from ._averages import NO_LIMIT, average, averaged
from ._chain_state import ChainState, start_chains
from ._clamped_chains import ClampedChains, scatter_of_chains
from ._estimate import GradientEstimate, scatter


# Samples whose data phases are found side by side.
_AT_ONCE = 256
_SAMPLES_ARE_FIXED = (
    "A `GradientEstimator` has no derivative by the model: its samples are no smooth "
    "function of it. `trainq.QStruct` and `trainq.QOperational` have one; or use "
    "`jax.lax.stop_gradient` of the parameters."
)


class GradientEstimator(eqx.Module):
    """The gradient of `KL(data ‖ model)` from chains of the model, which says how good
    it is: the piece of a training loop that has to be sampled.

        ĝ_a = E_data[f_a] - (1/MK) Σ_chains Σ_{B ≤ t < B+K} f_a(X_t).

    The first part comes from the data in closed form, `E[f | v]` averaged over samples;
    the second one from `M` chains, whose scatter is the noise. Call it with the state
    of the chains, the model, and samples; it returns a gradient for an optimiser and
    the state to go on from, and works under `jax.jit`, `jax.vmap` and `jax.lax.scan`.

    By default chains are *persistent*: they go on from where the last call left them,
    while the model moves under them. With a `start` every call starts anew from there.
    Contrastive divergence, CD-k, is `start=FromData(), burn_in=k, window=1`.

    A window and a burn-in are data, which may be traced: another one compiles nothing,
    so that a training loop can adapt them. The result is not differentiable in the
    model, and differentiating it raises.

    !!! example

        ```python
        estimator = tq.sampling.GradientEstimator(
            tq.AlternatingBlockGibbs(), window=20, n_chains=32
        )
        state = estimator.init(key, model)
        samples = jax.random.rademacher(key, (100, 3))


        @eqx.filter_jit
        def step(model, state):
            estimate = estimator(state, model, samples)
            model = jax.tree.map(
                lambda p, g: p - 0.1 * g, model, estimate.gradient
            )
            return model, estimate


        model, estimate = step(model, state)
        print(estimate)
        model, estimate = step(model, estimate.state)
        ```

    ??? cite "Source"

        Tieleman, *Training restricted Boltzmann machines using approximations to the
        likelihood gradient*, ICML 2008, for persistent chains; Hinton, *Training
        products of experts by minimizing contrastive divergence*, Neural Comput. 14,
        1771, 2002.
    """

    kernel: AbstractKernel
    window: Int[Array, ""]
    burn_in: Int[Array, ""]
    start: AbstractStart | None
    n_chains: int | None = eqx.field(static=True)
    minibatch: bool = eqx.field(static=True)
    clamped: ClampedChains | None

    def __init__(
        self,
        kernel: AbstractKernel,
        window: SupportsIndex | Int[Array, ""],
        burn_in: SupportsIndex | Int[Array, ""] = 0,
        start: AbstractStart | None = None,
        n_chains: SupportsIndex | None = None,
        *,
        minibatch: bool = False,
        clamped: ClampedChains | None = None,
    ):
        """**Arguments:**

        - `kernel`: the kernel that samples the model.
        - `window`: the number `K` of states that a chain averages over, one a step.
        - `burn_in`: the number `B` of states dropped before, in every call.
        - `start`: where chains start in every call, as for [`trainq.QOperational`][];
            or None for persistent chains.
        - `n_chains`: the number `M` of independent chains, at least 2 for a `Q`: as
            many as the state has, by default.
        - `minibatch`: whether the samples of a call are a random batch of more data.
            Their choice is then part of the noise. By default they are all there is.
        - `clamped`: how to sample the data phase, [`trainq.sampling.ClampedChains`][].
            By default it is computed: hidden units that interact are enumerated, at
            most 20 of them.

        **Raises:** `ValueError` for numbers that are not whole, or too small; a
        run-time error for a traced one that is too small; `TypeError` for another thing
        than a kernel or a start.
        """
        self.kernel = checked_kernel(kernel)
        self.window = jnp.asarray(steps("window", window))
        self.burn_in = jnp.asarray(steps("burn_in", burn_in, 0))
        self.start = None if start is None else check_start(start)
        self.n_chains = None
        if n_chains is not None:
            self.n_chains = whole_number("n_chains", n_chains)
        self.minibatch = bool(minibatch)
        if not isinstance(clamped, ClampedChains | None):
            raise TypeError(
                "clamped is a `ClampedChains` or None, but an object of type "
                f"{type(clamped).__name__} was given."
            )
        self.clamped = clamped
        if clamped is not None and clamped.n_chains < 2 and not self.minibatch:
            raise ValueError(
                "The noise of clamped chains is how those of one sample differ: give "
                "`ClampedChains` an `n_chains` of at least 2. One will do where the "
                "samples are a batch, with `minibatch=True`."
            )

    def init(
        self,
        key: Key[Array, ""],
        model: AbstractEnergyModel,
        data: Data | None = None,
        *,
        start: AbstractStart = Uniform(),
    ) -> ChainState:
        """The chains before the first call.

        **Arguments:**

        - `key`: random key of everything to come.
        - `model`: the model.
        - `data`: as for a call, for a start that takes data.
        - `start`: where persistent chains begin. Chains that start anew in every call
            need none.

        **Returns:** a [`trainq.sampling.ChainState`][], as
        [`trainq.sampling.start_chains`][] makes it.

        **Raises:** `ValueError` if `n_chains` was not given; and as `start_chains`.
        """
        if self.n_chains is None:
            raise ValueError(
                "init begins as many chains as the estimator has, but `n_chains` was "
                "not given. Give it, or begin by `start_chains(key, model, n_chains)`."
            )
        return start_chains(key, model, self.n_chains, start, data, kernel=self.kernel)

    def __call__(
        self,
        state: ChainState,
        model: AbstractEnergyModel,
        data: Data,
        weights: Float[Array | np.ndarray, " samples"] | None = None,
    ) -> GradientEstimate:
        """**Arguments:**

        - `state`: where the chains stand, from `init`, from
            [`trainq.sampling.start_chains`][], or from the last call. What is random is
            so by its key and the number of its step.
        - `model`: the model.
        - `data`: `(samples, n_visible)` spins, or `(2**n_visible,)`, the law of the
            data.
        - `weights`: `(samples,)` weights of the samples, not negative; their sum does
            not matter. By default all count alike.

        **Returns:** a [`trainq.sampling.GradientEstimate`][].

        **Raises:** `ValueError` for a wrong shape, for a batch of a single sample or of
        a law, for weights of a law or with [`trainq.FromData`][], and at once for a
        data phase that cannot be computed; `TypeError` for another thing than a model
        or a state; a run-time error for data, weights or a parameter that are not what
        they should be.
        """
        require_model(model)
        if not isinstance(state, ChainState):
            raise TypeError(
                "state is a `ChainState`, from `init` or `start_chains`, or the `state`"
                f" of the last estimate, but an object of type {type(state).__name__} "
                "was given."
            )
        n_chains, n_units = state.x.shape[0], state.x.shape[-1]
        if n_units != model.n_units or self.n_chains not in (None, n_chains):
            chains = "any number of" if self.n_chains is None else self.n_chains
            raise ValueError(
                f"The state is of {n_chains} chains with {n_units} units, but the "
                f"estimator has {chains} chains and the model {model.n_units} units. "
                "`init` makes a new one."
            )
        data = check_data(data, model)
        sampled = self.minibatch or weights is not None or self.clamped is not None
        if data.ndim == 1 and sampled:
            raise ValueError(
                "A batch, weights and clamped chains are of samples, but a law was "
                "given. It has its weights in it, and no noise."
            )
        if self.minibatch and data.shape[0] < 2:
            raise ValueError(
                "The noise of a batch is the scatter of its samples, at least 2 of "
                "them, but 1 was given."
            )
        if weights is not None:
            if isinstance(self.start, FromData):
                raise ValueError(
                    "`FromData()` starts chains at samples that count alike. With "
                    "weights, draw samples by them first: `data[jax.random.choice(key, "
                    "len(data), (n,), p=weights / weights.sum())]`."
                )
            weights = check_weights(weights, data)
        if weights is not None and self.minibatch:
            weights = _batch_weights(weights)
        if self.clamped is None:
            require_data_phase(model, data)
        return _estimate(self, state, model, data, weights)


@eqx.filter_jit
def _estimate(
    estimator: GradientEstimator,
    state: ChainState,
    model: AbstractEnergyModel,
    data: Array,
    weights: Array | None,
) -> GradientEstimate:
    model = _sampled(checked(model))
    kernel, n_chains = estimator.kernel, state.x.shape[0]
    x = with_replicas(kernel, model, state.x)
    if estimator.start is not None:
        key = _call_key(state, 0)
        x = first_states(key, kernel, estimator.start, model, data, n_chains)
        x = spread(x.astype(state.x.dtype))
    key = _call_key(state, 1)
    phase, of_data, degrees = _data_phase(key, estimator, model, data, weights)
    state = ChainState(x, state.key_data, state.step, state.key_impl)
    state, moments = average(kernel, model, state, estimator.burn_in, estimator.window)
    return averaged(model, state, moments, estimator.window, phase, of_data, degrees)


def _data_phase(
    key: Array,
    estimator: GradientEstimator,
    model: AbstractEnergyModel,
    data: Array,
    weights: Array | None,
) -> tuple[Array, Array | None, int]:
    """The data phase, what each replicate adds to its error, or None if it is exact,
    and degrees of freedom."""
    clamped, minibatch = estimator.clamped, estimator.minibatch
    if clamped is None and not minibatch and weights is None:
        phase = data_phase(model, data)
        return phase, None, NO_LIMIT
    n = data.shape[0]
    shares = jnp.full(n, 1 / n, data.dtype) if weights is None else weights
    if clamped is None:
        phases = jax.lax.map(
            lambda v: data_phase(model, v[None]), data, batch_size=_AT_ONCE
        )
    else:
        chains = clamped.phases(key, model, data)
        phases = jnp.mean(chains, axis=1)
        if not minibatch:
            of_data = scatter_of_chains(chains, shares)
            return shares @ phases, of_data, n * (clamped.n_chains - 1)
    phase = shares @ phases
    if not minibatch:
        return phase, None, NO_LIMIT
    return phase, scatter(phases, shares), n - 1


def _call_key(state: ChainState, purpose: int) -> Key[Array, ""]:
    """A key of what else is drawn in a call, by which no step draws: a child of the key
    of the last step that there can be."""
    last = jr.fold_in(state.key, jnp.uint32(2**32 - 1))
    return jr.fold_in(jr.fold_in(last, state.step), purpose)


def _batch_weights(weights: Array) -> Array:
    """Weights of a batch, whose scatter takes two samples."""
    return eqx.error_if(
        weights,
        jnp.sum(weights > 0) < 2,
        "The noise of a batch is the scatter of its samples: at least two of their "
        "weights are positive.",
    )


def _sampled(model: AbstractEnergyModel) -> AbstractEnergyModel:
    """The model, where a derivative would miss what its samples owe to it."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return eqx.combine(no_derivative(_SAMPLES_ARE_FIXED, params), static)
