"""Renders scenes into the layout of PASCAL_MT, with all five labels: a data set for demos and measurements where there is no other.

    python -m tfds_pascal_context.rendered demo/PASCAL_MT --train=2000 --val=160

The files are the same on every run; what is there already is kept. They are scenes of an evening: the pre-trained Swin of the demo has
seen days only, so that there is something to adapt it to.
"""

import functools
import pathlib
from collections.abc import Sequence

from mtlora_jax import cli
from mtlora_jax.demo.scenes.parallel import map_on_all_cores
from mtlora_jax.errors import UserError
from mtlora_jax.io.files import check_writable, read_text, user_path
from tfds_pascal_context import layout

SPLITS = {
    "train": 0,
    "val": 100_000,
}  # seed of the first scene; those from `mtlora_jax.demo.pretrain.FIRST_SEED` on were for pre-training
SIDES = (16, 4096)  # pixels


def write(root: pathlib.Path, counts: dict[str, int], size: tuple[int, int] = (176, 176)) -> None:
    """Writes {"train": N, "val": N} scenes of `size` = (H, W) and all five labels under `root`; nothing if they are there.

    The lists of ids are written last: without them nothing takes the folder for a data set.
    """
    ids = {split: [f"scene_{first + i:06}" for i in range(counts[split])] for split, first in SPLITS.items()}
    if all(
        _list_of(root, split).is_file() and read_text(_list_of(root, split)).split() == ids[split] for split in SPLITS
    ):
        return
    wanted = [image_id for split in SPLITS for image_id in ids[split]]
    for _ in map_on_all_cores(functools.partial(write_scene, root=root, size=size), wanted, "rendering scenes"):
        pass
    for split in SPLITS:
        layout.write_split(root, split, ids[split])


def write_scene(image_id: str, root: pathlib.Path, size: tuple[int, int]) -> None:
    """Renders one scene, whose seed is the number in its id, and writes its files."""
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
    """Parses the flags and renders."""
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


def _list_of(root: pathlib.Path, split: str) -> pathlib.Path:
    return root / "ImageSets" / "Context" / f"{split}.txt"


if __name__ == "__main__":
    cli.run(main)
