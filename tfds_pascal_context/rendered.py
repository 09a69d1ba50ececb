"""Renders scenes with all five labels in the layout of PASCAL_MT, as a data set for demos and measurements.

    python -m tfds_pascal_context.rendered demo/PASCAL_MT --train=2000 --val=160

The files are the same on every run; existing ones are kept. The scenes show an evening: the pre-trained Swin of the
demo has only seen scenes by day, so it has something to adapt to.
"""

import functools
import pathlib
from collections.abc import Sequence

from mtlora_jax import cli
from mtlora_jax.demo.scenes.parallel import map_on_all_cores
from mtlora_jax.errors import UserError
from mtlora_jax.io.files import check_writable, read_text, user_path
from tfds_pascal_context import layout

# Seed of the first scene of each split. Those from `mtlora_jax.demo.pretrain.FIRST_SEED` on are for pre-training.
SPLITS = {"train": 0, "val": 100_000}
SIDES = (16, 4096)  # pixels


def write(root: pathlib.Path, counts: dict[str, int], size: tuple[int, int] = (176, 176)) -> None:
    """Writes {"train": N, "val": N} scenes of `size` = (H, W) with all five labels to `root`, unless they exist.

    The lists of ids are written last, so that an incomplete folder is not mistaken for a data set.
    """
    ids = {split: [f"scene_{first + i:06}" for i in range(counts[split])] for split, first in SPLITS.items()}
    lists = {split: root / layout.LISTS / f"{split}.txt" for split in SPLITS}
    if all(path.is_file() and read_text(path).split() == ids[split] for split, path in lists.items()):
        return
    wanted = [image_id for split in SPLITS for image_id in ids[split]]
    for _ in map_on_all_cores(functools.partial(write_scene, root=root, size=size), wanted, "rendering scenes"):
        pass
    for split in SPLITS:
        layout.write_split(root, split, ids[split])


def write_scene(image_id: str, root: pathlib.Path, size: tuple[int, int]) -> None:
    """Renders the scene whose seed is the number in its id, and writes its files."""
    from mtlora_jax.demo.scenes import EVENING, render

    scene = render(int(image_id.rpartition("_")[2]), size, EVENING)
    layout.write_raw(
        root,
        image_id,
        image=scene.image,
        semseg=scene.semseg,
        objects=[layout.Annotated(*annotated) for annotated in scene.objects],
        context=scene.context,
        normals=scene.normals,
        sal=scene.sal,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and renders the scenes."""
    parser = cli.Parser("tfds_pascal_context.rendered", __doc__)
    parser.add_argument("folder", type=user_path, help="where to write the files")
    parser.add_argument("--train", type=int, default=2000, help="scenes to train on (default: 2000)")
    parser.add_argument("--val", type=int, default=160, help="scenes to evaluate on (default: 160)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(176, 176), metavar=("H", "W"), help="pixels of a scene (default: 176 176)"
    )
    args = parser.parse(argv)
    counts = {"train": args.train, "val": args.val}
    for split, count in counts.items():
        if not 1 <= count <= SPLITS["val"]:
            raise UserError(f"--{split}={count} must be from 1 to {SPLITS['val']} scenes")
    if not all(SIDES[0] <= side <= SIDES[1] for side in args.size):
        raise UserError(f"--size {args.size[0]} {args.size[1]}: each side must be from {SIDES[0]} to {SIDES[1]} pixels")
    check_writable(args.folder)
    write(args.folder, counts, tuple(args.size))
    print(f"{args.folder}: {args.train} train and {args.val} val scenes of {args.size[0]} x {args.size[1]} pixels")


if __name__ == "__main__":
    cli.run(main)
