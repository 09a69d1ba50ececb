import pathlib
import shutil

import pytest
import raw_dummies


@pytest.fixture
def raw(tmp_path):
    """A copy of the dummy PASCAL_MT, to be damaged."""
    return pathlib.Path(shutil.copytree(raw_dummies.PASCAL, tmp_path / "raw"))


@pytest.fixture
def data(tmp_path):
    """A folder for data sets that does not exist yet."""
    return tmp_path / "data"
