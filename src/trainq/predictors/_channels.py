"""Why Q has changed: signal, what the observables have of the slow modes, how fast
these are, and the rest."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._show import AbstractShown, Table, number
from ..markov import Modes
from ._snr import GradientSNR


class LogQChannels(AbstractShown):
    """What a change of `log Q` is made of. The four parts sum to it.

    With the cluster `C` of the slow modes that the observables feel,
    `T_O = (μ_C / γ_eff) · rest`, so that

        log Q = log (K/2) + log ‖g‖² - log μ_C + log γ_eff - log rest.

    Each part is positive if it has made `Q` better.
    """

    signal: Float[Array, "*batch"]
    """The change of `log ‖g‖²`."""
    mu: Float[Array, "*batch"]
    """Less the change of `log μ_C`: positive if the observables have less of the slow
    modes."""
    gamma: Float[Array, "*batch"]
    """The change of `log γ_eff`: positive if the slow modes have become faster."""
    rest: Float[Array, "*batch"]
    """Less the change of `log (T_O γ_eff / μ_C)`, the noise outside of the cluster."""

    @property
    def log_q(self) -> Float[Array, "*batch"]:
        """The change of `log Q`, in nats."""
        return self.signal + self.mu + self.gamma + self.rest

    @property
    def g_gamma(self) -> Float[Array, "*batch"]:
        """`G_γ = exp(-Δ log γ_eff)`: the factor on the noise that comes from faster
        mixing. At most 0.90 is a gain of a tenth."""
        return jnp.exp(-self.gamma)

    @property
    def g_mu(self) -> Float[Array, "*batch"]:
        """`G_μ = exp(Δ log μ_C)`: the factor on the noise that comes from a cluster
        that weighs less."""
        return jnp.exp(-self.mu)

    def _shown(self) -> list[str | Table]:
        rows: Table = [("channel", "change of log Q", "factor on Q")]
        for name, part in (
            ("signal", self.signal),
            ("weight of the slow modes", self.mu),
            ("rate of the slow modes", self.gamma),
            ("the rest of the noise", self.rest),
            ("log Q", self.log_q),
        ):
            rows.append((name, number(part), number(jnp.exp(part))))
        return [rows]


def log_q_channels(
    before: tuple[GradientSNR, Modes],
    after: tuple[GradientSNR, Modes],
    *,
    factor: float | int = 3.0,
    threshold: float | int = 1e-6,
) -> LogQChannels:
    """Split a change of `log Q` into that of the signal, of what the observables have
    of the slow modes, of how fast these are, and the rest.

    A `Q` that has become better because the slow modes are faster is a genuine gain;
    one that has because the observables see less of them, or because the gradient is
    longer, may be none.

    **Arguments:**

    - `before`, `after`: the result of [`trainq.QStruct`][], and the
        [`trainq.markov.modes`][] of its chain with the observables that it is about.
        Of several models together take [`trainq.pool`][] and
        [`trainq.markov.pool_modes`][].
    - `factor`, `threshold`: what the cluster is, as for
        [`trainq.markov.Modes.cluster`][trainq.markov.Modes].

    **Returns:** a [`trainq.predictors.LogQChannels`][].

    **Raises:** `ValueError` if a result is of another kind or in another convention; a
    run-time error if the windows differ, if the modes are not those of the result, or
    the observables feel none of them.

    !!! example

        ```python
        kernel = tq.RandomScanGibbs()
        predictor = tq.QStruct(kernel, window=1000)


        def both(model):
            f = tq.observables(model)
            found = tq.markov.modes(kernel.chain(model), f)
            return predictor(model, data), found


        hot, cold = both(model), both(model.tempered(2.0))
        print(tq.log_q_channels(hot, cold))
        ```
    """
    old, new = (_logs(*one, factor, threshold) for one in (before, after))
    signal, mu, gamma, rest = (b - a for a, b in zip(old, new, strict=True))
    signal = eqx.error_if(
        signal,
        jnp.any(before[0].window != after[0].window),
        "The windows differ, but a change of Q is split for one window: give both the "
        "same.",
    )
    return LogQChannels(signal=signal, mu=-mu, gamma=gamma, rest=-rest)


def _logs(
    snr: GradientSNR, found: Modes, factor: float, threshold: float
) -> tuple[Array, ...]:
    """The logarithms of the signal, `μ_C`, `γ_eff` and `T_O γ_eff / μ_C`."""
    if snr.parameter_t_o is None:
        raise ValueError(
            "Channels are those of a structural prediction, which knows T_O, but the "
            "error of an actual estimate was given. Use `QStruct`."
        )
    if snr.parameter_device_bias is not None:
        raise ValueError(
            "Channels split a Q that is all signal and variance, but that of a device "
            "has its bias too. Give the prediction of the device for itself."
        )
    cluster = found.cluster(factor, threshold)
    t_o, size = snr.t_o, jnp.sum(cluster.members)
    # One is solved for, the other a sum over modes.
    differs = jnp.abs(found.t_o - t_o) > 1e-5 * t_o
    t_o = eqx.error_if(
        t_o,
        differs,
        "The modes have another T_O than the prediction: they are of another model, of "
        "other observables, or the prediction is in the Sokal convention. Use "
        '`QStruct(kernel, window)`, whose convention is "resolvent".',
    )
    t_o = eqx.error_if(
        t_o, size == 0, "The observables feel none of the modes that were found."
    )
    rest = jnp.log(t_o * cluster.gamma_eff / cluster.mu)
    return jnp.log(snr.signal), jnp.log(cluster.mu), jnp.log(cluster.gamma_eff), rest
