import subprocess
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainq as tq
from trainq import _checks
from trainq._checks import (
    check_key,
    positive_number,
    require_concrete,
    require_law,
    require_precision,
    whole_number,
)


@pytest.mark.parametrize(
    "value", [7, np.int32(7), np.uint8(7), np.int64(7), np.array(7), jnp.asarray(7)]
)
def test_a_whole_number_is_an_int(value):
    for number in (whole_number("steps", value), positive_number("steps", value)):
        assert type(number) is int and number == 7


@pytest.mark.parametrize(
    "value", [0, -1, 1.0, 7.5, True, np.True_, "7", None, np.array([7]), float("nan")]
)
def test_anything_else_is_no_whole_number(value):
    with pytest.raises(ValueError, match="steps is a whole number of sweeps, at least"):
        whole_number("steps", value, of="sweeps")


@pytest.mark.parametrize("value", [2.5, np.float32(2), jnp.asarray(2.0)])
def test_a_float_is_to_be_rounded(value):
    with pytest.raises(ValueError, match=r"given. Round it .* `.astype\(int\)`.$"):
        whole_number("steps", value)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), jnp.asarray(0.5)])
def test_a_positive_number_is_a_float(value):
    number = positive_number("window", value)
    assert type(number) is float and number == 0.5


@pytest.mark.parametrize(
    "value", [0, -1.0, True, "1", None, float("inf"), float("nan"), np.ones(2)]
)
def test_anything_else_is_no_positive_number(value):
    with pytest.raises(ValueError, match="window is a finite positive number, but"):
        positive_number("window", value)


@pytest.mark.parametrize("check", [whole_number, positive_number])
def test_a_traced_number_is_told(check):
    with pytest.raises(ValueError, match="steps is .*cannot be traced"):
        jax.jit(lambda n: check("steps", n))(3)


def test_a_law_is_held_to_the_digits_that_it_was_computed_with():
    law = jnp.full(3, 1 / 3, jnp.float32)
    assert require_law(law, jnp.float64, "law").dtype == jnp.float64
    assert require_law(jnp.array([0, 1]), jnp.float64, "law").dtype == jnp.float64
    for wrong in ([0.5, 0.51], [1.5, -0.5], [float("nan"), 1.0]):
        with pytest.raises(eqx.EquinoxRuntimeError, match="p is not a law: its entr"):
            require_law(jnp.array(wrong), jnp.float64, "p")
    with pytest.raises(ValueError, match="p is in float32 or float64, but float16"):
        require_law(jnp.array([0.5, 0.5], jnp.float16), jnp.float64, "p")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_other_precisions_are_refused(dtype):
    with pytest.raises(ValueError, match="theta is in float32 or float64, but"):
        require_precision(jnp.zeros((), dtype).dtype, "theta")


def test_one_key():
    check_key(jax.random.key(0))
    check_key(jax.random.PRNGKey(0))
    for wrong in (0, jax.random.split(jax.random.key(0)), jnp.ones(2), None):
        with pytest.raises(TypeError, match="key is one random key"):
            check_key(wrong)


def test_what_is_traced_is_named():
    require_concrete("A table", model=jnp.ones(2), key=None)
    seen = []

    @jax.jit
    def look(x):
        with pytest.raises(ValueError, match="A table is .* a traced x and z was giv"):
            require_concrete("A table", x=x, y=1.0, z=[x])
        seen.append(True)
        return x

    look(jnp.ones(2))
    assert seen


@pytest.fixture
def untold():
    """As in a process that has not been told yet."""
    _checks._tell_precision.cache_clear()
    yield
    _checks._tell_precision.cache_clear()


KERNEL = tq.RandomScanGibbs()
EXACT = {
    "laws": lambda model, data: tq.log_partition(model),
    "divergences": tq.kl_divergence,
    "gradients": tq.kl_gradient,
    "means": lambda model, data: tq.mean_observables(model),
    "structural": tq.QStruct(KERNEL, 3),
    "operational": tq.QOperational(KERNEL, 3),
    "certificates": lambda model, data: tq.certify(KERNEL, model),
    "blocks": lambda model, data: tq.RandomScanBlockGibbs().chain(model),
    "matrices": lambda model, data: tq.markov.DenseChain(jnp.full((2, 2), 0.5)),
}


def small(n_hidden):
    """A model of a size of its own: what was traced before tells nothing."""
    return tq.RBM(jnp.ones((2, n_hidden), jnp.float32)), jnp.full(4, 0.25)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", EXACT)
def test_what_is_exact_tells_of_single_precision_once(name, untold):
    jax.clear_caches()  # what was traced before has told
    with jax.enable_x64(False):
        model, data = small(1)
        with pytest.warns(tq.PrecisionWarning, match="in float32: they .*1e-3") as told:
            EXACT[name](model, data)
        assert len(told) == 1
        tq.kl_gradient(*small(5))  # a second warning would be an error


@pytest.mark.slow
def test_sampling_does_not(untold):
    key = jax.random.key(0)
    with jax.enable_x64(False):
        model, data = small(2)
        state = tq.start_chains(key, model, 8, tq.Stationary())
        tq.run(KERNEL, model, state, 8)
        for some in (data, state.x[:, :2]):
            tq.QSampled(KERNEL, 3, start=tq.FromData(), replicates=8)(key, model, some)
        tq.sampling.calibrated_errors(key, KERNEL, model, data, max_steps=500)


def test_single_precision_by_choice_does_not(untold):
    model, data = small(3)
    tq.QStruct(KERNEL, 3)(model, data.astype(jnp.float32))
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("ignore", tq.PrecisionWarning)
        tq.kl_divergence(*small(4))


@pytest.mark.quick(1)
@pytest.mark.parametrize("filters, times", [("default", 1), ("always", 1)])
def test_a_process_is_told_once(filters, times):
    command = f"""
import warnings, jax.numpy as jnp, trainq as tq
warnings.simplefilter({filters!r})
for n in (1, 2, 3):
    tq.kl_divergence(tq.RBM(jnp.ones((2, n))), jnp.full(4, 0.25))
"""
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stderr.count("PrecisionWarning: Exact") == times
    assert 'jax.config.update("jax_enable_x64", True)' in done.stderr
