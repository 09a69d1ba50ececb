"""Agreement between the processes of a job, with made-up other processes; whole jobs are in test_distributed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny_data import write_tiny_dataset

from mtlora_jax.data.image_folder import FolderDataset
from mtlora_jax.defaults import default
from mtlora_jax.distributed import agreement, sharding
from mtlora_jax.errors import UserError


@pytest.fixture
def others(monkeypatch):
    """A list of functions that compute the values of further processes from those of this one."""
    functions = []

    def of_all(value):
        value = json.loads(json.dumps(value))
        return [value, *(function(value) for function in functions)]

    monkeypatch.setattr(sharding, "allgather_json", of_all)
    monkeypatch.setattr(jax, "process_count", lambda: 1 + len(functions))
    return functions


def test_alone_a_process_agrees():
    agreement.require_same({"x": 1})
    assert agreement.run_together(lambda: 7) == 7


def test_the_first_difference_is_told_with_both_values(others):
    others += [lambda value: value, lambda value: value | {"b": [2.5]}]
    message = r"the processes differ in b: \[1\] in process 0, \[2.5\] in process 2; give all processes the same"
    with pytest.raises(UserError, match=message):
        agreement.require_same({"a": 0, "b": (1,)})


@pytest.mark.parametrize("change", [lambda value: {}, lambda value: value | {"more": 1}])
def test_a_key_that_is_not_everywhere(others, change):
    others.append(change)
    with pytest.raises(UserError, match="0 in process 0, missing in process 1|missing in process 0, 1 in process 1"):
        agreement.require_same({"a": 0})


def test_the_fault_of_one_is_raised_in_all(others):
    others.append(lambda fault: "data/images: no such folder")
    with pytest.raises(UserError, match="process 1: data/images: no such folder"):
        agreement.run_together(lambda: "all is well here")


def test_the_fault_of_all_is_told_plainly(others):
    others.append(lambda fault: fault)

    def fails():
        raise UserError("data/images: no such folder")

    with pytest.raises(UserError, match=r"^data/images: no such folder$"):
        agreement.run_together(fails)


@pytest.mark.parametrize(
    "key", ["optimizer.learning_rate", "seed", "tasks", "method.rank", "data.augmentation.flip", "compute_dtype"]
)
def test_every_key_of_the_config_counts(key):
    found = agreement.describe_start(default(), mode="train")
    assert f"config.{key}" in found
    assert found["mode"] == "train"


@pytest.mark.parametrize("key", agreement.OWN)
def test_what_is_a_host_s_own_affair(key):
    assert f"config.{key}" not in agreement.describe_start(default())


def test_sources_and_libraries_count():
    found = agreement.describe_start(default())
    assert len(found["sources of mtlora_jax"]) == 16
    assert found["jax"] == jax.__version__


def test_other_images_of_the_same_names(tmp_path):
    roots = [write_tiny_dataset(tmp_path / str(seed), seed=seed) for seed in range(2)]
    here, other = (FolderDataset(root, "train", ("semseg", "sal")) for root in roots)
    assert agreement.describe_data(here, "train") == agreement.describe_data(other, "train")
    found, there = (agreement.describe_samples(data, "train") for data in (here, other))
    assert found.keys() == there.keys()
    assert list(found) == ["contents of train train0", "contents of train train2", "contents of train train5"]
    assert found != there
    assert found == agreement.describe_samples(FolderDataset(roots[0], "train", ("semseg", "sal")), "train")


def test_another_number_or_order_or_name_of_images(tmp_path):
    root = write_tiny_dataset(tmp_path / "data")
    splits = root / "splits" / "train.txt"
    lines = splits.read_text().split()
    found = agreement.describe_data(FolderDataset(root, "train", ("sal",)), "train")
    for ids in (lines[:-1], lines[::-1], [*lines[:-1], "val000"]):
        splits.write_text("\n".join(ids))
        assert agreement.describe_data(FolderDataset(root, "train", ("sal",)), "train") != found


def test_other_classes(tmp_path):
    root = write_tiny_dataset(tmp_path / "data")
    data = FolderDataset(root, "train", ("semseg",))
    found = agreement.describe_data(data, "train")
    data.tasks = {"semseg": dataclasses.replace(data.tasks["semseg"], classes=("background", "green", "red", "blue"))}
    assert agreement.describe_data(data, "train") != found


def test_one_bit_of_the_weights():
    arrays = {"a": np.ones((2, 3), np.float32), "b": np.zeros((), np.float32)}
    found = agreement.describe_arrays(arrays, "weights")
    other = agreement.describe_arrays({**arrays, "a": np.nextafter(arrays["a"], 2)}, "weights")
    assert found.keys() == {"weights a", "weights b"}
    assert [key for key in found if found[key] != other[key]] == ["weights a"]
