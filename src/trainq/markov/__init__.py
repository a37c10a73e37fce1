"""Markov chains: kernels, exact chains, and what is computed on them."""

from ._certificate import (
    Certificate as Certificate,
    CertificateError as CertificateError,
    Check as Check,
    certify as certify,
)
from ._chains import AbstractChain as AbstractChain
from ._conductance import (
    CheegerMargins as CheegerMargins,
    cheeger_margin as cheeger_margin,
    cheeger_margins as cheeger_margins,
    sweep_conductance as sweep_conductance,
)
from ._dense import DenseChain as DenseChain
from ._hitting import hitting_times as hitting_times
from ._kernels import (
    AbstractKernel as AbstractKernel,
    AbstractSingleFlipKernel as AbstractSingleFlipKernel,
    AlternatingBlockGibbs as AlternatingBlockGibbs,
    PalindromicBlockGibbs as PalindromicBlockGibbs,
    RandomScanBlockGibbs as RandomScanBlockGibbs,
    RandomScanGibbs as RandomScanGibbs,
    RandomScanMetropolis as RandomScanMetropolis,
    SystematicScanGibbs as SystematicScanGibbs,
)
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
from ._scan import (
    RelabelledChain as RelabelledChain,
    SystematicScanChain as SystematicScanChain,
)
from ._single_flip import (
    AbstractFlipRule as AbstractFlipRule,
    SingleFlipChain as SingleFlipChain,
)
from ._solvers import (
    RESULTS as RESULTS,
    AbstractStrategy as AbstractStrategy,
    Auto as Auto,
    ConjugateGradient as ConjugateGradient,
    Direct as Direct,
    SolverStats as SolverStats,
)
from ._spectrum import (
    ParityGaps as ParityGaps,
    SlowestMode as SlowestMode,
    parity_gaps as parity_gaps,
    slowest_mode as slowest_mode,
    spectral_gap as spectral_gap,
)
from ._two_block import TwoBlockChain as TwoBlockChain
from ._windows import (
    WindowMoments as WindowMoments,
    window_moments as window_moments,
)
