"""Markov chains: kernels, exact chains, and what is asked of them."""

from ._certificate import (
    Certificate as Certificate,
    CertificateError as CertificateError,
    Check as Check,
    certify as certify,
)
from ._conductance import (
    CheegerMargins as CheegerMargins,
    cheeger_margin as cheeger_margin,
    cheeger_margins as cheeger_margins,
    sweep_conductance as sweep_conductance,
)
from ._hitting import hitting_times as hitting_times
from ._residuals import (
    detailed_balance_residual as detailed_balance_residual,
    row_sum_residual as row_sum_residual,
    stationarity_residual as stationarity_residual,
    symmetry_residual as symmetry_residual,
)
from ._resolvent import (
    ResolventSolution as ResolventSolution,
    asymptotic_covariance as asymptotic_covariance,
    resolvent as resolvent,
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
from ._windows import (
    WindowMoments as WindowMoments,
    window_moments as window_moments,
)
from .chains import (
    AbstractChain as AbstractChain,
    AbstractFlipRule as AbstractFlipRule,
    DenseChain as DenseChain,
    RelabelledChain as RelabelledChain,
    SingleFlipChain as SingleFlipChain,
    SystematicScanChain as SystematicScanChain,
    TwoBlockChain as TwoBlockChain,
)
from .kernels import (
    AbstractKernel as AbstractKernel,
    AbstractSingleFlipKernel as AbstractSingleFlipKernel,
    AlternatingBlockGibbs as AlternatingBlockGibbs,
    PalindromicBlockGibbs as PalindromicBlockGibbs,
    RandomScanBlockGibbs as RandomScanBlockGibbs,
    RandomScanGibbs as RandomScanGibbs,
    RandomScanMetropolis as RandomScanMetropolis,
    SystematicScanGibbs as SystematicScanGibbs,
)
