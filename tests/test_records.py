"""Results as dictionaries: what is in them, and hashes that other processes find."""

import functools
import importlib.metadata
import json
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import KERNELS, machine, neural, random_law, rbm

import trainq as tq
from trainq import markov


MODEL, DATA = rbm(2, 2), random_law(2)


def numbers(one):
    return np.asarray(one, float)


def test_properties_are_there_where_the_result_has_them():
    snr = tq.QStruct(KERNELS["gibbs"], 10)(MODEL, DATA)
    found = tq.as_dict(snr)["result"]
    assert found["q"] == float(snr.q) and found["t_o"] == float(snr.t_o)
    assert found["stats"]["ok"] is True and found["q_limit"] == "Infinity"
    assert found["window"] == 10 and found["parameter_device_bias"] is None
    actual = tq.as_dict(tq.QOperational(KERNELS["gibbs"], 10)(MODEL, DATA))["result"]
    assert "t_o" not in actual and "parameter_q" in actual
    state = tq.start_chains(jr.key(0), MODEL, 2)
    run = tq.run(KERNELS["gibbs"], MODEL, state, 8)
    inner = tq.as_dict(run)["result"]["moments"]
    assert inner["class"] == "Moments"
    assert np.array_equal(numbers(inner["mean"]), run.moments.mean)


def test_what_is_no_number_of_json():
    law = {"x": jnp.array([[1.5, jnp.nan], [jnp.inf, -jnp.inf]]), "y": float("-inf")}
    found = tq.as_dict(law)["result"]
    assert found == {"x": [[1.5, "NaN"], ["Infinity", "-Infinity"]], "y": "-Infinity"}
    assert np.array_equal(numbers(found["x"]), law["x"], equal_nan=True)
    assert tq.as_dict(jnp.array([1 + 2j]))["result"] == {"real": [1.0], "imag": [2.0]}
    assert tq.as_dict((True, None, "a", 2))["result"] == [True, None, "a", 2]
    assert tq.as_dict([jnp.tanh])["result"] == ["tanh"]
    assert tq.as_dict(jnp.float32(0.1))["result"] == float(np.float32(0.1))
    graph = tq.as_dict(machine(3))["result"]["graph"]
    assert bytes.fromhex(graph["data"]) == machine(3).graph.data


def test_versions_are_those_of_the_packages():
    found = tq.as_dict(1)["versions"]
    assert found["jax"] == importlib.metadata.version("jax")
    assert found["trainq"] == tq.__version__ and found["x64"] == "on"


INPUTS = """
import jax, jax.random as jr, numpy as np, equinox as eqx, sys, json
jax.config.update("jax_enable_x64", True)
import trainq as tq
inputs = {
    "model": tq.RBM(np.linspace(-1, 1, 6).reshape(2, 3), np.arange(2.0)),
    "sparse": tq.BoltzmannMachine(np.ones(2), edges=[(0, 1), (1, 2)]),
    "mlp": eqx.nn.MLP(2, 1, 3, 1, jax.nn.softplus, key=jr.key(0)),
    "kernel": tq.Mixture([tq.RandomScanGibbs(), tq.PalindromicBlockGibbs()]),
    "predictor": tq.QOperational(tq.AlternatingBlockGibbs(), 10, start=tq.FromData()),
    "functions": [lambda x: x in {"a", "b", "c", "d"}, np.linalg.norm, len],
    "options": {"key": jr.key(3), "window": 10, "beta": 0.5, "nothing": None},
}
record = tq.as_dict(None, **inputs)
"""


@pytest.mark.slow
def test_hashes_are_the_same_in_every_process():
    # Two of their own: this one compiles with fewer optimisations, and so draws the
    # weights of a network with other last bits.
    code = INPUTS + "print(json.dumps([record['inputs'], record['hash']]))"
    found = []
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    inputs, whole = found[0]
    assert len({*inputs.values(), whole}) == 8
    # And where nothing is drawn, what this one finds.
    scope: dict = {"__name__": "__main__"}
    exec(INPUTS, scope)
    for name in inputs.keys() - {"mlp"}:
        assert scope["record"]["inputs"][name] == inputs[name], name


def hash_of(one):
    return tq.as_dict(None, one=one)["inputs"]["one"]


TWO_EDGES = tq.BoltzmannMachine(np.ones(2), edges=[(0, 1), (1, 2)])
CHANGES = {
    "a weight": (MODEL, eqx.tree_at(lambda m: m.weights, MODEL, MODEL.weights + 1e-16)),
    "biases": (MODEL, tq.RBM(MODEL.weights, np.zeros(2))),
    "which bias": (
        tq.RBM(MODEL.weights, np.zeros(2)),
        tq.RBM(MODEL.weights, None, np.zeros(2)),
    ),
    "the shape": (tq.RBM(np.ones((2, 3))), tq.RBM(np.ones((3, 2)))),
    "edges": (TWO_EDGES, tq.BoltzmannMachine(np.ones(2), edges=[(0, 1), (0, 2)])),
    "visible units": (
        TWO_EDGES,
        tq.BoltzmannMachine(np.ones(2), None, 2, TWO_EDGES.edges),
    ),
    "the temperature": (neural(1, 1).tempered(0.5), neural(1, 1).tempered(0.6)),
    "the precision": (jnp.ones(2), jnp.ones(2, jnp.float32)),
    "the kernel": (KERNELS["gibbs"], KERNELS["metropolis"]),
    "a scan": (tq.Power(KERNELS["gibbs"], 2), tq.Power(KERNELS["gibbs"], 3)),
    "the window": (tq.QStruct(KERNELS["gibbs"], 10), tq.QStruct(KERNELS["gibbs"], 11)),
    "the start": (tq.Uniform(), tq.Stationary()),
    "the key": (jr.key(0), jr.key(1)),
    "the function": (jnp.tanh, jnp.sinh),
    "the code": (lambda x: x + 1, lambda x: x + 2),
    "an operation": (lambda x: x + 1, lambda x: x - 1),
    "what it calls": (lambda x: abs(x), lambda x: -x),
    "inner code": (lambda x: [y + 1 for y in x], lambda x: [y + 2 for y in x]),
    "an order": (
        {"a": np.ones(1), "b": np.zeros(1)},
        {"a": np.zeros(1), "b": np.ones(1)},
    ),
    "where a list ends": ([[1], [2, 3]], [[1, 2], [3]]),
    "a static word": (
        tq.QStruct(KERNELS["gibbs"], 10, convention="sokal"),
        tq.QStruct(KERNELS["gibbs"], 10),
    ),
}


@pytest.mark.quick(11)
@pytest.mark.parametrize("what", CHANGES)
def test_a_hash_tells(what):
    one, other = CHANGES[what]
    assert hash_of(one) != hash_of(other)
    again = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, one)
    assert hash_of(one) == hash_of(again)


def test_a_hash_does_not_tell_where_numbers_are():
    x = np.arange(6.0).reshape(2, 3)
    assert hash_of(x) == hash_of(jnp.asarray(x)) == hash_of(np.asfortranarray(x))
    model = tq.BoltzmannMachine.from_edges(TWO_EDGES.edges, np.ones(2))
    assert hash_of(model) == hash_of(TWO_EDGES)


def test_one_hash_is_of_all_inputs_and_their_names():
    def total(**inputs):
        return tq.as_dict(None, **inputs)["hash"]

    assert total() is None
    assert total(a=MODEL, b=DATA) == total(b=DATA, a=MODEL)
    assert len({total(), total(a=MODEL), total(b=MODEL), total(a=MODEL, b=DATA)}) == 4
    # A name that is that of the argument.
    assert tq.as_dict(1, result=MODEL)["inputs"].keys() == {"result"}


class Callable:
    def method(self):
        return 1


def test_mistakes_are_told(as_for_users):
    state = 2
    stateful = [
        Callable().method,
        functools.partial(max, 1),
        lambda x: x + state,
        lambda x, y=state: x + y,
    ]
    for function in stateful:
        with pytest.raises(TypeError, match="its code, but the one at `one.0` has"):
            hash_of([function])
    with pytest.raises(TypeError, match="type set cannot be saved"):
        tq.as_dict({1})
    with pytest.raises(ValueError, match="A dictionary is .* a traced model was given"):
        eqx.filter_jit(lambda m: tq.as_dict(1, model=m) and None)(MODEL)
    modes = markov.modes(KERNELS["gibbs"].chain(MODEL), tq.observables(MODEL))
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), modes)
    with pytest.raises(
        ValueError, match="of this Modes cannot be had. Of a batch take"
    ):
        tq.as_dict(batch)
    alone = jax.tree.map(lambda x: x[1], batch)
    assert tq.as_dict(alone)["result"] == tq.as_dict(modes)["result"]
