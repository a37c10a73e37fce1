"""Kernels: recipes that hold no parameters."""

from ._base import (
    AbstractKernel as AbstractKernel,
    AbstractSingleFlipKernel as AbstractSingleFlipKernel,
    AlternatingBlockGibbs as AlternatingBlockGibbs,
    PalindromicBlockGibbs as PalindromicBlockGibbs,
    RandomScanBlockGibbs as RandomScanBlockGibbs,
    RandomScanGibbs as RandomScanGibbs,
    RandomScanMetropolis as RandomScanMetropolis,
    SystematicScanGibbs as SystematicScanGibbs,
)
