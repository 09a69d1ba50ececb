"""The page on which people compare photographs, predictions and labels: one file that opens from disk and needs nothing else."""

import base64
import io
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import PIL.Image

from mtlora_jax.predict.panels import FLAT, TALLEST, View, reduced

LARGEST, SMALLEST = 640, 240  # pixels, of the longer side of a picture in the page
PIXELS = 4e8  # of all pictures together: some 30 MB
QUALITY = 80


class Gallery:
    """Collects pictures, reduced and encoded, and makes a page of them.

    Args:
      title: of the page.
      subtitle: what the model is.
      tasks: names.
      photographs: how many there will be at most; the more, the smaller are their pictures.
      labelled: whether there are labels to show.
    """

    def __init__(self, title: str, subtitle: str, tasks: Sequence[str], photographs: int, labelled: bool):
        self._head = {"title": title, "subtitle": subtitle, "tasks": list(tasks), "labelled": labelled}
        self._side = side_for(photographs * (1 + len(tasks) * (1 + labelled)))
        self._examples: list[dict[str, Any]] = []

    def add(self, name: str, photograph: np.ndarray, views: Mapping[str, View], files: Mapping[str, str]) -> None:
        """Adds what the model says of a photograph, RGB uint8 (H, W, 3).

        Args:
          name: of the photograph.
          views: {task: its pictures}.
          files: {task: path of the prediction at full size, from the page's folder}.
        """
        pictures = {"photograph": self._encoded(photograph)}
        for task, view in views.items():
            pictures[task] = self._encoded(view.prediction)
            if view.label is not None:
                pictures[f"{task} label"] = self._encoded(view.label)
        height, width = photograph.shape[:2]
        tasks = [
            {
                "name": task,
                "label": view.label is not None,
                "swatches": {text: css(colour) for text, colour in view.legend_of_both.swatches.items()},
                "bar": ", ".join(css(colour) for colour in view.legend_of_both.bar),
                "ends": view.legend_of_both.ends,
                "file": urllib.parse.quote(os.fsencode(files[task])),
            }
            for task, view in views.items()
        ]
        frame = max(width, round(height / TALLEST))  # as wide as the room that the picture gets, if that had its height
        self._examples.append({"name": name, "height": height, "width": width, "frame": frame, "tasks": tasks, "pictures": pictures})

    def page(self) -> str:
        """The page as HTML. All it shows lies in it; the links to the predictions at full size work where it lies beside them."""
        size = sum(len(picture) for example in self._examples for picture in example["pictures"].values())
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("mtlora_jax.predict"),
            autoescape=jinja2.select_autoescape(),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        template = environment.get_template("gallery.html")
        page = template.render(**self._head, examples=self._examples, megabytes=size / 1e6, side=self._side)
        return page.encode("utf-8", "backslashreplace").decode()  # names may hold bytes that are no text

    def _encoded(self, picture: np.ndarray) -> str:
        """A data URI of the picture, no larger than pictures of this page may be."""
        image = PIL.Image.fromarray(picture)
        scale = min(1.0, self._side / max(image.size))
        width, height = (max(1, round(scale * length)) for length in image.size)
        buffer = io.BytesIO()
        reduced(image, width, height).save(buffer, "WEBP", lossless=image.getcolors(FLAT) is not None, quality=QUALITY)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def side_for(pictures: int) -> int:
    """Length, in pixels, of the longer side of each of so many pictures."""
    return int(np.clip(np.sqrt(PIXELS / max(pictures, 1)), SMALLEST, LARGEST))


def css(colour: Sequence[int]) -> str:
    """A colour as style sheets write it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
