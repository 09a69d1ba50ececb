"""Trains and evaluates.

    python -m mtlora_jax.main --config=configs/mtlora_tiny_448.py:64 --workdir=runs/mtlora_r64 --config.init=weights/swin_tiny
    python -m mtlora_jax.main --config=configs/mtlora_tiny_448.py:64 --workdir=runs/mtlora_r64 --mode=evaluate

A run that was stopped goes on from its newest checkpoint when the same command is given again. WORKDIR then holds log.jsonl,
tensorboard/, checkpoints/, metrics.json and best/, the model folder with the best scores.
"""

import pathlib
from collections.abc import Sequence

from mtlora_jax import cli

MODES = ("train", "evaluate")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and hands over."""
    parser = cli.Parser("mtlora_jax.main", __doc__, config=True)
    parser.add_argument("--workdir", required=True, help="folder of the run: checkpoints, logs, best model")
    parser.add_argument("--mode", default="train", choices=MODES, help="train (default), or evaluate what is there")
    args = parser.parse(argv)

    from mtlora_jax.evaluate import evaluate_only  # here: data workers import this module again and need none of it
    from mtlora_jax.train import train

    program = {"train": train, "evaluate": evaluate_only}[args.mode]
    program(args.config, pathlib.Path(args.workdir))


if __name__ == "__main__":
    cli.run(main)
