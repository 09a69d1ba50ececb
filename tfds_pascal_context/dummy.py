"""Writes `dummy_data`: synthetic images in the layouts and file formats of PASCAL_MT and NYUD_MT, for tests.

python -m tfds_pascal_context.dummy tfds_pascal_context/dummy_data
"""

import os
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np
import PIL.Image

from mtlora_jax import cli
from mtlora_jax.errors import UserError
from mtlora_jax.io import image_files
from mtlora_jax.io.files import check_writable, read_text, user_path, write_text
from tfds_pascal_context import layout
from tfds_pascal_context.layout import PERSON, Annotated

DOG = 12  # VOC class
# PASCAL-Context classes; sky is the only one without normals.
SKY, FLOOR, TVMONITOR, PERSON_CONTEXT, DOG_CONTEXT = 360, 158, 427, 284, 113
PASCAL = {"train": ("dummy_01", "dummy_02", "dummy_03", "dummy_04"), "val": ("dummy_05", "dummy_06", "dummy_07")}
NYUD = {"train": ("0001", "0002"), "val": ("0003",)}
SIZE = (48, 64)  # height, width


def write_dummy_data(root: str | pathlib.Path) -> None:
    """Writes ROOT/PASCAL_MT and ROOT/NYUD_MT, replacing those of an earlier call.

    Raises UserError if one of the folders holds other data.
    """
    root = pathlib.Path(root)
    check_writable(root)
    lists = {
        root / "PASCAL_MT" / layout.LISTS / "train.txt": PASCAL["train"],
        root / "NYUD_MT/gt_sets/train.txt": NYUD["train"],
    }
    for path, ids in lists.items():
        folder = root / path.relative_to(root).parts[0]
        if os.path.lexists(folder) and not (path.is_file() and read_text(path).split() == list(ids)):
            raise UserError(
                f"{folder}: already exists and holds other data, which would be lost; choose another folder"
            )
    for folder in ("PASCAL_MT", "NYUD_MT"):
        shutil.rmtree(root / folder, ignore_errors=True)
    write_pascal(root / "PASCAL_MT")
    write_nyud(root / "NYUD_MT")


def write_pascal(root: pathlib.Path) -> None:
    """Writes seven images; the comment beside each names its peculiarity."""
    dog = Annotated(DOG, box(30, 46, 4, 20), {"head": box(30, 36, 4, 10), "tail": box(30, 33, 16, 20)})
    _write(root, "dummy_01", [person(2, 40), dog])
    without_parts = Annotated(PERSON, box(20, 30, 2, 9), {})
    _write(root, "dummy_02", [person(2, 20), without_parts, person(6, 26)])  # overlapping
    _write(root, "dummy_03", [dog])  # no person; semseg in the other folder
    (root / layout.SEMSEG[1]).mkdir(parents=True)
    (root / layout.SEMSEG[0] / "dummy_03.png").rename(root / layout.SEMSEG[1] / "dummy_03.png")
    _write(root, "dummy_04", [person(2, 40)])  # three labels of half the size
    for folder in (layout.SEMSEG[0], layout.SAL, layout.NORMALS):
        path = root / folder / "dummy_04.png"
        with image_files.open_image(path.read_bytes(), str(path), "a label", ("PNG",)) as image:
            image.resize((SIZE[1] // 2, SIZE[0] // 2), PIL.Image.Resampling.NEAREST).save(path)
    _write(root, "dummy_05", [Annotated(PERSON, box(5, 40, 5, 20), {})])  # a person without parts
    _write(root, "dummy_06", [])  # no object
    upright = (SIZE[1], SIZE[0])
    _write(root, "dummy_07", [person(2, 24, upright)], upright)
    for split, ids in PASCAL.items():
        layout.write_split(root, split, ids)


def write_nyud(root: pathlib.Path) -> None:
    """Writes three images."""
    for folder in ("images", "segmentation", "normals", "edge", "depth", "gt_sets"):
        (root / folder).mkdir(parents=True)
    rows, columns = np.mgrid[0:24, 0:32]
    for number, image_id in enumerate(image_id for ids in NYUD.values() for image_id in ids):
        classes = ((rows // 6 + columns // 8 + number) * 5 % 41).astype(np.uint8)
        normals = np.stack([columns / 32 - 0.5, rows / 24 - 0.5, np.ones(rows.shape)], axis=-1)
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        normals[:4] = 0
        depth = 1 + rows / 10 + number
        depth[:, :3] = 0
        _photograph((24, 32), number).save(root / "images" / f"{image_id}.jpg", quality=90)
        PIL.Image.fromarray(classes).save(root / "segmentation" / f"{image_id}.png")
        np.save(root / "normals" / f"{image_id}.npy", normals.astype(np.float32))
        np.save(root / "edge" / f"{image_id}.npy", (columns % 8 == 0).astype(np.uint8))
        np.save(root / "depth" / f"{image_id}.npy", depth.astype(np.float32))
    for split, ids in NYUD.items():
        write_text(root / "gt_sets" / f"{split}.txt", "".join(f"{image_id}\n" for image_id in ids))


def box(top: int, bottom: int, left: int, right: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Returns a mask (H, W) that is True in a rectangle."""
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def person(top: int, left: int, size: tuple[int, int] = SIZE) -> Annotated:
    """Returns a person 22 pixels tall and 12 wide with outstretched arms."""
    parts = {
        "head": (0, 6, 4, 8),
        "hair": (0, 2, 4, 8),
        "neck": (6, 7, 5, 7),
        "torso": (7, 13, 4, 8),
        "luarm": (7, 9, 8, 10),
        "ruarm": (7, 9, 2, 4),
        "llarm": (7, 9, 10, 11),
        "rlarm": (7, 9, 1, 2),
        "lhand": (7, 9, 11, 12),
        "rhand": (7, 9, 0, 1),
        "luleg": (13, 17, 6, 8),
        "ruleg": (13, 17, 4, 6),
        "llleg": (17, 21, 6, 8),
        "rlleg": (17, 21, 4, 6),
        "lfoot": (21, 22, 6, 9),
        "rfoot": (21, 22, 3, 6),
    }
    masks = {name: box(top + a, top + b, left + c, left + d, size) for name, (a, b, c, d) in parts.items()}
    return Annotated(PERSON, np.any(list(masks.values()), axis=0), masks)


def _write(root: pathlib.Path, image_id: str, objects: Sequence[Annotated], size: tuple[int, int] = SIZE) -> None:
    """Writes one image whose labels follow from `objects`, in front of sky, floor and a screen."""
    semseg = np.zeros(size, np.uint8)
    context = np.full(size, SKY)
    context[size[0] // 2 :] = FLOOR
    context[2:12, 2:12] = TVMONITOR
    for annotated in objects:
        semseg[annotated.mask] = annotated.category
        context[annotated.mask] = {PERSON: PERSON_CONTEXT, DOG: DOG_CONTEXT}[annotated.category]
    sal = semseg > 0
    semseg[:, -2:] = 255
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    normals = np.stack([columns / size[1] - 0.5, rows / size[0] - 0.5, np.ones(size)], axis=-1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    image = np.asarray(_photograph(size, len(objects)))
    layout.write_raw(
        root, image_id, image=image, semseg=semseg, objects=objects, context=context, normals=normals, sal=sal
    )


def _photograph(size: tuple[int, int], seed: int) -> PIL.Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return PIL.Image.fromarray(colours).resize((size[1], size[0]), PIL.Image.Resampling.BICUBIC)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and writes the data."""
    parser = cli.Parser("tfds_pascal_context.dummy", __doc__)
    parser.add_argument("folder", type=user_path, help="where to write")
    write_dummy_data(parser.parse(argv).folder)


if __name__ == "__main__":
    cli.run(main)
