"""Plots the results of a sweep; sweep.py explains their format."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

from sweep_report import DOUBLED, STEP, WORK, Results, centre_of, cost, known, memory_of, rows_of, told_centre, varied

from mtlora_jax.benchmark.report import duration, gigabytes
from mtlora_jax.io import files

COLOURS: dict[str, str] = {"train": "#2f6db3", "infer": "#d9762b"}
GREY = "#8a8f98"
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY}


def draw(results: Results, path: pathlib.Path) -> None:
    """Writes the plot: time above and memory below, relative to the centre, in a column per axis.

    Writes nothing if no axis has results, or if the centre has none.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    axes, works = varied(results), [what for what in WORK if centre_of(results, what)]
    if not axes or not works:
        return
    with plt.rc_context(STYLE):
        size = (2.9 * len(axes) + 0.4, 6)
        figure, panels = plt.subplots(2, len(axes), figsize=size, layout="constrained", squeeze=False)
        for line, name in zip(panels, ("time", "memory"), strict=True):
            for ax, axis in zip(line, axes, strict=True):
                panel(ax, results, works, axis, name)
            line[0].set_ylabel(f"{name} / that of the centre")
        for ax, axis in zip(panels[1], axes, strict=True):
            ax.set_xlabel(axis)
        handles = [Line2D([], [], color=COLOURS[what], marker="o", label=what) for what in works]
        handles.append(Line2D([], [], color=GREY, linestyle=":", label="multiply-accumulates"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        figure.suptitle(headline(results, works), x=0.01, ha="left", fontsize=10, linespacing=1.5)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=130)
        files.write_bytes(path, picture.getvalue())
        plt.close(figure)


def headline(results: Results, works: Sequence[str]) -> str:
    """The centre, and its time and memory."""
    centres = {what: centre_of(results, what) or {} for what in works}
    costs = {what: (duration(own["seconds"]), gigabytes(memory_of(own))) for what, own in centres.items()}  # pyright: ignore
    takes = "; ".join(f"{what} {time}, {memory}" for what, (time, memory) in costs.items())
    return f"Around {told_centre(results)}\n{centres[works[0]]['device']}; one step and its peak of memory: {takes}"


def panel(ax: Any, results: Results, works: Sequence[str], axis: str, name: str) -> None:
    """Draws one quantity along one axis, for training and inference."""
    shown = [what for what in works if len(rows_of(results, what, axis)) > 1]
    draw_one = curve if isinstance(results["centre"][axis], int) else bars
    every = list(dict.fromkeys(value for what in shown for value, _ in rows_of(results, what, axis)))
    for number, what in enumerate(shown):
        centre = dict(known([(None, {"measured": centre_of(results, what)})], name)).get(None)
        if centre:
            draw_one(ax, results, what, axis, name, centre, number, len(shown))
    ax.axhline(1, color=GREY, linewidth=0.8, zorder=1)
    ax.grid(axis="y", alpha=0.25)
    if axis in DOUBLED:
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** 0.3)  # room for the text above
        ax.yaxis.set_major_formatter("{x:g}")
    else:
        ax.set_ylim(0, ax.get_ylim()[1] * 1.25)
    ax.minorticks_off()
    if draw_one is bars:
        ax.set_xlim(-0.6, len(every) - 0.4)
    ax.set_xticks(every if draw_one is curve else range(len(every)), list(map(str, every)))


def curve(ax: Any, results: Results, what: str, axis: str, name: str, centre: float, number: int, count: int) -> None:
    """Draws a quantity over numbers, with the cost of a step in words.

    A cross marks a setting that failed, such as one that ran out of memory.
    """
    del count
    rows, colour = rows_of(results, what, axis), COLOURS[what]
    found = known(rows, name)
    values, amounts = [value for value, _ in found], [amount / centre for _, amount in found]
    ax.plot(values, amounts, color=colour, marker="o", markersize=4.5, zorder=3)
    if name == "time":
        macs = known(rows, "multiply-accumulates")
        own = (centre_of(results, what) or {})["gmacs_step"]
        values, amounts = [value for value, _ in macs], [amount / own for _, amount in macs]
        ax.plot(values, amounts, color=colour, linestyle=":", zorder=2)
    top = max(amount / centre for _, amount in found)
    for value in (value for value, entry in rows if "failed" in entry):
        ax.plot([value], [top], color=colour, marker="x", markersize=7)
        ax.annotate("failed", (value, top), (0, 6), textcoords="offset points", ha="center", color=colour, fontsize=7)
    words = f"{what} {cost(axis, rows, name)[0]} each {STEP[axis]}"
    ax.text(0.03, 0.98 - 0.075 * number, words, transform=ax.transAxes, va="top", color=colour, fontsize=8)


def bars(ax: Any, results: Results, what: str, axis: str, name: str, centre: float, number: int, count: int) -> None:
    """Draws a quantity over words as bars."""
    rows = rows_of(results, what, axis)
    order = [value for value, _ in rows]
    for value, amount in known(rows, name):
        x, height = order.index(value) + 0.4 * (number - (count - 1) / 2), amount / centre
        ax.bar(x, height, 0.36, color=COLOURS[what], zorder=2)
        ax.text(x, height, f"{height:.2f}", ha="center", va="bottom", color=COLOURS[what], fontsize=8)
