"""Kinds of data set files for fuzzing: labels, photographs, arrays, archives, lists."""

import contextlib
import gzip
import io
import pathlib
import random
import shutil
import struct
import tarfile
import zlib
from typing import Any

import mutations
import numpy as np
import PIL.Image
import tiny_runs
from fuzz_kind import Check, Kind, Open, Way, encoded, write_model
from tiny_data import png, write_tiny_dataset

from mtlora_jax.data.decoding import EncodedFile, decode_image, decode_label
from mtlora_jax.data.image_folder import FolderDataset
from mtlora_jax.io import image_files
from mtlora_jax.predict import images
from mtlora_jax.tasks import Task, make_tasks
from tfds_pascal_context import dummy, files, layout, source
from tfds_pascal_context.pascal_context import PascalRaw


def labels(folder: pathlib.Path) -> Kind:
    """PNG labels of every task."""
    tasks = make_tasks(("semseg", "human_parts", "normals", "depth"))
    saliency = type(make_tasks(["sal"])["sal"])
    tasks |= {f"sal {encoding}": saliency(encoding=encoding) for encoding in ("0/255", "0/1/255", "grey")}
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

    def decode(task: Task) -> Open:
        return lambda path: decode_label(task, EncodedFile(path.read_bytes(), str(path)))

    ways = [Way(decode(task), as_pillow(task)) for task in tasks.values()]
    return Kind(genuine, mutations.of_png, ways, predict_image)


def as_pillow(task: Task) -> Check:
    def check(label: np.ndarray, data: bytes, path: pathlib.Path) -> None:
        with PIL.Image.open(io.BytesIO(data)) as image:
            assert label.shape[:2] == (image.height, image.width)
            if b"acTL" in data or b"fcTL" in data:  # Pillow also checks the other frames of an animation
                return
            with contextlib.suppress(SyntaxError):  # about a colour profile
                image.load()
            pixels = np.array(image)
            stretched = 255 // (2 ** data[24] - 1) if image.mode == "L" and data[24] < 8 else 1
        row = 1 + (image.width * data[24] * image_files.CHANNELS[data[25]] + 7) // 8
        with contextlib.suppress(zlib.error):  # of a checksum after the last row
            packed = b"".join(content for kind, content in image_files._chunks(data) if kind == b"IDAT")
            assert data[28] or len(zlib.decompressobj().decompress(packed)) >= image.height * row
        stored = pixels // stretched if pixels.dtype != bool else pixels.astype(np.uint8)
        if task.name in ("semseg", "human_parts"):
            assert label.dtype == np.uint8
            np.testing.assert_array_equal(label, stored)
            assert np.all((label < task.channels) | (label == 255))
        elif task.name == "sal":
            assert set(np.unique(label)) <= {0, 1, 255}
            yes = {"0/255": pixels == 255, "0/1/255": (pixels > 0) & (pixels < 255), "grey": pixels > 127}
            if stretched == 1:
                np.testing.assert_array_equal(label == 1, yes[task.encoding] if pixels.dtype != bool else pixels)
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
    exif[images.ORIENTATION] = 6
    genuine = {
        "photo.jpg": encoded(pixels, "JPEG", quality=90),
        "turned.jpg": encoded(pixels, "JPEG", exif=exif, progressive=True),
        "grey.jpg": encoded(pixels[..., 0], "JPEG"),
    }

    def as_header(image: np.ndarray, data: bytes, path: pathlib.Path) -> None:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            assert image.shape in ((opened.height, opened.width, 3), (opened.width, opened.height, 3))
        assert image.dtype == np.uint8
        assert image.size <= 3 * image_files.MAX_PIXELS

    def size(found: tuple[int, int], data: bytes, path: pathlib.Path) -> None:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            assert found == (opened.height, opened.width)

    ways = [Way(lambda path: decode_image(path.read_bytes(), str(path)), as_header), Way(images.read_image, as_header)]
    return Kind(genuine, mutations.of_bytes, [*ways, Way(files.check_jpeg, size)], predict_image)


def predict_image(path: pathlib.Path) -> list[str]:
    model, out = path.parent / "model", path.parent / "out"
    write_model(model)
    return ["mtlora_jax.predict", f"--model={model}", f"--images={path}", f"--output={out}"]


def arrays(folder: pathlib.Path) -> Kind:
    """NumPy arrays of depths, edges and normals."""
    dummy.write_nyud(folder / "NYUD_MT")
    rng = np.random.default_rng(0)

    def saved(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    depth = rng.uniform(0, 9, (6, 8))
    genuine = {"single": depth.astype("<f4"), "double": depth.astype(">f8")}
    genuine |= {"columns": np.asfortranarray(depth.astype("<f4")), "edge": (depth > 3).astype(np.uint8)}

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
        Way(lambda path: decode_label(task, EncodedFile(path.read_bytes(), str(path))), as_metres),
    ]

    def command(path: pathlib.Path) -> list[str]:
        shutil.copy(path, folder / "NYUD_MT/depth/0001.npy")
        flags = ["--dataset=nyud", f"--manual_dir={folder / 'NYUD_MT'}", "--allow_partial", "--workers=1"]
        return ["tfds_pascal_context.verify", *flags]

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


def archives(folder: pathlib.Path) -> Kind:
    """Archives of PASCAL_MT."""
    dummy.write_pascal(folder / "PASCAL_MT")
    buffers = []
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffers.append(io.BytesIO())
        with tarfile.open(fileobj=buffers[-1], mode="w", format=format) as archive:
            for name in (layout.IMAGES, layout.LISTS, layout.SAL):
                root = "PASCAL_MT" if format == tarfile.GNU_FORMAT else "é" * 60
                for path in sorted((folder / "PASCAL_MT" / name).glob("*[n1]*")):
                    archive.add(path, f"{root}/{name}/{path.name}")
    shutil.rmtree(folder / "PASCAL_MT")
    work = folder / "work"

    def check(opened: Any, data: bytes, path: pathlib.Path) -> None:
        names = [name for name in work.rglob("*") if not name.is_dir()]
        assert opened.root == work / "unpacked"
        assert all(name.is_file() and not name.is_symlink() for name in names)
        allowed = {"JPEGImages", "ImageSets", "sal_distill", "unpacked.txt"}
        assert {name.relative_to(work / "unpacked").parts[0] for name in names} <= allowed
        assert sum(name.stat().st_size for name in names) < source.LEAST

    def after(folder: pathlib.Path, refused: bool) -> None:
        assert not (refused and (work / "unpacked").exists())
        shutil.rmtree(work, ignore_errors=True)
        assert {item.name for item in folder.iterdir()} <= {"gnu.tgz", "pax.tgz"}
        assert {item.name for item in folder.parent.iterdir()} <= {"world", "inputs", "results.jsonl", "said.txt"}

    def command(path: pathlib.Path) -> list[str]:
        files = [f"--manual_dir={path}", f"--data_dir={folder / 'built'}"]
        return ["tfds_pascal_context.build", *files, "--tasks=sal", "--workers=1", "--allow_partial"]

    gnu, pax = (gzip.compress(buffer.getvalue(), mtime=0) for buffer in buffers)
    genuine = {"gnu.tgz": gnu, "pax.tgz": pax}
    ways = [Way(lambda path: source.open_raw(PascalRaw, path, ["sal"], work, lambda line: None), check)]
    return Kind(genuine, mutations.of_archive, ways, command, after)


def lists(folder: pathlib.Path) -> Kind:
    """Lists of ids of folder data sets and of PASCAL_MT, class names, and meanings of label values."""
    write_tiny_dataset(folder / "data", ["semseg", "sal"])
    dummy.write_pascal(folder / "PASCAL_MT")
    (folder / "data/labels.json").write_text('{"sal": "0/255"}')
    raw = PascalRaw(folder / "PASCAL_MT")

    def opened(path: pathlib.Path) -> Any:
        if "PASCAL_MT" in path.parts:
            return raw.ids()["train"]
        return FolderDataset(folder / "data", "train", ["semseg", "sal"])

    def check(found: Any, data: bytes, path: pathlib.Path) -> None:
        ids = found if isinstance(found, list) else found.ids
        assert ids
        assert len(set(ids)) == len(ids)
        if isinstance(found, list):
            images = (raw.root / raw.images).resolve()
            assert all(id_.isascii() and raw.image(id_).resolve().parent == images for id_ in ids)
            return
        assert all((folder / "data/images" / f"{id_}.png").is_file() for id_ in ids)
        assert found.tasks["sal"].encoding == "0/255"
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


KINDS = {"png": labels, "jpeg": photos, "npy": arrays, "mat": matlab, "archive": archives, "lists": lists}
