"""Trains and evaluates.

    python -m mtlora_jax.main --config=configs/mtlora_tiny_448.py:64 --workdir=runs/mtlora_r64 --config.init_from=weights/swin_tiny
    python -m mtlora_jax.main --config=configs/mtlora_tiny_448.py:64 --workdir=runs/mtlora_r64 --mode=evaluate

A run that was stopped goes on from its newest checkpoint when the same command is given again. WORKDIR then holds log.jsonl,
tensorboard/, checkpoints/, metrics.json and best/, the model folder with the best scores. --mode=evaluate writes evaluation.json.

On several hosts the same command is started on each of them. SLURM (srun) and TPU pods are recognised; elsewhere three flags say who
is who, and --workdir is on a file system that all of them share:

    python -m mtlora_jax.main --config=... --workdir=/shared/run --coordinator_address=node1:12345 --num_processes=2 --process_id=0

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

MODES = ("train", "evaluate")


def flags() -> cli.Parser:
    """What the command takes."""
    parser = cli.Parser("mtlora_jax.main", __doc__, config=True)
    parser.add_argument(
        "--workdir", required=True, type=user_path, help="folder of the run: checkpoints, logs, best model"
    )
    parser.add_argument("--mode", default="train", choices=MODES, help="train (default), or evaluate what is there")
    parser.add_argument(
        "--override_config", action="store_true", help="go on with a run although the configuration is another one"
    )
    parser.add_argument("--profile", action="store_true", help="write a trace of some steps to WORKDIR/trace")
    parser.add_argument(
        "--compile_cache", metavar="DIR", help="where compiled programs are kept for the next start; empty: nowhere"
    )
    parser.add_argument(
        "--coordinator_address", metavar="HOST:PORT", help="of several processes: where all can reach the first one"
    )
    parser.add_argument(
        "--num_processes",
        type=int,
        metavar="N",
        help="how many processes there are; 1: this one, on SLURM and TPUs too",
    )
    parser.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and hands over."""
    args = flags().parse(argv)

    # here: data workers import this module again and need none of it
    from mtlora_jax.distributed import processes
    from mtlora_jax.train.evaluate_run import evaluate_only
    from mtlora_jax.train.run import train

    keep_compiled(args.compile_cache)
    processes.initialize(args.coordinator_address, args.num_processes, args.process_id)
    workdir = args.workdir
    if args.mode == "train":
        train(args.config, workdir, profile=args.profile, override=args.override_config)
    else:
        evaluate_only(args.config, workdir)


def keep_compiled(folder: str | None) -> None:
    """Has JAX keep compiled programs in `folder`, so that a second start need not compile; empty: not at all.

    None: where JAX_COMPILATION_CACHE_DIR says, else in the user's cache folder if that can be written. Raises UserError for a folder
    that cannot be.
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
    """Ends a failed process, one of several or alone."""
    from mtlora_jax.distributed import processes

    processes.exit_process(code)


if __name__ == "__main__":
    cli.run(main, leave)
