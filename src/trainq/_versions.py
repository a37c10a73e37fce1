"""What a bug report should say about the machine."""

import platform
from importlib.metadata import PackageNotFoundError, version

import jax
import jax.numpy as jnp


_PACKAGES = ("trainq", "jax", "jaxlib", "equinox", "jaxtyping", "numpy", "scipy")


def show_versions() -> None:
    """Print what a bug report needs: the versions of trainq and of what it runs on,
    Python, the platform, whether 64-bit numbers are on, and the devices.

    **Returns:** nothing.

    !!! example

        ```python
        tq.show_versions()
        ```
    """
    for name, value in versions().items():
        print(f"{name:10}{value}")


def versions() -> dict[str, str]:
    return {
        **{name: _version(name) for name in _PACKAGES},
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "x64": "on" if jnp.result_type(float) == jnp.float64 else "off",
        "devices": ", ".join(f"{d.device_kind} {d.id}" for d in jax.devices()),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
