"""Predictors of the signal-to-noise ratio of a sampled gradient."""

from ._channels import (
    LogQChannels as LogQChannels,
    log_q_channels as log_q_channels,
)
from ._diagnosis import (
    Assumption as Assumption,
    Diagnosis as Diagnosis,
    diagnose as diagnose,
)
from ._qoperational import QOperational as QOperational
from ._qstruct import QStruct as QStruct
from ._single_gap import SingleGap as SingleGap, SingleNoise as SingleNoise
from ._snr import (
    AbstractSNR as AbstractSNR,
    GradientSNR as GradientSNR,
    RandomisedSNR as RandomisedSNR,
    pool as pool,
)
