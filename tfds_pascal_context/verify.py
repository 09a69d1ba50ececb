"""Checks raw data or a built data set and names every file that is missing, truncated or inconsistent.

    python -m tfds_pascal_context.verify --manual_dir=PASCAL_MT                # the folder, or the archive
    python -m tfds_pascal_context.verify --manual_dir=PASCAL_MT --tasks=semseg,human_parts
    python -m tfds_pascal_context.verify --data_dir=data                       # a built data set

Exits with 2 if something is wrong.
"""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from mtlora_jax import cli
from mtlora_jax.errors import UserError
from mtlora_jax.io.files import user_path
from tfds_pascal_context import checks  # a module of its own, since workers cannot import from this main module


@dataclasses.dataclass
class Report:
    """The result of a check.

    Attributes:
      images: number of listed images.
      whole: images that are usable with all tasks.
      usable: usable images per task.
      problems: one line each, beginning with the name of a file.
    """

    images: int
    whole: int
    usable: dict[str, int]
    problems: list[str]


def verify_raw(
    manual_dir: str | pathlib.Path,
    tasks: Sequence[str] | None = None,
    workers: int = 0,
    *,
    dataset: str = "pascal_context",
    allow_partial: bool = False,
) -> Report:
    """Reads every file that `tasks` (default: all) need. Raises UserError without a data set or usable lists."""
    from tfds_pascal_context import raw, source
    from tfds_pascal_context.builders import builder_class

    raw_cls = builder_class(dataset).RAW
    tasks = tuple(raw_cls.tasks if tasks is None else tasks)
    raw.config_name(raw_cls, tasks)  # checks the names
    found = source.find_or_fail(raw_cls, user_path(manual_dir))
    with tempfile.TemporaryDirectory(prefix="verify-", dir=found.parent if found.is_file() else None) as work:
        opened = source.open_raw(raw_cls, found, tasks, pathlib.Path(work), print)
        ids = opened.ids()
        found_tasks = tuple(task for task in tasks if opened.has(task))
        missing = [task for task in tasks if task not in found_tasks]
        problems = [f"{opened.root}: no labels for {task} ({', '.join(opened.folders(task))})" for task in missing]
        if not allow_partial:
            try:
                opened.check_counts(ids)
            except UserError as error:
                problems.append(str(error))
        calls = [(opened, image_id, found_tasks) for split in raw.SPLITS for image_id in ids[split]]
        return _report(len(calls), tasks, problems, checks.raw_problems, calls, workers)


def verify_built(
    data_dir: str | pathlib.Path,
    tasks: Sequence[str] | None = None,
    workers: int = 0,
    *,
    dataset: str = "pascal_context",
    allow_partial: bool = False,
) -> Report:
    """Reads every example of a built data set. Raises UserError if there is none."""
    from tfds_pascal_context import raw
    from tfds_pascal_context.builders import builder_class

    builder_cls = builder_class(dataset)
    config = raw.config_name(builder_cls.RAW, builder_cls.RAW.tasks if tasks is None else tasks)
    builder = builder_cls(data_dir=str(user_path(data_dir)), config=config)
    folder = pathlib.Path(builder.data_path)
    if not builder.is_prepared():
        raise UserError(f"{folder}: no data set; build it with python -m tfds_pascal_context.build")
    problems = []
    calls = []
    metadata: Any = builder.info.metadata
    for split, ids in metadata["image_ids"].items():
        expected = len(ids) if allow_partial else builder_cls.RAW.counts[split]
        found = builder.info.splits[split].num_examples
        if not len(ids) == found == expected:
            problems.append(f"{folder}: {split} has {found} examples and {len(ids)} ids; expected {expected}")
        calls += [(folder, split, index, image_id, builder.tasks) for index, image_id in enumerate(ids)]
    return _report(len(calls), builder.tasks, problems, checks.built_problems, calls, workers)


def _report(
    images: int, tasks: Sequence[str], problems: list[str], check: Any, calls: list[tuple], workers: int
) -> Report:
    from tfds_pascal_context.workers import in_parallel

    usable, whole = dict.fromkeys(tasks, 0), 0
    seen = set(problems)
    for found in in_parallel(check, calls, workers or os.cpu_count() or 1, lambda error: {"image": str(error)}):
        good = [task for task in tasks if found.get(task) == ""]
        whole += len(good) == len(tasks)
        for task in good:
            usable[task] += 1
        new = [line for line in dict.fromkeys(found.values()) if line and line not in seen]
        seen.update(new)
        problems += new
    return Report(images, whole, usable, problems)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, checks and prints. Raises UserError if something is wrong."""
    parser = cli.Parser("tfds_pascal_context.verify", __doc__)
    parser.add_argument("--dataset", default="pascal_context", help="pascal_context (default) or nyud")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument(
        "--manual_dir", type=user_path, help="raw data: archive, unpacked folder, or folder that holds either"
    )
    place.add_argument("--data_dir", type=user_path, help="where TFDS keeps the built data set")
    parser.add_argument(
        "--tasks", type=lambda text: text.split(","), help="labels to check, such as semseg,human_parts (default: all)"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one per core)")
    parser.add_argument(
        "--allow_partial", action="store_true", help="accept lists whose length differs from the published ones"
    )
    args = parser.parse(argv)
    check, where = (verify_raw, args.manual_dir) if args.manual_dir else (verify_built, args.data_dir)
    report = check(where, args.tasks, args.workers, dataset=args.dataset, allow_partial=args.allow_partial)
    for line in report.problems:
        print(line)
    tasks = ", ".join(f"{task} {count}" for task, count in report.usable.items())
    good = sum(count > 0 for count in report.usable.values())
    print(
        f"{report.images} images, {report.whole} usable with all requested tasks; "
        f"{good} of {len(report.usable)} tasks usable: {tasks}"
    )
    if report.problems:
        raise UserError(f"{where}: {len(report.problems)} problem(s), listed above")


if __name__ == "__main__":
    cli.run(main)
