"""Weights must be finite floats; damaged or odd files are refused."""

import io
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import (
    BARE,
    as_torch,
    assert_equal,
    hugging_face,
    mmseg,
    multitask,
    official,
    reference,
    run_command,
    saved,
    timm,
    weights,
)

from mtlora_jax.convert import convert, to_mtlora
from mtlora_jax.errors import UserError
from mtlora_jax.model_io import model_folder

ARRAYS = weights(BARE)


def refused(arguments, message, capsys):
    assert run_command([*map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"error: .*(?:{message}).*\n", printed.err), printed.err


def with_one(x, value):
    x = np.array(x)
    x.flat[x.size // 2] = value
    return x


ODD = {  # {case: (changes a tensor, error message)}
    "nan": (lambda x: with_one(x, np.nan), "has 1 values that are not finite, such as nan"),
    "infinite": (lambda x: with_one(x, -np.inf), "has 1 values that are not finite, such as -inf"),
    "half": (lambda x: with_one(x, np.inf).astype(np.float16), "has 1 values that are not finite, such as inf"),
    "beyond float32": (lambda x: with_one(np.float64(x), 1e300), r"has 1 values that are not finite, such as 1e\+300"),
    "complex": (lambda x: np.asarray(x, np.complex64), "is complex64; weights must be floats"),
    "integer": (lambda x: np.asarray(x).astype(np.int32), "is int32; weights must be floats"),
    "bytes": (lambda x: np.asarray(x).astype(np.uint8), "is uint8; weights must be floats"),
    "booleans": (lambda x: np.asarray(x) > 0, "is bool; weights must be floats"),
}
FORMATS = {  # {format: (state, key of one of its tensors)}
    "official": (official(ARRAYS), "layers.1.blocks.0.mlp.fc1.weight"),
    "timm": (timm(ARRAYS), "layers.1.downsample.norm.bias"),
    "hf": (hugging_face(ARRAYS), "swin.encoder.layers.0.blocks.1.attention.self.key.weight"),
    "mmseg": (mmseg(ARRAYS), "stages.0.downsample.reduction.weight"),
    "mtlora": (reference(weights(multitask())), "backbone.layers.0.blocks.1.mlp.fc1.lora_tasks_A.semseg"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", FORMATS)
def test_values_that_are_no_finite_floats(name, odd, tmp_path):
    torch = pytest.importorskip("torch")
    state, key = FORMATS[name]
    become, message = ODD[odd]
    state = state | {key: become(state[key])}
    if odd != "complex" or "complex64" in str(safetensors.numpy._TYPES):
        source = saved(tmp_path, state)
        with pytest.raises(UserError, match=rf"{re.escape(str(source))}: {re.escape(key)} {message}"):
            convert(source)
    torch.save({"model": as_torch(state)}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=rf"c\.pth: {re.escape(key)} {message}"):
        convert(tmp_path / "c.pth")


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
def test_tensors_of_torch_that_are_not_read(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    key = "layers.1.blocks.0.mlp.fc1.weight"
    state = as_torch(official(ARRAYS))
    for odd, message in (
        (state[key].to_sparse(), "cannot be read as an array: it is sparse;"),
        (torch.quantize_per_tensor(state[key], 0.1, 0, torch.qint8), "cannot be read as an array: it is quantised;"),
        (state[key].to("meta"), r"cannot be read as an array: it is without values \(meta\)"),
        (torch.zeros(1).expand(2**40, 8), r"has shape \(1099511627776, 8\), of which 1 values are stored"),
    ):
        torch.save({"model": {f"module.{k}": x for k, x in (state | {key: odd}).items()}}, tmp_path / "c.pth")
        refused([tmp_path / "c.pth", tmp_path / "out"], rf"c\.pth: module\.{key} {message}", capsys)
        assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "float8_e4m3fn"])
def test_floats_of_torch_and_parameters(dtype, tmp_path):
    torch = pytest.importorskip("torch")
    whole, kind = as_torch(official(ARRAYS)), getattr(torch, dtype)
    state = {key: x if key.endswith("index") else x.to(kind) for key, x in whole.items()}
    state["patch_embed.norm.bias"] = torch.nn.Parameter(state["patch_embed.norm.bias"])
    strided = "layers.0.blocks.0.mlp.fc1.weight"
    state[strided] = state[strided].t().contiguous().t()
    torch.save(state, tmp_path / "c.pth")
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    expected = {path: x.astype(kind).astype(np.float32) for path, x in ARRAYS.items()}
    assert_equal(convert(tmp_path / "c.pth").arrays, expected)


def test_what_is_dropped_may_be_anything(tmp_path):
    torch = pytest.importorskip("torch")
    dropped = {"head.weight": torch.ones(3, 4).to_sparse(), "norm.bias": torch.tensor([1, 2])}
    dropped["head.bias"] = torch.full((3,), torch.nan)
    torch.save(as_torch(official(ARRAYS)) | dropped, tmp_path / "c.pth")
    assert_equal(convert(tmp_path / "c.pth").arrays, ARRAYS)


def test_folders_bases_and_outputs(tmp_path, capsys):
    """Everything else that the command reads, computes and writes."""
    architecture = multitask() | {"image_size": [128, 128]}
    arrays = weights(architecture)
    key = "backbone.layers.0.blocks.0.mlp.fc1.kernel"
    model_folder.save(tmp_path / "good", architecture, arrays)
    odd = arrays | {key: with_one(arrays[key], np.nan)}
    shutil.copytree(tmp_path / "good", tmp_path / "odd")
    safetensors.numpy.save_file(odd, tmp_path / "odd" / "model.safetensors")
    for flags in ([], ["--merge"], ["--tasks=edge"], ["--adapter", f"--base={tmp_path / 'good'}"]):
        refused([tmp_path / "odd", tmp_path / "out", *flags], rf"model\.safetensors: {key} has 1 values", capsys)
    flags = ["--adapter", f"--base={tmp_path / 'odd'}"]
    refused([tmp_path / "good", tmp_path / "out", *flags], rf"{key} has 1 values", capsys)
    with pytest.raises(UserError, match=rf"x\.pth: {key} has 1 values that are not finite"):
        to_mtlora.save(tmp_path / "x.pth", architecture, odd)
    factor = "backbone.layers.0.blocks.0.mlp.fc1.shared_"
    huge = arrays | {factor + end: np.full_like(arrays[factor + end], 1e30) for end in "ab"}
    model_folder.save(tmp_path / "huge", architecture, huge)
    message = rf"huge, merged: {key} has \d+ values that are not finite"
    refused([tmp_path / "huge", tmp_path / "out", "--merge"], message, capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "huge", "odd"]


def rezipped(source, out, change, compression=zipfile.ZIP_STORED):
    """Copies a zip file with changed records {name: bytes}."""
    with zipfile.ZipFile(source) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in change(records).items():
            archive.writestr(name, data)
    return out


@pytest.fixture
def checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": as_torch(official(ARRAYS)), "epoch": 3}, tmp_path / "good.pth")
    return tmp_path / "good.pth"


def data(records):
    """Name of the largest record of values."""
    return max((name for name in records if "/data/" in name), key=lambda name: len(records[name]))


def test_zipped_again_without_compression(checkpoint, tmp_path):
    assert_equal(convert(rezipped(checkpoint, tmp_path / "c.pth", lambda records: records)).arrays, ARRAYS)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zipped_again_with_compression(compression, checkpoint, tmp_path, capsys):
    source = rezipped(checkpoint, tmp_path / "c.pth", lambda records: records, compression)
    refused([source, tmp_path / "out"], r"c\.pth: \S+ is compressed, which PyTorch does not write", capsys)


def test_one_compressed_record_of_many(checkpoint, tmp_path, capsys):
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(tmp_path / "c.pth", "w") as new:
        names = old.namelist()
        last = data({name: old.read(name) for name in names})
        for name in names:
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED if name == last else zipfile.ZIP_STORED)
    refused([tmp_path / "c.pth", tmp_path / "out"], rf"{last} is compressed", capsys)


def test_a_flipped_bit(checkpoint, tmp_path, capsys):
    with zipfile.ZipFile(checkpoint) as archive:
        name = data({entry: archive.read(entry) for entry in archive.namelist()})
        start = archive.getinfo(name).header_offset + 400
    content = bytearray(checkpoint.read_bytes())
    content[start] ^= 1
    (tmp_path / "c.pth").write_bytes(content)
    refused([tmp_path / "c.pth", tmp_path / "out"], rf"c\.pth: damaged \(the checksum of {name} is wrong\)", capsys)


@pytest.mark.parametrize(
    "change", [lambda x: x[:-4], lambda x: x[: len(x) // 2], lambda x: b"", lambda x: x + b"\0" * 8]
)
def test_records_of_another_size_than_their_tensors(change, checkpoint, tmp_path, capsys):
    source = rezipped(checkpoint, tmp_path / "c.pth", lambda r: r | {data(r): change(r[data(r)])})
    refused([source, tmp_path / "out"], r"c\.pth: damaged", capsys)


def test_a_missing_record(checkpoint, tmp_path, capsys):
    source = rezipped(checkpoint, tmp_path / "c.pth", lambda r: {name: x for name, x in r.items() if name != data(r)})
    refused([source, tmp_path / "out"], r"c\.pth: damaged", capsys)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name(checkpoint, tmp_path, capsys):
    source = shutil.copy(checkpoint, tmp_path / "c.pth")
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(archive.namelist()[-1], b"x")
    refused([source, tmp_path / "out"], r"c\.pth: damaged \(two records have one name\)", capsys)


def test_the_other_byte_order(checkpoint, tmp_path, capsys):
    def marked(records, order):
        return records | {name: order for name in records if name.endswith("byteorder")}

    def swapped(records):
        values = {name: np.frombuffer(x, "<f4") for name, x in records.items() if "/data/" in name}
        return marked(records | {name: x.astype(">f4").tobytes() for name, x in values.items()}, b"big")

    torch = pytest.importorskip("torch")
    floats = {key: x.float() for key, x in as_torch(official(ARRAYS)).items()}
    torch.save(floats, tmp_path / "floats.pth")
    assert_equal(convert(rezipped(tmp_path / "floats.pth", tmp_path / "c.pth", swapped)).arrays, ARRAYS)
    odd = rezipped(checkpoint, tmp_path / "c.pth", lambda records: marked(records, b"middle"))
    refused([odd, tmp_path / "out"], r"c\.pth: damaged", capsys)


def test_before_there_were_zip_files(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    source = tmp_path / "c.pth"
    torch.save({"model": as_torch(official(ARRAYS))}, source, _use_new_zipfile_serialization=False)
    assert_equal(convert(source).arrays, ARRAYS)
    whole = source.read_bytes()
    for length in (len(whole) - 3, len(whole) // 2, 100):
        source.write_bytes(whole[:length])
        refused([source, tmp_path / "out"], r"c\.pth: (damaged|refused)", capsys)


class View:
    """Pickles, as PyTorch does, a float32 tensor whose storage has 4 values."""

    def __init__(self, offset, size, strides):
        self.layout = offset, size, strides

    def __reduce__(self):
        import torch

        storage = Storage(("storage", torch.FloatStorage, "0", "cpu", 4))
        return torch._utils._rebuild_tensor_v2, (storage, *self.layout, False, OrderedDict())


class Storage(tuple):
    pass


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return tuple(obj) if isinstance(obj, Storage) else None


@pytest.mark.parametrize(
    "layout", [(0, (8,), (1,)), (3, (4,), (1,)), (0, (2,), (100,)), (-1, (2,), (1,)), (0, (2, 3), (3, 1))]
)
def test_views_beyond_their_storage(layout, tmp_path, capsys):
    pytest.importorskip("torch")
    content = io.BytesIO()
    Pickler(content, 2).dump({"model": {"patch_embed.norm.bias": View(*layout)}})
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as archive:
        records = {"data.pkl": content.getvalue(), "data/0": np.ones(4, "<f4").tobytes()}
        records |= {"byteorder": b"little", "version": b"3\n"}
        for name, value in records.items():
            archive.writestr(f"c/{name}", value)
    refused([tmp_path / "c.pth", tmp_path / "out", "--from=swin"], r"c\.pth: damaged", capsys)


@pytest.mark.parametrize("layout", [(0, (8,), (1,)), (0, (2,), (100,)), (-1, (2,), (1,))])
def test_views_beyond_their_storage_before_there_were_zip_files(layout, tmp_path, capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    tensor = torch.ones(4)
    monkeypatch.setattr(torch._tensor.Tensor, "_reduce_ex_internal", lambda self, protocol: rebuilt(self, layout))
    torch.save({"patch_embed.norm.bias": tensor}, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    monkeypatch.undo()
    refused([tmp_path / "c.pth", tmp_path / "out", "--from=swin"], r"c\.pth: damaged", capsys)


def rebuilt(tensor, layout):
    """How PyTorch pickles a tensor, with another offset, size and strides in its storage."""
    import torch

    storage = torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)
    return torch._utils._rebuild_tensor_v2, (storage, *layout, False, OrderedDict())
