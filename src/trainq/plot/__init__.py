"""Figures of results, on Matplotlib axes: the extra `plot`."""

from .._checks import needed_for as _needed_for


with _needed_for("trainq.plot", "matplotlib"):
    import matplotlib as matplotlib

from ._chains import autocorrelation as autocorrelation, spectrum as spectrum
from ._landscape import basins as basins, ladder as ladder
from ._signal import couplings as couplings, kernels as kernels
from ._style import (
    COLOURS as COLOURS,
    DASHES as DASHES,
    MARKERS as MARKERS,
    style as style,
)
from ._training import trajectories as trajectories
from ._windows import sampled as sampled, windows as windows
