import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
