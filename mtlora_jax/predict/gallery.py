"""Makes the page that compares photographs, predictions and labels, as one self-contained HTML file."""

import base64
import io
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import PIL.Image

from mtlora_jax.predict.panels import MAX_ASPECT, MAX_FLAT_COLOURS, View, resize_image

MAX_SIDE, MIN_SIDE = 640, 240  # pixels, of the longer side of an image in the page
MAX_PIXELS = 4e8  # of all images together: about 30 MB
QUALITY = 80


class Gallery:
    """Collects images, reduced and encoded, and renders a page.

    Args:
      title: of the page.
      subtitle: describes the model.
      tasks: names.
      photographs: the largest number there may be; with more, images are smaller.
      labelled: whether there are labels to show.
    """

    def __init__(self, title: str, subtitle: str, tasks: Sequence[str], photographs: int, labelled: bool):
        self._head = {"title": title, "subtitle": subtitle, "tasks": list(tasks), "labelled": labelled}
        self._side = choose_side(photographs * (1 + len(tasks) * (1 + labelled)))
        self._examples: list[dict[str, Any]] = []

    def add(self, name: str, photograph: np.ndarray, views: Mapping[str, View], files: Mapping[str, str]) -> None:
        """Adds a photograph, RGB uint8 (H, W, 3), with its predictions.

        Args:
          name: of the photograph.
          photograph: RGB uint8 (H, W, 3).
          views: {task: its images}.
          files: {task: path of the prediction at full size, relative to the page}.
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
                "swatches": {text: css(colour) for text, colour in view.shared_legend.swatches.items()},
                "bar": ", ".join(css(colour) for colour in view.shared_legend.bar),
                "ends": view.shared_legend.ends,
                "file": urllib.parse.quote(os.fsencode(files[task])),
            }
            for task, view in views.items()
        ]
        frame = max(width, round(height / MAX_ASPECT))  # width of the image's frame, at the image's height
        self._examples.append(
            {"name": name, "height": height, "width": width, "frame": frame, "tasks": tasks, "pictures": pictures}
        )

    def page(self) -> str:
        """Renders the page as self-contained HTML. Links to full-size predictions work if they are beside it."""
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
        return page.encode("utf-8", "backslashreplace").decode()  # names may hold bytes that are not text

    def _encoded(self, picture: np.ndarray) -> str:
        """Encodes an image as a data URI, reduced to the size of images on this page."""
        image = PIL.Image.fromarray(picture)
        scale = min(1.0, self._side / max(image.size))
        width, height = (max(1, round(scale * length)) for length in image.size)
        buffer = io.BytesIO()
        resize_image(image, width, height).save(
            buffer, "WEBP", lossless=image.getcolors(MAX_FLAT_COLOURS) is not None, quality=QUALITY
        )
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def choose_side(pictures: int) -> int:
    """Chooses the longer side, in pixels, of each of so many images."""
    return int(np.clip(np.sqrt(MAX_PIXELS / max(pictures, 1)), MIN_SIDE, MAX_SIDE))


def css(colour: Sequence[int]) -> str:
    """Formats an RGB colour for CSS."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
