"""Kinds of model and run files for fuzzing: weights, configs, checkpoints of other libraries, logs."""

import json
import pathlib
import random
import struct
from typing import Any

import checkpoints
import jax
import mutations
import numpy as np
import safetensors.numpy
import tiny_runs
from fuzz_kind import Kind, Way, encoded, write_model
from tiny_data import write_tiny_dataset

import mtlora_jax
from mtlora_jax import config as configs
from mtlora_jax.convert import convert
from mtlora_jax.io import files as files_of_users
from mtlora_jax.io import weights
from mtlora_jax.io.jsonl import read_lines
from mtlora_jax.metric_writers.writer import forget_after
from mtlora_jax.model_factory import build
from mtlora_jax.model_io import model_folder
from mtlora_jax.model_io.card import card
from mtlora_jax.models import parameters
from mtlora_jax.plot import read_log
from mtlora_jax.tasks import make_tasks
from mtlora_jax.train import run_config
from mtlora_jax.train.history import EvalHistory


def tensors(folder: pathlib.Path) -> Kind:
    """Weights of a model folder."""
    write_model(folder / "model")
    path = folder / "model" / model_folder.WEIGHTS
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    small = safetensors.numpy.save({"a": matrix, "b": np.ones(4, np.float16), "c": np.float32(3)[None]})

    def as_header(found: dict[str, np.ndarray], data: bytes, path: pathlib.Path) -> None:
        (size,) = struct.unpack_from("<Q", data)
        told = {name: entry for name, entry in json.loads(data[8 : 8 + size]).items() if name != "__metadata__"}
        assert found.keys() == told.keys()
        for name, array in found.items():
            start, end = (8 + size + offset for offset in told[name]["data_offsets"])
            assert (array.dtype, array.shape) == (np.float32, tuple(told[name]["shape"]))
            assert np.all(np.isfinite(array))
            assert told[name]["dtype"] != "F32" or array.tobytes() == data[start:end]

    def load(path: pathlib.Path) -> Any:
        return mtlora_jax.load(path.parent) if path.name == model_folder.WEIGHTS else weights.read(path)

    def check(found: Any, data: bytes, path: pathlib.Path) -> None:
        if isinstance(found, dict):
            return as_header(found, data, path)
        as_header(weights.read(path), data, path)
        fits(found)

    def command(path: pathlib.Path) -> list[str]:
        source = path if path.name != model_folder.WEIGHTS else path.parent
        return ["mtlora_jax.convert", str(source), str(folder / "out")]

    genuine = {str(path.relative_to(folder)): path.read_bytes(), "small.safetensors": small}
    return Kind(genuine, mutations.of_safetensors, [Way(load, check), Way(load, check)], command)


def fits(model: model_folder.Model) -> None:
    """Asserts that logits have the sizes of the config, and that the card can be written."""
    height, width = model.image_size
    images = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    logits = jax.eval_shape(lambda weights, images: model._forward(weights, images, 1), model._weights, images)
    expected = {task: (1, height, width, outputs) for task, outputs in model.architecture["tasks"].items()}
    assert {task: x.shape for task, x in logits.items()} == expected
    assert card(model.config, model._weights).startswith("---\n")


def config(folder: pathlib.Path) -> Kind:
    """config.json of a model folder."""
    write_model(folder / "model")
    path = folder / "model" / model_folder.CONFIG

    def command(path: pathlib.Path) -> list[str]:
        photo = folder / "photo.png"
        photo.write_bytes(encoded(np.zeros((32, 32, 3), np.uint8), "PNG"))
        return ["mtlora_jax.predict", f"--model={path.parent}", f"--images={photo}", f"--output={folder / 'out'}"]

    ways = [Way(lambda path: mtlora_jax.load(path.parent), lambda found, data, path: fits(found))]
    return Kind({str(path.relative_to(folder)): path.read_bytes()}, mutations.of_json_file, ways, command)


def logs(folder: pathlib.Path) -> Kind:
    """log.jsonl of a run."""
    lines = [{"step": step, "loss": 3 / step, "loss/semseg": 1.5, "lr": 1e-3} for step in range(1, 9)]
    lines[3:3] = [{"step": 3, "eval/semseg/mIoU": 30.5, "eval/sal/mIoU": None, "eval/gain_over_first": 0.0}]
    tasks = make_tasks(["semseg", "sal"])

    def check(found: list[dict], data: bytes, path: pathlib.Path) -> None:
        assert all(type(line["step"]) is int and line["step"] >= 0 for line in found)
        values = [value for line in found for value in line.values()]
        assert all(value is None or abs(value) < float("inf") for value in values)

    def kept(path: pathlib.Path) -> tuple[list[dict], list[dict]]:
        before = read_lines(path)
        forget_after(path, 5)
        return before, read_lines(path)

    def same_up_to_five(found: tuple[list[dict], list[dict]], data: bytes, path: pathlib.Path) -> None:
        before, after = found
        assert after == [line for line in before if line["step"] <= 5]
        check(after, data, path)
        assert all(json.loads(line, parse_constant=lambda word: None) for line in path.read_text().splitlines())

    def history(path: pathlib.Path) -> EvalHistory:
        made = EvalHistory(tasks, {})
        made.restore(path, 5)
        return made

    def looks_right(found: EvalHistory, data: bytes, path: pathlib.Path) -> None:
        assert found.last_step is None or 0 <= found.last_step <= 5
        assert all(isinstance(value, float | int) for value in found.scores.values())

    reads = [Way(lambda path: read_log(path.parent), check), Way(read_lines, check)]
    ways = [*reads, Way(kept, same_up_to_five), Way(history, looks_right)]

    def command(path: pathlib.Path) -> list[str]:
        return ["mtlora_jax.plot", str(path.parent), f"--output={folder / 'curves.png'}"]

    text = "".join(json.dumps(line) + "\n" for line in lines)
    return Kind({"log.jsonl": text.encode()}, mutations.of_log, ways, command)


def runs(folder: pathlib.Path) -> Kind:
    """config.json and data.json of a run."""
    write_tiny_dataset(folder / "data", ["semseg", "sal"])
    (folder / "micro.py").write_text(tiny_runs.CONFIG.replace("ROOT", repr(str(folder / "data"))))
    settings = configs.load(str(folder / "micro.py"), [])
    data = {"train": {"images": 6, "ids": "f00d"}, "val": {"images": 5, "ids": "beef"}}
    (folder / "run").mkdir()
    run_config.save(folder / "run", settings, data)

    def opened(path: pathlib.Path) -> None:
        run_config.check_same_config(path.parent, settings)
        run_config.check_same_data(path.parent, data)

    def check(found: None, data: bytes, path: pathlib.Path) -> None:
        assert isinstance(json.loads(files_of_users.read_text(path)), dict)

    def command(path: pathlib.Path) -> list[str]:
        return ["mtlora_jax.main", f"--config={folder / 'micro.py'}", f"--workdir={path.parent}"]

    genuine = {f"run/{name}": (folder / "run" / name).read_bytes() for name in (run_config.CONFIG, run_config.DATA)}
    return Kind(genuine, mutations.of_json_file, [Way(opened, check)] * 2, command)


def foreign(folder: pathlib.Path) -> Kind:
    """Checkpoints of timm with the config.json of the Hub, in one file or several."""
    state = checkpoints.timm(checkpoints.weights(checkpoints.BARE))
    described = {"architecture": "swin_tiny_patch4_window7_224", "num_classes": 3}
    described["pretrained_cfg"] = {"input_size": [3, 224, 224]}
    halves = {f"model-{number}-of-2.safetensors": dict(list(state.items())[number - 1 :: 2]) for number in (1, 2)}
    index = {"metadata": {"total_size": 1}, "weight_map": {key: name for name, part in halves.items() for key in part}}
    for name in ("one", "two"):
        (folder / name).mkdir()
    checkpoints.saved(folder / "one", state)
    (folder / "one/config.json").write_text(json.dumps(described))
    for name, part in halves.items():
        checkpoints.saved(folder / "two", part, name)
    (folder / "two/model.safetensors.index.json").write_text(json.dumps(index))
    names = ("one/model.safetensors", "one/config.json", "two/model.safetensors.index.json")
    genuine = {name: (folder / name).read_bytes() for name in names}

    def check(found: Any, data: bytes, path: pathlib.Path) -> None:
        declared = parameters.flat_variables(build(found.architecture))
        assert found.arrays.keys() == declared.keys()
        for name, array in found.arrays.items():
            assert (array.dtype, array.shape) == (np.float32, declared[name].shape)
            assert np.all(np.isfinite(array))

    def damage(rng: random.Random, data: bytes, other: bytes) -> bytes:
        return (mutations.of_json_file if data.startswith(b"{") else mutations.of_safetensors)(rng, data, other)

    def command(path: pathlib.Path) -> list[str]:
        return ["mtlora_jax.convert", str(path.parent), str(folder / "out")]

    return Kind(genuine, damage, [Way(lambda path: convert(path.parent), check)], command)


KINDS = {"safetensors": tensors, "config": config, "run": runs, "checkpoint": foreign, "log": logs}
