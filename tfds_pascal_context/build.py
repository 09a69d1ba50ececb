"""Builds PASCAL_MT or NYUD_MT.

    python -m tfds_pascal_context.build --data_dir=data                                    # downloads PASCAL_MT.tgz
    python -m tfds_pascal_context.build --data_dir=data --manual_dir=PASCAL_MT.tgz         # or the folder it unpacks to
    python -m tfds_pascal_context.build --data_dir=data --manual_dir=PASCAL_MT --tasks=semseg,human_parts
    python -m tfds_pascal_context.build --data_dir=data --manual_dir=NYUD_MT.tgz --dataset=nyud

After an interruption, the same command continues the build.
"""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Sequence

from absl import logging

from mtlora_jax import cli
from mtlora_jax.errors import UserError
from mtlora_jax.io.files import check_writable, user_path

FORMAT = "array_record"  # random access, and read without TensorFlow


@dataclasses.dataclass(frozen=True)
class Built:
    """The result of a build.

    Attributes:
      path: folder of the data set, for `tfds.builder_from_directory`.
      examples: number of examples per split.
      size: bytes of the data set.
      raw_size: bytes of the raw files it was made from, not counting missing ones.
      converted: images converted by this call.
      resized: labels that differed in size from their image, per task.
      seconds: wall-clock time of this call; 0 if the data set already existed.
    """

    path: pathlib.Path
    examples: dict[str, int]
    size: int
    raw_size: int
    converted: int
    resized: dict[str, int]
    seconds: float


def build(
    manual_dir: str | pathlib.Path | None = None,
    data_dir: str | pathlib.Path = "data",
    tasks: Sequence[str] | None = None,
    workers: int = 0,
    *,
    dataset: str = "pascal_context",
    allow_partial: bool = False,
    url: str = "",
    sha256: str = "",
) -> Built:
    """Builds a data set unless it already exists.

    Args:
      manual_dir: the archive, the folder it unpacks to, or the folder that holds either; None downloads the archive
        to DATA_DIR/downloads.
      data_dir: the data set is written to DATA_DIR/DATASET/CONFIG/VERSION.
      tasks: labels to build; None for all. Only the files of these tasks are needed.
      workers: number of processes; 0 for one per core.
      dataset: "pascal_context" or "nyud".
      allow_partial: accept lists of ids whose length differs from the published ones.
      url, sha256: where to download from, and the expected checksum of the archive.

    Raises:
      UserError: names the file and what is wrong. Nothing is left that could be mistaken for a complete data set.
    """
    import tensorflow_datasets as tfds

    from tfds_pascal_context import raw
    from tfds_pascal_context.builders import builder_class

    start = time.perf_counter()
    data_dir, manual_dir = user_path(data_dir), None if manual_dir is None else user_path(manual_dir)
    builder_cls = builder_class(dataset)
    if str(data_dir) != os.fsencode(data_dir).decode(errors="replace"):
        raise UserError(
            f"{data_dir}: the name is not UTF-8 text, which the writer of records needs; choose another folder"
        )
    if workers < 0:
        raise UserError(f"workers = {workers}; expected the number of processes, or 0 for one per core")
    config = raw.config_name(builder_cls.RAW, builder_cls.RAW.tasks if tasks is None else tasks)
    logging.set_verbosity(logging.ERROR)  # TFDS warns about every data set that does not exist yet
    builder = builder_cls(
        data_dir=str(data_dir), config=config, workers=workers, allow_partial=allow_partial, url=url, sha256=sha256
    )
    existed = builder.is_prepared()
    if not existed:
        check_writable(pathlib.Path(builder.data_path))
        tfds.disable_progress_bar()  # the builder has its own
        download_config = tfds.download.DownloadConfig(manual_dir=str(manual_dir) if manual_dir else None)
        with contextlib.redirect_stdout(None):  # TFDS would print that sizes are unknown
            builder.download_and_prepare(
                download_dir=str(pathlib.Path(data_dir, "downloads")),
                download_config=download_config,
                file_format=FORMAT,
            )
    file_format = builder.info.file_format
    if file_format is None or file_format.value != FORMAT:
        raise UserError(
            f"{builder.data_path}: its files have the format {file_format}, not {FORMAT}; delete it to build it again"
        )
    examples = {split: info.num_examples for split, info in builder.info.splits.items()}
    published = builder_cls.RAW.counts
    if not allow_partial and examples != published:
        raise UserError(
            f"{builder.data_path}: holds {_counts(examples)} images, the published data set has {_counts(published)}; "
            "delete it to build it again, or give --allow_partial if this is intended"
        )
    path = pathlib.Path(builder.data_path)
    size = sum(file.stat().st_size for file in path.iterdir())
    seconds = 0 if existed else time.perf_counter() - start
    return Built(path, examples, size, builder.raw_size, builder.converted, builder.resized, seconds)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, builds and prints a summary."""
    parser = cli.Parser("tfds_pascal_context.build", __doc__)
    parser.add_argument("--dataset", default="pascal_context", help="pascal_context (default) or nyud")
    parser.add_argument("--data_dir", default="data", type=user_path, help="where TFDS keeps data sets (default: data)")
    parser.add_argument(
        "--manual_dir", type=user_path, help="archive, unpacked folder, or folder that holds either (default: download)"
    )
    parser.add_argument(
        "--tasks", type=lambda text: text.split(","), help="labels to build, such as semseg,human_parts (default: all)"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one per core)")
    parser.add_argument(
        "--allow_partial", action="store_true", help="accept lists whose length differs from the published ones"
    )
    parser.add_argument("--url", default="", help="download from here instead")
    parser.add_argument("--sha256", default="", help="expected checksum of the archive")
    args = parser.parse(argv)
    built = build(**vars(args))
    print(f"{built.path}: {_counts(built.examples)} images, {built.size / 1e6:.1f} MB")
    if not built.seconds:
        print("It already existed; delete it to build it again.")
        return
    print(
        f"made from {built.raw_size / 1e6:.1f} MB; {built.converted} images converted in {built.seconds:.1f} s, "
        f"{built.converted / built.seconds:.1f} images/s"
    )
    resized = ", ".join(f"{task} {count}" for task, count in built.resized.items() if count)
    if resized:
        print(f"labels resized to their image: {resized}")


def _counts(examples: dict[str, int]) -> str:
    return " and ".join(f"{count} {split}" for split, count in examples.items())


if __name__ == "__main__":
    cli.run(main)
