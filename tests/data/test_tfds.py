"""Prepared data sets, written here with TFDS in the format of tfds_pascal_context, and read back."""

import io
import itertools
import pickle
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
import tiny_data

from mtlora_jax.data import DATASETS, FolderDataset
from mtlora_jax.data.pipeline import eval_batches, train_batches
from mtlora_jax.data.tfds import NYUD, PascalContext
from mtlora_jax.errors import UserError
from mtlora_jax.tasks import IGNORE

TASKS = ("semseg", "human_parts", "sal", "normals", "edge")
PEOPLE = {"train": ["train1", "train4"], "val": []}


def feature(task):
    shape, dtype = (None, None, 3 if task in ("normals", "image") else 1), np.uint16 if task == "depth" else np.uint8
    return tfds.features.Image(shape=shape, dtype=dtype, encoding_format="jpeg" if task == "image" else "png")


def write(data_dir, folder, dataset, tasks, version="1.0.0"):
    """A config with these tasks of a folder data set whose images are JPEGs."""
    ids = {split: (folder / "splits" / f"{split}.txt").read_text().split() for split in ("train", "val")}

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="-".join(tasks))]

        def _info(self):
            features = {"image_id": tfds.features.Text()} | {task: feature(task) for task in ("image", *tasks)}
            metadata = {"image_ids": ids} | ({"people": PEOPLE} if "human_parts" in tasks else {})
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(metadata),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ids}

        def _generate_examples(self, split):
            for index, image_id in enumerate(ids[split]):
                labels = {task: io.BytesIO((folder / task / f"{image_id}.png").read_bytes()) for task in tasks}
                image = io.BytesIO((folder / "images" / f"{image_id}.jpg").read_bytes())
                yield index, {"image_id": image_id, "image": image, **labels}

    builder = Tiny(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tiny_data.write_tiny_dataset(tmp_path_factory.mktemp("raw") / "tiny", train=6, val=5)
    (root / "classes.json").unlink()  # the classes are those of PASCAL
    for path in (root / "images").glob("*.png"):
        PIL.Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory, folder):
    """A data_dir with every task of PASCAL in one config, and semseg alone in two versions."""
    root = tmp_path_factory.mktemp("data")
    for tasks, version in ((TASKS, "1.0.0"), (("semseg",), "1.9.0"), (("semseg",), "1.10.0")):
        write(root, folder, "pascal_context", tasks, version)
    return root


@pytest.fixture
def copy(data, tmp_path):
    """To be damaged."""
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data"


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for key in actual:
        np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)


@pytest.mark.parametrize("tasks", [TASKS, ("normals", "sal")])
def test_gives_what_the_files_hold(data, folder, tasks):
    dataset, expected = DATASETS["pascal_context"](str(data), "val", tasks), FolderDataset(folder, "val", tasks)
    assert len(dataset) == 5
    assert list(dataset.tasks) == list(tasks)
    for index in (3, 0, 4):  # in the order of the list, whichever is requested first
        assert_equal(dataset[index], expected[index])


def test_the_classes_are_those_of_the_data_set(data):
    assert PascalContext(data, "val", ["semseg"]).tasks["semseg"].classes[15] == "person"
    assert PascalContext.make_tasks("nowhere", ["semseg"])["semseg"].channels == 21
    assert NYUD.make_tasks("nowhere", ["depth", "semseg"])["semseg"].channels == 40


def test_the_smallest_config_with_the_tasks_and_of_it_the_newest_version(data):
    assert PascalContext(data, "val", ["semseg"]).folder.parts[-2:] == ("semseg", "1.10.0")
    assert PascalContext(data, "val", ["sal", "semseg"]).folder.parts[-2:] == ("-".join(TASKS), "1.0.0")


def test_only_what_is_asked_for_is_decoded(copy, folder):
    """A label that is not a PNG only fails if it is requested."""
    raw = shutil.copytree(folder, copy / "raw")
    (raw / "sal" / "val002.png").write_bytes(b"damaged")
    write(copy, raw, "pascal_context", ("sal", "edge"))
    assert PascalContext(copy, "val", ["edge"])[2]["image_id"] == "val002"
    with pytest.raises(UserError, match=r"^pascal_context/val: val002 \(sal\): cannot be read"):
        PascalContext(copy, "val", ["sal", "edge"])[2]


def test_human_parts_alone_leave_out_images_without_people(data):
    dataset = PascalContext(data, "train", ["human_parts"])
    assert [dataset[index]["image_id"] for index in range(len(dataset))] == PEOPLE["train"]
    assert len(PascalContext(data, "train", ["human_parts", "sal"])) == 6
    with pytest.raises(UserError, match=r"split 'val' has no image with labels of human_parts"):
        PascalContext(data, "val", ["human_parts"])


def test_ids_are_those_of_the_images(copy):
    def ids(*tasks):
        dataset = PascalContext(copy, "train", tasks)
        assert [dataset[index]["image_id"] for index in range(len(dataset))] == names
        return dataset.ids

    names = [f"train{number}" for number in range(6)]
    assert ids("human_parts", "sal") == names
    names = PEOPLE["train"]
    assert ids("human_parts") == names
    (_all(copy) / "metadata.json").unlink()
    numbers = list("012345")  # the ids of data sets of older builders
    assert PascalContext(copy, "train", ["human_parts", "sal"]).ids == numbers


def test_nyud(tmp_path, folder):
    write(tmp_path, folder, "nyud", ("semseg", "edge", "normals", "depth"))
    dataset = DATASETS["nyud"](tmp_path, "val", ["semseg", "depth"])
    assert_equal(dataset[1], FolderDataset(folder, "val", ["semseg", "depth"])[1])


def test_survives_pickling(data):
    dataset = PascalContext(data, "val", TASKS)
    before = dataset[4]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 5000  # neither records nor open files
    assert_equal(pickle.loads(pickled)[4], before)


def test_any_number_of_workers_makes_the_same_batches(data):
    dataset = PascalContext(data, "train", ("semseg", "normals"))
    expected = list(itertools.islice(train_batches(dataset, image_size=(32, 48), batch_size=4, seed=3), 3))
    batches = train_batches(dataset, image_size=(32, 48), batch_size=4, seed=3, num_workers=2)
    batches.set_state({"next_batch": 1})  # in the middle of an epoch
    for found, wanted in zip(itertools.islice(batches, 2), expected[1:], strict=True):
        assert_equal(found, wanted)
    batches.close()


@pytest.mark.parametrize("reference_transforms", [False, True])
def test_evaluation(data, reference_transforms):
    dataset = PascalContext(data, "val", TASKS)
    batches = list(eval_batches(dataset, image_size=(32, 48), batch_size=4, reference_transforms=reference_transforms))
    assert [id_ for batch in batches for id_ in batch["image_id"][batch["mask"]]] == [f"val{i:03}" for i in range(5)]
    assert batches[0]["normals"].dtype == (np.float32 if reference_transforms else np.uint16)
    assert np.all(batches[1]["normals"][1:] == IGNORE)


def test_reference_transforms_are_for_training_too(data):
    dataset = PascalContext(data, "train", ["semseg"])
    options = {"image_size": (32, 48), "batch_size": 6, "seed": 3}
    batches = [next(train_batches(dataset, **options, reference_transforms=flag)) for flag in (False, True)]
    assert_equal({"ids": batches[0]["image_id"]}, {"ids": batches[1]["image_id"]})
    assert [np.any(batch["semseg"] == IGNORE) for batch in batches] == [True, False]  # what came from outside


def _forget_info(root):
    for path in root.glob("pascal_context/*/*/dataset_info.json"):
        path.unlink()


def _only_half(root):
    shutil.rmtree(root / "pascal_context")
    (root / "pascal_context" / "all" / "incomplete.ABC_1.0.0").mkdir(parents=True)


def _partial(root):
    shutil.rmtree(root / "pascal_context")
    (root / "pascal_context" / "all.partial").mkdir(parents=True)


def _all(root):
    return root / "pascal_context" / "-".join(TASKS) / "1.0.0"


BUILD = r"python -m tfds_pascal_context.build --dataset=pascal_context --data_dir=\S+data"
BROKEN = {
    "no data_dir": (
        lambda root: shutil.rmtree(root),
        ["sal"],
        rf"pascal_context: no such data set; build it with {BUILD}$",
    ),
    "no info": (_forget_info, ["sal"], "no such data set; build it"),
    "being built": (
        _only_half,
        ["sal"],
        rf"incomplete.ABC_1.0.0: the data set is only half built; finish it with {BUILD}",
    ),
    "stopped": (_partial, ["sal"], "all.partial: the data set is only half built; finish it"),
    "a task it has not": (
        lambda root: shutil.rmtree(_all(root)),
        ["semseg", "sal"],
        rf"no config has the tasks semseg, sal; built: semseg. Build another with {BUILD}$",
    ),
    "info is no JSON": (
        lambda root: (_all(root) / "dataset_info.json").write_text("{"),
        ["sal"],
        "1.0.0: cannot be read as a prepared",
    ),
    "no features": (
        lambda root: (_all(root) / "features.json").unlink(),
        ["sal"],
        "1.0.0: cannot be read as a prepared data set",
    ),
    "no metadata": (lambda root: (_all(root) / "metadata.json").unlink(), ["human_parts"], "1.0.0: .*metadata"),
    "no shard": (
        lambda root: next(_all(root).glob("*val*")).unlink(),
        ["sal"],
        r"pascal_context-val.array_record-00000-of-00001: no such file, .* build the data set again",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_missing_is_named_before_anything_is_read(copy, case):
    damage, tasks, message = BROKEN[case]
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        PascalContext(copy, "val", tasks)
    assert "\n" not in str(caught.value)


def test_an_unknown_split_is_named(data):
    with pytest.raises(UserError, match="no split 'test'; the data set has train, val"):
        PascalContext(data, "test", ["sal"])


@pytest.mark.parametrize("damage", ["cut", "scrambled", "empty"])
def test_a_damaged_record_is_named(copy, damage):
    path = next(_all(copy).glob("*val*"))
    content = bytearray(path.read_bytes())
    content[500:5000] = b"x" * 4500
    path.write_bytes({"cut": content[:3000], "scrambled": content, "empty": b""}[damage])
    with pytest.raises(UserError, match=r"pascal_context/val: record 0 cannot be read .*build .* again$"):
        PascalContext(copy, "val", ["sal"])[0]


def test_reading_needs_no_tensorflow(data):
    code = (
        "import sys; from mtlora_jax.data import DATASETS; early = 'tensorflow_datasets' in sys.modules; "
        f"DATASETS['pascal_context']({str(data)!r}, 'val', ['sal'])[0]; print(early, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
