"""The line that says what JAX is at."""

import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainq as tq
from trainq import _progress


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(_progress, "_PATIENCE", 0.05)


def sleepy(x):
    """A program that takes half a second to run."""

    def sleep(x):
        time.sleep(0.5)
        return np.asarray(x)

    return jax.pure_callback(sleep, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.usefixtures("at_once")
def test_every_stage_is_told_and_the_block_ends_when_the_numbers_are_there(capsys):
    @jax.jit
    def program(x):
        time.sleep(0.2)  # while it is traced
        return sleepy(x)

    x = jnp.ones(3)
    with tq.progress("log Q"):
        y = program(x)
    assert y.is_ready()
    text = capsys.readouterr().err
    assert text.index("log Q: at work, 0 s") < text.rindex("log Q: running, 0 s")
    assert text.endswith("\r")  # the line is gone
    with tq.progress():  # nothing has to be compiled
        program(x)
    text = capsys.readouterr().err
    assert "\rat work, 0 s" in text and "compiling" not in text


@pytest.mark.usefixtures("at_once")
def test_compiling_is_told(capsys):
    @jax.jit
    def program(x):
        for _ in range(200):
            x = jnp.sin(x) @ x
        return x

    with tq.progress("log Q"):
        program(jnp.ones((3, 3)))
    assert "log Q: compiling, " in capsys.readouterr().err


def test_what_is_quick_says_nothing(capsys):
    with tq.progress("log Q"):
        jax.jit(jnp.sin)(jnp.ones(3))
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("at_once")
def test_an_error_in_the_block_is_raised_and_nothing_is_left():
    threads = threading.active_count()
    with pytest.raises(ValueError, match="mine"), tq.progress("log Q"):
        time.sleep(0.1)
        raise ValueError("mine")
    assert threading.active_count() == threads
    with tq.progress():  # which unregisters what it registered, and nothing else
        jax.jit(jnp.cos)(jnp.ones(3))


def test_without_tqdm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with (
        pytest.raises(ImportError, match="progress needs tqdm: pip install"),
        tq.progress(),
    ):
        pass
