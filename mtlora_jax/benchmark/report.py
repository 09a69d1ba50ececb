"""Measurements for people."""

from typing import Any

from rich.table import Table

from mtlora_jax.console import console

SETTINGS = ("method", "merged", "compute", "frozen", "encoder_microbatches", "remat")
TITLES = {"train": "Training step", "infer": "Forward pass"}


def print_program(measured: dict[str, Any]) -> None:
    """A table of what was measured of a training step or a forward pass."""
    rate = measured["images_per_second"]
    size, settings = (
        "x".join(map(str, measured["image_size"])),
        ", ".join(f"{key} {measured[key]}" for key in SETTINGS if key in measured),
    )
    rows = {
        "images/s": f"{rate:.2f} ({measured['slowest']:.2f} to {measured['fastest']:.2f})" if rate else "not measured",
        "step": f"{duration(measured['seconds'])}, median of {measured['steps']}; spread {percent(measured['spread'])}",
        "compilation": f"tracing {measured['tracing_seconds']:.1f} s, lowering {measured['lowering_seconds']:.1f} s, "
        f"compiling {measured['compile_seconds']:.1f} s{' (cached)' if measured['compile_cached'] else ''}",
        "multiply-accumulates": f"{measured['gmacs_forward']:.2f} G forward per image, {measured['gmacs_step']:.2f} G the step",
        "argument memory": gigabytes(measured["argument_bytes"]),
        "temporary memory": gigabytes(measured["temporary_bytes"]),
        "output memory": gigabytes(measured["output_bytes"]),
        **peak_memory(measured),
        "peak": peak(measured),
        "share of the peak": percent(measured["mfu"]),
        "floor of products": duration(measured["floor_products"]),
        "floor of bytes": f"{duration(measured['floor_bytes'])} ({gigabytes(measured['least_bytes'])})",
        "bytes accessed": f"{duration(measured['floor_accessed'])} ({gigabytes(measured['accessed_bytes'])})",
        "step / larger floor": f"{measured['times_floor']:.1f}" if measured["times_floor"] else "not measured",
        "device": f"{measured['devices']} x {measured['device']}",
        "batch": f"{measured['batch_size']} x {size}, {', '.join(measured['tasks'])}",
        "settings": settings,
    }
    table = Table(title=f"{TITLES[measured['what']]}; memory and bytes of each device", show_header=False)
    for row in rows.items():
        table.add_row(*row)
    console.print(table)


def peak_memory(measured: dict[str, Any]) -> dict[str, str]:
    """The row about the most memory that was held."""
    if measured["peak_bytes"] is None and measured["peak_resident_bytes"] is not None:
        return {"peak of the process": f"{gigabytes(measured['peak_resident_bytes'])} resident"}
    return {"peak of the device": gigabytes(measured["peak_bytes"])}


def peak(measured: dict[str, Any]) -> str:
    """What one device can do."""
    if measured["peak_flops"] is None:
        return "not measured"
    flops, bandwidth = measured["peak_flops"] / 1e12, measured["peak_bandwidth"] / 1e9
    return f"{flops:.3g} TFLOP/s in {measured['peak_precision']}, {bandwidth:.4g} GB/s ({measured['peak_from']})"


def print_data(measured: dict[str, Any]) -> None:
    """A line about the input pipeline."""
    print(
        f"data: {measured['images_per_second']:.1f} images/s ({measured['slowest']:.1f} to {measured['fastest']:.1f}), "
        f"{measured['per_worker']:.1f} per worker, {measured['per_core']:.1f} per second of a core; {circumstances(measured)}"
    )


def print_end_to_end(measured: dict[str, Any]) -> None:
    """A line about a training step that is fed."""
    print(
        f"end to end: {measured['images_per_second']:.2f} images/s, a step takes {duration(measured['seconds'])} fed and "
        f"{duration(measured['step_seconds'])} alone: the device waits for {percent(measured['device_wait'])} of the time, the loop for "
        f"{percent(measured['host_wait'])}; {measured['devices']} x {measured['device']}, {circumstances(measured)}"
    )


def circumstances(measured: dict[str, Any]) -> str:
    """Workers, size and tasks."""
    size = "x".join(map(str, measured["image_size"]))
    return f"{measured['workers']} workers on {measured['cores']} cores, {size}, {', '.join(measured['tasks'])}"


def gigabytes(count: int | None) -> str:
    """Bytes for people."""
    return "not told" if count is None else f"{count / 1e9:.3f} GB"


def duration(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return "not measured"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.2f} ms"


def percent(share: float | None) -> str:
    """A share for people."""
    return "not measured" if share is None else f"{share:.1%}"
