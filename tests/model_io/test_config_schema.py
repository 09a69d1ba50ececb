"""Untrusted config.json: any content is either accepted, or refused at once in one line."""

import copy
import json
import pathlib
import random
import shutil
import time
from typing import Any

import micro
import PIL.Image
import pytest

import mtlora_jax
from mtlora_jax.convert.__main__ import main as convert
from mtlora_jax.errors import UserError
from mtlora_jax.model_io import config_schema, model_folder
from mtlora_jax.predict.__main__ import main as predict

ARCHITECTURE = micro.architecture(stages=1)
DATA = {"name": "folder", "eval_split": "val"}
EXTRA = {
    "classes": {"semseg": ["a", "b", "c"], "sal": ["background", "salient"]},
    "step": 300,
    "scores": {"semseg/mIoU": 61.2, "sal/mIoU": None, "delta_m": 2.5},
    "training": {"command": "python -m mtlora_jax.main", "config": {"data": DATA, "epochs": 3}},
    "started_from": {"folder": "swin", "file": "swin.pth", "format": "swin"},
    "converted_from": {"file": "r64.pth", "format": "mtlora"},
    "base_model": "someone/swin",
}
ODD = (
    *(0, -1, 1, 2, 3, 7, 10**3, 10**6, 10**9, 10**18, 2**63, 10**400, -(10**9), 0.0, 0.5, -0.5, 1e-300, 1e300),
    *(float("nan"), float("inf"), -float("inf"), True, False, None),
    *("", "x", "../x", "a.b", "a/b", "\ud800", "\udc80", "\0", "x" * 10**5),
    *("<script>alert(1)</script>", "a|b`c\nd", "swin", "merged", "__class__"),
    *([], [[]], [1], [1, 2], [10**9], [0] * 10**4),
    *({}, {"name": "swin"}, {"a": {"b": {"c": 1}}}, {"": 1}, {"semseg": 10**9}),
    {"name": "merged", "of": {"name": "merged", "of": {}}},
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    where = tmp_path_factory.mktemp("models") / "model"
    model_folder.save(where, ARCHITECTURE, micro.random_arrays(ARCHITECTURE), EXTRA)
    return where


@pytest.fixture
def broken(saved, tmp_path) -> pathlib.Path:
    """A model folder to break."""
    return pathlib.Path(shutil.copytree(saved, tmp_path / "broken"))


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths of all values in a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, part in parts for place in places(part, (*path, key))]


def mutated(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The config with one to three values replaced, dropped, added, repeated or nested."""
    config = copy.deepcopy(config)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *path, key = rng.choice(places(config))
        owner = config
        for name in path:
            owner = owner[name]
        odd = copy.deepcopy(rng.choice(ODD))
        way = rng.choice(("replace", "replace", "replace", "drop", "add", "nest", "repeat"))
        if way == "drop":
            del owner[key]
        elif way == "nest":
            for _ in range(rng.choice((1, 10, 30))):
                owner[key] = rng.choice(([owner[key]], {"of": owner[key]}))
        elif way == "repeat" and isinstance(owner[key], list):
            owner[key] = owner[key] * rng.choice((2, 10**4))
        elif way == "add" and isinstance(owner[key], dict):
            owner[key] |= {rng.choice(("more", "depths", "", "a b", "<b>|\n", "x" * 300, *map(str, owner[key]))): odd}
        elif way == "add" and isinstance(owner[key], list):
            owner[key].append(odd)
        else:
            owner[key] = odd
    return config


def outcome(call, *arguments: Any) -> str:
    """The error message of a call, empty if it succeeds."""
    start = time.monotonic()
    try:
        call(*arguments)
        told = ""
    except UserError as error:
        told = str(error)
        assert len(told) < 3000
    assert time.monotonic() - start < 20  # for busy machines; it takes a fraction of a second
    return told


def write(where: pathlib.Path, config: Any) -> None:
    (where / "config.json").write_text(json.dumps(config))


def mutations(where: pathlib.Path, calls: dict[str, Any], seeds: range) -> dict[str, int]:
    """The number of mutated configs that each call refuses."""
    genuine = json.loads((where / "config.json").read_text())
    refused = dict.fromkeys(calls, 0)
    for seed in seeds:
        write(where, mutated(genuine, random.Random(seed)))
        for name, call in calls.items():
            refused[name] += bool(outcome(call, where))
    return refused


def converted(where: pathlib.Path) -> None:
    convert([str(where), str(where.parent / "out"), "--overwrite"])


def predicted(where: pathlib.Path) -> None:
    image = where.parent / "image.png"
    PIL.Image.fromarray(micro.random_batch(1)["image"][0]).save(image)
    predict([f"--model={where}", f"--images={image}", f"--output={where.parent / 'predictions'}"])


def test_mutations(broken):
    refused = mutations(broken, {"read": model_folder.read_config}, range(400))
    assert 200 < refused["read"] < 400


@pytest.mark.slow
def test_mutations_through_every_door(broken):
    doors = {"read": model_folder.read_config, "load": mtlora_jax.load, "convert": converted, "predict": predicted}
    mutations(broken, doors, range(1000, 1400))


MANY_TASKS = {f"t{i}": 1 for i in range(10**4)}
NO_TASK_NAMES = [{name: 1} for name in ("a.b", "../x", "", "__class__", "values", "é")]
BAD = {
    "architecture.backbone.depths": [[10**9], [0], [], [True], "22", [60] * 8, 2],
    "architecture.backbone.embed_dim": [10**9, 0, -96, 96.0, True, "96", None, float("nan")],
    "architecture.backbone.num_heads": [[0], [7], [2, 2], [10**6]],
    "architecture.backbone.window_size": [0, 10**9],
    "architecture.backbone.patch_size": [0, 10**9, 4.5],
    "architecture.backbone.mlp_ratio": [0, -1, 10**9, float("inf")],
    "architecture.backbone.drop_path_rate": [1, -0.1, float("nan"), "0.1"],
    "architecture.backbone.name": ["vit", ["swin"], None, {}],
    "architecture.image_size": [[10**9, 10**9], [32], 448, [31, 32], [32.0, 32], [True, 32], None, [32, 32, 32]],
    "architecture.tasks": [MANY_TASKS, *NO_TASK_NAMES, [], None],
    "architecture.tasks.sal": [0, -1, 10**9, 1.0, True, "1"],
    "architecture.decoder": [None, [], {}, {"name": "hrnet"}],
    "architecture.decoder.channels": [[10**9], [0], [], [2, 3], 18],
    "architecture.method.rank": [10**9, 0, -1, 1.5, [1, 2], True, {"semseg": 1}],
    "architecture.method.task_rank": [10**9, {"sal": 1}, [[1]], {"semseg": [1, 2], "sal": 1, "normals": 1}],
    "architecture.method.scale": [float("nan"), float("inf"), "4", [4, 4], 10**400],
    "architecture.method.dropout": [1, -0.5, True, "0"],
    "architecture.method.locations": ["qkv", ["fc3"], [["qkv"]], None],
    "architecture.method.name": ["merged", "lora", 3, []],
    "classes.semseg": [
        *(["a", "b"], ["a", "a", "b"], ["a", "b", 3], ["a", "b", "x" * 10**5], ["a", "b", "\ud800"]),
        *("abc", {"a": 1}, []),
    ],
    "scores": [[], {"sal/mIoU": "high"}, {"sal/mIoU": float("nan")}, {"sal/mIoU": True}],
    "step": [-1, 1.5, "300", True],
    "training": [
        *([], "python", {"command": 3}),
        *({"config": []}, {"config": {"data": "folder"}}, {"config": {"x": float("inf")}}),
    ],
    "started_from": ["swin", {}, {"folder": 3}],
    "converted_from": ["swin", {}, {"file": 3, "format": "swin"}],
    "base_model": [3, [], "x" * 10**4],
    "adapter": ["swin", {}, {"base": 3, "sha256": "0" * 64}, {"base": "swin", "sha256": "xyz"}],
    "format": [2, True, "1", None, 1.0],
    "more": [float("nan"), 10**400, "\ud800", [[[[[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]]]]],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in BAD.items() for value in values], ids=lambda x: str(x)[:40]
)
def test_what_is_wrong_is_named(saved, broken, key, value):
    config = json.loads((saved / "config.json").read_text())
    *path, last = key.split(".")
    owner = config
    for name in path:
        owner = owner[name]
    owner[last] = value
    write(broken, config)
    told = outcome(model_folder.read_config, broken)
    assert told.startswith(f"{broken / 'config.json'}")
    assert last in told or path[-1] in told
    assert len(told) < 700


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**5, "is not valid JSON: its brackets are too deep"),
        ('{"a":' * 10**5, "is not valid JSON: its brackets are too deep"),
        ('{"format": 1' + "0" * 5000 + "}", "is not valid JSON: "),
        (" " * 2**21, "has 2097152 bytes; expected at most"),
        ("", "is not valid JSON: "),
    ],
    ids=["lists", "objects", "digits", "large", "empty"],
)
def test_what_is_no_json(broken, text, message):
    (broken / "config.json").write_text(text)
    assert message in outcome(model_folder.read_config, broken)


def test_a_single_class_is_refused():
    whole = {"architecture": micro.architecture("full")}
    config_schema.check(whole)
    whole["architecture"]["tasks"]["semseg"] = 1
    with pytest.raises(UserError, match=r"^architecture.tasks.semseg = 1 must be at least 2"):
        config_schema.check(whole)
