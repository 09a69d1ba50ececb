"""The dummy raw data of `tfds_pascal_context`, and building data sets from it."""

import pathlib

import tfds_pascal_context
from tfds_pascal_context.build import Built, build

PACKAGE = pathlib.Path(tfds_pascal_context.__file__).parent
DUMMY = PACKAGE / "dummy_data"
PASCAL = DUMMY / "PASCAL_MT"
NYUD = DUMMY / "NYUD_MT"
TRAIN = ["dummy_01", "dummy_02", "dummy_03", "dummy_04"]  # of PASCAL
VAL = ["dummy_05", "dummy_06", "dummy_07"]


def built(data: str | pathlib.Path, manual_dir: str | pathlib.Path | None = DUMMY, **kwargs) -> Built:
    """Builds below `data` in one process, with fewer images than the published data set has."""
    return build(manual_dir, data, **{"workers": 1, "allow_partial": True, **kwargs})
