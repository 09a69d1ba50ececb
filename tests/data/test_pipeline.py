import ctypes
import errno
import functools
import json
import os
import platform
import sys
import types

import numpy as np
import pytest
import tiny_data

from mtlora_jax.data import FolderDataset, batching, pipeline
from mtlora_jax.data.pipeline import eval_batches, train_batches
from mtlora_jax.data.transforms import Augmentation
from mtlora_jax.errors import UserError
from mtlora_jax.tasks import IGNORE

TASKS = ["semseg", "sal", "normals"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny_data.write_tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", TASKS, train=6, val=5)


@pytest.fixture(scope="module")
def train(root):
    return functools.partial(
        train_batches, FolderDataset(root, "train", TASKS), image_size=(32, 48), batch_size=4, seed=7
    )


@pytest.fixture(scope="module")
def evaluate(root):
    return functools.partial(eval_batches, FolderDataset(root, "val", TASKS), image_size=(32, 48), batch_size=4)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_contents_of_a_batch(train):
    batch = next(train())
    shapes = {
        key: (value.shape, value.dtype.kind, value.dtype.itemsize)
        for key, value in batch.items()
        if value.dtype.kind != "U"
    }
    assert shapes == {
        "image": ((4, 32, 48, 3), "u", 1),
        "semseg": ((4, 32, 48), "u", 1),
        "sal": ((4, 32, 48), "u", 1),
        "normals": ((4, 32, 48, 3), "u", 2),
        "mask": ((4,), "b", 1),
    }
    assert batch["image_id"].shape == (4,)
    assert batch["image_id"].dtype.kind == "U"
    assert batch["error"].tolist() == [""] * 4
    assert batch["mask"].all()


def test_every_epoch_holds_every_image_once_in_another_order(train):
    ids = np.concatenate([batch["image_id"] for batch in take(train(), 6)])
    ids = ids.reshape(4, 6)  # 6 batches of 4 are 4 epochs of 6
    assert {tuple(sorted(epoch)) for epoch in ids} == {tuple(f"train{i}" for i in range(6))}
    assert len({tuple(epoch) for epoch in ids}) > 1


def test_augmentation_differs_from_epoch_to_epoch_and_can_be_off(train):
    def pictures_of_first_image(augmentation):
        batches = take(train(augmentation=augmentation), 6)
        return [
            image
            for batch in batches
            for image, id_ in zip(batch["image"], batch["image_id"], strict=True)
            if id_ == "train0"
        ]

    first, second, *_ = pictures_of_first_image(Augmentation())
    assert np.any(first != second)
    first, second, *_ = pictures_of_first_image(Augmentation(flip=0, degrees=0, scale=(1, 1)))
    np.testing.assert_array_equal(first, second)


def test_seed_decides_everything(train):
    assert_equal(take(train(), 3), take(train(), 3))
    one, other = next(train()), next(train(seed=8))
    assert np.any(one["image"] != other["image"])


def test_processes_share_the_batches_of_a_single_one(train):
    parts = [take(train(process_index=index, process_count=2), 4) for index in range(2)]
    for whole, *shares in zip(take(train(), 4), *parts, strict=True):
        assert [len(share["mask"]) for share in shares] == [2, 2]
        for key, value in whole.items():
            np.testing.assert_array_equal(np.concatenate([share[key] for share in shares]), value, err_msg=key)


def test_resuming_continues_the_same_way(train):
    batches = train()
    take(batches, 3)  # in the middle of an epoch
    state = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, 3)
    resumed = train()
    resumed.set_state(state)
    assert_equal(take(resumed, 3), expected)
    batches.set_state(state)  # also one that has been used
    assert_equal(take(batches, 3), expected)


def test_workers_make_the_same_batches_and_resume_from_the_same_state(train):
    batches, expected = train(num_workers=2), take(train(), 4)
    batches.set_state({"next_batch": 1})
    assert_equal(take(batches, 3), expected[1:])
    assert batches.get_state() == {"next_batch": 4}
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once(evaluate, workers):
    batches = list(evaluate(num_workers=workers))
    assert [len(batch["image"]) for batch in batches] == [4, 4]
    ids = [id_ for batch in batches for id_ in batch["image_id"][batch["mask"]]]
    assert ids == [f"val{i:03}" for i in range(5)]


def test_evaluation_is_not_augmented(evaluate):
    np.testing.assert_array_equal(next(evaluate())["semseg"], [example["semseg"] for example in _resized(evaluate)])


def _resized(evaluate):
    dataset = evaluate.args[0]
    for index in range(4):
        example = dataset[index]
        yield {"semseg": dataset.tasks["semseg"].resize(example["semseg"], (32, 48))}


def test_padding_counts_for_nothing(evaluate):
    last = list(evaluate())[-1]
    np.testing.assert_array_equal(last["mask"], [True, False, False, False])
    assert np.all(last["image"][1:] == 0)
    assert np.any(last["image"][0] != 0)
    for name in TASKS:
        assert np.all(last[name][1:] == IGNORE)
        assert np.any(last[name][0] != IGNORE)
    assert list(last["image_id"][1:]) == ["", "", ""]


@pytest.mark.parametrize("size", [2, 4, 8])
def test_processes_share_an_evaluation(evaluate, size):
    whole = list(evaluate(batch_size=size))
    parts = [list(evaluate(batch_size=size, process_index=index, process_count=2)) for index in range(2)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for batch, *shares in zip(whole, *parts, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([share[key] for share in shares]), value, err_msg=key)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_files_are_named_whoever_reads_them(tmp_path, workers):
    root = tiny_data.write_tiny_dataset(tmp_path / "tiny", ["sal"], val=2)
    for path in (root / "sal").glob("val*"):
        path.write_bytes(b"no PNG")
    batches = eval_batches(FolderDataset(root, "val", ["sal"]), image_size=(32, 48), batch_size=1, num_workers=workers)
    with pytest.raises(UserError, match=r"sal/val000.png: ") as caught:
        next(batches)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": 4, "process_count": 3}, "batch size 4: .* multiple .* 3"),
        ({"num_workers": -1}, "num_workers = -1"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_impossible_sizes_are_refused(train, wrong, message):
    with pytest.raises(UserError, match=message):
        train(**wrong)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_workers_keep_freed_memory(monkeypatch):
    accepted = []
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    told = types.SimpleNamespace(mallopt=lambda *values: accepted.append(mallopt(*values)))
    monkeypatch.setattr("ctypes.CDLL", lambda name: told)
    pipeline._keep_freed_memory()
    assert accepted == [1, 1]


def examples(count=batching.ROWS + 2):
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (150, 160, 3), np.uint8)[:, ::-1],  # large, and not contiguous
            "normals": rng.integers(0, 2**16, (110, 100, 3), np.uint16),
            "semseg": rng.integers(0, 21, (4, 5), np.uint8),
            "mask": np.True_,
            "image_id": "longer" if index else "id",
        }
        for index in range(count)
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_stacking(shared):
    given = examples()
    batch = batching.collate(given, shared)
    in_shared_memory = {key for key, value in batch.items() if isinstance(value, batching.SharedMemoryArray)}
    assert in_shared_memory == ({"image", "normals"} if shared else set())
    for key, value in batch.items():
        np.testing.assert_array_equal(value, np.stack([example[key] for example in given]), err_msg=key)
        if isinstance(value, batching.SharedMemoryArray):
            value.shm.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="this memory is a file on Linux only")
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None])
def test_full_shared_memory_is_an_error_of_one_line(monkeypatch, error):
    names = []

    def write(file, rows, offset):
        names.append(os.readlink(f"/proc/self/fd/{file}"))
        if error:
            raise error
        return 4096

    monkeypatch.setattr(os, "pwritev", write)
    with pytest.raises(
        UserError,
        match=r"^/dev/shm: a batch of 5 MB cannot be shared .*[Nn]o space left.*fewer --config.data.num_workers",
    ):
        batching.collate(examples(), shared=True)
    assert names
    assert not os.path.exists(names[0])
