"""Opens damaged files as the commands do, in a process of its own that has bounds: `python tests/fuzzing.py KIND FOLDER COUNT`.

Writes FOLDER/results.jsonl, a line for each file. A file whose outcome was bad, or that ended the process, stays in FOLDER/inputs.
"""

import contextlib
import faulthandler
import gzip
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import checkpoints
import jax
import micro
import mutations
import numpy as np
import PIL.Image
import safetensors.numpy
import tiny_runs
from tiny_data import png, write_tiny_dataset

import mtlora_jax
from mtlora_jax import cli, parameters, photographs, pictures, saved_config, weights
from mtlora_jax import config as configs
from mtlora_jax import files as files_of_users
from mtlora_jax import folder as folders
from mtlora_jax.architecture import build
from mtlora_jax.card import card
from mtlora_jax.convert import convert
from mtlora_jax.data.decoding import Encoded, decode_image, decode_label
from mtlora_jax.data.folder import FolderDataset
from mtlora_jax.errors import UserError
from mtlora_jax.plot import read_log
from mtlora_jax.progress import Progress
from mtlora_jax.records.lines import lines_of
from mtlora_jax.records.log import forget_after
from mtlora_jax.tasks import Task, make_tasks
from tfds_pascal_context import dummy, files, layout, source
from tfds_pascal_context.pascal_context import PascalRaw

MEMORY = 2**32  # bytes that a file may take beside what is taken already
SECONDS = 20
LONGEST = 2000  # characters of a message

Open = Callable[[pathlib.Path], Any]
Check = Callable[[Any, bytes, pathlib.Path], None]


class Way(NamedTuple):
    """How a file is opened, and what is asserted of (what came of it, the file's bytes, its path)."""

    open: Open
    check: Check


class Kind(NamedTuple):
    """Files of one kind.

    Attributes:
      genuine: {path below the folder: bytes}, each of which must be right; the damaged file takes this place.
      damage: one of `mutations`.
      ways: all are taken in turn.
      command: arguments after `python -m` that end with one line because the first of the files was refused, the first way.
      after: asserts that nothing was left behind, of (the folder, whether the file was refused).
    """

    genuine: dict[str, bytes]
    damage: mutations.Damage
    ways: list[Way]
    command: Callable[[pathlib.Path], list[str]]
    after: Callable[[pathlib.Path, bool], None] = lambda folder, refused: None


def encoded(pixels: np.ndarray, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def labels(folder: pathlib.Path) -> Kind:
    """PNG labels of every task."""
    tasks = make_tasks(("semseg", "human_parts", "normals", "depth"))
    tasks |= {f"sal {meaning}": make_tasks(["sal"])["sal"].__class__(meaning=meaning) for meaning in ("0/255", "0/1/255", "grey")}
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, (12, 17))
    palette = PIL.Image.fromarray(classes.astype(np.uint8))
    palette.putpalette(list(range(256)) * 3)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    genuine = {
        "palette.png": buffer.getvalue(),
        **{f"grey{bits}.png": png(classes % 2**bits, bits) for bits in (1, 2, 4, 8, 16)},
        "white.png": encoded(np.where(classes > 1, 255, 0).astype(np.uint8), "PNG"),
        "normals.png": encoded(rng.integers(0, 256, (12, 17, 3)).astype(np.uint8), "PNG"),
    }
    ways = [
        Way(lambda path, task=task: decode_label(task, Encoded(path.read_bytes(), str(path))), as_pillow(task)) for task in tasks.values()
    ]
    return Kind(genuine, mutations.of_png, ways, predict_image)


def as_pillow(task: Task) -> Check:
    def check(label: np.ndarray, data: bytes, path: pathlib.Path) -> None:
        with PIL.Image.open(io.BytesIO(data)) as image:
            assert label.shape[:2] == (image.height, image.width)
            if b"acTL" in data or b"fcTL" in data:  # Pillow is strict about the further pictures of a moving one, which nobody asks for
                return
            with contextlib.suppress(SyntaxError):  # about a profile of colours
                image.load()
            pixels = np.array(image)
            stretched = 255 // (2 ** data[24] - 1) if image.mode == "L" and data[24] < 8 else 1
        row = 1 + (image.width * data[24] * pictures.CHANNELS[data[25]] + 7) // 8
        with contextlib.suppress(zlib.error):  # a checksum behind the last row
            assert (
                data[28]
                or len(zlib.decompressobj().decompress(b"".join(content for kind, content in pictures._chunks(data) if kind == b"IDAT")))
                >= image.height * row
            )
        stored = pixels // stretched if pixels.dtype != bool else pixels.astype(np.uint8)
        if task.name in ("semseg", "human_parts"):
            assert label.dtype == np.uint8
            np.testing.assert_array_equal(label, stored)
            assert np.all((label < task.channels) | (label == 255))
        elif task.name == "sal":
            assert set(np.unique(label)) <= {0, 1, 255}
            yes = {"0/255": pixels == 255, "0/1/255": (pixels > 0) & (pixels < 255), "grey": pixels > 127}
            if stretched == 1:
                np.testing.assert_array_equal(label == 1, yes[task.meaning] if pixels.dtype != bool else pixels)
        elif task.name == "depth":
            known = (stored > 0) & (stored < 255_000)
            np.testing.assert_allclose(label, np.where(known, stored / 1000, 255), rtol=1e-6)
        else:
            vectors = 2 * (pixels / 255) - 1
            near = np.abs(np.linalg.norm(vectors, axis=-1) - 1) < 0.499
            np.testing.assert_allclose(label[near], vectors[near], atol=1e-6)
            assert np.all(np.isfinite(label))

    return check


def photos(folder: pathlib.Path) -> Kind:
    """JPEG, and the other formats of photographs."""
    rng = np.random.default_rng(0)
    pixels = np.asarray(PIL.Image.fromarray(rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)).resize((45, 37)))
    exif = PIL.Image.Exif()
    exif[photographs.ORIENTATION] = 6
    genuine = {
        "photo.jpg": encoded(pixels, "JPEG", quality=90),
        "turned.jpg": encoded(pixels, "JPEG", exif=exif, progressive=True),
        "grey.jpg": encoded(pixels[..., 0], "JPEG"),
    }

    def as_header(image: np.ndarray, data: bytes, path: pathlib.Path) -> None:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            assert image.shape in ((opened.height, opened.width, 3), (opened.width, opened.height, 3))
        assert image.dtype == np.uint8
        assert image.size <= 3 * pictures.LARGEST

    def size(found: tuple[int, int], data: bytes, path: pathlib.Path) -> None:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            assert found == (opened.height, opened.width)

    ways = [Way(lambda path: decode_image(path.read_bytes(), str(path)), as_header), Way(photographs.read, as_header)]
    return Kind(genuine, mutations.of_bytes, [*ways, Way(files.check_jpeg, size)], predict_image)


def predict_image(path: pathlib.Path) -> list[str]:
    write_model(path.parent / "model")
    return ["mtlora_jax.predict", f"--model={path.parent / 'model'}", f"--images={path}", f"--output={path.parent / 'out'}"]


def arrays(folder: pathlib.Path) -> Kind:
    """NumPy arrays of depths, edges and normals."""
    dummy.write_nyud(folder / "NYUD_MT")
    rng = np.random.default_rng(0)

    def saved(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    depth = rng.uniform(0, 9, (6, 8))
    edge = (depth > 3).astype(np.uint8)
    genuine = {
        "single": depth.astype("<f4"),
        "double": depth.astype(">f8"),
        "columns": np.asfortranarray(depth.astype("<f4")),
        "edge": edge,
    }

    def as_numpy(array: np.ndarray, data: bytes, path: pathlib.Path) -> None:
        (size,) = struct.unpack_from("<H" if data[6] == 1 else "<I", data, 8)
        stored = np.load(io.BytesIO(data), allow_pickle=False)
        assert data[(10 if data[6] == 1 else 12) + size :] == stored.tobytes("F" if np.isfortran(stored) else "C")
        np.testing.assert_array_equal(array, stored)

    def as_metres(label: np.ndarray, data: bytes, path: pathlib.Path) -> None:
        stored = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32)
        assert (label.dtype, label.shape) == (np.float32, stored.shape)
        np.testing.assert_array_equal(label, np.where(np.isfinite(stored) & (stored > 0), stored, 255))

    task = make_tasks(["depth"])["depth"]
    ways = [
        Way(lambda path: files.read_npy(path, 2, "an array"), as_numpy),
        Way(lambda path: decode_label(task, Encoded(path.read_bytes(), str(path))), as_metres),
    ]

    def command(path: pathlib.Path) -> list[str]:
        shutil.copy(path, folder / "NYUD_MT/depth/0001.npy")
        return ["tfds_pascal_context.verify", "--dataset=nyud", f"--manual_dir={folder / 'NYUD_MT'}", "--allow_partial", "--workers=1"]

    return Kind({f"{name}.npy": saved(array) for name, array in genuine.items()}, mutations.of_npy, ways, command)


def matlab(folder: pathlib.Path) -> Kind:
    """Both kinds of MATLAB files of PASCAL_MT."""
    dummy.write_pascal(folder / "PASCAL_MT")
    paths = [*(folder / "PASCAL_MT").rglob("dummy_01.mat"), *(folder / "PASCAL_MT").rglob("dummy_02.mat")]

    def opened(path: pathlib.Path) -> Any:
        return (layout.read_objects if "human_parts" in path.parts else layout.read_context)(path)

    def check(found: Any, data: bytes, path: pathlib.Path) -> None:
        if isinstance(found, np.ndarray):
            assert (found.dtype, found.ndim) == (np.uint16, 2)
            assert found.size
            return
        for annotated in found:
            assert type(annotated.category) is int
            for name, mask in {"": annotated.mask, **annotated.parts}.items():
                assert isinstance(name, str)
                assert (mask.dtype, mask.ndim) == (bool, 2)
                assert mask.size

    def command(path: pathlib.Path) -> list[str]:
        flags = [f"--manual_dir={folder / 'PASCAL_MT'}", f"--data_dir={folder / 'built'}", "--tasks=human_parts,edge"]
        return ["tfds_pascal_context.verify", *flags[::2], "--allow_partial", "--workers=1"]

    genuine = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return Kind(genuine, mutations.of_mat, [Way(opened, check)], command)


ARCHITECTURE = micro.architecture(stages=1, tasks=("semseg", "sal"))
EXTRA = {
    "classes": {"semseg": ["red", "green", "blue"]},
    "scores": {"semseg/mIoU": 31.5, "sal/mIoU": None, "delta_m": -1.25},
    "step": 12,
    "training": {"command": "python -m mtlora_jax.main", "config": {"epochs": 2, "data": {"name": "folder", "eval_split": "val"}}},
    "converted_from": {"file": "swin_tiny_patch4_window7_224.pth", "format": "swin"},
}


def write_model(folder: pathlib.Path) -> None:
    folders.save(folder, ARCHITECTURE, micro.random_arrays(ARCHITECTURE), EXTRA)


def tensors(folder: pathlib.Path) -> Kind:
    """Weights of a model folder."""
    write_model(folder / "model")
    path = folder / "model" / folders.WEIGHTS
    small = safetensors.numpy.save(
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16), "c": np.float32(3)[None]}
    )

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
        return mtlora_jax.load(path.parent) if path.name == folders.WEIGHTS else weights.read(path)

    def check(found: Any, data: bytes, path: pathlib.Path) -> None:
        if isinstance(found, dict):
            return as_header(found, data, path)
        as_header(weights.read(path), data, path)
        fits(found)

    def command(path: pathlib.Path) -> list[str]:
        return ["mtlora_jax.convert", str(path if path.name != folders.WEIGHTS else path.parent), str(folder / "out")]

    genuine = {str(path.relative_to(folder)): path.read_bytes(), "small.safetensors": small}
    return Kind(genuine, mutations.of_safetensors, [Way(load, check), Way(load, check)], command)


def fits(model: folders.Model) -> None:
    """The model computes what its tasks say, at the size it says, and its card can be written."""
    height, width = model.image_size
    images = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    logits = jax.eval_shape(lambda weights, images: model._forward(weights, images, 1), model._weights, images)
    assert {task: x.shape for task, x in logits.items()} == {
        task: (1, height, width, outputs) for task, outputs in model.architecture["tasks"].items()
    }
    assert card(model.config, model._weights).startswith("---\n")


def config(folder: pathlib.Path) -> Kind:
    """config.json of a model folder."""
    write_model(folder / "model")
    path = folder / "model" / folders.CONFIG

    def command(path: pathlib.Path) -> list[str]:
        photo = folder / "photo.png"
        photo.write_bytes(encoded(np.zeros((32, 32, 3), np.uint8), "PNG"))
        return ["mtlora_jax.predict", f"--model={path.parent}", f"--images={photo}", f"--output={folder / 'out'}"]

    ways = [Way(lambda path: mtlora_jax.load(path.parent), lambda found, data, path: fits(found))]
    return Kind({str(path.relative_to(folder)): path.read_bytes()}, mutations.of_json_file, ways, command)


def archives(folder: pathlib.Path) -> Kind:
    """Archives of PASCAL_MT."""
    dummy.write_pascal(folder / "PASCAL_MT")
    buffers = []
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffers.append(io.BytesIO())
        with tarfile.open(fileobj=buffers[-1], mode="w", format=format) as archive:
            for name in (layout.IMAGES, layout.LISTS, layout.SAL):
                for path in sorted((folder / "PASCAL_MT" / name).glob("*[n1]*")):
                    archive.add(path, f"PASCAL_MT/{name}/{path.name}" if format == tarfile.GNU_FORMAT else f"{'é' * 60}/{name}/{path.name}")
    shutil.rmtree(folder / "PASCAL_MT")
    work = folder / "work"

    def check(opened: Any, data: bytes, path: pathlib.Path) -> None:
        names = [name for name in work.rglob("*") if not name.is_dir()]
        assert opened.root == work / "unpacked"
        assert all(name.is_file() and not name.is_symlink() for name in names)
        assert {name.relative_to(work / "unpacked").parts[0] for name in names} <= {
            "JPEGImages",
            "ImageSets",
            "sal_distill",
            "unpacked.txt",
        }
        assert sum(name.stat().st_size for name in names) < source.LEAST

    def after(folder: pathlib.Path, refused: bool) -> None:
        assert not (refused and (work / "unpacked").exists())
        shutil.rmtree(work, ignore_errors=True)
        assert {item.name for item in folder.iterdir()} <= {"gnu.tgz", "pax.tgz"}
        assert {item.name for item in folder.parent.iterdir()} <= {"world", "inputs", "results.jsonl", "said.txt"}

    def command(path: pathlib.Path) -> list[str]:
        flags = [f"--manual_dir={path}", f"--data_dir={folder / 'built'}", "--tasks=sal", "--workers=1", "--allow_partial"]
        return ["tfds_pascal_context.build", *flags]

    genuine = {"gnu.tgz": gzip.compress(buffers[0].getvalue(), mtime=0), "pax.tgz": gzip.compress(buffers[1].getvalue(), mtime=0)}
    ways = [Way(lambda path: source.open_raw(PascalRaw, path, ["sal"], work, lambda line: None), check)]
    return Kind(genuine, mutations.of_archive, ways, command, after)


def lists(folder: pathlib.Path) -> Kind:
    """Lists of ids, of folder data sets and of PASCAL_MT; the names of classes; what labels mean."""
    write_tiny_dataset(folder / "data", ["semseg", "sal"])
    dummy.write_pascal(folder / "PASCAL_MT")
    (folder / "data/labels.json").write_text('{"sal": "0/255"}')
    raw = PascalRaw(folder / "PASCAL_MT")

    def opened(path: pathlib.Path) -> Any:
        return raw.ids()["train"] if "PASCAL_MT" in path.parts else FolderDataset(folder / "data", "train", ["semseg", "sal"])

    def check(found: Any, data: bytes, path: pathlib.Path) -> None:
        ids = found if isinstance(found, list) else found.ids
        assert ids
        assert len(set(ids)) == len(ids)
        if isinstance(found, list):
            assert all(id_.isascii() and raw.image(id_).resolve().parent == (raw.root / raw.images).resolve() for id_ in ids)
            return
        assert all((folder / "data/images" / f"{id_}.png").is_file() for id_ in ids)
        assert found.tasks["sal"].meaning == "0/255"
        assert found.tasks["semseg"].channels == len(found.tasks["semseg"].classes) >= 2

    def command(path: pathlib.Path) -> list[str]:
        if "PASCAL_MT" in path.parts:
            return ["tfds_pascal_context.verify", f"--manual_dir={raw.root}", "--tasks=sal", "--workers=1"]
        (folder / "micro.py").write_text(tiny_runs.CONFIG.replace("ROOT", repr(str(folder / "data"))))
        return ["mtlora_jax.main", f"--config={folder / 'micro.py'}", f"--workdir={folder / 'run'}"]

    names = ("data/splits/train.txt", "data/classes.json", "data/labels.json", "PASCAL_MT/ImageSets/Context/train.txt")
    genuine = {name: (folder / name).read_bytes() for name in names}

    def damage(rng: random.Random, data: bytes, other: bytes) -> bytes:
        return (mutations.of_json_file if data.startswith(b"{") else mutations.of_text)(rng, data, other)

    return Kind(genuine, damage, [Way(opened, check)] * 2, command)


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
        before = lines_of(path)
        forget_after(path, 5)
        return before, lines_of(path)

    def same_up_to_five(found: tuple[list[dict], list[dict]], data: bytes, path: pathlib.Path) -> None:
        before, after = found
        assert after == [line for line in before if line["step"] <= 5]
        check(after, data, path)
        assert all(json.loads(line, parse_constant=lambda word: None) for line in path.read_text().splitlines())

    def progress(path: pathlib.Path) -> Progress:
        made = Progress(tasks, {})
        made.read(path, 5)
        return made

    def looks_right(found: Progress, data: bytes, path: pathlib.Path) -> None:
        assert found.last is None or 0 <= found.last <= 5
        assert all(isinstance(value, float | int) for value in found.scores.values())

    ways = [Way(lambda path: read_log(path.parent), check), Way(lines_of, check), Way(kept, same_up_to_five), Way(progress, looks_right)]

    def command(path: pathlib.Path) -> list[str]:
        return ["mtlora_jax.plot", str(path.parent), f"--output={folder / 'curves.png'}"]

    return Kind({"log.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}, mutations.of_log, ways, command)


def runs(folder: pathlib.Path) -> Kind:
    """config.json and data.json of a run."""
    write_tiny_dataset(folder / "data", ["semseg", "sal"])
    (folder / "micro.py").write_text(tiny_runs.CONFIG.replace("ROOT", repr(str(folder / "data"))))
    settings = configs.load(str(folder / "micro.py"), [])
    data = {"train": {"images": 6, "ids": "f00d"}, "val": {"images": 5, "ids": "beef"}}
    (folder / "run").mkdir()
    saved_config.save(folder / "run", settings, data)

    def opened(path: pathlib.Path) -> None:
        saved_config.refuse_other(path.parent, settings)
        saved_config.refuse_other_data(path.parent, data)

    def check(found: None, data: bytes, path: pathlib.Path) -> None:
        assert isinstance(json.loads(files_of_users.read_text(path)), dict)

    def command(path: pathlib.Path) -> list[str]:
        return ["mtlora_jax.main", f"--config={folder / 'micro.py'}", f"--workdir={path.parent}"]

    genuine = {f"run/{name}": (folder / "run" / name).read_bytes() for name in (saved_config.CONFIG, saved_config.DATA)}
    return Kind(genuine, mutations.of_json_file, [Way(opened, check)] * 2, command)


def foreign(folder: pathlib.Path) -> Kind:
    """Checkpoints of others: weights with the config.json of the Hub, in one file or several."""
    state = checkpoints.timm(checkpoints.weights(checkpoints.BARE))
    described = {"architecture": "swin_tiny_patch4_window7_224", "pretrained_cfg": {"input_size": [3, 224, 224]}, "num_classes": 3}
    halves = {f"model-{number}-of-2.safetensors": dict(list(state.items())[number - 1 :: 2]) for number in (1, 2)}
    index = {"metadata": {"total_size": 1}, "weight_map": {key: name for name, part in halves.items() for key in part}}
    for name in ("one", "two"):
        (folder / name).mkdir()
    checkpoints.saved(folder / "one", state)
    (folder / "one/config.json").write_text(json.dumps(described))
    for name, part in halves.items():
        checkpoints.saved(folder / "two", part, name)
    (folder / "two/model.safetensors.index.json").write_text(json.dumps(index))
    genuine = {
        name: (folder / name).read_bytes() for name in ("one/model.safetensors", "one/config.json", "two/model.safetensors.index.json")
    }

    def check(found: Any, data: bytes, path: pathlib.Path) -> None:
        declared = parameters.variables(build(found.architecture))
        assert found.arrays.keys() == declared.keys()
        for name, array in found.arrays.items():
            assert (array.dtype, array.shape) == (np.float32, declared[name].shape)
            assert np.all(np.isfinite(array))

    def damage(rng: random.Random, data: bytes, other: bytes) -> bytes:
        return (mutations.of_json_file if data.startswith(b"{") else mutations.of_safetensors)(rng, data, other)

    def command(path: pathlib.Path) -> list[str]:
        return ["mtlora_jax.convert", str(path.parent), str(folder / "out")]

    return Kind(genuine, damage, [Way(lambda path: convert(path.parent), check)], command)


KINDS: dict[str, Callable[[pathlib.Path], Kind]] = {
    "png": labels, "jpeg": photos, "npy": arrays, "mat": matlab, "safetensors": tensors, "config": config, "run": runs,
    "checkpoint": foreign, "archive": archives, "lists": lists, "log": logs,
}  # fmt: skip


class TooLong(BaseException):
    """A file that takes longer than `SECONDS`."""


def main(name: str, folder: pathlib.Path, count: int) -> None:
    world, inputs = folder / "world", folder / "inputs"
    for made in (world, inputs):
        made.mkdir(parents=True)
    kind = KINDS[name](world)
    for place, data in kind.genuine.items():
        (world / place).parent.mkdir(parents=True, exist_ok=True)
        (world / place).write_bytes(data)
    bound()
    os.dup2(os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    refused = None
    with (folder / "results.jsonl").open("w", buffering=1) as results:
        for seed in range(-len(kind.genuine) * len(kind.ways), count):
            rng = random.Random(f"{name} {seed}")
            place = list(kind.genuine)[seed % len(kind.genuine)] if seed < 0 else rng.choice(list(kind.genuine))
            data = kind.genuine[place]
            if seed >= 0:
                data = kind.damage(rng, data, rng.choice(list(kind.genuine.values())))
            copy = inputs / f"{seed}-{pathlib.Path(place).name}"
            copy.write_bytes(data)
            (world / place).write_bytes(data)
            way = kind.ways[seed % len(kind.ways)]
            print(json.dumps({"at": str(copy)}), file=results)
            start = time.monotonic()
            printed = os.fstat(2).st_size
            outcome, told = outcome_of(way, data, world / place)
            try:
                kind.after(world, outcome == "refused")
            except Exception:
                outcome, told = "left behind", traceback.format_exc()
            result = {"outcome": outcome, "told": told, "seconds": time.monotonic() - start, "genuine": seed < 0}
            print(json.dumps(result), file=results)
            (world / place).write_bytes(kind.genuine[place])
            first = place == next(iter(kind.genuine)) and way is kind.ways[0] and seed >= 0
            if refused is None and first and outcome == "refused" and not words(printed):
                refused = place, data
            if outcome in ("right", "refused"):
                copy.unlink()
        if refused:
            (world / refused[0]).write_bytes(refused[1])
            print(json.dumps({"command": kind.command(world / refused[0])}), file=results)


def bound() -> None:
    """Sets bounds of memory, and of time where no signal gets through."""
    taken = next(int(line.split()[1]) * 1024 for line in pathlib.Path("/proc/self/status").read_text().splitlines() if "VmData" in line)
    resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))

    def end(number: int, frame: Any) -> None:
        raise TooLong(f"more than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, end)


def outcome_of(way: Way, data: bytes, path: pathlib.Path) -> tuple[str, str]:
    """("right" or "refused" or what went wrong, the message or the traceback)."""
    said = os.fstat(2).st_size
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                found = way.open(path)
            except UserError as error:
                return judged(error, path, [*(str(item.message) for item in warned), *words_after(said)])
        way.check(found, data, path)
    except BaseException:
        return "wrong", traceback.format_exc()
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    return "right", ""


def words_after(start: int) -> list[str]:
    """What was printed on stderr from a position on, but for the libraries that OpenCV lets print what they like."""
    return [line for line in words(start) if not line.startswith(("libpng ", "Corrupt JPEG", "Warning: unknown JFIF", "Inconsistent"))]


def words(start: int) -> list[str]:
    return pathlib.Path(os.readlink("/proc/self/fd/2")).read_bytes()[start:].decode(errors="replace").splitlines()


def judged(error: UserError, path: pathlib.Path, warned: list[str]) -> tuple[str, str]:
    line = cli._user_message(error) or ""
    complaints = {
        "is empty": not line.strip(),
        "has several lines": len(line.splitlines()) > 1,
        "has characters that cannot be seen": not line.isprintable(),
        "is long": len(line) > LONGEST,
        "names no file": not any(part in line for part in (str(path.parent), path.name, path.stem)),
        f"came with {warned}": bool(warned),
    }
    wrong = [complaint for complaint, holds in complaints.items() if holds]
    return (f"the message {', '.join(wrong)}", f"{line!r}\n{''.join(traceback.format_exception(error))}") if wrong else ("refused", line)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]))
