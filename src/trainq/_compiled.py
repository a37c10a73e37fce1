"""How programs are compiled."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer


_P = ParamSpec("_P")
_T = TypeVar("_T")

_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    # The older emitters, where there are any.
    _OPTIONS["xla_cpu_use_fusion_emitters"] = False
# Pyright does not know the options of `jax.jit` here.
_QUICKLY: Any = {"compiler_options": _OPTIONS}


def compiled_quickly(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """`eqx.filter_jit`, for hundreds of small loops around a few calls of LAPACK, which
    take nearly all of the time. Without optimisation these compile in a fraction of the
    time, and run in the same.

    So they do on CPUs, for values that are not traced: JAX refuses options of a
    function that is compiled as a part of another, or differentiated.
    """
    as_a_part = eqx.filter_jit(function)
    alone = eqx.filter_jit(function, **_QUICKLY)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        # Under `jax.jit` what is made is traced, even if no argument is.
        leaves = [jnp.zeros(()), *jax.tree.leaves((args, kwargs))]
        is_part = any(isinstance(leaf, Tracer) for leaf in leaves)
        quick = jax.default_backend() == "cpu" and not is_part
        return (alone if quick else as_a_part)(*args, **kwargs)

    return call
