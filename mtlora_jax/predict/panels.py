"""Sheets of pictures: what a model says of one photograph, side by side with titles and legends."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw

from mtlora_jax.predict.fonts import lettered
from mtlora_jax.tasks import Task
from mtlora_jax.tasks.label_images import class_palette
from mtlora_jax.tasks.legend import Legend
from mtlora_jax.tasks.postprocess import predicts_class

TITLE = 22  # pixels above each picture
GAP = 4
PANEL = 320  # width of the pictures of a panel
TILE = 400  # width of the pictures of an overlay
COLUMNS = 3  # of an overlay
TALLEST = 3  # times its width is the most height that a picture takes; what is taller is drawn narrower
LINE = 22  # height of a line of a legend
MARGIN = 6
HEADING, SMALL = 15, 13  # sizes of letters
FLAT = 64  # a picture of so few colours is not smoothed
WEIGHT = 0.6  # of the prediction in an overlay


@dataclasses.dataclass(frozen=True)
class View:
    """What is shown of one task and one photograph; all pictures are RGB uint8 (H, W, 3) of the photograph's size.

    Attributes:
      legend: of the prediction.
      background: bool (H, W), where the prediction says that nothing is there.
      label: None where there is none.
      legend_of_both: of the prediction and the label.
    """

    prediction: np.ndarray
    legend: Legend
    background: np.ndarray
    label: np.ndarray | None
    legend_of_both: Legend

    @classmethod
    def of(cls, task: Task, values: np.ndarray, label: np.ndarray | None = None) -> "View":
        """`values` and `label` as `task.picture` takes them, for tasks with classes label maps (H, W) both."""
        nothing = values == 0 if predicts_class(task) and task.classes[:1] == ("background",) else np.zeros(values.shape[:2], bool)
        legend = task.legend(values)
        if label is None:
            return cls(task.visualize(values), legend, nothing, None, legend)
        return cls(task.visualize(values), legend, nothing, task.visualize(label), task.legend(values, label))


def reduced(image: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    """The image at another size; smoothed, unless it has so few colours that others would mean something else."""
    flat = image.getcolors(FLAT) is not None
    return image.resize((width, height), PIL.Image.Resampling.NEAREST if flat else PIL.Image.Resampling.BOX)


def fitted(picture: np.ndarray, width: int) -> tuple[int, int]:
    """(height, width) at which a picture (H, W, 3) is drawn: of this `width`, unless it were more than `TALLEST` times as high."""
    scale = min(width / picture.shape[1], TALLEST * width / picture.shape[0])
    return max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale))


def panel(rows: Sequence[Mapping[str, np.ndarray]], height: int, width: int, room: int = 0) -> PIL.Image.Image:
    """Rows of titled pictures {title: RGB uint8 (H, W, 3)}, each drawn at (height, width), in columns of that width or of more `room`."""
    columns, room = max(len(row) for row in rows), max(room, width)
    sheet = PIL.Image.new("RGB", (columns * (room + GAP) - GAP, len(rows) * (height + TITLE)), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for c, (title, picture) in enumerate(row.items()):
            left, top = c * (room + GAP), r * (height + TITLE)
            write_words(draw, (left + 2, top + TITLE // 2 + 1), title, HEADING)
            sheet.paste(reduced(PIL.Image.fromarray(picture), width, height), (left, top + TITLE))
    return sheet


def overlay(photograph: np.ndarray, views: Mapping[str, View]) -> PIL.Image.Image:
    """The prediction of each task blended over the photograph (H, W, 3), title above, legend below, at most `COLUMNS` in a row."""
    height, width = fitted(photograph, TILE)
    legends = [draw_legend(view.legend) for view in views.values()]
    below = max(legend.height for legend in legends)
    rows = -(-len(views) // COLUMNS)
    columns = -(-len(views) // rows)
    sheet = PIL.Image.new("RGB", (columns * (TILE + GAP) - GAP, rows * (TITLE + height + below)), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for number, ((name, view), legend) in enumerate(zip(views.items(), legends, strict=True)):
        left, top = number % columns * (TILE + GAP), number // columns * (TITLE + height + below)
        write_words(draw, (left + 2, top + TITLE // 2 + 1), name, HEADING)
        blended = PIL.Image.fromarray(blend(photograph, view)).resize((width, height), PIL.Image.Resampling.BOX)
        sheet.paste(blended, (left, top + TITLE))
        sheet.paste(legend, (left, top + TITLE + height))
    return sheet


def blend(photograph: np.ndarray, view: View) -> np.ndarray:
    """The prediction over the photograph, which shows unchanged where there is but background; RGB uint8 (H, W, 3)."""
    mixed = PIL.Image.blend(PIL.Image.fromarray(photograph), PIL.Image.fromarray(view.prediction), WEIGHT)
    return np.where(view.background[..., None], photograph, np.asarray(mixed))


def draw_legend(legend: Legend, width: int = TILE) -> PIL.Image.Image:
    """A legend on white, `width` pixels wide and as high as it takes."""
    side = LINE - 2 * MARGIN
    places, left, top = [], MARGIN, LINE if legend.bar else 0
    for name in legend.swatches:
        length = side + MARGIN + width_of(name) + 2 * MARGIN
        if left > MARGIN and left + length > width:
            left, top = MARGIN, top + LINE
        places.append((left, top))
        left += length
    image = PIL.Image.new("RGB", (width, top + (LINE if places else 0) + MARGIN), "white")
    draw = PIL.ImageDraw.Draw(image)
    for (name, colour), (left, top) in zip(legend.swatches.items(), places, strict=True):
        draw.rectangle((left, top + MARGIN, left + side, top + MARGIN + side), fill=colour, outline="grey")
        write_words(draw, (left + side + MARGIN, top + LINE // 2 + 1), name)
    if legend.bar:
        first, last = map(width_of, legend.ends)
        bar = PIL.Image.fromarray(np.array([legend.bar], np.uint8))
        bar = bar.resize((max(1, width - first - last - 4 * MARGIN), side), PIL.Image.Resampling.BILINEAR)
        image.paste(bar, (first + 2 * MARGIN, MARGIN))
        write_words(draw, (MARGIN, LINE // 2 + 1), legend.ends[0])
        write_words(draw, (width - MARGIN - last, LINE // 2 + 1), legend.ends[1])
    return image


def write_words(draw: PIL.ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int = SMALL) -> None:
    """Writes words in black, from the middle of their left side at `place`."""
    shown, font = lettered(text, size)
    draw.text(place, shown, "black", font, anchor="lm")


def width_of(text: str) -> int:
    """Pixels that the words of a legend take."""
    shown, font = lettered(text, SMALL)
    return round(font.getlength(shown))


def as_image(task: Task, values: np.ndarray, view: View) -> PIL.Image.Image:
    """A palette image of class indices, as label files are, or an RGB one."""
    if not predicts_class(task):
        return PIL.Image.fromarray(view.prediction)
    image = PIL.Image.fromarray(values)
    image.putpalette(class_palette().tobytes())
    return image


def panel_of(photograph: np.ndarray, views: Mapping[str, View]) -> PIL.Image.Image:
    """The photograph and all predictions in a row, and a second row of labels where there are any."""
    rows = [{"image": photograph} | {name: view.prediction for name, view in views.items()}]
    if any(view.label is not None for view in views.values()):
        white = np.full_like(photograph, 255)
        labels = {f"{name}, label": white if view.label is None else view.label for name, view in views.items()}
        rows.append({"": white} | labels)
    return panel(rows, *fitted(photograph, PANEL), PANEL)
