"""Draws predictions of one photograph side by side, with titles and legends."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw

from mtlora_jax.predict.fonts import choose_font
from mtlora_jax.tasks import Task
from mtlora_jax.tasks.label_images import class_palette
from mtlora_jax.tasks.legend import Legend
from mtlora_jax.tasks.postprocess import predicts_class

TITLE = 22  # pixels above each image
GAP = 4
PANEL = 320  # width of the images in a panel
TILE = 400  # width of the images in an overlay
COLUMNS = 3  # of an overlay
MAX_ASPECT = 3  # largest height / width of an image; taller ones are drawn narrower
LINE = 22  # height of a line of a legend
MARGIN = 6
HEADING, SMALL = 15, 13  # font sizes
MAX_FLAT_COLOURS = 64  # images of at most so many colours are not smoothed
OVERLAY_ALPHA = 0.6  # of the prediction in an overlay


@dataclasses.dataclass(frozen=True)
class View:
    """Images of one task for one photograph, RGB uint8 (H, W, 3) of its size.

    Attributes:
      prediction: the visualized prediction.
      legend: of the prediction.
      background: bool (H, W), where the prediction is background.
      label: the visualized label, or None.
      shared_legend: of prediction and label together.
    """

    prediction: np.ndarray
    legend: Legend
    background: np.ndarray
    label: np.ndarray | None
    shared_legend: Legend

    @classmethod
    def create(cls, task: Task, values: np.ndarray, label: np.ndarray | None = None) -> "View":
        """Creates a view of `values` and `label`, as `Task.visualize` takes them; label maps (H, W) for class tasks."""
        has_background = predicts_class(task) and task.classes[:1] == ("background",)
        nothing = values == 0 if has_background else np.zeros(values.shape[:2], bool)
        legend = task.legend(values)
        if label is None:
            return cls(task.visualize(values), legend, nothing, None, legend)
        return cls(task.visualize(values), legend, nothing, task.visualize(label), task.legend(values, label))


def resize_image(image: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    """Resizes an image; smooths it unless it has few colours, since mixed colours would have another meaning."""
    flat = image.getcolors(MAX_FLAT_COLOURS) is not None
    return image.resize((width, height), PIL.Image.Resampling.NEAREST if flat else PIL.Image.Resampling.BOX)


def fit_size(picture: np.ndarray, width: int) -> tuple[int, int]:
    """Returns the (height, width) to draw an image (H, W, 3): of this `width`, or narrower if it is very tall."""
    scale = min(width / picture.shape[1], MAX_ASPECT * width / picture.shape[0])
    return max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale))


def draw_panel(rows: Sequence[Mapping[str, np.ndarray]], height: int, width: int, room: int = 0) -> PIL.Image.Image:
    """Draws rows of titled images {title: RGB uint8 (H, W, 3)} at (height, width), in columns at least `room` wide."""
    columns, room = max(len(row) for row in rows), max(room, width)
    sheet = PIL.Image.new("RGB", (columns * (room + GAP) - GAP, len(rows) * (height + TITLE)), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for c, (title, picture) in enumerate(row.items()):
            left, top = c * (room + GAP), r * (height + TITLE)
            draw_text(draw, (left + 2, top + TITLE // 2 + 1), title, HEADING)
            sheet.paste(resize_image(PIL.Image.fromarray(picture), width, height), (left, top + TITLE))
    return sheet


def draw_overlay(photograph: np.ndarray, views: Mapping[str, View]) -> PIL.Image.Image:
    """Draws each task's prediction blended over the photograph (H, W, 3), with title and legend.

    There are at most `COLUMNS` columns.
    """
    height, width = fit_size(photograph, TILE)
    legends = [draw_legend(view.legend) for view in views.values()]
    below = max(legend.height for legend in legends)
    rows = -(-len(views) // COLUMNS)
    columns = -(-len(views) // rows)
    sheet = PIL.Image.new("RGB", (columns * (TILE + GAP) - GAP, rows * (TITLE + height + below)), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for number, ((name, view), legend) in enumerate(zip(views.items(), legends, strict=True)):
        left, top = number % columns * (TILE + GAP), number // columns * (TITLE + height + below)
        draw_text(draw, (left + 2, top + TITLE // 2 + 1), name, HEADING)
        blended = PIL.Image.fromarray(blend(photograph, view)).resize((width, height), PIL.Image.Resampling.BOX)
        sheet.paste(blended, (left, top + TITLE))
        sheet.paste(legend, (left, top + TITLE + height))
    return sheet


def blend(photograph: np.ndarray, view: View) -> np.ndarray:
    """Blends the prediction over the photograph, RGB uint8 (H, W, 3); background stays unchanged."""
    mixed = PIL.Image.blend(PIL.Image.fromarray(photograph), PIL.Image.fromarray(view.prediction), OVERLAY_ALPHA)
    return np.where(view.background[..., None], photograph, np.asarray(mixed))


def draw_legend(legend: Legend, width: int = TILE) -> PIL.Image.Image:
    """Draws a legend on white, `width` pixels wide and as high as needed."""
    side = LINE - 2 * MARGIN
    places, left, top = [], MARGIN, LINE if legend.bar else 0
    for name in legend.swatches:
        length = side + MARGIN + text_width(name) + 2 * MARGIN
        if left > MARGIN and left + length > width:
            left, top = MARGIN, top + LINE
        places.append((left, top))
        left += length
    image = PIL.Image.new("RGB", (width, top + (LINE if places else 0) + MARGIN), "white")
    draw = PIL.ImageDraw.Draw(image)
    for (name, colour), (left, top) in zip(legend.swatches.items(), places, strict=True):
        draw.rectangle((left, top + MARGIN, left + side, top + MARGIN + side), fill=colour, outline="grey")
        draw_text(draw, (left + side + MARGIN, top + LINE // 2 + 1), name)
    if legend.bar:
        first, last = map(text_width, legend.ends)
        bar = PIL.Image.fromarray(np.array([legend.bar], np.uint8))
        bar = bar.resize((max(1, width - first - last - 4 * MARGIN), side), PIL.Image.Resampling.BILINEAR)
        image.paste(bar, (first + 2 * MARGIN, MARGIN))
        draw_text(draw, (MARGIN, LINE // 2 + 1), legend.ends[0])
        draw_text(draw, (width - MARGIN - last, LINE // 2 + 1), legend.ends[1])
    return image


def draw_text(draw: PIL.ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int = SMALL) -> None:
    """Draws black text whose left side has its middle at `place`."""
    shown, font = choose_font(text, size)
    draw.text(place, shown, "black", font, anchor="lm")


def text_width(text: str) -> int:
    """Returns the width in pixels of text in a legend."""
    shown, font = choose_font(text, SMALL)
    return round(font.getlength(shown))


def to_image(task: Task, values: np.ndarray, view: View) -> PIL.Image.Image:
    """Returns a palette image of class indices, like label files, or an RGB image."""
    if not predicts_class(task):
        return PIL.Image.fromarray(view.prediction)
    image = PIL.Image.fromarray(values)
    image.putpalette(class_palette().tobytes())
    return image


def draw_view_panel(photograph: np.ndarray, views: Mapping[str, View]) -> PIL.Image.Image:
    """Draws the photograph and all predictions in a row, and a second row of labels if there are any."""
    rows = [{"image": photograph} | {name: view.prediction for name, view in views.items()}]
    if any(view.label is not None for view in views.values()):
        white = np.full_like(photograph, 255)
        labels = {f"{name}, label": white if view.label is None else view.label for name, view in views.items()}
        rows.append({"": white} | labels)
    return draw_panel(rows, *fit_size(photograph, PANEL), PANEL)
