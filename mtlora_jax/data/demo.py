"""The demo data set: rendered scenes in the layout of PASCAL_MT, so that its builder and everything after it work on them.

They are scenes of an evening: the pre-trained Swin has seen days only, so that there is something to adapt it to.
"""

import functools
import pathlib

from mtlora_jax.data.scenes.parallel import on_all_cores
from mtlora_jax.files import read_text

SPLITS = {"train": 0, "val": 100_000}  # seed of the first scene; those from `mtlora_jax.pretrain.FIRST_SEED` on were seen in pre-training


def write(root: pathlib.Path, counts: dict[str, int], size: tuple[int, int] = (176, 176)) -> None:
    """Writes {"train": N, "val": N} scenes of `size` = (H, W) and all five labels under `root`; nothing if they are there.

    The files are the same on every run. The lists of ids are written last: without them nothing takes the folder for a data set.
    """
    from tfds_pascal_context import layout

    ids = {split: [f"scene_{first + i:06}" for i in range(counts[split])] for split, first in SPLITS.items()}
    if all(_list_of(root, split).is_file() and read_text(_list_of(root, split)).split() == ids[split] for split in SPLITS):
        return
    wanted = [image_id for split in SPLITS for image_id in ids[split]]
    for _ in on_all_cores(functools.partial(write_scene, root=root, size=size), wanted, "rendering scenes"):
        pass
    for split in SPLITS:
        layout.write_split(root, split, ids[split])


def write_scene(image_id: str, root: pathlib.Path, size: tuple[int, int]) -> None:
    """Renders one scene, whose seed is the number in its id, and writes its files."""
    from mtlora_jax.data.scenes import EVENING, render
    from tfds_pascal_context import layout

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


def _list_of(root: pathlib.Path, split: str) -> pathlib.Path:
    return root / "ImageSets" / "Context" / f"{split}.txt"
