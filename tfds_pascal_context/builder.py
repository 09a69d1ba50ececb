"""What the builders of both data sets share: from raw files over a cache of converted images to the shards of TFDS."""

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
    """Which tasks are built."""

    def __init__(self, tasks: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.tasks = tuple(tasks)


def configs(dataset: type[raw.Raw]) -> list[Config]:
    """A builder config for every choice of tasks, all of them first."""
    counts = range(len(dataset.tasks), 0, -1)
    choices = itertools.chain.from_iterable(itertools.combinations(dataset.tasks, count) for count in counts)
    return [
        Config(tasks, name=raw.config_name(dataset, tasks), description="Labels: " + ", ".join(tasks) + ".")
        for tasks in choices
    ]


class RawBuilder(ShardBasedBuilder, skip_registration=True):
    """Base of the builders.

    Besides what TFDS takes, the constructor knows `workers` (processes; default: one per core), `allow_partial` (lists that are not as
    long as the published ones) and, where there is something to download, `url` and `sha256`. Mistakes of the user are
    `mtlora_jax.errors.UserError`. Without TensorFlow, `download_and_prepare` wants `file_format="array_record"`.

    Built shard by shard, in the order of the lists: the shuffler of TFDS needs TensorFlow as soon as a split exceeds 1 GB.
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
        self.resized: dict[str, int] = {}  # labels that had another size than their image, per task, of the last build
        self.raw_size = 0  # bytes of the files the last build was made from
        self.converted = 0  # images the last build had to convert; the others had been converted before

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the builder's config."""
        assert isinstance(self.builder_config, Config)
        return self.builder_config.tasks

    @property
    def partial_dir(self) -> pathlib.Path:
        """Where unfinished work is kept."""
        return pathlib.Path(self.data_dir_root) / self.name / f"{self.builder_config_name}.partial"

    def is_prepared(self) -> bool:
        """Whether the data set is there; TFDS would take `[` and `*` in its path for a pattern."""
        return os.path.isfile(os.path.join(self.data_path, "dataset_info.json"))

    def download_and_prepare(
        self, *, download_config: tfds.download.DownloadConfig | None = None, **kwargs: Any
    ) -> None:
        """As in TFDS; `download_config.manual_dir` may also be the archive, or the unpacked folder itself.

        What a stopped or failed build has converted is kept in `partial_dir` and used by the next. Raises UserError.
        """
        if self.is_prepared() and not (download_config and download_config.download_mode.overwrite_dataset):
            return super().download_and_prepare(download_config=download_config, **kwargs)
        manual_dir = download_config.manual_dir if download_config else None
        self._manual_dir = user_path(manual_dir) if manual_dir else None
        with storage.one_line_if_full(self.partial_dir), storage.owned(self.partial_dir):
            for rest in self.partial_dir.parent.glob(f"{self.builder_config_name}/incomplete.*_{self.version}"):
                shutil.rmtree(rest)  # of a build that was killed; the lock says that none is running
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
        # In a log, a bar would be a line between those that say what is wrong.
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
        shards = {
            split: [ids[split][start : start + SHARD] for start in range(0, len(ids[split]), SHARD)]
            for split in raw.SPLITS
        }
        if "human_parts" in self.tasks:
            metadata["people"] = {
                split: [image_id for image_id in ids[split] if image_id in people] for split in raw.SPLITS
            }
        self.info.metadata.update(metadata)  # pyright: ignore[reportOptionalMemberAccess]
        return {
            split: [functools.partial(self._examples, dataset, part) for part in parts]
            for split, parts in shards.items()
        }

    def _find(self, dl_manager, progress: rich.progress.Progress) -> pathlib.Path:
        """The raw data, which is downloaded if it is nowhere else."""
        if self._manual_dir:
            found = source.find_or_fail(self.RAW, self._manual_dir)
            if self._sha256 and found.is_file():
                download.check(found, self._sha256)
            return found
        with contextlib.suppress(AssertionError):  # TFDS says so where its default folder is not there
            found = source.find(self.RAW, pathlib.Path(dl_manager.manual_dir))
            if found:
                return found
        if not self._url:
            raise UserError(
                f"{self.RAW.archive} cannot be downloaded by a program: {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        bar = progress.add_task(f"downloading {self._url}", total=None)
        path = pathlib.Path(dl_manager.download_dir) / self.RAW.archive
        return download.download(
            self._url,
            path,
            self._sha256,
            lambda done, total: progress.update(bar, completed=done, total=total or None),
            self.RAW.largest,
        )

    def _convert(self, dataset: raw.Raw, ids: dict[str, list[str]], progress: rich.progress.Progress) -> set[str]:
        """Fills the cache; the ids of images with people."""
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
        packs = self.info.file_format == tfds.core.FileFormat.ARRAY_RECORD  # the others do not compress
        for image_id in ids:
            made = convert.load_finished(dataset, image_id, self.tasks, self.partial_dir)
            # Encoded already: TFDS would need TensorFlow to encode an array.
            labels = (
                made.labels if packs else {task: files.compressed(content) for task, content in made.labels.items()}
            )
            images = {"image": files.read(dataset.image(image_id), "a JPEG photograph"), **labels}
            yield image_id, {"image_id": image_id, **{name: io.BytesIO(content) for name, content in images.items()}}


_COLUMNS = (
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(),
    rich.progress.TaskProgressColumn(),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TimeRemainingColumn(),
)
