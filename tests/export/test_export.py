"""Exported models have the logits of the model folder, and run without this package."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from jax import export as jax_export
from jax.extend.core import jaxpr_as_fun

import mtlora_jax
from mtlora_jax import cli, export, model_factory
from mtlora_jax.errors import UserError
from mtlora_jax.export import onnx
from mtlora_jax.export.__main__ import main
from mtlora_jax.export.load import load
from mtlora_jax.io import weights
from mtlora_jax.model_io import model_folder
from mtlora_jax.models import parameters
from mtlora_jax.models.backbones.swin import Swin

ARCHITECTURE = micro.architecture()
SMALL = micro.architecture(stages=1, tasks=("semseg", "normals"))  # compiles in half the time
CLASSES = {"semseg": ["sky", "road", "car"]}
FILES = ["load.py", "metadata.json", "model.jax_export", "weights.safetensors"]
TOLERANCE = 1e-5  # of the largest logit: two programs that round differently

JAX_NEEDS = ("jaxlib", "ml_dtypes", "opt_einsum", "scipy")
LOADER_NEEDS = ("jax", "numpy", "flatbuffers", *JAX_NEEDS)


def saved(where: pathlib.Path, architecture: dict) -> pathlib.Path:
    model_folder.save(where, architecture, micro.random_arrays(architecture), {"classes": CLASSES})
    return where


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    return saved(tmp_path_factory.mktemp("models") / "mtlora", ARCHITECTURE)


@pytest.fixture(scope="module")
def model(source):
    return mtlora_jax.load(source)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> pathlib.Path:
    return saved(tmp_path_factory.mktemp("models") / "small", SMALL)


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory) -> pathlib.Path:
    """An export with all defaults."""
    out = tmp_path_factory.mktemp("exports") / "deep" / "out"
    main([f"--model={source}", f"--output={out}"])
    return out


def photographs(batch: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, height, width, 3), np.uint8)


def assert_same(logits, model, images):
    wanted = model(images, fit="none")
    assert set(logits) == set(model.tasks)
    for task in model.tasks:
        assert logits[task].dtype == np.float32
        assert logits[task].shape == wanted[task].shape
        tolerance = TOLERANCE * np.abs(wanted[task]).max()
        np.testing.assert_allclose(logits[task], wanted[task], rtol=0, atol=tolerance, err_msg=task)


def test_one_artifact_takes_any_batch_and_size(exported, model):
    assert sorted(path.name for path in exported.iterdir()) == FILES
    run = load(exported)
    for shape in ((1, 40, 56), (3, 33, 45)):  # sides that fill windows, and sides that are padded at every scale
        assert_same(run(photographs(*shape)), model, photographs(*shape))


def test_what_is_too_small_or_not_uint8_is_refused(exported):
    run = load(exported)
    with pytest.raises(ValueError, match=r"images \(1, 40, 32, 3\) are too small: .* H, W of at least \[33, 33\]"):
        run(photographs(1, 40, 32))
    with pytest.raises(ValueError, match="Dtype mismatch"):
        run(np.zeros((1, 40, 40, 3), np.float32))


def test_the_loader_needs_neither_this_package_nor_flax(exported, model, tmp_path):
    """It runs in a Python with only the packages that the loader says it needs."""
    packages = [pathlib.Path(importlib.import_module(name).__file__ or "").parent for name in LOADER_NEEDS]
    site = tmp_path / "site"
    site.mkdir()
    for package in [*packages, *(package.with_name(f"{package.name}.libs") for package in packages)]:
        if package.is_dir():
            (site / package.name).symlink_to(package)

    def python(*arguments):
        command = [sys.executable, "-S", *map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": str(site)}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)

    absent = ("mtlora_jax", "flax", "safetensors")
    found = f"import importlib.util; print([name for name in {absent} if importlib.util.find_spec(name)])"
    assert python("-c", found).stdout == "[]\n"
    np.save(tmp_path / "images.npy", photographs(3, 33, 45))
    done = python(exported / "load.py", "images.npy", "logits.npz")
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(dict(np.load(tmp_path / "logits.npz")), model, photographs(3, 33, 45))
    for arguments, told in (
        (("nowhere.npy", "no.npz"), "error: [Errno 2] No such file or directory: 'nowhere.npy'\n"),
        (("logits.npz", "no.npz"), "error: "),
        (("images.npy", "nowhere/no.npz"), "error: [Errno 2] No such file or directory: 'nowhere/no.npz'\n"),
        ((), "\npython load.py images.npy logits.npz "),
    ):
        done = python(exported / "load.py", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "no.npz").exists()


def test_the_loader_is_short():
    lines = (pathlib.Path(export.__file__).parent / "load.py").read_text().splitlines()
    assert len([line for line in lines[6:] if line.strip()]) < 30


def test_metadata(exported):
    about = json.loads((exported / "metadata.json").read_text())
    program = jax_export.deserialize(bytearray((exported / "model.jax_export").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert list(about["tasks"]) == ["semseg", "sal", "normals"]
    assert about["tasks"]["semseg"] == {"outputs": 3, "classes": CLASSES["semseg"]}
    assert about["tasks"]["sal"] == {"outputs": 1}
    assert about["input"] == {
        "dtype": "uint8",
        "shape": ["B", "H", "W", 3],
        "smallest": [33, 33],
        "content": "RGB",
        "normalisation": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    }
    assert about["image_size"] == [32, 32]
    assert about["method"] == ARCHITECTURE["method"]
    assert about["versions"]["jax"] == jax.__version__
    assert about["stablehlo"]["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["stablehlo"]["calling_convention_version"] == program.calling_convention_version
    assert "three weeks older to six months newer" in about["stablehlo"]["compatibility"]


def test_arguments_are_told_in_the_order_of_the_program(exported):
    about = json.loads((exported / "metadata.json").read_text())
    program = jax_export.deserialize(bytearray((exported / "model.jax_export").read_bytes()))
    shapes = {name: array.shape for name, array in weights.read(exported / "weights.safetensors").items()}
    arguments = about["stablehlo"]["arguments"]
    assert arguments[-1] == "images"
    assert len(arguments) == len(program.module_kept_var_idx)
    for name, index in zip(arguments[:-1], program.module_kept_var_idx, strict=False):
        assert program.in_avals[index].shape == shapes[name]


@pytest.mark.parametrize(("stages", "inputs"), [(2, "uint8"), (1, "float32")])
def test_merged_first(source, small, tmp_path, stages, inputs):
    unmerged, out = {1: small, 2: source}[stages], tmp_path / "out"
    main([f"--model={unmerged}", f"--output={out}", "--merge", "--size=32x32", "--platforms=cpu", f"--inputs={inputs}"])
    images = micro.random_images(1) if inputs == "float32" else photographs(1)
    assert_same(load(out)(images), mtlora_jax.load(unmerged), images)
    about = json.loads((out / "metadata.json").read_text())
    assert about["method"] == {"name": "merged", "of": model_folder.read_config(unmerged)["architecture"]["method"]}
    assert about["input"]["shape"] == ["B", 32, 32, 3]
    assert "smallest" not in about["input"]
    assert about["stablehlo"]["platforms"] == ["cpu"]


def test_decoders_only(tmp_path):
    source = saved(tmp_path / "model", micro.architecture("decoders_only", stages=1, tasks=("sal",)))
    main([f"--model={source}", f"--output={tmp_path / 'out'}"])
    assert_same(load(tmp_path / "out")(photographs(1, 24, 40)), mtlora_jax.load(source), photographs(1, 24, 40))


def test_a_model_that_has_to_know_the_size(small, tmp_path, monkeypatch, capsys):
    """Small images change the windows, so that a model for images of any size cannot be traced."""
    monkeypatch.setattr(Swin, "smallest_open_side", 1)
    main([f"--model={small}", f"--output={tmp_path / 'out'}"])
    assert "has to know the size of its images: exported for 32x32 alone" in " ".join(capsys.readouterr().out.split())
    assert_same(load(tmp_path / "out")(photographs(1)), mtlora_jax.load(small), photographs(1))
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["input"]["shape"] == ["B", 32, 32, 3]


@pytest.mark.parametrize(
    ("window", "depths", "side"), [(7, [2, 2, 6, 2], 225), (12, [2, 2, 18, 2], 385), (4, [2, 1], 33)]
)
def test_smallest_open_side(window, depths, side):
    """The coarsest map has a stride of 32 pixels (8 with two stages) and must be larger than the window."""
    options = {**ARCHITECTURE["backbone"], "depths": depths, "num_heads": [1] * len(depths), "window_size": window}
    bare = {**ARCHITECTURE, "backbone": options, "tasks": {}, "decoder": None, "method": {"name": "full"}}
    assert model_factory.build(bare).backbone.smallest_open_side == side


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=nowhere"], "nowhere is not a model folder: it has no config.json"),
        (["--platforms=cpu,gpu"], "--platforms=cpu,gpu: 'gpu' is not one of cpu, cuda, rocm, tpu"),
        (["--platforms="], "--platforms=: '' is not one of cpu"),
        (["--format=tflite"], "--format=tflite: 'tflite' is not one of stablehlo, onnx"),
        (["--inputs=int8"], "argument --inputs: invalid choice: 'int8'"),
        (["--size=16x448"], "--size=16x448 is not HEIGHTxWIDTH of 32 to 8192 pixels each, like 448x448"),
        (["--size=448"], "--size=448 is not HEIGHTxWIDTH"),
        (["--size=99999999x99999999"], "--size=99999999x99999999 is not HEIGHTxWIDTH"),
        (["--output={tmp}/file"], "file is a file; expected the name of a folder"),
        (["--output={tmp}/file/out"], "file/out: cannot be written "),
        (["--output={tmp}/mine"], "mine holds notes.txt (1), which were not exported: choose another folder"),
        (["--model={bare}"], "the model folder holds a bare backbone without tasks: there are no logits to export"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(source, tmp_path, capsys, flags, message):
    bare = micro.architecture("full", tasks=(), stages=1)
    if "--model={bare}" in flags:
        model_folder.save(tmp_path / "bare", bare, parameters.host_arrays(micro.fresh(bare)))
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    before = sorted(tmp_path.rglob("*"))
    flags = [flag.format(tmp=tmp_path, bare=tmp_path / "bare") for flag in flags]
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: main([f"--model={source}", f"--output={tmp_path / 'out'}", *flags]))
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_adapter_with_its_base(small, tmp_path, monkeypatch):
    asked, load_folder = [], mtlora_jax.load
    monkeypatch.setattr(mtlora_jax, "load", lambda *folders: asked.append(folders) or load_folder(small))
    main(["--model=adapter", "--base=swin", f"--output={tmp_path / 'out'}", "--size=32x32", "--platforms=cpu"])
    assert [tuple(map(str, both)) for both in asked] == [("adapter", "swin")]


def test_merging_twice_is_refused(tmp_path):
    merged = micro.architecture("decoders_only", tasks=("sal",), stages=1)
    merged["method"] = {"name": "merged", "of": merged["method"]}
    model_folder.save(tmp_path / "model", merged, parameters.host_arrays(micro.fresh(merged)))
    with pytest.raises(UserError, match="merged already"):
        main([f"--model={tmp_path / 'model'}", f"--output={tmp_path / 'out'}", "--merge"])
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_is_replaced_whole_or_not_at_all(small, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_text("old")
    argv = [f"--model={small}", f"--output={out}", "--size=32x32", "--platforms=cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(export, "describe_program", lambda exported: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(argv)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["out", "out/model.onnx"]
    main(argv)
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_onnx_without_its_libraries(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    message = r"--format=onnx needs jax2onnx, which is not installed: pip install 'mtlora_jax\[onnx\]'"
    with pytest.raises(UserError, match=message):
        main([f"--model={source}", f"--output={tmp_path / 'out'}", "--format=onnx"])
    assert not (tmp_path / "out").exists()


def test_what_depends_on_constants_alone_is_computed_ahead():
    """Inner programs are inlined as well: jit, checkpoint, custom derivatives."""

    def run(x):
        table = jnp.sqrt(jnp.arange(4.0).reshape(2, 2)) @ jnp.ones((2, 3))
        return jax.nn.relu(jax.checkpoint(lambda x: 2 * x)(x) - table[1])

    shape = jax.ShapeDtypeStruct(jax_export.symbolic_shape("B, 3"), np.float32)
    folded = onnx.fold_constants(jax.make_jaxpr(run)(shape))
    assert [equation.primitive.name for equation in folded.eqns] == ["mul", "sub", "max"]
    assert folded.in_avals[0].shape == shape.shape
    x = np.float32([[1, 2, 3], [0, 1, 2]])
    (found,) = jaxpr_as_fun(onnx.fold_constants(jax.make_jaxpr(run)(x)))(x)
    np.testing.assert_array_equal(found, run(x))


@pytest.fixture(scope="module")
def onnx_folder(source, tmp_path_factory) -> pathlib.Path:
    pytest.importorskip("jax2onnx")
    out = tmp_path_factory.mktemp("onnx") / "out"
    main([f"--model={source}", f"--output={out}", "--format=onnx"])
    return out


def test_onnx_gives_the_same_logits(onnx_folder, model):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(onnx_folder / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        logits = session.run(list(model.tasks), {"images": photographs(batch)})
        assert_same(dict(zip(model.tasks, logits, strict=True)), model, photographs(batch))


def test_onnx_metadata(onnx_folder):
    assert sorted(path.name for path in onnx_folder.iterdir()) == ["metadata.json", "model.onnx"]
    about = json.loads((onnx_folder / "metadata.json").read_text())
    assert "stablehlo" not in about
    assert about["input"]["shape"] == about["onnx"]["shape"] == ["B", 32, 32, 3]
    assert about["onnx"]["outputs"] == ["semseg", "sal", "normals"]
    assert 0 < about["onnx"]["difference"] < TOLERANCE


def test_an_onnx_model_that_computes_something_else_is_not_written(small, tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx")
    monkeypatch.setattr(onnx, "TOLERANCE", 0.0)
    message = r"the ONNX model is not this model: onnxruntime's logits differ by .* of the largest"
    with pytest.raises(UserError, match=message):
        main([f"--model={small}", f"--output={tmp_path / 'out'}", "--format=onnx"])
    assert not list(tmp_path.iterdir())
