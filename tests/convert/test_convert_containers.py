"""Checkpoints as they occur in practice, with containers, prefixes and pickles, of which nothing is ever run."""

import argparse
import json
import pathlib
import re
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
from checkpoints import (
    BARE,
    as_torch,
    assert_equal,
    hugging_face,
    multitask,
    official,
    prefixed,
    reference,
    run_command,
    saved,
    timm,
    weights,
)

from mtlora_jax.convert import convert
from mtlora_jax.errors import UserError
from mtlora_jax.model_io import model_folder

torch = pytest.importorskip("torch")

ARRAYS = weights(BARE)
OTHER = {path: x + 1 for path, x in ARRAYS.items()}
SWIN, AVERAGED = as_torch(official(ARRAYS)), as_torch(official(OTHER))


def lightning(state):
    return {
        **{"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.4.0"},
        **{"state_dict": state, "loops": {"fit_loop": {"state_dict": {}}}, "lr_schedulers": []},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": "/x"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}],
        **{"hparams_name": "kwargs", "hyper_parameters": {"lr": 1e-3, "net": {"depths": [2, 1]}}},
    }


PREFIXES = (
    *("module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module."),
    *("backbone.", "encoder.", "net.model.backbone."),
)
NAMES = ("model", "state_dict", "net", "network", "student", "weights_v2")
CONTAINERS = {
    "bare": (SWIN, ""),
    **{f"prefix {prefix}": (prefixed(SWIN, prefix), prefix.rstrip(".")) for prefix in PREFIXES},
    **{f"container {name}": ({name: SWIN, "epoch": 3}, name) for name in NAMES},
    "nested": ({"state_dict": {"model": prefixed(SWIN, "module.")}}, "state_dict.model.module"),
    "teacher alone": ({"teacher": SWIN}, "teacher (EMA weights)"),
    "Lightning": (lightning(prefixed(SWIN, "model.")), "state_dict.model"),
    "compiled Lightning": (lightning(prefixed(SWIN, "net._orig_mod.")), "state_dict.net._orig_mod"),
    "an ordered dictionary": (OrderedDict(SWIN), ""),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_and_prefixes(name, tmp_path):
    content, place = CONTAINERS[name]
    torch.save(content, tmp_path / "c.ckpt")
    conversion = convert(tmp_path / "c.ckpt")
    assert_equal(conversion.arrays, ARRAYS)
    assert (f"taken      {place}" in conversion.report) == bool(place), conversion.report


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".th"])
def test_names_of_files_through_the_command(suffix, tmp_path, capsys):
    source = tmp_path / f"c{suffix}"
    torch.save({"state_dict": prefixed(SWIN, "module.")}, source)
    assert run_command([str(source), str(tmp_path / "out")]) == 0
    assert "taken      state_dict.module\n" in capsys.readouterr().out
    assert_equal(model_folder.read(tmp_path / "out")[1], ARRAYS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, "out"]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.module."])
def test_a_model_of_the_reference_keeps_the_parts_beside_its_backbone(prefix, tmp_path):
    arrays = weights(multitask())
    conversion = convert(saved(tmp_path, prefixed(reference(arrays), prefix)))
    assert conversion.format == "mtlora"
    assert_equal(conversion.arrays, arrays)


def test_other_formats_behind_prefixes(tmp_path):
    for layout in (timm, hugging_face):
        assert_equal(convert(saved(tmp_path, prefixed(layout(ARRAYS), "_orig_mod.module."))).arrays, ARRAYS)


STUDENT, TEACHER = prefixed(SWIN, "module.backbone."), prefixed(AVERAGED, "backbone.")
BOTH = prefixed(SWIN, "model.") | prefixed(AVERAGED, "ema_model.module.")
EMA = {
    "timm": ({"state_dict": SWIN, "state_dict_ema": AVERAGED}, "state_dict_ema"),
    "model_ema": ({"model": SWIN, "model_ema": AVERAGED}, "model_ema"),
    "nested": ({"model": SWIN, "ema": {"module": AVERAGED, "decay": 0.99}}, "ema.module"),
    "teacher": ({"student": STUDENT, "teacher": TEACHER}, "teacher.backbone"),
    "prefix": ({"state_dict": BOTH}, "state_dict.ema_model.module"),
    "ema first": ({"ema_state_dict": AVERAGED, "model": SWIN}, "ema_state_dict"),
}


@pytest.mark.parametrize("name", EMA)
def test_averaged_weights_are_taken_when_asked_for_and_told_when_not(name, tmp_path, capsys):
    content, place = EMA[name]
    source, out = tmp_path / "c.pth", tmp_path / "out"
    torch.save(content, source)
    assert run_command([str(source), str(out)]) == 0
    assert f"note       also holds EMA weights ({place}): --ema takes them" in capsys.readouterr().out
    assert_equal(model_folder.read(out)[1], ARRAYS)
    assert run_command([str(source), str(out), "--ema", "--overwrite"]) == 0
    assert f"taken      {place} (EMA weights)" in capsys.readouterr().out
    assert_equal(model_folder.read(out)[1], OTHER)


def refused(arguments, message, capsys):
    assert run_command([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*(?:{message}).*\n", error), error


def test_no_averaged_weights_and_too_many_others(tmp_path, capsys):
    source, out = tmp_path / "c.pth", tmp_path / "out"
    torch.save({"model": SWIN}, source)
    refused([source, out, "--ema"], r"--ema: .*c\.pth holds no EMA weights; it has model", capsys)
    torch.save({"first": SWIN, "second": AVERAGED}, source)
    refused([source, out], r"holds several sets of weights: first, second; .*torch\.save", capsys)
    model_folder.save(tmp_path / "ours", BARE, ARRAYS)
    refused([tmp_path / "ours", tmp_path / "out", "--ema"], "--ema: .*ours is a model folder already", capsys)


class AttributeDict(dict):
    """Pickles like the class of Lightning, once its module is named so."""


class HistoryBuffer:
    """Pickles like the log of mmengine: with arrays, and functions by getattr."""

    def __init__(self):
        self.history, self.statistics = np.arange(3.0), {"mean": self.mean}

    def mean(self):
        return 0.0


class Unknown:
    pass


@pytest.fixture
def pickled_as(monkeypatch):
    """Puts a class into a library that is not installed, in pickles only."""

    def rename(cls, name):
        *parents, last = name.split(".")
        for end in range(1, len(parents) + 1):
            module = ".".join(parents[:end])
            monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[".".join(parents)], last, cls)
        monkeypatch.setattr(cls, "__module__", ".".join(parents))

    return rename


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_checkpoints_hold_besides_weights(zipped, tmp_path, pickled_as):
    pickled_as(AttributeDict, "pytorch_lightning.utilities.parsing.AttributeDict")
    pickled_as(HistoryBuffer, "mmengine.logging.history_buffer.HistoryBuffer")
    options = argparse.Namespace(model="swin_tiny", lr=[1e-3], nested=argparse.Namespace(x=pathlib.Path("/data")))
    for extra in (
        {"args": options, "metric": np.float64(80.1), "amp_scaler": {}, "best": np.arange(3)},
        {"hyper_parameters": AttributeDict(lr=1e-3, more=AttributeDict(a=1))},
        {"message_hub": {"log_scalars": {"loss": HistoryBuffer()}}},
    ):
        content = {"epoch": 3, "state_dict": SWIN, **extra}
        torch.save(content, tmp_path / "c.pth.tar", _use_new_zipfile_serialization=zipped)
        assert_equal(convert(tmp_path / "c.pth.tar").arrays, ARRAYS)


class Poisoned(OrderedDict):
    """Pickles as an ordered dictionary with attributes, which the unpickler of PyTorch sets."""

    def __reduce__(self):
        attributes = dict.fromkeys(("items", "get", "values", "keys", "copy", "_metadata"), 5)
        return OrderedDict, (), attributes, None, iter(self.items())


def test_a_pickle_cannot_change_how_its_dictionaries_are_read(tmp_path):
    config = Poisoned(TRAIN=Poisoned(FREEZE_LAYER_NORM=True), DATA=Poisoned(IMG_SIZE=96))
    torch.save(Poisoned(state_dict=Poisoned(SWIN), config=config), tmp_path / "c.pth")
    assert_equal(convert(tmp_path / "c.pth").arrays, ARRAYS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_opened_tells_how_to_save_it(tmp_path, capsys, pickled_as):
    pickled_as(Unknown, "somewhere.Unknown")
    source, out = tmp_path / "c.pth", tmp_path / "out"
    for content, message in ((Unknown(), r"asks to load somewhere\.Unknown,"), ([SWIN], "holds a list,")):
        torch.save(content, source)
        refused([source, out], message + r'.*torch\.save\(model\.state_dict\(\), "weights\.pth"\)', capsys)
    torch.jit.script(torch.nn.Linear(2, 2)).save(source)
    refused([source, out], r'c\.pth: is a TorchScript program; .*torch\.jit\.load\("FILE"\)\.state_dict\(\)', capsys)
    (tmp_path / "c.onnx").write_bytes(b"")
    refused([tmp_path / "c.onnx", out], r"c\.onnx: unknown kind of file, .*torch\.save\(model\.state_dict\(\)", capsys)


@pytest.mark.parametrize("key", ["layers.0.blocks.0.attn.logit_scale", "layers.1.blocks.0.attn.cpb_mlp.0.weight"])
def test_the_second_swin_is_another_network(key, tmp_path, capsys):
    for prefix in ("", "module.", "backbone."):
        state = {k: x for k, x in official(ARRAYS).items() if not k.endswith("bias_table")} | {key: np.ones((1, 1, 1))}
        source = saved(tmp_path, prefixed(state, prefix))
        refused([source, tmp_path / "out"], "is a Swin V2, which is another network and not supported", capsys)


def sharded(where, end, state, number=3):
    """Writes files with an index, which is returned."""
    where.mkdir(exist_ok=True)
    keys, stem = list(state), "model" if end == "safetensors" else "pytorch_model"
    names = [f"{stem}-{i + 1:05d}-of-{number:05d}.{end}" for i in range(number)]
    for i, name in enumerate(names):
        part = {key: state[key] for key in keys[i::number]}
        saved(where, part, name) if end == "safetensors" else torch.save(as_torch(part), where / name)
    index = {"metadata": {"total_size": 1}, "weight_map": {key: names[i % number] for i, key in enumerate(keys)}}
    (where / f"{stem}.{end}.index.json").write_text(json.dumps(index))
    return index


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_several_files_with_an_index(end, tmp_path):
    sharded(tmp_path / "hub", end, hugging_face(ARRAYS))
    assert run_command([str(tmp_path / "hub"), str(tmp_path / "out")]) == 0
    assert_equal(model_folder.read(tmp_path / "out")[1], ARRAYS)
    assert_equal(convert(next((tmp_path / "hub").glob("*.index.json"))).arrays, ARRAYS)


KEY = "swin.embeddings.norm.bias"


def placed(name, key=KEY):
    """Changes the map of an index {key: file} so that `key` is in the file `name`."""
    return lambda places: {"weight_map": places | {key: name}}


def elsewhere(places):
    return placed(next(name for name in places.values() if name != places[KEY]))(places)


def without_key(places):
    return {"weight_map": {key: name for key, name in places.items() if key != KEY}}


INDICES = {  # {case: (makes an index of {key: file}, error message)}
    "outside of the folder": (
        placed("../c.safetensors"),
        r"'\.\./c\.safetensors' is not the name of a file in its folder",
    ),
    "absolute": (placed("/etc/passwd"), "'/etc/passwd' is not the name of a file"),
    "itself": (placed(".."), "'..' is not the name of a file|no such file"),
    "an empty name": (placed(""), "'' is not the name of a file"),
    "a long name": (placed("a" * 10**4), "'a{255}' is not the name of a file"),
    "no file": (placed("c.safetensors"), r"c\.safetensors: no such file, but .* names it"),
    "another file": (elsewhere, KEY + r" \(1\) is not in the file"),
    "no such tensor": (lambda places: placed(places[KEY], "x")(places), r"x \(1\) is not in the file that it names"),
    "a tensor not named": (without_key, rf"names no file for {KEY} \(1\)"),
    "no map": (lambda places: {"metadata": {}}, "expected an object with weight_map"),
    "numbers": (placed(3), "expected an object with weight_map"),
    "a list": (lambda places: [], "expected an object with weight_map"),
}


@pytest.mark.parametrize("case", INDICES)
def test_an_index_that_does_not_fit_its_files(case, tmp_path, capsys):
    changed, message = INDICES[case]
    places = sharded(tmp_path / "hub", "safetensors", hugging_face(ARRAYS))["weight_map"]
    (tmp_path / "hub" / "model.safetensors.index.json").write_text(json.dumps(changed(places)))
    refused([tmp_path / "hub", tmp_path / "out"], message, capsys)
    assert not (tmp_path / "out").exists()


def test_a_tensor_in_two_files(tmp_path):
    index = sharded(tmp_path, "safetensors", hugging_face(ARRAYS))
    name = next(n for n in index["weight_map"].values() if n != index["weight_map"][KEY])
    part = {key: hugging_face(ARRAYS)[key] for key, place in index["weight_map"].items() if place == name or key == KEY}
    saved(tmp_path, part, name)
    with pytest.raises(UserError, match=rf"{KEY} \(1\) is in model-\S+ already"):
        convert(tmp_path)


def test_a_folder_with_one_file_of_another_name(tmp_path):
    torch.save(SWIN, tmp_path / "swin_tiny.pth")
    assert_equal(convert(tmp_path).arrays, ARRAYS)
    torch.save(SWIN, tmp_path / "swin_base.pth")
    with pytest.raises(UserError, match=r"holds swin_base\.pth, swin_tiny\.pth \(2\); name the file you mean"):
        convert(tmp_path)
