"""Files and ids that belong together."""

import unicodedata

import pytest
from tiny_data import write_tiny_dataset

from mtlora_jax.data.image_folder import FolderDataset
from mtlora_jax.data.naming import files_of
from mtlora_jax.errors import UserError

ONE, TWO = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


def test_files_of_ids(tmp_path):
    for name in ("b.PNG", f"{TWO}.png", "c.txt", "d.jpg"):
        (tmp_path / name).touch()
    assert files_of(tmp_path, (".png",)) == {"b": tmp_path / "b.PNG", ONE: tmp_path / f"{TWO}.png"}


@pytest.mark.parametrize("names", [("a.png", "a.PNG"), ("a.png", "a.jpg"), (f"{ONE}.png", f"{TWO}.png")])
def test_two_files_of_one_id(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="a second file for id"):
        files_of(tmp_path, (".png", ".jpg"))


def test_a_folder_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        files_of(tmp_path / "nowhere", (".png",))


@pytest.mark.parametrize(("listed", "stored"), [(ONE, TWO), (TWO, ONE)])
def test_a_list_and_its_files_in_different_forms(tmp_path, listed, stored):
    root = write_tiny_dataset(tmp_path / "data", ("semseg",))
    for folder in ("images", "semseg"):
        (root / folder / "val000.png").rename(root / folder / f"{stored}.PNG")
    (root / "splits" / "val.txt").write_text(listed, encoding="utf-8")
    assert FolderDataset(root, "val", ["semseg"])[0]["semseg"].shape == (40, 56)
    (root / "splits" / "val.txt").write_text(f"{ONE}\n{TWO}\n", encoding="utf-8")
    with pytest.raises(UserError, match="1 ids are listed again"):
        FolderDataset(root, "val", ["semseg"])
