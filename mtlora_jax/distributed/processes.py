"""Several processes as one program, on JAX's own distributed runtime: the same command on every host (or for every GPU).

After `initialize`, `jax.devices()` are those of all processes and every collective spans them. Nothing here is needed for one process.
"""

import importlib.util
import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from mtlora_jax.console import console
from mtlora_jax.distributed import sharding
from mtlora_jax.errors import UserError

START_SECONDS = 300  # in which all processes must have been started
LEAVE_SECONDS = 30  # a process that failed waits so long for the others to end too; then they are ended


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout: int = START_SECONDS,
) -> None:
    """Joins the other processes where the arguments, SLURM or a TPU pod say that there are any; else does nothing.

    Must come before anything is computed. Afterwards only process 0 prints. Ends the process with one line and exit code 2 when the
    processes do not meet in time, because JAX's own client would then abort with a stack trace.

    Args:
      coordinator: HOST:PORT at which process 0 can be reached by all; the port must be free there.
      processes: how many; 1 runs this process alone, whatever SLURM or the TPU say.
      process: number of this one, from 0.
      timeout: seconds the processes have to meet.

    Raises:
      UserError: for arguments that are incomplete or contradict one another, or a port that is taken.
    """
    given = (coordinator, processes, process)
    how = detect_cluster(os.environ) if given == (None, None, None) else check_flags(*given)
    if how is None:
        return
    if coordinator and process == 0:
        _check_port(int(coordinator.rpartition(":")[2]))
    jax.config.update(
        "jax_enable_preemption_service", False
    )  # it would take SIGTERM, which `mtlora_jax.distributed.preemption` listens for
    watch = threading.Timer(timeout, _give_up, [coordinator or "their coordinator", timeout])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(**how, initialization_timeout=timeout + 60, shutdown_timeout_seconds=LEAVE_SECONDS)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"the processes cannot be joined: {error}; --num_processes=1 runs this one alone") from error
    finally:
        watch.cancel()
    console.quiet = jax.process_index() != 0
    _connect()


def check_flags(coordinator: str | None, processes: int | None, process: int | None) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` for explicit flags; None for a single process. Raises UserError."""
    if processes == 1:
        return None
    if coordinator is None or processes is None or process is None:
        raise UserError(
            "several processes need all of --coordinator_address=HOST:PORT --num_processes=N --process_id=I"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator_address={coordinator} must be HOST:PORT, such as node1:12345")
    if processes < 1:
        raise UserError(f"--num_processes={processes} must be at least 1")
    if not 0 <= process < processes:
        raise UserError(f"--process_id={process} must be at least 0 and below --num_processes={processes}")
    return {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}


def detect_cluster(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` for what the environment tells; None for a single process.

    What is left out of the arguments, JAX finds itself on SLURM and on TPUs.
    """
    tasks = int(
        environment.get("SLURM_STEP_NUM_TASKS", 1)
    )  # set by srun for what it starts; a batch script itself is alone
    if tasks > 1:
        # JAX gives each task the one device of its local number. A task that has a node to itself takes all of them ([]: no restriction).
        alone = tasks == int(environment.get("SLURM_STEP_NUM_NODES", 1))
        return {"num_processes": tasks} | ({"local_device_ids": []} if alone else {})
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get(
        "TPU_WORKER_HOSTNAMES", ""
    )  # GKE sets one of them
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    # `import jax` sets TPU_SKIP_MDS_QUERY where it finds no TPU. Elsewhere, the metadata server of a TPU VM tells the rest.
    tpu_vm = importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in environment
    return {} if "," in workers or slices > 1 or (tpu_vm and not workers) else None


def exit_process(code: int) -> NoReturn:
    """Ends this process with `code` after an error.

    Processes that fail alike end together. If the others go on, JAX ends them after LEAVE_SECONDS at the latest; this one does not wait
    to be ended with them, which would hide its exit code and its message.
    """
    if not jax.distributed.is_initialized():
        sys.exit(code)
    farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(LEAVE_SECONDS - 3)
    if not farewell.is_alive():
        sys.exit(code)
    for worker in multiprocessing.active_children():
        worker.terminate()
    os._exit(code)


def _check_port(port: int) -> None:
    """Raises UserError for a port that is taken, on which JAX's service would crash."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"port {port} of --coordinator_address cannot be used on this host: {error.strerror}; choose another one"
        ) from error


def _connect() -> None:
    """One collective over all devices, while all processes are at the same place.

    On CPUs, a group of devices must meet within 30 s the first time it computes together, and for later collectives there is no limit: the
    first training step, reached when a process has compiled it, must not be the first collective.
    """
    mesh = sharding.make_mesh()
    ones = jax.make_array_from_process_local_data(
        sharding.batch_sharding(mesh), np.ones(jax.local_device_count(), np.float32)
    )
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=sharding.replicated_sharding(mesh))(ones))
    sharding.barrier("start")


def _give_up(coordinator: str, timeout: int) -> None:
    print(
        f"error: the processes did not all meet at {coordinator} within {timeout} s: is the same command running for each of them, and can "
        "this address be reached from every host?",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)
