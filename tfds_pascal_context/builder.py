"""Base of both builders: converts raw files into a cache of images, then writes the shards of TFDS."""

import contextlib
import functools
import io
import itertools
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import rich.console
import rich.progress
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import ShardBasedBuilder  # not in tfds.core before 4.9.10

from mtlora_jax.errors import UserError
from mtlora_jax.io.files import user_path
from tfds_pascal_context import convert, download, files, raw, source, storage

SHARD = 512  # images in a file; about 100 MB
BYTES = tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png")
NORMALS = tfds.features.Image(shape=(None, None, 3), dtype=np.uint8, encoding_format="png")


class Config(tfds.core.BuilderConfig):
    """A builder config: the tasks that are built."""

    def __init__(self, tasks: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.tasks = tuple(tasks)


def configs(dataset: type[raw.Raw]) -> list[Config]:
    """Returns a builder config for every choice of tasks, starting with all of them."""
    counts = range(len(dataset.tasks), 0, -1)
    choices = itertools.chain.from_iterable(itertools.combinations(dataset.tasks, count) for count in counts)
    return [
        Config(tasks, name=raw.config_name(dataset, tasks), description="Labels: " + ", ".join(tasks) + ".")
        for tasks in choices
    ]


class RawBuilder(ShardBasedBuilder, skip_registration=True):
    """Base of the builders.

    Besides the arguments of TFDS, the constructor takes `workers` (processes; default: one per core), `allow_partial`
    (accept lists whose length differs from the published ones) and, for data sets that can be downloaded, `url` and
    `sha256`. Mistakes of the user raise `mtlora_jax.errors.UserError`. Without TensorFlow, `download_and_prepare` needs
    `file_format="array_record"`.

    The data set is built shard by shard, in the order of the lists, because the shuffler of TFDS needs TensorFlow as
    soon as a split exceeds 1 GB.
    """

    RAW: ClassVar[type[raw.Raw]]
    FEATURES: ClassVar[dict[str, Any]]  # of the tasks
    URL: ClassVar[str] = ""
    HOMEPAGE: ClassVar[str]
    LICENSE: ClassVar[str]

    def __init__(
        self, *, workers: int = 0, allow_partial: bool = False, url: str = "", sha256: str = "", **kwargs: Any
    ):
        super().__init__(**kwargs)
        self._workers = workers or os.cpu_count() or 1
        self._allow_partial = allow_partial
        self._url = url or self.URL
        self._sha256 = sha256
        self._manual_dir: pathlib.Path | None = None
        # Of the last build:
        self.resized: dict[str, int] = {}  # labels that differed in size from their image, per task
        self.raw_size = 0  # bytes of the raw files
        self.converted = 0  # images that it converted; the others were in the cache

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the builder's config."""
        assert isinstance(self.builder_config, Config)
        return self.builder_config.tasks

    @property
    def partial_dir(self) -> pathlib.Path:
        """The folder of unfinished work."""
        return pathlib.Path(self.data_dir_root) / self.name / f"{self.builder_config_name}.partial"

    def is_prepared(self) -> bool:
        """Whether the data set exists; TFDS would read `[` and `*` in its path as a pattern."""
        return os.path.isfile(os.path.join(self.data_path, "dataset_info.json"))

    def download_and_prepare(
        self, *, download_config: tfds.download.DownloadConfig | None = None, **kwargs: Any
    ) -> None:
        """As in TFDS; `download_config.manual_dir` may also be the archive or the unpacked folder itself.

        The next build uses what a stopped or failed one has converted and kept in `partial_dir`. Raises UserError.
        """
        if self.is_prepared() and not (download_config and download_config.download_mode.overwrite_dataset):
            return super().download_and_prepare(download_config=download_config, **kwargs)
        manual_dir = download_config.manual_dir if download_config else None
        self._manual_dir = user_path(manual_dir) if manual_dir else None
        with storage.one_line_if_full(self.partial_dir), storage.owned(self.partial_dir):
            for rest in self.partial_dir.parent.glob(f"{self.builder_config_name}/incomplete.*_{self.version}"):
                shutil.rmtree(rest)  # left by a killed build; the lock ensures that none is running
            super().download_and_prepare(download_config=download_config, **kwargs)
            shutil.rmtree(self.partial_dir)

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        if self.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
            for split in self.info.splits.values():
                storage.check_shards(split)

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return storage.ReproducibleWriter(self.info.file_format or tfds.core.FileFormat.ARRAY_RECORD)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image_id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        }
        return self.dataset_info_from_configs(  # README.md and CITATIONS.bib
            features=tfds.features.FeaturesDict(features | {task: self.FEATURES[task] for task in self.tasks}),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterator]]]:
        # In a log file, the progress bar would come between the lines of an error message.
        console = rich.console.Console(stderr=True, quiet=not sys.stderr.isatty())
        with rich.progress.Progress(*_COLUMNS, console=console) as progress:
            found = self._find(dl_manager, progress)
            dataset = source.open_raw(self.RAW, found, self.tasks, self.partial_dir, progress.console.print)
            ids = dataset.ids()
            if not self._allow_partial:
                dataset.check_counts(ids)
            dataset.check_folders(self.tasks)
            people = self._convert(dataset, ids, progress)
        metadata: dict[str, Any] = {"image_ids": ids}
        if "human_parts" in self.tasks:
            metadata["people"] = {split: [name for name in ids[split] if name in people] for split in raw.SPLITS}
        self.info.metadata.update(metadata)  # pyright: ignore[reportOptionalMemberAccess]
        shards = {split: _shards(ids[split]) for split in raw.SPLITS}
        return {
            split: [functools.partial(self._examples, dataset, part) for part in parts]
            for split, parts in shards.items()
        }

    def _find(self, dl_manager, progress: rich.progress.Progress) -> pathlib.Path:
        """Finds the raw data; downloads it if it is not there."""
        if self._manual_dir:
            found = source.find_or_fail(self.RAW, self._manual_dir)
            if self._sha256 and found.is_file():
                download.check(found, self._sha256)
            return found
        with contextlib.suppress(AssertionError):  # TFDS raises it if its default folder does not exist
            found = source.find(self.RAW, pathlib.Path(dl_manager.manual_dir))
            if found:
                return found
        if not self._url:
            raise UserError(
                f"{self.RAW.archive} cannot be downloaded automatically: {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        bar = progress.add_task(f"downloading {self._url}", total=None)

        def report(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total or None)

        path = pathlib.Path(dl_manager.download_dir) / self.RAW.archive
        return download.download(self._url, path, self._sha256, report, self.RAW.largest)

    def _convert(self, dataset: raw.Raw, ids: dict[str, list[str]], progress: rich.progress.Progress) -> set[str]:
        """Fills the cache; returns the ids of images with people."""
        self.resized, self.converted = dict.fromkeys(self.tasks, 0), 0
        every = [image_id for split in raw.SPLITS for image_id in ids[split]]
        bar = progress.add_task(f"converting {len(every)} images", total=len(every))
        used = {path for image_id in every for path in dataset.paths(self.tasks, image_id)}
        self.raw_size = sum(path.stat().st_size for path in used if path.is_file())
        people = set()
        results = convert.convert_all(dataset, every, self.tasks, self.partial_dir, self._workers)
        for image_id, (made, fresh) in zip(every, results, strict=True):
            self.converted += fresh
            for task in made.resized:
                self.resized[task] += 1
            if made.people:
                people.add(image_id)
            progress.advance(bar)
        return people

    def _examples(self, dataset: raw.Raw, ids: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        compresses = self.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
        for image_id in ids:
            # Encoded already, because TFDS would need TensorFlow to encode an array.
            labels = convert.load_finished(dataset, image_id, self.tasks, self.partial_dir).labels
            if not compresses:
                labels = {task: files.compressed(content) for task, content in labels.items()}
            images = {"image": files.read(dataset.image(image_id), "a JPEG photograph"), **labels}
            yield image_id, {"image_id": image_id, **{name: io.BytesIO(content) for name, content in images.items()}}


def _shards(ids: list[str]) -> list[list[str]]:
    return [ids[start : start + SHARD] for start in range(0, len(ids), SHARD)]


_COLUMNS = (
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(),
    rich.progress.TaskProgressColumn(),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TimeRemainingColumn(),
)
