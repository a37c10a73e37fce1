"""The example of a job on a cluster, with the variables of Slurm and none of its
machines."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest


SCRIPT = pathlib.Path(__file__).parents[1] / "examples" / "cluster.py"
SIZES = ("--units", "8", "--chains", "48", "--steps", "50")


def job(out, rounds, devices, processes=1):
    """The processes of one job, each with so many devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    started = []
    for rank in range(processes):
        environment = {**os.environ, "XLA_FLAGS": flags}
        if processes > 1:
            # JAX makes the port of the number of the job.
            environment |= {
                "SLURM_JOB_ID": str(port),
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": str(processes),
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank),
                "SLURM_STEP_NUM_TASKS": str(processes),
            }
        command = [sys.executable, SCRIPT, "--out", out, "--rounds", str(rounds)]
        started.append(
            subprocess.Popen(
                [*command, *SIZES],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finished(processes):
    """What the first of them has said."""
    said = [process.communicate(timeout=300) for process in processes]
    for process, (_, error) in zip(processes, said, strict=True):
        assert process.returncode == 0, error
    return [line for line in said[0][0].splitlines() if not line.startswith("[Gloo]")]


def checkpoints(out):
    """Those of the only run in a directory."""
    (directory,) = out.absolute().iterdir()
    handler = ocp.StandardCheckpointHandler()
    return ocp.CheckpointManager(directory, item_handlers=handler)


def saved(out, step):
    with checkpoints(out) as manager:
        assert manager.latest_step() == step
        # Whatever devices they came from.
        metadata = manager.item_metadata(step)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), metadata
        )
        return manager.restore(step, args=ocp.args.StandardRestore(like))


def assert_same(found, expected):
    """The states to the last bit, and the sums up to rounding."""
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        if path.startswith("[0]"):
            np.testing.assert_array_equal(found[path], value, err_msg=path)
        else:
            np.testing.assert_allclose(found[path], value, 1e-12, 1e-12, err_msg=path)


def test_a_job_that_was_killed_goes_on_where_it_was(tmp_path):
    (first,) = job(tmp_path / "killed", 10_000, 4)
    for line in first.stdout:
        if line.startswith("round 2"):
            break
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    with checkpoints(tmp_path / "killed") as manager:
        done = manager.latest_step()
    said = finished(job(tmp_path / "killed", done + 1, 2))
    assert said[0] == f"2 devices, 1 processes, {done} rounds are done"
    expected = finished(job(tmp_path / "alone", done + 1, 1))
    assert said[1:] == expected[-1:] and expected[-1].startswith(f"round {done + 1}")
    assert_same(*(saved(tmp_path / name, done + 1) for name in ("killed", "alone")))


@pytest.mark.slow
def test_two_processes_of_a_cluster_leave_what_one_device_does(tmp_path):
    said = finished(job(tmp_path / "two", 2, 4, processes=2))
    expected = finished(job(tmp_path / "one", 2, 1))
    assert said[0] == "8 devices, 2 processes, 0 rounds are done"
    assert said[1:] == expected[1:]
    assert_same(*(saved(tmp_path / name, 2) for name in ("two", "one")))
