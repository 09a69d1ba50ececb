"""Measures the cost of each setting: one more task, more rank, a doubled batch or image side, bfloat16, merging.

    python benchmarks/sweep.py --config=configs/mtlora_tiny_448.py:64 --output=runs/sweep
    python benchmarks/sweep.py --config=configs/mtlora_tiny_448.py:64 --output=runs/small --config.batch_size=2 \\
        --axes=batch --batch=1,2,4

The config is the centre. From there one axis of --axes at a time is changed, to each value of the flag of its name.
Each setting is measured by `python -m mtlora_jax.benchmark` in a process of its own, so that the peak of memory belongs
to that setting. A setting that runs out of memory is recorded as such; any other failure is recorded too, and tried
again next time.

OUTPUT gets sweep.json and sweep.md (tables) after every setting, and sweep.png in the end (needs matplotlib: pip
install 'mtlora_jax[plots]'). With the same --output a sweep resumes: nothing is measured twice, so values can be added
to a finished sweep.

Keys of sweep.json: flags (the config), centre ({axis: value}), settings: a list of {setting: {what, axis: value},
command, and either measured (see `python -m mtlora_jax.benchmark --help`) or failed (a line)}.
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sweep_plot import draw
from sweep_report import tables

from mtlora_jax import cli
from mtlora_jax.console import console
from mtlora_jax.errors import UserError
from mtlora_jax.io import files, locks
from mtlora_jax.io.files import user_path
from mtlora_jax.metric_writers import StepTimer
from mtlora_jax.models.parameters import PRECISIONS

Value = int | str
Setting = dict[str, Any]  # {"what": ..., axis: value}

WORK = ("train", "infer")
OUT_OF_MEMORY = "out of memory"
SIGNS = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "MemoryError", "bad_alloc", "Unable to allocate")
KILLED = -9  # by the system, when memory runs out
MODULE = ["-m", "mtlora_jax.benchmark"]


@dataclasses.dataclass(frozen=True)
class Axis:
    """A setting that the sweep changes.

    Attributes:
      values: its default values.
      centre: returns the value of a config; None if it has no single one.
      flags: returns the flags of `mtlora_jax.benchmark` for another value, given the config.
      work: the benchmarks that it applies to.
    """

    values: Sequence[Value]
    centre: Callable[[Any], Value | None]
    flags: Callable[[Any, Value], list[str]]
    work: Sequence[str] = WORK


def rank(config: Any) -> int | None:
    """Rank of the task-agnostic branches; None if stages have different ones."""
    own = config.method.get("rank")
    return own if isinstance(own, int) else None


def side(config: Any) -> int | None:
    """Side of the images; None if they are not square."""
    height, width = config.image_size
    return height if height == width else None


AXES = {
    "tasks": Axis(
        (1, 2, 3, 4),
        lambda config: len(config.tasks),
        lambda config, n: [f"--config.tasks={','.join(config.tasks[:n])}"],
    ),
    "rank": Axis((16, 64), rank, lambda config, value: [f"--config.method.rank={value}"]),
    "batch": Axis(
        (1, 2, 4, 8, 16, 32, 64, 128), lambda config: config.batch_size, lambda config, n: [f"--config.batch_size={n}"]
    ),
    "side": Axis((224, 448, 896), side, lambda config, value: [f"--config.image_size={value},{value}"]),
    "precision": Axis(
        PRECISIONS, lambda config: config.compute_dtype, lambda config, name: [f"--config.compute_dtype={name}"]
    ),
    "merged": Axis(
        ("no", "yes"), lambda config: "no", lambda config, word: ["--merged"] if word == "yes" else [], ("infer",)
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the settings that are not measured yet, and writes tables and plot."""
    argv = sys.argv[1:] if argv is None else argv
    args = flags(argv)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("the plot of a sweep needs matplotlib: pip install 'mtlora_jax[plots]'") from None
    given = [argument for argument in argv if argument.startswith("--config")]
    centre = {name: axis.centre(args.config) for name, axis in AXES.items()}
    files.check_writable(args.output)
    with locks.hold_lock(args.output):
        sweep(args, given, centre)


def sweep(args: argparse.Namespace, given: Sequence[str], centre: Setting) -> None:
    """Measures the remaining settings around the centre, and writes the results."""
    output = args.output
    results = read(output / "sweep.json", given, centre)
    done = [entry["setting"] for entry in results["settings"] if entry.get("failed", OUT_OF_MEMORY) == OUT_OF_MEMORY]
    left = [setting for setting in settings(args, centre) if setting not in done]
    console.print(f"{len(left)} settings to measure; {len(done)} are done")
    timer = StepTimer()
    for number, setting in enumerate(left, 1):
        entry = measure(setting, command(args, given, setting, centre), shlex.split(args.launcher), args.timeout)
        results["settings"] = [other for other in results["settings"] if other["setting"] != setting] + [entry]
        report(results, output)
        timer.count_step()
        timer.steps_per_second()
        words = " ".join(f"{value}" for value in setting.values() if value is not None)
        console.print(
            f"{number}/{len(left)} {words}: {told(entry)}; {timer.format_remaining(len(left) - number, 0)} left"
        )
    draw(results, output / "sweep.png")
    failed = [entry["failed"] for entry in results["settings"] if entry.get("failed", OUT_OF_MEMORY) != OUT_OF_MEMORY]
    if failed:
        raise UserError(
            f"{len(failed)} settings failed, the first with: {failed[0]}; the same command tries them again"
        )
    console.print(f"{output / 'sweep.md'} {output / 'sweep.png'}")


def report(results: dict[str, Any], output: pathlib.Path) -> None:
    """Writes all results so far, and the tables if any setting was measured."""
    files.write_text(output / "sweep.json", json.dumps(results, indent=1) + "\n")
    if any("measured" in entry for entry in results["settings"]):
        files.write_text(output / "sweep.md", tables(results))


def flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parses and checks the command line; `what` and `axes` become lists, and each axis gets the list of its values."""
    parser = cli.Parser("sweep", __doc__, config=True)
    parser.prog = "python benchmarks/sweep.py"
    parser.add_argument("--output", required=True, type=user_path, help="folder of the results")
    parser.add_argument("--what", default=",".join(WORK), help=f"of {', '.join(WORK)} (default both)")
    parser.add_argument("--axes", default=",".join(AXES), help=f"of {', '.join(AXES)} (default all)")
    for name, axis in AXES.items():
        parser.add_argument(f"--{name}", help=f"values, by default {','.join(map(str, axis.values))}")
    parser.add_argument("--steps", type=int, default=20, help="steps to measure per setting (default 20)")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that a setting may take (default 1800)")
    parser.add_argument("--launcher", default="", help="command that starts each process, such as 'taskset -c 0-7'")
    args = parser.parse(argv)
    if "--config" in argv:
        raise UserError("--config and its value must be one word: --config=FILE.py")
    for name, allowed in (("what", WORK), ("axes", AXES)):
        chosen = getattr(args, name).split(",")
        if unknown := [word for word in chosen if word not in allowed]:
            raise UserError(f"--{name}: {unknown[0]!r} is not one of {', '.join(allowed)}")
        setattr(args, name, chosen)
    if args.steps < 1:
        raise UserError(f"--steps={args.steps} must be at least 1")
    for name in args.axes:
        setattr(args, name, values_of(name, getattr(args, name), args.config))
    return args


def values_of(name: str, text: str | None, config: Any) -> list[Value]:
    """The values of an axis, in order and with that of the centre. Raises UserError for invalid values."""
    axis = AXES[name]
    centre, most = axis.centre(config), len(config.tasks)
    if centre is None:
        raise UserError(f"the config has no single {name} that could be changed: leave it out of --axes")
    if text is None:
        possible = {value for value in (*axis.values, centre) if name != "tasks" or int(value) <= most}
        return sorted(possible, key=place(axis))
    values = set()
    bounds = f"from 1 to {most}, the tasks of the config" if name == "tasks" else "of at least 1"
    for word in text.split(","):
        if isinstance(centre, int):
            if not word.isdigit() or int(word) < 1 or (name == "tasks" and int(word) > most):
                raise UserError(f"--{name}: {word!r} is not a whole number {bounds}")
            values.add(int(word))
        elif word not in axis.values:
            raise UserError(f"--{name}: {word!r} is not one of {', '.join(map(str, axis.values))}")
        else:
            values.add(word)
    return sorted(values | {centre}, key=place(axis))


def place(axis: Axis) -> Callable[[Value], int]:
    """Sort key: numbers by size, words in the order of the axis."""
    return lambda value: value if isinstance(value, int) else axis.values.index(value)


def settings(args: argparse.Namespace, centre: Setting) -> list[Setting]:
    """The centre, and the settings that differ from it on one axis, for each benchmark."""
    found: list[Setting] = []
    for what in args.what:
        found.append({"what": what, **centre})
        for name in args.axes:
            if what in AXES[name].work:
                others = [value for value in getattr(args, name) if value != centre[name]]
                found += [{"what": what, **centre, name: value} for value in others]
    return found


def command(args: argparse.Namespace, given: Sequence[str], setting: Setting, centre: Setting) -> list[str]:
    """Arguments of the interpreter that measure a setting."""
    changed = []
    for name, axis in AXES.items():
        if setting[name] != centre[name]:
            changed += axis.flags(args.config, setting[name])
    return [*MODULE, *given, *changed, f"--what={setting['what']}", f"--steps={args.steps}", "--json"]


def measure(setting: Setting, arguments: Sequence[str], launcher: Sequence[str], timeout: float) -> dict[str, Any]:
    """Runs the command and returns the entry for sweep.json."""
    entry: dict[str, Any] = {"setting": setting, "command": shlex.join(["python", *arguments])}
    try:
        done = subprocess.run([*launcher, sys.executable, *arguments], capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return entry | {"failed": f"took longer than {timeout:g} s"}
    if done.returncode == 0:
        return entry | {"measured": json.loads(done.stdout)}
    if done.returncode == KILLED or any(sign in done.stderr for sign in SIGNS):
        return entry | {"failed": OUT_OF_MEMORY}
    return entry | {"failed": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}


def told(entry: dict[str, Any]) -> str:
    """The result of an entry in a few words."""
    if "failed" in entry:
        return entry["failed"]
    return f"{entry['measured']['seconds']:.4g} s, spread {entry['measured']['spread'] or 0:.1%}"


def read(path: pathlib.Path, given: Sequence[str], centre: Setting) -> dict[str, Any]:
    """The contents of sweep.json, or those to begin with. Raises UserError if the file belongs to another config."""
    fresh = {"flags": list(given), "centre": centre, "settings": []}
    if not path.exists():
        return fresh
    there = files.read_json(path)
    if not isinstance(there, dict) or not fresh.keys() <= there.keys():
        raise UserError(f"{path} is not a result of this command: choose another --output")
    if (there["flags"], there["centre"]) != (fresh["flags"], centre):
        theirs, ours = " ".join(there["flags"]), " ".join(given)
        raise UserError(
            f"{path} was measured with {theirs}, whose values differ from those of {ours} now: choose another --output"
        )
    return there


if __name__ == "__main__":
    cli.run(main)
