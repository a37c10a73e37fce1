"""Strict settings for every test, and types checked at run time."""

import collections
import gc
import os
import pathlib

import jax
import jax.random as jr
import jaxtyping
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook


jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if "OPTIMISE" not in os.environ:
    # Nearly all of the time goes into compiling, and this takes two thirds of it away.
    # The examples run with every optimisation, and are held to the same results; so do
    # the tests once a day, with OPTIMISE=1.
    jax.config.update("jax_disable_most_optimizations", True)
    # Half of what remains: one module of machine code in place of 32, and the older
    # emitters, where there are any: XLA ends the process at a flag that it does not
    # know. It reads this when it first compiles.
    flags = ["--xla_cpu_parallel_codegen_split_count=1"]
    if jax.__version_info__ < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])

# Shapes and types of everything public, checked in tests only: users pay nothing.
install_import_hook("trainq", "beartype.beartype")

# Compiling takes longer than any deadline, and failures must be repeatable.
settings.register_profile("trainq", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("trainq")


# Tracing makes many small objects that live on: looking through them is a tenth of the
# time.
gc.set_threshold(200_000, 20, 100)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of the cases of a test that is marked `quick(n)`, all but `n` are slow: those
    that stay are as far apart as they can be."""
    cases = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("quick") and not item.get_closest_marker("slow"):
            cases[item.parent, item.originalname].append(item)
    for some in cases.values():
        (n,) = some[0].get_closest_marker("quick").args
        for i, item in enumerate(some):
            if i * n // len(some) == (i - 1) * n // len(some):
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def forget_programs_of_a_module():
    """Linux gives a process 65530 memory maps, and XLA crashes when its programs have
    taken them all."""
    yield
    forget_programs()


@pytest.fixture(autouse=True)
def forget_programs_of_slow_tests(request):
    """The same for those of which a few are enough."""
    yield
    if request.node.get_closest_marker("slow"):
        forget_programs()


def forget_programs():
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture
def key():
    """A fixed key: statistics must not depend on luck."""
    return jr.key(2026)


@pytest.fixture
def as_for_users():
    """Users have no run-time type checks, which would be the first to complain."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
