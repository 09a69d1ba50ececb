"""Counts the parameters and the multiply-accumulates of a config's model, without weights and without data.

    python -m mtlora_jax.summary --config=configs/mtlora_tiny_448.py:64
    python -m mtlora_jax.summary --config=configs/mtlora_tiny_448.py:64 --json

Keys of --json: trainable, total (numbers of values), groups ({group: {total, trainable}}), trainable_unused (trained, but no logit
depends on it), gmacs (10^9 multiply-accumulates of all matrix products and convolutions of one image's forward pass as the program
executes it; interpolation is not counted), tasks, image_size, method.
"""

import json
from collections.abc import Sequence

from mtlora_jax import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the summary."""
    parser = cli.Parser("mtlora_jax.summary", __doc__, config=True)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse(argv)

    from mtlora_jax import architecture as architectures
    from mtlora_jax.accounting import summarise
    from mtlora_jax.experiment import tasks_of
    from mtlora_jax.records import console, print_parameters

    tasks = tasks_of(args.config)
    architecture = architectures.from_config(args.config, {name: task.channels for name, task in tasks.items()})
    model = architectures.build(architecture)
    size = tuple(architecture["image_size"])
    summary = summarise(model, architectures.method_of(architecture), size)
    summary |= {"tasks": architecture["tasks"], "image_size": architecture["image_size"], "method": architecture["method"]}
    if args.json:
        print(json.dumps(summary))
        return
    print_parameters(summary)
    console.print(f"{summary['gmacs']:.2f} GMACs for one image of {size[0]}x{size[1]} and {len(tasks)} tasks")


if __name__ == "__main__":
    cli.run(main)
