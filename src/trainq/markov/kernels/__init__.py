"""Kernels: recipes that hold no parameters."""

from ._base import (
    AbstractKernel as AbstractKernel,
    Stepper as Stepper,
    checked_kernel as checked_kernel,
    on_any_mesh as on_any_mesh,
)
from ._blocks import (
    AbstractBlockGibbs as AbstractBlockGibbs,
    AlternatingBlockGibbs as AlternatingBlockGibbs,
    BlockGibbs as BlockGibbs,
    PalindromicBlockGibbs as PalindromicBlockGibbs,
    RandomScanBlockGibbs as RandomScanBlockGibbs,
)
from ._combined import (
    Lazy as Lazy,
    Mixture as Mixture,
    Palindrome as Palindrome,
    Power as Power,
    Symmetrised as Symmetrised,
)
from ._replicas import (
    first_law as first_law,
    first_states as first_states,
    observed as observed,
    with_replicas as with_replicas,
)
from ._single_flip import (
    AbstractSingleFlipKernel as AbstractSingleFlipKernel,
    RandomScan as RandomScan,
    RandomScanGibbs as RandomScanGibbs,
    RandomScanMetropolis as RandomScanMetropolis,
)
from ._swaps import Swaps as Swaps
from ._tempering import (
    ParallelTempering as ParallelTempering,
    checked_betas as checked_betas,
)
from ._visits import Visit as Visit
