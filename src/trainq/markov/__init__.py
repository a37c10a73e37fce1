"""Markov chains: kernels, exact chains, and what is asked of them."""

from ._certificate import (
    Certificate as Certificate,
    CertificateError as CertificateError,
    Check as Check,
    certify as certify,
)
from ._conductance import (
    CheegerMargins as CheegerMargins,
    Cut as Cut,
    best_cut as best_cut,
    best_sweep_cut as best_sweep_cut,
    cheeger_margin as cheeger_margin,
    cheeger_margins as cheeger_margins,
    cut as cut,
    sweep_conductance as sweep_conductance,
)
from ._decomposition import (
    Cluster as Cluster,
    Modes as Modes,
    Sensitivity as Sensitivity,
    pool_modes as pool_modes,
)
from ._hitting import hitting_times as hitting_times
from ._modes import modes as modes
from ._residuals import (
    detailed_balance_residual as detailed_balance_residual,
    positivity_residual as positivity_residual,
    row_sum_residual as row_sum_residual,
    stationarity_residual as stationarity_residual,
    symmetry_residual as symmetry_residual,
)
from ._resolvent import (
    Convention as Convention,
    ResolventSolution as ResolventSolution,
    asymptotic_covariance as asymptotic_covariance,
    check_convention as check_convention,
    resolvent as resolvent,
    resolvent_form as resolvent_form,
    resolvent_trace as resolvent_trace,
    solve_resolvent as solve_resolvent,
)
from ._spectrum import (
    ParityGaps as ParityGaps,
    SlowestMode as SlowestMode,
    parity_gaps as parity_gaps,
    slowest_mode as slowest_mode,
    spectral_gap as spectral_gap,
)
from ._times import (
    TimeConvention as TimeConvention,
    autocorrelation_times as autocorrelation_times,
)
from ._windows import (
    WindowMoments as WindowMoments,
    moments_from_law as moments_from_law,
    variance as variance,
    window_moments as window_moments,
    window_variance as window_variance,
)
from .chains import (
    AbstractChain as AbstractChain,
    AbstractFlipRule as AbstractFlipRule,
    AbstractReduction as AbstractReduction,
    AbstractScan as AbstractScan,
    Colours as Colours,
    DenseChain as DenseChain,
    EnergyGradients as EnergyGradients,
    FixedOrder as FixedOrder,
    HeatBath as HeatBath,
    Layers as Layers,
    Metropolis as Metropolis,
    Order as Order,
    PalindromicOrder as PalindromicOrder,
    RandomOrder as RandomOrder,
    ScanChain as ScanChain,
    Sector as Sector,
    SingleFlipChain as SingleFlipChain,
    TwoLayerChain as TwoLayerChain,
)
from .kernels import (
    AbstractBlockGibbs as AbstractBlockGibbs,
    AbstractKernel as AbstractKernel,
    AbstractSingleFlipKernel as AbstractSingleFlipKernel,
    AlternatingBlockGibbs as AlternatingBlockGibbs,
    BlockGibbs as BlockGibbs,
    PalindromicBlockGibbs as PalindromicBlockGibbs,
    RandomScan as RandomScan,
    RandomScanBlockGibbs as RandomScanBlockGibbs,
    RandomScanGibbs as RandomScanGibbs,
    RandomScanMetropolis as RandomScanMetropolis,
    checked_kernel as checked_kernel,
)
