"""Sampling: chains run by compiled loops, and what can be trusted in their output."""

from ._autocorrelation import (
    STATUS as STATUS,
    AutocorrelationTime as AutocorrelationTime,
    autocorrelation_time as autocorrelation_time,
    autocovariance as autocovariance,
    r_hat as r_hat,
)
from ._qsampled import (
    QSampled as QSampled,
    SampledSNR as SampledSNR,
    SampledTime as SampledTime,
    sampled_time as sampled_time,
)
from ._run import (
    ChainState as ChainState,
    Moments as Moments,
    Run as Run,
    run as run,
    start_chains as start_chains,
)
