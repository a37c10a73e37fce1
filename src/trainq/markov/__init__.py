"""Markov chains: kernels, exact chains, and what is asked of them."""

from ._absorption import Absorption as Absorption, absorption as absorption
from ._basins import Basins as Basins, basins as basins
from ._certificate import (
    AbstractCertificate as AbstractCertificate,
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
from ._hitting import (
    PassageTimes as PassageTimes,
    hitting_error as hitting_error,
    hitting_times as hitting_times,
    passage_times as passage_times,
)
from ._ladder import (
    Ladder as Ladder,
    energy_variance as energy_variance,
    even_ladder as even_ladder,
    ladder as ladder,
    swap_acceptance as swap_acceptance,
)
from ._modes import modes as modes
from ._noise_by_set import NoiseBySet as NoiseBySet, noise_by_set as noise_by_set
from ._residuals import (
    detailed_balance_residual as detailed_balance_residual,
    law_residual as law_residual,
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
    AbstractLayers as AbstractLayers,
    AbstractReduction as AbstractReduction,
    AbstractScan as AbstractScan,
    AbstractSwapOrder as AbstractSwapOrder,
    Colours as Colours,
    DenseChain as DenseChain,
    EnergyGradients as EnergyGradients,
    EnergyLayers as EnergyLayers,
    EvenOddSwaps as EvenOddSwaps,
    FixedOrder as FixedOrder,
    HeatBath as HeatBath,
    Layers as Layers,
    Metropolis as Metropolis,
    Order as Order,
    PalindromicOrder as PalindromicOrder,
    RandomOrder as RandomOrder,
    RandomSwaps as RandomSwaps,
    ReplicaChain as ReplicaChain,
    Round as Round,
    ScanChain as ScanChain,
    Sector as Sector,
    SingleFlipChain as SingleFlipChain,
    SymmetrisedOrder as SymmetrisedOrder,
    TwoLayerChain as TwoLayerChain,
)
from .kernels import (
    AbstractBlockGibbs as AbstractBlockGibbs,
    AbstractKernel as AbstractKernel,
    AbstractSingleFlipKernel as AbstractSingleFlipKernel,
    AlternatingBlockGibbs as AlternatingBlockGibbs,
    BlockGibbs as BlockGibbs,
    Lazy as Lazy,
    Mixture as Mixture,
    Palindrome as Palindrome,
    PalindromicBlockGibbs as PalindromicBlockGibbs,
    ParallelTempering as ParallelTempering,
    Power as Power,
    RandomScan as RandomScan,
    RandomScanBlockGibbs as RandomScanBlockGibbs,
    RandomScanGibbs as RandomScanGibbs,
    RandomScanMetropolis as RandomScanMetropolis,
    Swaps as Swaps,
    Symmetrised as Symmetrised,
    Visit as Visit,
    checked_kernel as checked_kernel,
    first_law as first_law,
    first_states as first_states,
    observed as observed,
    with_replicas as with_replicas,
)
