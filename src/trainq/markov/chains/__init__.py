"""Exact chains, and what each of them reduces to."""

from ._base import (
    AbstractChain as AbstractChain,
    check_dense as check_dense,
    largest as largest,
    require_chain as require_chain,
    require_reversible as require_reversible,
)
from ._blocks import ScanChain as ScanChain, TwoLayerChain as TwoLayerChain
from ._combined import (
    MixtureChain as MixtureChain,
    PowerChain as PowerChain,
    ThereAndBackChain as ThereAndBackChain,
)
from ._cuts import log_total as log_total
from ._dense import DenseChain as DenseChain
from ._functions import (
    AbstractFunctions as AbstractFunctions,
    EnergyGradients as EnergyGradients,
    Table as Table,
    blocks_alike as blocks_alike,
    in_blocks as in_blocks,
)
from ._layers import (
    AbstractLayers as AbstractLayers,
    Colours as Colours,
    EnergyLayers as EnergyLayers,
    Layers as Layers,
)
from ._reductions import (
    AbstractCoordinates as AbstractCoordinates,
    AbstractReduction as AbstractReduction,
    Powers as Powers,
    Sector as Sector,
    SectorReduction as SectorReduction,
    Sides as Sides,
    parity_of as parity_of,
    scale as scale,
)
from ._replicas import ReplicaChain as ReplicaChain
from ._rules import (
    AbstractFlipRule as AbstractFlipRule,
    HeatBath as HeatBath,
    Metropolis as Metropolis,
)
from ._scans import (
    AbstractScan as AbstractScan,
    FixedOrder as FixedOrder,
    Order as Order,
    PalindromicOrder as PalindromicOrder,
    RandomOrder as RandomOrder,
    SymmetrisedOrder as SymmetrisedOrder,
)
from ._single_flip import SingleFlipChain as SingleFlipChain
from ._swaps import (
    AbstractSwapOrder as AbstractSwapOrder,
    EvenOddSwaps as EvenOddSwaps,
    RandomSwaps as RandomSwaps,
    Round as Round,
)
