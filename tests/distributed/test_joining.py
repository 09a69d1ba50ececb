"""How processes find each other, and how they end together."""

import contextlib
import socket
import subprocess
import sys

import pytest
from jobs import environment, free_port

from mtlora_jax.distributed import processes
from mtlora_jax.errors import UserError

pytestmark = pytest.mark.xdist_group("joining")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script itself, without srun
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": "4"}, None),  # the shell of salloc
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, {"num_processes": 2, "local_device_ids": []}),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, {"num_processes": 8}),
        ({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, {}),
        ({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, {}),
    ],
)
def test_clusters_are_recognised(environment, expected):
    assert processes.detect_cluster(environment) == expected


def test_flags_say_who_is_who():
    expected = {"coordinator_address": "node1:12345", "num_processes": 4, "process_id": 3}
    assert processes.check_flags("node1:12345", 4, 3) == expected
    assert processes.check_flags(None, 1, None) is None


INCOMPLETE = "several processes need all of --coordinator_address=HOST:PORT --num_processes=N --process_id=I"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((None, 2, 0), INCOMPLETE),
        (("node1:1234", None, None), "several processes need all of"),
        ((None, None, 1), "several processes need all of"),
        (("node1", 2, 0), "--coordinator_address=node1 must be HOST:PORT, such as node1:12345"),
        (("node1:http", 2, 0), "must be HOST:PORT"),
        (("node1:70000", 2, 0), "must be HOST:PORT"),
        ((":1234", 2, 0), "must be HOST:PORT"),
        (("node1:1234", 0, 0), "--num_processes=0 must be at least 1"),
        (("node1:1234", 2, 2), "--process_id=2 must be at least 0 and below --num_processes=2"),
        (("node1:1234", 2, -1), "--process_id=-1 must be at least 0"),
    ],
)
def test_half_given_flags_are_refused(flags, told):
    with pytest.raises(UserError) as error:
        processes.initialize(*flags)
    assert told in str(error.value)


def test_a_single_task_of_slurm_runs_alone(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    processes.initialize()
    processes.initialize(processes=1)


def python(program: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


JOIN = """
import sys
from mtlora_jax import cli
from mtlora_jax.distributed import processes
cli.run(lambda: processes.initialize(sys.argv[1], 2, int(sys.argv[2]), timeout=2), processes.exit_process)
"""


@pytest.mark.parametrize("process", [0, 1])
def test_waiting_for_the_others_ends_with_one_line(process):
    joining = python(JOIN, f"localhost:{free_port()}", process)
    _, told = joining.communicate(timeout=200)
    assert joining.returncode == 2
    lines = [line for line in told.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "did not all meet at localhost:" in lines[0]
    assert "within 2 s" in lines[0]
    assert "Traceback" not in told


def test_a_taken_port_is_told():
    with contextlib.closing(socket.socket(socket.AF_INET6)) as taken:
        taken.bind(("::", 0))
        taken.listen()
        joining = python(JOIN, f"localhost:{taken.getsockname()[1]}", 0)
        _, told = joining.communicate(timeout=200)
    assert joining.returncode == 2
    assert told.splitlines()[-1].startswith("error: port ")
    assert "Address already in use" in told


FAIL = """
import sys, time
import jax, numpy as np
from mtlora_jax import cli
from mtlora_jax.distributed import processes, sharding
from mtlora_jax.errors import UserError
processes.LEAVE_SECONDS = 6
def main():
    processes.initialize(sys.argv[1], 2, int(sys.argv[2]))
    sharding.barrier("all are here")
    if sys.argv[2] in sys.argv[3]:
        raise UserError("this host has no data")
    sharding.assert_equal_across_processes(True, "never comes")
cli.run(main, processes.exit_process)
"""


@pytest.mark.parametrize("failing", ["0", "1", "01"])
def test_a_failing_process_ends_all(failing):
    port = free_port()
    both = [python(FAIL, f"localhost:{port}", process, failing) for process in range(2)]
    told = [process.communicate(timeout=200)[1] for process in both]
    for process, text in enumerate(told):
        failed = str(process) in failing
        assert ("error: this host has no data" in text.splitlines()) == failed
        assert both[process].returncode == 2 if failed else both[process].returncode not in (0, None)
