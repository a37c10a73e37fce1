"""Models and samplers of other libraries. Each module needs the library it is about."""

import lazy_loader as _lazy_loader


__getattr__, __dir__, _ = _lazy_loader.attach(
    __name__, {"arviz", "dimod", "networkx", "sklearn", "thrml"}
)
