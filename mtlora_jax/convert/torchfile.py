"""Reads PyTorch files without running anything in them; the only module that opens pickles of others."""

import pathlib
import pickle
import re
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.io import files, weights

SAVE_ALONE = 'where the model can be built, save only its weights: torch.save(model.state_dict(), "weights.pth")'
MAX_DEPTH = 6  # of nested containers


class Options:
    """Stand-in for classes of options. Creates a plain dictionary, since PyTorch's unpickler fills nothing else."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict:
        return OrderedDict()


class Ignored:
    """Stand-in for classes that have nothing to do with weights: takes anything and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Classes in training checkpoints besides tensors and plain values. Their names become ours; nothing is imported.
STAND_INS: dict[type, tuple[str, ...]] = {
    Options: (
        "yacs.config.CfgNode",  # the reference, official Swin
        "argparse.Namespace",  # timm, DINO
        "types.SimpleNamespace",
        "collections.defaultdict",
        "addict.addict.Dict",
        "easydict.EasyDict",
        "mmcv.utils.config.ConfigDict",
        "mmengine.config.config.ConfigDict",
        "omegaconf.dictconfig.DictConfig",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
    ),
    Ignored: (
        "numpy.dtype",  # scores
        "numpy.ndarray",
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        "builtins.getattr",  # used by mmengine to refer to the statistics of its logs
        "mmengine.logging.history_buffer.HistoryBuffer",
        "typing.Any",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String", "Path")),
        *(
            f"{package}.{name}"
            for package in ("pathlib", "pathlib._local")
            for name in ("PosixPath", "PurePosixPath", "WindowsPath")
        ),
        "datetime.datetime",
        "datetime.timedelta",
        "functools.partial",
        *(f"torch.optim.{name}" for name in ("adam.Adam", "adamw.AdamW", "sgd.SGD", "lr_scheduler.ReduceLROnPlateau")),
        *(
            f"{package}.callbacks.{name}"
            for package in ("pytorch_lightning", "lightning.pytorch")
            for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")
        ),
    ),
}


def read(path: pathlib.Path) -> Mapping[Any, Any]:
    """Reads the dictionary in a file of `torch.save`; memory-maps its tensors if the format allows.

    Raises UserError for a file that is damaged, holds no dictionary, or asks to load anything but tensors, plain values
    and `STAND_INS`.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: reading this needs PyTorch, install it with: pip install 'mtlora_jax[convert]'"
        ) from None
    zipped = zipfile.is_zipfile(path)
    records = read_record_sizes(path) if zipped else None
    allowed: list[Callable | tuple[Callable, str]] = [
        (ours, name) for ours, names in STAND_INS.items() for name in names
    ]
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(allowed):
            # Memory-mapped, since a checkpoint also holds the optimizer, which is twice as large as the model.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise UserError(f"{path}: {describe_refusal(error)}") from None
    if not isinstance(content, Mapping):
        expected = "expected a state dict or a training checkpoint with one"
        raise UserError(f"{path}: holds a {type(content).__name__}, {expected}; {SAVE_ALONE}")
    if records is not None:
        check_storages(path, content, records)
    return content


def describe_refusal(error: Exception) -> str:
    """Describes why PyTorch does not load a file, and what would help."""
    if not isinstance(error, pickle.UnpicklingError):
        return f"damaged, or not a PyTorch checkpoint ({type(error).__name__}: {first_line(error)})"
    named = re.search(r"GLOBAL ([\w.]+)", str(error))  # the rest of the message recommends loading without protection
    what = f"asks to load {named[1]}" if named else "is not a pickle as PyTorch writes it"
    return f"refused, since it {what}, and only tensors and plain values are loaded; {SAVE_ALONE}"


def read_record_sizes(path: pathlib.Path) -> Counter[int]:
    """Reads the sizes in bytes of the records in a zip file.

    Raises UserError unless they are stored uncompressed and with the right checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any("/code/" in entry.filename for entry in entries):
                save = 'torch.save(torch.jit.load("FILE").state_dict(), "weights.pth")'
                raise UserError(f"{path}: is a TorchScript program; save its weights: {save}")
            stored = zipfile.ZIP_STORED
            odd = next((entry for entry in entries if entry.compress_type != stored or entry.flag_bits & 1), None)
            if odd is not None:
                how = "encrypted" if odd.flag_bits & 1 else "compressed"
                advice = "unpack the file, and pack it again with zip -0 -r"
                raise UserError(f"{path}: {odd.filename} is {how}, which PyTorch does not write; {advice}")
            if len({entry.filename for entry in entries}) != len(entries):
                raise UserError(f"{path}: damaged (two records have one name)")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(f"{path}: damaged (its records are larger than the file)")
            if wrong := archive.testzip():
                raise UserError(f"{path}: damaged (the checksum of {wrong} is wrong)")
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError) as error:
        raise UserError(f"{path}: damaged, or not a PyTorch checkpoint ({files.describe_error(error)})") from None
    return Counter(entry.file_size for entry in entries)


def check_storages(path: pathlib.Path, content: Mapping[Any, Any], records: Counter[int]) -> None:
    """Raises UserError if tensors and records differ in size, since PyTorch trusts the sizes in the pickle."""
    storages = {
        (s := tensor.untyped_storage()).data_ptr(): s.nbytes()
        for tensor in iterate_tensors(content)
        if tensor.device.type == "cpu"
    }
    odd = Counter(size for size in storages.values() if size) - records
    if odd:
        raise UserError(f"{path}: damaged (tensors take {next(iter(odd))} bytes, which no record has)")


def iterate_tensors(value: Any, depth: int = 0, seen: set[int] | None = None) -> Iterator[Any]:
    """Yields the dense tensors in nested containers."""
    import torch

    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        if value.layout == torch.strided and not value.is_quantized:
            yield value
    elif isinstance(value, Mapping | list | tuple) and depth < MAX_DEPTH and id(value) not in seen:
        seen.add(id(value))
        # Not `value.values()`, since a pickle can set attributes of a dictionary.
        for child in (value[key] for key in value) if isinstance(value, Mapping) else value:
            yield from iterate_tensors(child, depth + 1, seen)


def to_plain_dict(value: Any, depth: int = 0) -> Any:
    """Converts nested mappings to plain dictionaries, since a pickle can set attributes of ordered ones."""
    if not isinstance(value, Mapping):
        return value
    return {key: to_plain_dict(value[key], depth + 1) for key in value} if depth < MAX_DEPTH else {}


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of PyTorch or of numpy, without importing PyTorch."""
    return isinstance(value, np.ndarray) or (hasattr(value, "layout") and hasattr(value, "is_floating_point"))


def to_float32(value: Any, name: str) -> np.ndarray:
    """Converts a tensor of PyTorch or numpy to float32. Raises UserError naming it unless it holds finite floats."""
    return weights.to_finite_float32(value if isinstance(value, np.ndarray) else to_array(value, name), name)


def to_array(value: Any, name: str) -> np.ndarray:
    """Converts a PyTorch tensor to an array; keeps float64.

    Raises UserError unless it is dense, floating and has values.
    """
    import torch

    check_is_dense(value, name)
    if not value.is_floating_point():
        raise UserError(f"{name} is {str(value.dtype).removeprefix('torch.')}; weights must be floats")
    stored = value.untyped_storage().nbytes() // value.element_size()
    if value.numel() > 2 * stored + 2**20:  # with strides of 0, a few bytes could request all memory
        raise UserError(f"{name} has shape {tuple(value.shape)}, of which {stored} values are stored")
    dense = value.detach()
    return (dense if dense.dtype == torch.float64 else dense.float()).numpy()


def check_is_dense(value: Any, name: str) -> None:
    """Raises UserError for a PyTorch tensor that is not a plain array of numbers."""
    if isinstance(value, np.ndarray):
        return
    kinds = {"quantised": value.is_quantized, "without values (meta)": value.is_meta, "nested": value.is_nested}
    odd = [kind for kind, is_so in kinds.items() if is_so] + ["sparse"] * (str(value.layout) != "torch.strided")
    if odd:
        raise UserError(f"{name} cannot be read as an array: it is {odd[0]}; weights must be dense floats with values")


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
