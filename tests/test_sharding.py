"""The states spread over several devices, and over several processes."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIRECT, assert_close

from trainq._spins import shard


SCRIPT = Path(__file__).parent / "sharded.py"
MESSAGES = SCRIPT.with_name("messages.py")


def start(*args, script=SCRIPT):
    command = [sys.executable, str(script), *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def report(process, timeout=300):
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    # Rematerialisation is what XLA calls a transfer that it could not avoid.
    assert "rematerialization" not in err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def alone():
    return report(start())


def assert_same(found, expected):
    assert_close(found["value"], expected["value"], DIRECT)
    assert_close(found["grads"], expected["grads"], DIRECT)


@pytest.mark.slow
def test_eight_devices_share_the_memory(alone):
    found = report(start("--devices", 8))
    assert found["devices"] == 8 and alone["devices"] == 1
    assert_same(found, alone)
    # Flips of the leading units are exchanges between pairs, sums are reductions, and
    # nothing is ever gathered.
    assert found["operations"] == ["all-reduce", "collective-permute"]
    assert alone["operations"] == []
    # An eighth, and the small arrays that every device has.
    assert found["bytes"] <= alone["bytes"] / 5


@pytest.mark.slow
def test_biased_models_and_odd_numbers_of_units():
    for options in (["--biased"], ["--units", 11]):
        found = report(start("--devices", 4, *options))
        assert_same(found, report(start(*options)))
        assert found["operations"] == ["all-reduce", "collective-permute"]


def two_processes(script):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = "--devices", 4, "--port", port, "--process"
    processes = [start(*options, i, script=script) for i in range(2)]
    return [report(process) for process in processes]


@pytest.mark.slow
def test_two_processes(alone):
    for found in two_processes(SCRIPT):
        assert found["devices"] == 8
        assert_same(found, alone)
        assert found["bytes"] <= alone["bytes"] / 5


def test_without_a_mesh_nothing_happens():
    f = jnp.arange(8.0)
    assert shard(f) is f
    other = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(other):
        assert shard(f) is f
    # Fewer states than devices stay where they are.
    mesh = jax.make_mesh((1,), ("states",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert np.array_equal(jax.jit(shard)(f), f)


def test_another_type_of_axis_is_refused():
    mesh = jax.make_mesh(
        (1,), ("states",), axis_types=(jax.sharding.AxisType.Explicit,)
    )
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"AxisType\.Auto"):
        shard(jnp.arange(8.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("--fast",), pytest.param((), marks=pytest.mark.slow)]
)
def test_chains_on_a_mesh_are_those_on_one_device(options):
    command = [sys.executable, str(SCRIPT.with_name("sharded_chains.py")), *options]
    process = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    assert len(found) == (7 if options else 54)
    assert all(found.values()), found


@pytest.mark.parametrize(
    "kind, options",
    [
        ("auto", ["--fast"]),
        pytest.param("auto", [], marks=pytest.mark.slow),
        pytest.param("explicit", [], marks=pytest.mark.slow),
    ],
)
def test_no_device_tells_another_anything_in_a_loop_of_chains(kind, options):
    process = start("--count", kind, *options, script=MESSAGES)
    found = report(process, timeout=900)
    assert len(found) == (3 if options else 24 + 1 + 7 + 2)
    assert all(case.pop("same") for case in found.values()), found
    for name, case in found.items():
        study, *_ = name.split(", ")
        if study == "control False":
            assert case["inside"], name
            continue
        assert not case["inside"], (name, case)
        if study == "control True":
            assert case["whole"], name
            continue
        # What is said after a loop: sums, and of a gradient at most 64 replicates,
        # sums over chains, of which all pairs are looked at.
        more = set() if study in ("run", "lags", "swaps") else {"all-gather"}
        assert {*case["outside"]} - more == {"all-reduce"}, (name, case)
        # No device has anything of all chains, but for what they start from.
        starts = study in ("QSampled", "swaps") or name.endswith("Uniform()")
        assert not case["whole"] or (starts and kind == "explicit"), (name, case)


@pytest.mark.slow
def test_a_study_of_many_models_needs_no_message():
    for case in report(start("--count", "models", script=MESSAGES)).values():
        assert not case["inside"] and not case["outside"]
        assert case["same"] and case["differ"]


@pytest.mark.slow
def test_statistics_are_those_of_the_chains_of_both_processes():
    alone = report(start("--devices", 1, script=MESSAGES))
    assert alone["devices"] == 1 and alone["share"] == 1
    for found in two_processes(MESSAGES):
        assert found["devices"] == 8 and found["share"] == 1 / 2
        assert found["numbers"].keys() == alone["numbers"].keys()
        for name, expected in alone["numbers"].items():
            assert np.all(np.isfinite(expected)), name
            # Sums of float32 in another order.
            assert np.allclose(found["numbers"][name], expected, rtol=1e-3), name
