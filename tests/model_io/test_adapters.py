"""Adapters belong to one base; adding and dropping tasks leaves the others unchanged bit by bit."""

import json
import pathlib
import re
import shutil

import micro
import numpy as np
import pytest
import safetensors.numpy
import tiny_runs
from checkpoints import run_command

import mtlora_jax
from mtlora_jax import config as configs
from mtlora_jax.errors import UserError
from mtlora_jax.model_factory import build, from_config
from mtlora_jax.model_io import adapters, model_folder
from mtlora_jax.model_io.tasks import keep_tasks, one_more, only
from mtlora_jax.models import parameters

ARCHITECTURE = micro.architecture()
BARE = micro.architecture("full", tasks=())
EXTRA = {
    "classes": {"semseg": ["a", "b", "c"]},
    "step": 7,
    "scores": {"semseg/mIoU": 1.0, "sal/mIoU": 2.0, "delta_m": 3.0},
}


@pytest.fixture(scope="module")
def arrays():
    return micro.random_arrays(ARCHITECTURE)


@pytest.fixture(scope="module")
def folders(arrays, tmp_path_factory) -> dict[str, pathlib.Path]:
    """A base, the model that was trained from it, its adapter, and another base."""
    root = tmp_path_factory.mktemp("folders")
    where = {name: root / name for name in ("base", "model", "adapter", "other")}
    backbone = {path: array for path, array in arrays.items() if path in parameters.flat_variables(build(BARE))}
    frozen = adapters.frozen_paths(ARCHITECTURE)
    started = {path: array if path in frozen else array + 1 for path, array in backbone.items()}
    changed = {path: array + 1e-6 * path.endswith("blocks.0.mlp.fc1.kernel") for path, array in started.items()}
    model_folder.save(where["base"], BARE, started)
    model_folder.save(where["other"], BARE, changed)
    model_folder.save(where["model"], ARCHITECTURE, arrays, EXTRA)
    adapters.save_adapter(mtlora_jax.load(where["model"]), where["adapter"], where["base"])
    return where


@pytest.fixture(scope="module")
def model(folders):
    return mtlora_jax.load(folders["model"])


def assert_same_arrays(found, expected):
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert np.asarray(found[path]).tobytes() == array.tobytes(), path


def test_base_and_adapter_are_the_model(folders, arrays, model):
    names = {path.name for path in folders["adapter"].iterdir()}
    assert names == {"README.md", "adapter.safetensors", "config.json"}
    loaded = mtlora_jax.load(folders["adapter"], base=folders["base"])
    assert_same_arrays(parameters.host_arrays(loaded.module), arrays)
    assert loaded.config == model.config


def test_what_is_shipped(folders, arrays):
    """An adapter holds all trained parameters and the statistics of BatchNorm."""
    shipped = safetensors.numpy.load_file(folders["adapter"] / "adapter.safetensors")
    layer, embedding = "backbone.layers.0.blocks.1.mlp.fc1.", "backbone.patch_embed.proj."
    assert {layer + "shared_a", layer + "task_b.sal", "backbone.layers.0.downsample.reduction.kernel"} <= shipped.keys()
    assert {"decoders.sal.head.norm.mean", "decoders.sal.head.norm.var", embedding + "kernel"} <= shipped.keys()
    linear = {path for path in shipped if re.search(r"(qkv|proj|fc1|fc2)\.(kernel|bias)$", path)}
    assert linear <= {embedding + "kernel", embedding + "bias"}
    assert_same_arrays(shipped, {path: arrays[path] for path in shipped})


def test_size_of_the_papers_model():
    """An adapter of rank 64 with four tasks has 33 MB."""
    architecture = {
        "backbone": {"name": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
        "tasks": {"semseg": 21, "human_parts": 7, "sal": 1, "normals": 3},
        "decoder": {"name": "hrnet", "channels": [18, 36, 72, 144]},
        "method": {"name": "mtlora"},
        "image_size": [448, 448],
    }
    sizes = {path: variable.size for path, variable in parameters.flat_variables(build(architecture)).items()}
    shipped = sum(sizes.values()) - sum(sizes[path] for path in adapters.frozen_paths(architecture))
    assert shipped == 8_344_634 + 4 * 2 * 1080
    assert 33e6 < 4 * shipped < 34e6


def test_another_base_is_refused(folders, model, tmp_path):
    message = r"other is not the base of .*adapter: .* SHA-256 \w{12}, expected \w{12} \(base\)$"
    with pytest.raises(UserError, match=message):
        mtlora_jax.load(folders["adapter"], base=folders["other"])
    with pytest.raises(UserError, match=r"other is not the base of this model; other values: .*fc1\.kernel.* \(2\)$"):
        mtlora_jax.save_adapter(model, tmp_path / "x", folders["other"])
    small = micro.architecture("full", tasks=(), stages=1)
    model_folder.save(tmp_path / "small", small, parameters.host_arrays(micro.fresh(small)))
    with pytest.raises(UserError, match=r"small is not the base of this model; missing: backbone\.layers\.1\."):
        mtlora_jax.load(folders["adapter"], base=tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_an_adapter_alone_is_no_model(folders):
    advice = r"open it with --base=BASE or mtlora_jax\.load\(ADAPTER, base="
    with pytest.raises(UserError, match=f"adapter is an adapter of base: {advice}"):
        mtlora_jax.load(folders["adapter"])
    with pytest.raises(UserError, match="model is a whole model and needs no base"):
        mtlora_jax.load(folders["model"], base=folders["base"])
    with pytest.raises(UserError, match="adapter is an adapter of base"):
        mtlora_jax.load(folders["adapter"], base=folders["adapter"])


def test_a_damaged_adapter(folders, tmp_path):
    broken = pathlib.Path(shutil.copytree(folders["adapter"], tmp_path / "broken"))
    (broken / "adapter.safetensors").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"adapter\.safetensors cannot be read"):
        mtlora_jax.load(broken, base=folders["base"])


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_save_leaves_nothing(model, folders, tmp_path, monkeypatch, existing):
    where = tmp_path / "adapter"
    if existing:
        shutil.copytree(folders["adapter"], where)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_folder, "card", interrupted)  # the weights are written by then
    with pytest.raises(KeyboardInterrupt):
        mtlora_jax.save_adapter(model, where, folders["base"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == ([where] if existing else [])


def test_methods_without_a_base(folders, tmp_path):
    full = micro.architecture("full")
    config = {"architecture": full}
    message = "method full has no adapter, since it trains every weight: ship the model folder"
    with pytest.raises(UserError, match=message):
        adapters.write_adapter(tmp_path / "x", config, {}, folders["base"])


@pytest.fixture(scope="module")
def logits(model):
    return model(micro.random_images(1))


def assert_same_bits(found, expected, tasks):
    for task in tasks:
        assert np.asarray(found[task]).tobytes() == np.asarray(expected[task]).tobytes(), task


def test_dropping_a_task_moves_no_bit_of_the_others(model, logits):
    smaller = mtlora_jax.drop_task(model, "sal")
    assert smaller.tasks == ("semseg", "normals")
    assert not [path for path in parameters.flat_variables(smaller.module) if "sal" in path.split(".")]
    assert smaller.config["scores"] == {"semseg/mIoU": 1.0}
    assert_same_bits(smaller(micro.random_images(1)), logits, smaller.tasks)
    single = mtlora_jax.drop_task(smaller, "semseg")
    assert_same_bits(single(micro.random_images(1)), logits, ["normals"])
    assert model.tasks == tuple(micro.TASKS)


def test_adding_a_task_moves_no_bit_of_the_others(model, logits):
    """In the middle, and with a rank larger than any other."""
    larger = mtlora_jax.add_task(model, "edge", position=1, task_rank=9)
    assert larger.tasks == ("semseg", "edge", "sal", "normals")
    assert larger.architecture["method"]["task_rank"] == {"semseg": [1, 2], "edge": 9, "sal": 2, "normals": [3, 1]}
    assert larger.config["scores"] == {"semseg/mIoU": 1.0, "sal/mIoU": 2.0}
    found = larger(micro.random_images(1))
    assert found["edge"].shape == (1, 32, 32, 1)
    assert_same_bits(found, logits, model.tasks)


def test_a_task_of_another_model(model, arrays):
    """A task that is dropped and added again is unchanged."""
    smaller = mtlora_jax.drop_task(model, "sal")
    again = mtlora_jax.add_task(smaller, "sal", source=model, position=1)
    assert again.architecture == model.architecture
    assert again.config["scores"] == {"semseg/mIoU": 1.0, "sal/mIoU": 2.0}
    assert_same_arrays(parameters.host_arrays(again.module), arrays)
    bias = "backbone.patch_embed.norm.bias"
    other = model_folder.filled({}, ARCHITECTURE, {**arrays, bias: arrays[bias] + 1}, "x")
    message = rf"trained with other shared weights; different: {bias} \(1\)"
    with pytest.raises(UserError, match=message):
        mtlora_jax.add_task(smaller, "sal", source=other)
    with pytest.raises(UserError, match="the source has no task depth; it has semseg, sal, normals"):
        mtlora_jax.add_task(model, "depth", source=model)
    scaled = {**ARCHITECTURE, "method": {**ARCHITECTURE["method"], "scale": 2.0}}
    with pytest.raises(UserError, match=r"the source has another method: .*2\.0"):
        mtlora_jax.add_task(smaller, "sal", source=model_folder.filled({}, scaled, arrays, "x"))


def test_a_further_task_is_trained_beside_the_others(tmp_path):
    """As in docs/models.md: trained by the command with the shared weights frozen, then added to the first model."""
    tiny_runs.prepare(tmp_path, tasks=("sal",), epochs=2, eval_first=False)
    config = configs.load(str(tmp_path / "micro.py"))
    architecture = from_config(config, {"semseg": 4})
    first = model_folder.filled({}, architecture, micro.random_arrays(architecture), "first")
    mtlora_jax.drop_task(mtlora_jax.add_task(first, "sal"), "semseg").save(tmp_path / "sal")
    groups = "('ta_lora','patch_embed','norms','position_tables')"
    beside = ("--config.method.merging=freeze", f"--config.method.freeze={groups}")
    tiny_runs.run(tmp_path, "second", f"--config.init_from={tmp_path / 'sal'}", *beside)
    second = mtlora_jax.load(tmp_path / "second" / "best")
    both = mtlora_jax.add_task(first, "sal", source=second)
    image = micro.random_images(1)
    assert_same_bits(both(image), {**first(image), **second(image)}, ["semseg", "sal"])
    fresh = mtlora_jax.load(tmp_path / "sal")(image)["sal"]
    assert not np.array_equal(fresh, second(image)["sal"])


def test_tasks_that_cannot_be(model):
    with pytest.raises(UserError, match="the model has no task depth; it has semseg, sal, normals"):
        mtlora_jax.drop_task(model, "depth")
    with pytest.raises(UserError, match="the model has the task sal already"):
        mtlora_jax.add_task(model, "sal")
    with pytest.raises(UserError, match="unknown task 'segmentation'"):
        mtlora_jax.add_task(model, "segmentation")
    with pytest.raises(UserError, match="tasks sal: the model is a bare backbone without tasks"):
        keep_tasks({"architecture": BARE}, {}, ["sal"])
    with pytest.raises(UserError, match="expected some of semseg, sal, normals, each once"):
        keep_tasks(model.config, {}, [])


def test_options_per_task():
    one_rank = micro.architecture(task_rank=2)
    assert one_more(one_rank, "edge", 1, None, {})["method"] == one_rank["method"]
    ranks = one_more(one_rank, "edge", 1, 0, {"task_rank": 5})["method"]["task_rank"]
    assert ranks == {"semseg": 2, "sal": 2, "normals": 2, "edge": 5}
    assert one_more(ARCHITECTURE, "edge", 1, None, {})["method"]["task_rank"]["edge"] == [1, 2]
    merged = {**ARCHITECTURE, "method": {"name": "merged", "of": ARCHITECTURE["method"]}}
    of = {**ARCHITECTURE["method"], "task_rank": {"sal": 2}}
    assert only(merged, ["sal"])["method"] == {"name": "merged", "of": of}


def test_command(folders, arrays, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_command([str(folders["model"]), str(out), "--adapter", f"--base={folders['base']}"]) == 0
    for name in ("adapter.safetensors", "config.json", "README.md"):
        assert (out / name).read_bytes() == (folders["adapter"] / name).read_bytes()
    assert run_command([str(out), str(tmp_path / "whole"), f"--base={folders['base']}", "--tasks=normals,sal"]) == 0
    config = model_folder.read_config(tmp_path / "whole")
    assert list(config["architecture"]["tasks"]) == ["normals", "sal"]
    assert "adapter" not in config
    assert config["scores"] == {"sal/mIoU": 2.0}
    kept = {path: array for path, array in arrays.items() if "semseg" not in path.split(".")}
    assert_same_arrays(model_folder.read(tmp_path / "whole")[1], kept)
    assert "tasks normals, sal" in capsys.readouterr().out
    assert json.loads((tmp_path / "whole" / "config.json").read_text()) == config


def test_a_folder_whose_files_do_not_fit_each_other_is_not_copied(folders, tmp_path, capsys):
    odd = pathlib.Path(shutil.copytree(folders["model"], tmp_path / "odd"))
    (odd / "config.json").write_text((odd / "config.json").read_text().replace('"sal"', '"edge"'))
    assert run_command([str(odd), str(tmp_path / "out")]) == 2
    assert re.match(r"error: .*odd does not fit the model; missing: .*\.edge", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


WRONG_FLAGS = {
    "--adapter needs --base=FOLDER": ["model", "--adapter"],
    "--adapter goes with neither --merge nor --to=mtlora": ["model", "--adapter", "--merge", "--base=base"],
    "other is not the base of this model": ["model", "--adapter", "--base=other"],
    "model is a whole model and needs no base": ["model", "--base=base"],
    "adapter is an adapter of base": ["adapter"],
    "--scale: .*model is a model folder already": ["model", "--scale=3"],
    "--from: .*model is a model folder already": ["model", "--from=timm"],
    "tasks depth: expected some of semseg, sal, normals": ["model", "--tasks=depth"],
    "base is not a model folder: it has no config.json|no such file": ["model", "--adapter", "--base=nowhere"],
    r"out\.bin: --to=mtlora writes a PyTorch file": ["model", "--to=mtlora"],
}


@pytest.mark.parametrize("message", WRONG_FLAGS)
def test_wrong_flags(message, folders, tmp_path, capsys):
    source, *flags = WRONG_FLAGS[message]
    bases = {
        f"--base={name}": f"--base={folders.get(name, tmp_path / 'base')}" for name in ("base", "other", "nowhere")
    }
    flags = [bases.get(flag, flag) for flag in flags]
    assert run_command([str(folders[source]), str(tmp_path / "out.bin"), *flags]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"error: .*(?:{message}).*\n", printed.err), printed.err
    assert list(tmp_path.iterdir()) == []


def test_merged_models_load_and_lose_tasks_like_any_other(tmp_path, capsys):
    small = micro.architecture(stages=1)
    model_folder.save(tmp_path / "model", small, micro.random_arrays(small))
    source, merged = str(tmp_path / "model"), str(tmp_path / "merged")
    assert run_command([source, merged, "--merge"]) == 0
    assert "merged     " in capsys.readouterr().out
    images = micro.random_images(1)
    expected, model = mtlora_jax.load(source)(images), mtlora_jax.load(merged)
    logits = model(images)
    for task, values in expected.items():
        np.testing.assert_allclose(logits[task], values, rtol=0, atol=1e-5 * np.abs(values).max())
    assert_same_bits(mtlora_jax.drop_task(model, "sal")(images), logits, ["semseg", "normals"])
    with pytest.raises(UserError, match="a merged model takes no further task"):
        mtlora_jax.add_task(model, "edge")
    without = "a model of the method merged has no adapter, since its low-rank factors are in the weights"
    for message, flags in {
        "the model is merged already": ["out", "--merge"],
        without: ["out", "--adapter", f"--base={source}"],
        "--to=mtlora: the reference has no format for merged models": ["out.pth", "--to=mtlora"],
    }.items():
        assert run_command([merged, str(tmp_path / flags[0]), *flags[1:]]) == 2
        assert re.fullmatch(rf"error: {message}.*\n", capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "model"]


LAYER = "backbone.layers.0.blocks.1.mlp.fc1."
SHARED_A, KERNEL, BIAS = (LAYER + name for name in ("shared_a", "kernel", "bias"))
ODD_ADAPTERS = {  # {name: (changes the tensors, error message)}
    "a frozen tensor": (lambda t, a: t | {KERNEL: a[KERNEL] + 1}, rf"nothing else; of the base: {KERNEL} \(1\)$"),
    "the same frozen tensor": (lambda t, a: t | {BIAS: a[BIAS]}, rf"of the base: {BIAS} \(1\)$"),
    "everything": (lambda t, a: a, r"of the base: .*, \.\.\. \(\d+\)$"),
    "another name": (lambda t, a: t | {"decoders.depth.bias": a[BIAS]}, r"left over: decoders\.depth\.bias \(1\)$"),
    "nothing": (lambda t, a: {"x": a[BIAS]}, r"left over: x \(1\); missing: "),
    "one less": (lambda t, a: {k: x for k, x in t.items() if k != SHARED_A}, rf"missing: {SHARED_A} \(1\)$"),
    "no statistics": (lambda t, a: {k: t[k] for k in t if not k.endswith(".var")}, r"missing: decoders\..*\.var"),
    "not finite": (lambda t, a: t | {SHARED_A: t[SHARED_A] * np.nan}, rf"\.safetensors: {SHARED_A} has \d+ values"),
    "integers": (lambda t, a: t | {SHARED_A: t[SHARED_A].astype(np.int32)}, rf"{SHARED_A} is int32; weights must be"),
}


@pytest.mark.parametrize("name", ODD_ADAPTERS)
def test_an_adapter_holds_what_was_trained_and_nothing_else(name, folders, arrays, tmp_path, capsys):
    """Otherwise it could replace weights of the base after their hash was checked."""
    change, message = ODD_ADAPTERS[name]
    odd = pathlib.Path(shutil.copytree(folders["adapter"], tmp_path / "odd"))
    trained = safetensors.numpy.load_file(odd / "adapter.safetensors")
    safetensors.numpy.save_file(change(trained, arrays), odd / "adapter.safetensors")
    with pytest.raises(UserError, match=message):
        mtlora_jax.load(odd, base=folders["base"])
    assert run_command([str(odd), str(tmp_path / "out"), f"--base={folders['base']}"]) == 2
    assert re.fullmatch(rf"error: {odd / 'adapter.safetensors'}.*\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


def test_a_base_that_is_not_finite(folders, tmp_path):
    shutil.copytree(folders["base"], tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    base = safetensors.numpy.load_file(path)
    base[LAYER + "kernel"][0, 0] = np.nan
    safetensors.numpy.save_file(base, path)
    with pytest.raises(UserError, match=rf"model\.safetensors: {LAYER}kernel has 1 values that are not finite"):
        mtlora_jax.load(folders["adapter"], base=tmp_path / "base")


def test_an_adapter_without_a_hash(folders, tmp_path):
    odd = pathlib.Path(shutil.copytree(folders["adapter"], tmp_path / "odd"))
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"adapter": {}}))
    with pytest.raises(UserError, match=r"odd.*config\.json: adapter = \{\} must be an object with base, sha256"):
        mtlora_jax.load(odd, base=folders["base"])
