"""Draws what a model predicts: for each image one panel with the image and every task's prediction.

    python -m mtlora_jax.predict --model=runs/ccp/best --images=photos/ --output=panels/
    python -m mtlora_jax.predict --model=runs/ccp/best --images=data/ccp/images --output=panels/ --labels=data/ccp --only=0003,0006

--labels=ROOT adds a row with the labels of a folder data set; --only chooses ids (file names without their ending).
"""

import pathlib
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from mtlora_jax import cli
from mtlora_jax.errors import UserError

TITLE = 22  # pixels above each picture
GAP = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, predicts and writes OUTPUT/ID.png."""
    parser = cli.Parser("mtlora_jax.predict", __doc__)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--images", required=True, help="an image, or a folder of images")
    parser.add_argument("--output", required=True, help="folder for the panels")
    parser.add_argument("--labels", default="", help="root of a folder data set with the labels of these images")
    parser.add_argument("--only", default="", help="ids to draw, separated by commas (default: all)")
    args = parser.parse(argv)

    import mtlora_jax
    from mtlora_jax.data.decoding import decode_image, read_file
    from mtlora_jax.records import console
    from mtlora_jax.step import normalise
    from mtlora_jax.tasks import make_tasks

    files = image_files(pathlib.Path(args.images), [name for name in args.only.split(",") if name])
    model = mtlora_jax.load(args.model)
    if not model.tasks:
        raise UserError(f"{args.model} holds a bare backbone without tasks: there is nothing to predict")
    tasks = make_tasks(model.tasks, model.config.get("classes"))
    height, width = model.architecture["image_size"]
    output = pathlib.Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for file in files:
        image = decode_image(*read_file(file))
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        logits = model(normalise(small[None]))
        pictures = {name: task.picture(np.asarray(logits[name][0])) for name, task in tasks.items()}
        shown = [{"image": image, **pictures}]
        if args.labels:
            paths = {name: pathlib.Path(args.labels, name, file.stem + task.suffixes[0]) for name, task in tasks.items()}
            labels = {name: task.picture(task.decode(*read_file(paths[name]))) for name, task in tasks.items()}
            shown.append({"": np.full_like(image, 255), **{f"{name}, label": picture for name, picture in labels.items()}})
        target = output / f"{file.stem}.png"
        panel(shown, image.shape[0] * 320 // image.shape[1], 320).save(target)
        console.print(f"{target}")


def image_files(path: pathlib.Path, only: Sequence[str]) -> list[pathlib.Path]:
    """The image, or the images of the folder. Raises UserError if there is none, or one of `only` is not there."""
    from mtlora_jax.data.folder import IMAGE_SUFFIXES

    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    files = {file.stem: file for file in candidates if file.suffix.lower() in IMAGE_SUFFIXES}
    if not files:
        raise UserError(f"{path}: no image; their names end in {', '.join(IMAGE_SUFFIXES)}")
    missing = [name for name in only if name not in files]
    if missing:
        raise UserError(f"{path}: no image {', '.join(missing)}")
    return [files[name] for name in only or files]


def panel(rows: Sequence[Mapping[str, np.ndarray]], height: int, width: int) -> PIL.Image.Image:
    """Rows of titled pictures {title: RGB uint8 (H, W, 3)}, each drawn at (height, width)."""
    columns = max(len(row) for row in rows)
    sheet = PIL.Image.new("RGB", (columns * (width + GAP) - GAP, len(rows) * (height + TITLE)), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(15)
    for r, row in enumerate(rows):
        for c, (title, picture) in enumerate(row.items()):
            left, top = c * (width + GAP), r * (height + TITLE)
            draw.text((left + 2, top + 2), title, "black", font)
            sheet.paste(PIL.Image.fromarray(picture).resize((width, height), PIL.Image.Resampling.NEAREST), (left, top + TITLE))
    return sheet


if __name__ == "__main__":
    cli.run(main)
