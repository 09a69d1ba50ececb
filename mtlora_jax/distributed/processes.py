"""Several processes as one program, on JAX's own distributed runtime.

The same command runs on every host (or for every GPU). After `initialize`, `jax.devices()` are those of all processes,
and every collective spans them. A single process needs nothing of this.
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

START_SECONDS = 300  # within which all processes must have started
LEAVE_SECONDS = 30  # for which a failed process waits for the others to end; then they are ended


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout: int = START_SECONDS,
) -> None:
    """Joins the other processes, if the arguments, SLURM or a TPU pod say that there are any.

    Must be called before anything is computed. Afterwards only process 0 prints. If the processes do not meet in time,
    this process ends with one line and exit code 2, because JAX's own client would abort with a stack trace.

    Args:
      coordinator: HOST:PORT at which all processes can reach process 0; the port must be free there.
      processes: their number; 1 runs this process alone, whatever SLURM or the TPU say.
      process: number of this one, from 0.
      timeout: seconds within which the processes must meet.

    Raises:
      UserError: for arguments that are incomplete or contradict one another, or a port that is taken.
    """
    given = (coordinator, processes, process)
    how = detect_cluster(os.environ) if given == (None, None, None) else check_flags(*given)
    if how is None:
        return
    if coordinator and process == 0:
        _check_port(int(coordinator.rpartition(":")[2]))
    # That service would take SIGTERM, which `mtlora_jax.distributed.preemption` listens for.
    jax.config.update("jax_enable_preemption_service", False)
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
        flags = "--coordinator_address=HOST:PORT --num_processes=N --process_id=I"
        raise UserError(f"several processes need all of {flags}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator_address={coordinator} must be HOST:PORT, such as node1:12345")
    if processes < 1:
        raise UserError(f"--num_processes={processes} must be at least 1")
    if not 0 <= process < processes:
        raise UserError(f"--process_id={process} must be at least 0 and below --num_processes={processes}")
    return {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}


def detect_cluster(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` according to environment variables; None for a single process.

    JAX itself finds the remaining arguments on SLURM and on TPUs.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))  # srun sets it; a batch script itself is alone
    if tasks > 1:
        # JAX gives each task only the device of its local number. A task alone on its node takes all ([]: no
        # restriction).
        alone = tasks == int(environment.get("SLURM_STEP_NUM_NODES", 1))
        return {"num_processes": tasks} | ({"local_device_ids": []} if alone else {})
    # GKE sets one of them.
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    # `import jax` sets TPU_SKIP_MDS_QUERY if it finds no TPU. On a TPU VM, the metadata server knows the rest.
    tpu_vm = importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in environment
    return {} if "," in workers or slices > 1 or (tpu_vm and not workers) else None


def exit_process(code: int) -> NoReturn:
    """Ends this process with `code` after an error.

    Processes that fail alike end together. If the others continue, JAX ends them after at most `LEAVE_SECONDS`. This
    process ends before that, since otherwise its exit code and message would be lost.
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
    """Raises UserError for a port that is taken, since JAX's service would crash."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        what = f"port {port} of --coordinator_address cannot be used on this host"
        raise UserError(f"{what}: {error.strerror}; choose another one") from error


def _connect() -> None:
    """Runs one collective over all devices while all processes are at the same place.

    On CPUs, the devices of a group must meet within 30 s for their first collective; later ones have no limit. That
    first one must not be the training step, since processes reach it only when each has compiled it.
    """
    mesh = sharding.make_mesh()
    ones = jax.make_array_from_process_local_data(
        sharding.batch_sharding(mesh), np.ones(jax.local_device_count(), np.float32)
    )
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=sharding.replicated_sharding(mesh))(ones))
    sharding.barrier("start")


def _give_up(coordinator: str, timeout: int) -> None:
    what = f"the processes did not all meet at {coordinator} within {timeout} s"
    advice = "check that the same command runs for each of them, and that every host can reach this address"
    print(f"error: {what}: {advice}", file=sys.stderr, flush=True)
    os._exit(2)
