"""Sampling: chains run by compiled loops, and what can be trusted in their output."""

from ._annealed import (
    ANNEALING_STATUS as ANNEALING_STATUS,
    AnnealedLikelihood as AnnealedLikelihood,
    AnnealedPartition as AnnealedPartition,
    annealed_importance as annealed_importance,
    annealed_likelihood as annealed_likelihood,
)
from ._autocorrelation import (
    STATUS as STATUS,
    AutocorrelationTime as AutocorrelationTime,
    autocorrelation_time as autocorrelation_time,
    autocovariance as autocovariance,
    r_hat as r_hat,
)
from ._autocovariances import Autocovariances as Autocovariances
from ._budget import (
    Comparison as Comparison,
    compare_budgets as compare_budgets,
    plan_budget as plan_budget,
)
from ._calibrated_errors import calibrated_errors as calibrated_errors
from ._certify_sampler import Step as Step, certify_sampler as certify_sampler
from ._chain_state import ChainState as ChainState, start_chains as start_chains
from ._clamped_chains import ClampedChains as ClampedChains
from ._effective_beta import (
    EffectiveBeta as EffectiveBeta,
    effective_beta as effective_beta,
)
from ._error_table import (
    Budget as Budget,
    BudgetError as BudgetError,
    ErrorTable as ErrorTable,
    TableJackknife as TableJackknife,
)
from ._estimate import (
    WINDOW_STATUS as WINDOW_STATUS,
    GradientEstimate as GradientEstimate,
)
from ._estimator import GradientEstimator as GradientEstimator
from ._exact_errors import exact_errors as exact_errors
from ._lag_sums import Windowing as Windowing
from ._moments import Moments as Moments
from ._qsampled import QSampled as QSampled, SampledSNR as SampledSNR
from ._run import Run as Run, run as run
from ._sampled_time import SampledTime as SampledTime, sampled_time as sampled_time
from ._sampler_certificate import (
    SamplerCertificate as SamplerCertificate,
    WorstTransition as WorstTransition,
)
from ._swaps import (
    SwapStatistics as SwapStatistics,
    swap_statistics as swap_statistics,
)
from ._until import run_until as run_until
from ._until_result import UNTIL_STATUS as UNTIL_STATUS, Until as Until
