"""Tables for the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(highlight=False, soft_wrap=True, markup=False)  # brackets in names are not markup


def print_parameters(summary: Mapping[str, Any]) -> None:
    """Print the number of parameters of each group."""
    table = Table(title="Parameters")
    for column in ("group", "total", "trainable"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for group, count in summary["groups"].items():
        table.add_row(group, f"{count['total']:,}", f"{count['trainable']:,}")
    table.add_section()
    table.add_row("all", f"{summary['total']:,}", f"{summary['trainable']:,}")
    table.add_row("share", "", f"{100 * summary['trainable'] / summary['total']:.2f} %")
    unused = summary["trainable_unused"]
    if unused["count"]:
        table.add_row("trainable, unused", "", f"{unused['count']:,}")
    console.print(table)


def print_scores(scores: Mapping[str, float], title: str, notes: Mapping[str, str] | None = None) -> None:
    """Print scores {"TASK/SCORE": value}, then a table per task and score of those per class, "TASK/SCORE/CLASS".

    See `print_columns`.
    """
    print_columns({"value": scores}, title, notes)


def print_columns(
    columns: Mapping[str, Mapping[str, float]], title: str, notes: Mapping[str, str] | None = None
) -> None:
    """Print the scores of several evaluations side by side, as `print_scores` does those of one.

    Args:
      columns: {heading: {"TASK/SCORE" or "TASK/SCORE/CLASS": value}}.
      title: of the first table.
      notes: {"TASK/SCORE": remark on it}.
    """
    names = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    plain = [name for name in names if name.count("/") < 2]
    print_table(title, ("score", *columns, *(["note"] if notes else [])), [
        (name, *_cells(columns, name), *([notes.get(name, "")] if notes else [])) for name in plain
    ])  # fmt: skip
    for kind in dict.fromkeys(_kind(name) for name in names if name not in plain):
        classes = [name for name in names if name not in plain and _kind(name) == kind]
        print_table(
            f"{kind} per class",
            ("class", *columns),
            [(name.split("/", 2)[2], *_cells(columns, name)) for name in classes],
        )


def _kind(name: str) -> str:
    return "/".join(name.split("/")[:2])


def _cells(columns: Mapping[str, Mapping[str, float]], name: str) -> list[str]:
    return [f"{scores[name]:.2f}" if name in scores else "" for scores in columns.values()]


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: numbers, except in the first column and those headed "row" or "note", which hold words."""
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 or heading in ("row", "note") else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
