"""Trains and evaluates.

    python -m mtlora_jax.main --config=configs/mtlora_tiny_448.py:64 --workdir=runs/mtlora_r64 \\
        --config.init_from=weights/swin_tiny
    python -m mtlora_jax.main --config=configs/mtlora_tiny_448.py:64 --workdir=runs/mtlora_r64 --mode=evaluate
    python -m mtlora_jax.main --config=configs/mtlora_tiny_448.py:64 --workdir=runs/mtlora_r64 --mode=replay --step=120

A stopped run continues from its newest checkpoint when the same command is given again. WORKDIR then holds log.jsonl,
tensorboard/, checkpoints/, metrics.json and best/, the model folder with the best scores. --mode=evaluate writes
evaluation.json.

On several hosts, start the same command on each of them. SLURM (srun) and TPU pods are recognised. Elsewhere, three
flags tell the processes apart, and --workdir must be on a file system that all hosts share:

    python -m mtlora_jax.main --config=... --workdir=/shared/run \\
        --coordinator_address=node1:12345 --num_processes=2 --process_id=0

on node1; on node2 --process_id=1.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import NoReturn

from mtlora_jax import cli
from mtlora_jax.errors import UserError
from mtlora_jax.io import files
from mtlora_jax.io.files import user_path

MODES = ("train", "evaluate", "replay")


def flags() -> cli.Parser:
    """Return the parser of the command's flags."""
    parser = cli.Parser("mtlora_jax.main", __doc__, config=True)
    parser.add_argument(
        "--workdir", required=True, type=user_path, help="folder of the run: checkpoints, logs, best model"
    )
    parser.add_argument(
        "--mode", default="train", choices=MODES, help="train (default), evaluate what is there, or replay one step"
    )
    parser.add_argument("--step", type=int, metavar="K", help="for --mode=replay: the step, as log.jsonl numbers it")
    parser.add_argument(
        "--override_config", action="store_true", help="continue a run although its configuration has changed"
    )
    parser.add_argument("--profile", action="store_true", help="write a trace of some steps to WORKDIR/trace")
    parser.add_argument(
        "--compile_cache", metavar="DIR", help="folder that keeps compiled programs for the next start; empty: none"
    )
    parser.add_argument(
        "--coordinator_address", metavar="HOST:PORT", help="with several processes: where all can reach the first one"
    )
    parser.add_argument(
        "--num_processes",
        type=int,
        metavar="N",
        help="number of processes; 1: this one alone, on SLURM and TPUs too",
    )
    parser.add_argument("--process_id", type=int, metavar="I", help="number of this process, from 0")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, then train, evaluate or replay."""
    args = flags().parse(argv)
    if (args.mode == "replay") != (args.step is not None):
        raise UserError("--mode=replay and --step=K, the step to repeat, are given together or not at all")

    # imported here, since data workers import this module again and need none of this
    from mtlora_jax.distributed import processes
    from mtlora_jax.train.evaluate_run import evaluate_only
    from mtlora_jax.train.replay import replay
    from mtlora_jax.train.run import train

    keep_compiled(args.compile_cache)
    processes.initialize(args.coordinator_address, args.num_processes, args.process_id)
    workdir = args.workdir
    if args.mode == "train":
        train(args.config, workdir, profile=args.profile, override=args.override_config)
    elif args.mode == "evaluate":
        evaluate_only(args.config, workdir)
    else:
        replay(args.config, workdir, args.step)


def keep_compiled(folder: str | None) -> None:
    """Have JAX keep compiled programs in `folder`, so that a second start need not compile.

    If `folder` is empty, none are kept. If it is None, they go where JAX_COMPILATION_CACHE_DIR says, else into the
    user's cache folder if that can be written. Raises UserError for a folder that cannot be written.
    """
    import jax

    if folder == "":
        jax.config.update("jax_compilation_cache_dir", None)
    if folder == "" or (folder is None and os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        return
    try:
        path = user_path(
            folder or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "mtlora_jax", "compiled")
        )
        files.check_writable(path)
        files.make_folder(path)
    except UserError as error:
        if folder:
            raise UserError(f"--compile_cache={error}") from error
        return
    jax.config.update("jax_compilation_cache_dir", str(path))


def leave(code: int) -> NoReturn:
    """End a failed process, one of several or alone."""
    from mtlora_jax.distributed import processes

    processes.exit_process(code)


if __name__ == "__main__":
    cli.run(main, leave)
