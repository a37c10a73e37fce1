import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainq._checks import positive_number, whole_number


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
