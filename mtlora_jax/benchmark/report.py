"""Measurements as text and tables."""

from typing import Any

from rich.table import Table

from mtlora_jax.console import console

SETTINGS = ("method", "merged", "compute", "frozen", "encoder_microbatches", "remat")
TITLES = {"train": "Training step", "infer": "Forward pass"}


def print_program(measured: dict[str, Any]) -> None:
    """Prints the measurements of a training step or a forward pass as a table."""
    rate = measured["images_per_second"]
    size = "x".join(map(str, measured["image_size"]))
    settings = ", ".join(f"{key} {measured[key]}" for key in SETTINGS if key in measured)
    tracing, lowering, compiling = (measured[f"{what}_seconds"] for what in ("tracing", "lowering", "compile"))
    cached = " (cached)" if measured["compile_cached"] else ""
    forward, whole = measured["gmacs_forward"], measured["gmacs_step"]
    rows = {
        "images/s": f"{rate:.2f} ({measured['slowest']:.2f} to {measured['fastest']:.2f})" if rate else "not measured",
        "step": f"{duration(measured['seconds'])}, median of {measured['steps']}; spread {percent(measured['spread'])}",
        "compilation": f"tracing {tracing:.1f} s, lowering {lowering:.1f} s, compiling {compiling:.1f} s{cached}",
        "multiply-accumulates": f"{forward:.2f} G forward per image, {whole:.2f} G per step",
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
    table = Table(title=f"{TITLES[measured['what']]}; memory and bytes per device", show_header=False)
    for row in rows.items():
        table.add_row(*row)
    console.print(table)


def peak_memory(measured: dict[str, Any]) -> dict[str, str]:
    """The row about peak memory."""
    if measured["peak_bytes"] is None and measured["peak_resident_bytes"] is not None:
        return {"peak of the process": f"{gigabytes(measured['peak_resident_bytes'])} resident"}
    return {"peak of the device": gigabytes(measured["peak_bytes"])}


def peak(measured: dict[str, Any]) -> str:
    """The peak of one device: FLOP/s, bandwidth, and where they come from."""
    if measured["peak_flops"] is None:
        return "not measured"
    flops, bandwidth = measured["peak_flops"] / 1e12, measured["peak_bandwidth"] / 1e9
    return f"{flops:.3g} TFLOP/s in {measured['peak_precision']}, {bandwidth:.4g} GB/s ({measured['peak_from']})"


def print_data(measured: dict[str, Any]) -> None:
    """Prints a line about the input pipeline."""
    rate = f"{measured['images_per_second']:.1f} images/s ({measured['slowest']:.1f} to {measured['fastest']:.1f})"
    shares = f"{measured['per_worker']:.1f} per worker, {measured['per_core']:.1f} per second of a core"
    print(f"data: {rate}, {shares}; {circumstances(measured)}")


def print_end_to_end(measured: dict[str, Any]) -> None:
    """Prints a line about a training step fed by the pipeline."""
    fed, alone = duration(measured["seconds"]), duration(measured["step_seconds"])
    device, loop = percent(measured["device_wait"]), percent(measured["host_wait"])
    print(
        f"end to end: {measured['images_per_second']:.2f} images/s, a step takes {fed} fed and {alone} alone: "
        f"the device waits for {device} of the time, the loop for {loop}; "
        f"{measured['devices']} x {measured['device']}, {circumstances(measured)}"
    )


def circumstances(measured: dict[str, Any]) -> str:
    """Workers, image size and tasks."""
    size = "x".join(map(str, measured["image_size"]))
    return f"{measured['workers']} workers on {measured['cores']} cores, {size}, {', '.join(measured['tasks'])}"


def gigabytes(count: int | None) -> str:
    """Bytes as text."""
    return "unknown" if count is None else f"{count / 1e9:.3f} GB"


def duration(seconds: float | None) -> str:
    """Seconds as text."""
    if seconds is None:
        return "not measured"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.2f} ms"


def percent(share: float | None) -> str:
    """A share as text."""
    return "not measured" if share is None else f"{share:.1%}"
