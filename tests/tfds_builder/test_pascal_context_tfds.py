"""What TFDS itself tests of a builder; needs TensorFlow, which nothing else here does."""

import pytest

pytest.importorskip("tensorflow")
pytest.importorskip("dill")

import tensorflow_datasets as tfds

from tfds_pascal_context.nyud import Nyud, NyudRaw
from tfds_pascal_context.pascal_context import PascalContext, PascalRaw


@pytest.fixture(autouse=True)
def _counts_of_the_dummy_data(monkeypatch):
    monkeypatch.setattr(PascalRaw, "counts", {"train": 4, "val": 3})
    monkeypatch.setattr(NyudRaw, "counts", {"train": 2, "val": 1})


class PascalContextTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = PascalContext
    SPLITS = {"train": 4, "val": 3}
    BUILDER_CONFIG_NAMES_TO_TEST = ["all", "semseg-human_parts"]


class NyudTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Nyud
    SPLITS = {"train": 2, "val": 1}
    BUILDER_CONFIG_NAMES_TO_TEST = ["all"]
