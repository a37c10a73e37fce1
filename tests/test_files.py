"""Files that say what they hold, and refuse to be taken for something else."""

import os
import signal
import stat
import subprocess
import sys
import zipfile
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import KERNELS, random_law, rbm

import trainq as tq
from trainq import sampling


KEY, MODEL, DATA, KERNEL = jr.key(0), rbm(2, 2), random_law(2), KERNELS["gibbs"]


class Pair(NamedTuple):
    first: jax.Array
    second: float


class Neural(tq.AbstractEnergyModel):
    mlp: eqx.nn.MLP
    n_visible: int = eqx.field(static=True)
    n_hidden: int = eqx.field(static=True)

    def energy(self, x):
        return self.mlp(x)


def neural(seed):
    return Neural(eqx.nn.MLP(4, "scalar", 3, 1, key=jr.key(seed)), 2, 2)


STATE = sampling.start_chains(KEY, MODEL, 3)
BIASED = tq.RBM(jnp.ones((5, 3)), jnp.arange(5.0), jnp.ones(3))
ONE_SIDED = tq.RBM(jnp.ones((5, 3)), jnp.arange(5.0))
SAVED = {
    "model": MODEL,
    "biases": BIASED,
    "graph": tq.BoltzmannMachine(jnp.ones(3), edges=[[0, 1], [1, 2], [0, 2]]),
    "tempered": neural(0).tempered(0.5),
    "network": tq.CouplingNetwork(2, 3, 2, key=KEY),
    "predictor": tq.QOperational(tq.AlternatingBlockGibbs([[0, 1], [2]]), 5, batch=3),
    "chains": STATE,
    "other keys": sampling.start_chains(jr.key(0, impl="rbg"), MODEL, 3),
    "run": sampling.run(KERNEL, MODEL, STATE, 20, keep=True),
    "result": tq.QStruct(KERNEL, 10)(MODEL, DATA),
    "table": sampling.exact_errors(KERNEL, MODEL, DATA, max_steps=5),
    "array": jnp.ones((2, 0, 3), jnp.int8),
    "key": KEY,
    "tree": {"a": [Pair(KEY, 0.1), None], "b": (np.float64(2), "x", True), "c": {}},
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "saved.npz"


def leaf(x):
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jr.key_impl(x), jr.key_data(x).tolist()
    if eqx.is_array_like(x):
        return type(x), np.asarray(x).dtype, np.shape(x), np.asarray(x).tolist()
    return x


@pytest.mark.parametrize("name", SAVED)
def test_what_is_saved_is_loaded(name, file):
    tree = SAVED[name]
    tq.save(file, tree)
    trees = [tq.load(file, like=tree)]
    if name != "tempered":  # which has functions in it
        trees.append(tq.load(str(file)))
    for loaded in trees:
        leaves, structure = jax.tree.flatten(tree)
        assert jax.tree.structure(loaded) == structure
        assert list(map(leaf, jax.tree.leaves(loaded))) == list(map(leaf, leaves))


def test_arrays_are_read_by_numpy(file):
    tq.save(file, BIASED)
    with np.load(file) as arrays:
        np.testing.assert_array_equal(arrays["visible_bias"], BIASED.visible_bias)


def test_a_saved_chain_goes_on_to_the_last_bit(file):
    first = sampling.run(KERNEL, MODEL, STATE, 7)
    tq.save(file, (first.state, first.moments))
    state, moments = tq.load(file)
    again = sampling.run(KERNEL, MODEL, state, 9, moments=moments)
    whole = sampling.run(KERNEL, MODEL, STATE, 16)
    np.testing.assert_array_equal(again.state.x, whole.state.x)
    np.testing.assert_array_equal(again.moments.mean, whole.moments.mean)


OTHER = {
    "biases that would be dropped": (
        BIASED,
        tq.RBM(jnp.ones((5, 3))),
        r"holds an array of float64 and shape \(5,\) at `visible_bias`, but `like` "
        "has None",
    ),
    "biases that are not there": (
        tq.RBM(jnp.ones((5, 3))),
        BIASED,
        r"holds None at `visible_bias`, but `like` has an array of float64",
    ),
    "another shape": (
        BIASED,
        tq.RBM(jnp.ones((5, 4)), jnp.arange(5.0), jnp.ones(4)),
        r"float64 and shape \(5, 3\) at `weights`, but `like` has .* \(5, 4\)",
    ),
    "another precision": (
        BIASED,
        jax.tree.map(lambda x: x.astype(jnp.float32), BIASED),
        "holds an array of float64 .* but `like` has an array of float32",
    ),
    "another class": (MODEL, SAVED["graph"], "the class RBM .* the class Boltzmann"),
    "another graph": (
        SAVED["graph"],
        tq.BoltzmannMachine(jnp.ones(3), edges=[[0, 2], [0, 1], [1, 2]]),
        "structure with the digest",
    ),
    "another static value": (
        tq.QOperational(KERNEL, 10, n_chains=2),
        tq.QOperational(KERNEL, 10, n_chains=3),
        "holds 2 at `n_chains`, but `like` has 3",
    ),
    "another key": (KEY, jr.key(0, impl="rbg"), "random keys of threefry2x32"),
    "another length": ((1, 2), (1, 2, 3), "a tuple of 0, 1 at the top, but"),
    "another kind of leaf": (Pair(KEY, 1.0), Pair(KEY, None), "of type float at `sec"),
    "another function": (
        neural(0),
        eqx.tree_at(lambda m: m.mlp.activation, neural(0), jnp.tanh),
        "the function relu at `mlp.activation`",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_something_else_is_refused(name, file):
    tree, like, message = OTHER[name]
    tq.save(file, tree)
    with pytest.raises(ValueError, match=f"saved.npz {message}|{message}") as found:
        tq.load(file, like)
    assert str(found.value).startswith(str(file))


def test_numbers_do_not_have_to_be_alike(file):
    tq.save(file, {"rate": 0.1, "model": neural(0)})
    loaded = tq.load(file, {"rate": 7.0, "model": neural(1)})
    assert loaded["rate"] == 0.1
    x = jnp.ones(4)
    assert loaded["model"].energy(x) == neural(0).energy(x) != neural(1).energy(x)


def test_precision_is_not_lost(file):
    tq.save(file, BIASED)
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match="jax_enable_x64 is off, and digits would"):
            tq.load(file)
    low = jax.tree.map(lambda x: x.astype(jnp.float32), BIASED)
    tq.save(file, low)
    with jax.enable_x64(False):
        assert tq.load(file).weights.dtype == jnp.float32
    assert tq.load(file).weights.dtype == jnp.float32


def test_functions_are_not_saved(file):
    tq.save(file, neural(0))
    with pytest.raises(ValueError, match=r"saved.npz holds the function relu at `mlp"):
        tq.load(file)


def test_every_damage_is_noticed(file):
    tq.save(file, BIASED)
    whole = file.read_bytes()
    numbers = BIASED.weights.tobytes()
    at = whole.index(numbers)
    for place in range(at, at + len(numbers), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(
            ValueError, match="saved.npz is damaged, or was not written"
        ):
            tq.load(file)
    for length in range(0, len(whole), 97):
        file.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match="saved.npz is damaged, or was not written"
        ):
            tq.load(file)
    file.write_bytes(whole)
    assert eqx.tree_equal(tq.load(file), BIASED)


def rewritten(file, old, new):
    """The file with another word in its header, which is one of its own."""
    with np.load(file) as arrays:
        parts = dict(arrays)
    header = str(parts.pop("header"))
    assert old in header
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in {
            "header": np.array(header.replace(old, new)),
            **parts,
        }.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.save(entry, array)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"format": 1', '"format": 2', "in a format that this one does not read"),
        ("models:RBM", "models:Gone", "instance of trainq.models:Gone at the top, wh"),
        ("trainq.models:RBM", "os:system", "an instance of os:system at the top, wh"),
        ('"hidden_bias"', '"other"', "with weights, visible_bias, other, which now"),
        ("[5, 3]", "[3, 5]", "is damaged"),
    ],
)
def test_other_versions(old, new, message, file):
    tq.save(file, ONE_SIDED)
    rewritten(file, old, new)
    with pytest.raises(ValueError, match=message):
        tq.load(file)


def test_files_of_others(file):
    np.savez(file, weights=np.ones((5, 3)))
    message = (
        "saved.npz is damaged, or was not written .* no header. `numpy.load` reads"
    )
    with pytest.raises(ValueError, match=message):
        tq.load(file)
    with pytest.raises(FileNotFoundError, match="absent"):
        tq.load(file.parent / "absent")


def test_a_file_is_replaced_whole_or_not_at_all(file, monkeypatch):
    tq.save(file, MODEL)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~current_umask()

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space left"):
        tq.save(file, BIASED)
    monkeypatch.undo()
    assert eqx.tree_equal(tq.load(file), MODEL)
    assert [path.name for path in file.parent.iterdir()] == ["saved.npz"]


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    "tree, error, message",
    [
        (
            {1: 2.0},
            TypeError,
            "keys of a .* are strings, but in the one at the top .* 1",
        ),
        (
            [{1: KEY, "a": KEY}],
            TypeError,
            "strings, but in the one at `0` there is 1. U",
        ),
        (signal.SIGINT, TypeError, "An object of type Signals cannot be saved"),
        ([object()], TypeError, "type object cannot be saved, and there is one at `0`"),
        (np.array(["x"]), TypeError, "The array at the top has the dtype <U1"),
        (jnp.ones(2, jnp.bfloat16), TypeError, "has the dtype bfloat16"),
        ({"a.b": KEY, "a": {"b": KEY}}, TypeError, "two things by the name `a.b`"),
        (eqx.Partial(jnp.add, jnp.ones(2)), None, None),
        (jax.tree_util.Partial(jnp.add, jnp.ones(2)), TypeError, "type Partial"),
    ],
)
def test_what_cannot_be_saved(tree, error, message, file):
    if error is None:
        tq.save(file, tree)
        assert jnp.array_equal(tq.load(file, like=tree)(1.0), jnp.full(2, 2.0))
        return
    with pytest.raises(error, match=message):
        tq.save(file, tree)
    assert not file.exists()


def test_not_while_tracing(file):
    with pytest.raises(ValueError, match="A file is made of numbers"):
        jax.jit(lambda x: tq.save(file, x))(jnp.ones(2))


@pytest.mark.parametrize("name", ["chains", "result"])
def test_another_process_needs_no_import_but_that_of_trainq(name, file):
    # Its parts are loaded where they are first used, and a file may be the first.
    tq.save(file, SAVED[name])
    command = "import sys, jax, trainq; jax.config.update('jax_enable_x64', True); "
    command += "print(type(trainq.load(sys.argv[1])).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", command, file], capture_output=True, text=True
    )
    assert done.stdout.strip() == type(SAVED[name]).__name__, done.stderr


@pytest.mark.slow
def test_a_class_that_is_not_imported(tmp_path):
    tq.save(tmp_path / "pair.npz", Pair(KEY, 1.0))
    command = "import sys, trainq; trainq.load(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", command, tmp_path / "pair.npz"],
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "holds an instance of test_files:Pair at the top, which is not" in last
