"""Exact, differentiable signal-to-noise of energy-based training."""

from importlib.metadata import version as _version

import lazy_loader as _lazy_loader


__version__ = _version("trainq")

# The names are those of `__init__.pyi`, for type checkers and for this.
__getattr__, __dir__, __all__ = _lazy_loader.attach_stub(__name__, __file__)
# It needs Matplotlib: loaded by name, and not by `import *`.
__all__.remove("plot")  # pyright: ignore[reportUnsupportedDunderAll]
