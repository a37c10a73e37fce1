"""Exact chains, and what each of them reduces to."""

from ._base import AbstractChain as AbstractChain
from ._dense import DenseChain as DenseChain
from ._scan import (
    RelabelledChain as RelabelledChain,
    SystematicScanChain as SystematicScanChain,
)
from ._single_flip import (
    AbstractFlipRule as AbstractFlipRule,
    SingleFlipChain as SingleFlipChain,
)
from ._two_block import TwoBlockChain as TwoBlockChain
