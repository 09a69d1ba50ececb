"""Predicts photographs with a model and writes a page, images and arrays.

    python -m mtlora_jax.predict --model=runs/r64/best --images=photos/ --output=predictions/
    python -m mtlora_jax.predict --model=runs/ccp/best --images=data/ccp/images --output=predictions/ \\
        --labels=data/ccp --only=0003,0006

writes, for each ID (the file name without its suffix, shortened if very long),

    index.html            a page with everything, to open in a browser
    TASK/ID.png           the prediction at the photograph's size; classes as a palette image of class indices
    overlay/ID.png        each task blended over the photograph, with its legend
    panels/ID.png         the photograph and all tasks in a row, and the labels below
    legends/TASK.png      all colours of a task
    raw/ID.npz            with --save-raw: TASK/NAME, what mtlora_jax.postprocess returns, at the model's size

Photographs are rotated as EXIF says, unless --labels names a folder data set, whose labels belong to the stored pixels.
A file that cannot be read is reported in one line and left out.
"""

import argparse
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from rich import progress
from rich.text import Text

import mtlora_jax
from mtlora_jax import cli
from mtlora_jax.console import console
from mtlora_jax.errors import UserError
from mtlora_jax.io import locks
from mtlora_jax.io.files import user_path
from mtlora_jax.io.output_folder import OutputFolder, shorten_name
from mtlora_jax.predict import images
from mtlora_jax.predict.gallery import Gallery
from mtlora_jax.predict.panels import View, draw_legend, draw_overlay, draw_view_panel, to_image
from mtlora_jax.tasks import Task, make_tasks
from mtlora_jax.tasks.postprocess import postprocess, predicts_class

LEGENDS = "legends"  # folder that marks the outputs of this command; it is written first


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, predicts and writes below OUTPUT."""
    parser = cli.Parser("mtlora_jax.predict", __doc__)
    parser.add_argument(
        "--model", required=True, type=user_path, help="model folder, merged or not; or an adapter folder, with --base"
    )
    parser.add_argument("--base", type=user_path, help="the model folder with the frozen weights of an adapter")
    parser.add_argument(
        "--images", required=True, type=user_path, help="a JPEG, PNG or WebP image, or a folder of them"
    )
    parser.add_argument(
        "--output", required=True, type=user_path, help="folder to write; files of the same names are replaced"
    )
    parser.add_argument(
        "--labels", type=user_path, help="root of a folder data set with labels of these images, to compare with"
    )
    parser.add_argument("--only", default="", help="ids to predict, separated by commas (default: all)")
    parser.add_argument("--save-raw", action="store_true", help="also write the arrays")
    args = parser.parse(argv)

    files = images.find_images(args.images, [name for name in args.only.split(",") if name])
    outputs = OutputFolder(args.output)
    with locks.hold_lock(args.output):
        predict(args, files, outputs)


def predict(args: argparse.Namespace, files: Mapping[str, pathlib.Path], outputs: OutputFolder) -> None:
    """Predicts the images `files`, {id: file}."""
    model = mtlora_jax.load(args.model, args.base)
    tasks = build_tasks(model)
    check_output(args.output, tasks)
    labels = images.Labels(args.labels, tasks) if args.labels else None
    predictor = Predictor(model, tasks, labels, outputs, args.save_raw)
    title = "/".join(args.model.resolve().parts[-2:])
    height, width = model.architecture["image_size"]
    subtitle = f"{model.architecture['method']['name']}, predicts at {width} × {height} pixels"
    predictor.predict(files, Gallery(title, subtitle, list(tasks), len(files), labelled=labels is not None))


def build_tasks(model: Any) -> dict[str, Task]:
    """Builds the tasks of a model, with its class names if it has them. Raises UserError for a bare backbone."""
    if not model.tasks:
        what = "the model folder holds a bare backbone without tasks"
        raise UserError(f"{what}: there is nothing to predict; fine-tune it first")
    classes = dict(model.config.get("classes") or {})
    for name, task in make_tasks(model.tasks, classes).items():
        outputs = model.architecture["tasks"][name]
        if predicts_class(task) and outputs != task.channels:
            classes[name] = [f"class {index}" for index in range(outputs)]
    return make_tasks(model.tasks, classes)


def check_output(folder: pathlib.Path, tasks: Mapping[str, Task]) -> None:
    """Raises UserError if predictions would replace other files, such as the labels of a data set."""
    taken = [name for name in tasks if (folder / name).exists()]
    if taken and not (folder / LEGENDS).exists():
        what = f"{folder} holds {', '.join(taken)} from elsewhere"
        raise UserError(f"{what}, which predictions would replace; choose another --output")


class Predictor:
    """Predicts one photograph after another, resized to the model's size, so that it is compiled once."""

    def __init__(
        self, model: Any, tasks: Mapping[str, Task], labels: images.Labels | None, outputs: OutputFolder, save_raw: bool
    ):
        self._model = model
        self._tasks = tasks
        self._labels = labels
        self._outputs = outputs
        self._save_raw = save_raw

    def predict(self, files: Mapping[str, pathlib.Path], gallery: Gallery) -> None:
        """Writes the outputs of all `files`, {id: file}, then the page. Raises UserError if no file can be read."""
        done, started, reason = 0, time.monotonic(), ""
        with progress_bar() as bar:
            for name, file in bar.track(files.items(), description="predicting"):
                try:
                    photograph = images.read_image(file, upright=self._labels is None)
                except UserError as error:
                    reason = str(error)
                    if len(files) > 1:
                        console.print(f"left out: {reason}", markup=False)
                    continue
                if not done:
                    self._write_legends()
                written = {task: f"{task}/{shorten_name(name)}.png" for task in self._tasks}
                gallery.add(name, photograph, self._one(shorten_name(name), file, photograph), written)
                done += 1
        if not done:
            all_bad = f"none of the {len(files)} images can be read, the last: {reason}"
            raise UserError(reason if len(files) == 1 else all_bad)
        page = gallery.page().encode()
        path = self._outputs.write("index.html", page)
        console.print(f"{done} images in {time.monotonic() - started:.0f} s, {len(files) - done} left out")
        console.print(f"look at {path} ({len(page) / 1e6:.1f} MB)")

    def _write_legends(self) -> None:
        for name, task in self._tasks.items():
            self._outputs.write_image(f"{LEGENDS}/{name}.png", draw_legend(task.legend()))

    def _one(self, name: str, file: pathlib.Path, photograph: np.ndarray) -> dict[str, View]:
        """Writes the outputs of one photograph; returns {task: view}."""
        height, width = self._model.architecture["image_size"]
        small = cv2.resize(photograph, (width, height), interpolation=cv2.INTER_CUBIC)
        logits = {task: np.asarray(values, np.float32) for task, values in self._model(small, fit="none").items()}
        views = {}
        for task_name, task in self._tasks.items():
            values = enlarge(task, logits[task_name], photograph.shape[:2])
            views[task_name] = View.create(task, values, self._label(task_name, file, photograph.shape[:2]))
            self._outputs.write_image(f"{task_name}/{name}.png", to_image(task, values, views[task_name]))
        self._outputs.write_image(f"overlay/{name}.png", draw_overlay(photograph, views))
        self._outputs.write_image(f"panels/{name}.png", draw_view_panel(photograph, views))
        if self._save_raw:
            results = {name: postprocess(task, logits[name]) for name, task in self._tasks.items()}
            raw = {f"{name}/{key}": array for name, result in results.items() for key, array in result.items()}
            self._outputs.write_arrays(f"raw/{name}.npz", raw)
        return views

    def _label(self, task: str, file: pathlib.Path, size: tuple[int, ...]) -> np.ndarray | None:
        try:
            return self._labels.read(task, file, size) if self._labels else None
        except UserError as error:
            console.print(f"without label: {error}", markup=False)
            return None


def enlarge(task: Task, logits: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resizes logits (h, w, C) bilinearly to `size` = (H, W), like an evaluation at native resolution.

    Class tasks give the most likely classes, (H, W) uint8, found channel by channel, since all logits of a large
    photograph take gigabytes.
    """
    height, width = size
    channels = (cv2.resize(np.ascontiguousarray(channel), (width, height)) for channel in np.moveaxis(logits, -1, 0))
    if not predicts_class(task):
        return np.stack(list(channels), axis=-1)
    best, chosen = next(channels), np.zeros((height, width), np.uint8)
    for index, channel in enumerate(channels, start=1):
        chosen[channel > best] = index
        np.maximum(best, channel, out=best)
    return chosen


class Rate(progress.ProgressColumn):
    """Images per second."""

    def render(self, task: progress.Task) -> Text:
        return Text(f"{task.speed:.2f} images/s" if task.speed else "")


def progress_bar() -> progress.Progress:
    """Makes a progress bar with image count, rate and time left."""
    text, bar, count = progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn()
    return progress.Progress(
        text, bar, count, Rate(), progress.TimeRemainingColumn(), progress.TextColumn("left"), console=console
    )


if __name__ == "__main__":
    cli.run(main)
