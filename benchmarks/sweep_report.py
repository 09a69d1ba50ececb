"""Tables of the results of a sweep; sweep.py explains their format."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtlora_jax.benchmark.report import duration, gigabytes, percent

Results = Mapping[str, Any]
Row = tuple[Any, dict[str, Any]]  # value on an axis, entry of sweep.json

WORK = ("train", "infer")
DOUBLED = ("batch", "side")  # axes whose costs are per doubling; on other axes of numbers they are per unit
STEP = {"tasks": "added task", "rank": "added rank", "batch": "doubled batch", "side": "doubled side"}


def memory_of(measured: Mapping[str, Any]) -> float | None:
    """Peak memory of the device if it reports one, else of the process."""
    return measured["peak_bytes"] if measured["peak_bytes"] is not None else measured["peak_resident_bytes"]


# {quantity: (how to read it, how to format it)}
QUANTITIES: dict[str, tuple[Callable[[Mapping[str, Any]], float | None], Callable[[Any], str]]] = {
    "time": (lambda measured: measured["seconds"], duration),
    "memory": (memory_of, gigabytes),
    "multiply-accumulates": (lambda measured: measured["gmacs_step"], lambda count: f"{count:.4g} G"),
}


def rows_of(results: Results, what: str, axis: str) -> list[Row]:
    """The centre and the settings that differ from it on this axis alone.

    Numbers are sorted by size; of words, that of the centre comes first.
    """
    centre = {"what": what, **results["centre"]}
    own = [(e["setting"][axis], e) for e in results["settings"] if {**e["setting"], axis: centre[axis]} == centre]
    return sorted(own, key=lambda row: row[0] if isinstance(row[0], int) else row[0] != centre[axis])


def varied(results: Results) -> list[str]:
    """The axes with more settings than the centre."""
    return [axis for axis in results["centre"] if any(len(rows_of(results, what, axis)) > 1 for what in WORK)]


def centre_of(results: Results, what: str) -> dict[str, Any] | None:
    """The measurements of the centre; None if it has none."""
    setting = {"what": what, **results["centre"]}
    return next((entry.get("measured") for entry in results["settings"] if entry["setting"] == setting), None)


def told_centre(results: Results) -> str:
    """The values of the centre as text."""
    return ", ".join(f"{axis} {value}" for axis, value in results["centre"].items() if value is not None)


def known(rows: Sequence[Row], name: str) -> list[tuple[Any, float]]:
    """(value, quantity) of the settings that were measured."""
    read = QUANTITIES[name][0]
    amounts = [(value, read(entry["measured"])) for value, entry in rows if "measured" in entry]
    return [(value, amount) for value, amount in amounts if amount is not None]


def cost(axis: str, rows: Sequence[Row], name: str) -> tuple[str, str]:
    """Cost of a step on an axis, between its first and last value: (relative cost, added amount).

    The relative cost is a share of the first value or a factor; the amount is empty for factors. Both are empty if
    there are no two values to compare.
    """
    found = known(rows, name)
    if len(found) < 2:
        return "", ""
    (low, least), (high, most) = found[0], found[-1]
    if not isinstance(low, int):
        return f"x{most / least:.2f}", ""
    if axis in DOUBLED:
        return f"x{(most / least) ** (1 / math.log2(high / low)):.2f}", ""
    each = (most - least) / (high - low)
    return f"{each / least:+.2%}", f"{'-' if each < 0 else '+'}{QUANTITIES[name][1](abs(each))}"


def tables(results: Results) -> str:
    """A page in Markdown: the cost of a step on each axis, and a table for every axis."""
    device = next(entry["measured"] for entry in results["settings"] if "measured" in entry)
    axes = varied(results)
    memory = "the peak of the device" if device["peak_bytes"] is not None else "the peak resident in the process"
    lines = [
        f"# Sweep around {told_centre(results)}",
        "",
        f"`{' '.join(results['flags'])}`, {device['devices']} x {device['device']}, jax {device['jax']}. "
        f"Each setting ran in its own process; times are medians of {device['steps']} steps; memory is {memory}. "
        "Added costs are relative to the smallest value, other numbers to the centre.",
        "",
        row("", "", "centre", *(STEP.get(axis, axis) for axis in axes)),
        row("---", "---", *["---:"] * (len(axes) + 1)),
    ]
    for what, centre in ((what, found) for what in WORK if (found := centre_of(results, what))):
        for name, (read, tell) in QUANTITIES.items():
            costs = [cost(axis, rows_of(results, what, axis), name) for axis in axes]
            cells = [f"{share} ({amount})" if amount else share for share, amount in costs]
            lines.append(row(what, name, tell(read(centre)), *cells))
    for what in WORK:
        for axis in axes:
            if len(rows := rows_of(results, what, axis)) > 1:
                table = axis_table(axis, rows, centre_of(results, what) or {}, results["centre"][axis])
                lines += ["", f"## {what}: {axis}", "", *table]
    return "\n".join(lines) + "\n"


def axis_table(axis: str, rows: Sequence[Row], centre: Mapping[str, Any], bold: Any) -> list[str]:
    """Lines of the table of one axis.

    Each quantity is also given relative to the centre, whose value is bold.
    """
    heads = [head for name in QUANTITIES for head in (name, "relative")]
    lines = [row(axis, *heads, "images/s", "spread", "share of peak"), row(*["---:"] * (len(heads) + 4))]
    for value, entry in rows:
        head = f"**{value}**" if value == bold else str(value)
        if "failed" in entry:
            lines.append(row(head, entry["failed"].replace("|", "/"), *[""] * (len(heads) + 2)))
            continue
        measured = entry["measured"]
        cells = [head]
        for read, tell in QUANTITIES.values():
            cells += [tell(read(measured)), ratio(read(measured), centre and read(centre))]
        rate = f"{measured['images_per_second']:.4g}"
        lines.append(row(*cells, rate, percent(measured["spread"]), percent(measured["mfu"])))
    return lines


def row(*cells: str) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def ratio(amount: float | None, centre: Any) -> str:
    """An amount in multiples of the centre's; empty if one of them is missing."""
    return f"{amount / centre:.2f}" if amount is not None and centre else ""
