"""Model folders: round trips, loaded models, and errors that name the damage."""

import json
import pathlib
import re
import shutil

import cv2
import micro
import numpy as np
import pytest
import safetensors.numpy
from paths import ROOT

import mtlora_jax
from mtlora_jax.convert.__main__ import main as convert
from mtlora_jax.errors import UserError
from mtlora_jax.eval.visualize import logits_of
from mtlora_jax.export.__main__ import main as export
from mtlora_jax.model_factory import build
from mtlora_jax.model_io import initial_weights, model_folder
from mtlora_jax.models import parameters
from mtlora_jax.models.inputs import normalise
from mtlora_jax.predict.__main__ import main as predict

ARCHITECTURE = micro.architecture(stages=1)
BARE = micro.architecture("full", tasks=(), stages=1)


@pytest.fixture(scope="module")
def arrays():
    return micro.random_arrays(ARCHITECTURE)


@pytest.fixture(scope="module")
def saved(arrays, tmp_path_factory) -> pathlib.Path:
    where = tmp_path_factory.mktemp("models") / "deep" / "model"
    model_folder.save(where, ARCHITECTURE, arrays, {"classes": {"semseg": ["a", "b", "c"]}})
    return where


@pytest.fixture(scope="module")
def model(saved):
    return mtlora_jax.load(saved)


@pytest.fixture
def copy(saved, tmp_path) -> pathlib.Path:
    """A model folder to break."""
    return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))


def rewrite(where: pathlib.Path, arrays) -> None:
    safetensors.numpy.save_file(arrays, where / "model.safetensors")


def test_round_trip(saved, arrays):
    config, values = model_folder.read(saved)
    assert config["architecture"] == ARCHITECTURE
    assert list(config["architecture"]["tasks"]) == list(micro.TASKS)
    assert values.keys() == arrays.keys()
    for path, value in values.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, arrays[path])
    assert config == model_folder.read_config(saved)
    assert config["classes"] == {"semseg": ["a", "b", "c"]}
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_arrays_that_are_not_contiguous(arrays, tmp_path):
    """A safetensors file written from strided memory would hold other numbers."""
    strided = {path: np.asfortranarray(value) for path, value in arrays.items()}
    model_folder.save(tmp_path / "model", ARCHITECTURE, strided)
    for path, value in model_folder.read(tmp_path / "model")[1].items():
        np.testing.assert_array_equal(value, arrays[path])


def test_a_loaded_model_is_the_module(model, arrays):
    images = micro.random_images()
    logits = model(images)
    expected = micro.logits_of(micro.holding(ARCHITECTURE, arrays), images)
    assert model.tasks == tuple(micro.TASKS)
    assert set(logits) == set(micro.TASKS)
    for task, outputs in micro.TASKS.items():
        assert logits[task].shape == (2, 32, 32, outputs)
        np.testing.assert_allclose(logits[task], expected[task], rtol=0, atol=1e-5 * np.abs(expected[task]).max())


def test_a_bare_backbone(tmp_path):
    model_folder.save(tmp_path / "bare", BARE, parameters.host_arrays(micro.fresh(BARE)))
    model = mtlora_jax.load(tmp_path / "bare")
    (features,) = model.features(micro.random_images())
    assert features.shared.shape == (2, 8, 8, 12)
    assert features.tasks is None
    with pytest.raises(UserError, match=r"bare backbone without tasks: use model\.features"):
        model(micro.random_images())


def photograph(height: int, width: int) -> np.ndarray:
    """A uint8 image (H, W, 3), smooth enough that resizing it makes sense."""
    small = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def assert_close(found, expected, atol=1e-5):
    """Asserts equality within `atol` times the largest value."""
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol * np.abs(expected).max())


def test_bytes_are_evaluated_as_in_training(model, arrays):
    """One image of the model's size, without a batch axis, has the logits of the evaluation step."""
    image = photograph(32, 32)
    graph, *parts = parameters.partition(micro.holding(ARCHITECTURE, arrays), lambda path, variable: True)
    forward = micro.jit(lambda parts, images: logits_of(*parts[::2], parts[1], images, graph=graph))
    expected = forward(parts, image[None])
    assert model.image_size == (32, 32)
    for task, logits in model(image).items():
        assert_close(logits, expected[task][0])
    for task, logits in model(np.asarray(normalise(image[None]))).items():
        assert_close(logits, expected[task])


def test_other_sizes_are_resized_as_in_evaluations(model):
    image = photograph(44, 26)
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_CUBIC)
    inside = model(small)
    found = model(image)
    assert list(found) == list(micro.TASKS)
    for task, outputs in micro.TASKS.items():
        expected = cv2.resize(np.asarray(inside[task]), (26, 44), interpolation=cv2.INTER_LINEAR)
        assert_close(found[task], expected.reshape(44, 26, outputs))


def test_padding_adds_zeros_that_are_cut_off(model, arrays):
    image = photograph(20, 40)
    padded = np.zeros((1, 32, 64, 3), np.float32)
    padded[:, :20, :40] = normalise(image[None])
    expected = micro.logits_of(micro.holding(ARCHITECTURE, arrays), padded)
    for task, logits in model(image, fit="pad").items():
        assert_close(logits, expected[task][0, :20, :40])


def test_one_compilation_for_each_shape(saved, monkeypatch):
    model = mtlora_jax.load(saved)
    traced = []

    def counted(images):
        traced.append(images.shape)
        return normalise(images)

    monkeypatch.setattr(model_folder, "normalised", counted)
    for image in (photograph(32, 32), photograph(40, 24), photograph(64, 33), photograph(40, 24)):
        for fit in ("resize", "pad") if image.shape == (32, 32, 3) else ("resize",):
            model(image, fit=fit)
    assert traced == [(1, 32, 32, 3)]
    for _ in range(2):
        model(photograph(40, 24), fit="none")
    assert traced == [(1, 32, 32, 3), (1, 40, 24, 3)]


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (np.zeros((32, 32), np.uint8), "got uint8 (32, 32)"),
        (np.zeros((1, 3, 32, 32), np.float32), "got float32 (1, 3, 32, 32)"),
        (np.zeros((1, 32, 32, 4), np.uint8), "got uint8 (1, 32, 32, 4)"),
        (np.zeros((0, 32, 32, 3), np.uint8), "got uint8 (0, 32, 32, 3)"),
        (np.zeros((32, 32, 3), np.int64), "got int64 (32, 32, 3)"),
        (np.full((32, 32, 3), 255.0), "images are floats up to 255"),
        (np.full((32, 32, 3), np.nan, np.float32), "images are floats up to nan"),
    ],
    ids=["grey", "channels first", "four channels", "none", "whole numbers", "not normalised", "not finite"],
)
@pytest.mark.parametrize("name", ["__call__", "features"])
def test_wrong_images(model, images, told, name):
    with pytest.raises(UserError, match=re.escape(told)):
        getattr(model, name)(images)


def test_wrong_fit(model):
    with pytest.raises(UserError, match="fit = 'crop' is not one of resize, pad, none"):
        model(photograph(32, 32), fit="crop")


def test_a_model_saves_itself(model, saved, tmp_path):
    model.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_functions_of_the_package_hide_behind_no_module():
    for name in mtlora_jax.__all__:
        assert callable(getattr(mtlora_jax, name))
        assert not (ROOT / "mtlora_jax" / f"{name}.py").exists()


PARTS = '{"backbone": %s, "tasks": %s, "decoder": null, "method": {}, "image_size": []}'
CONFIG = f'{{"format": 1, "architecture": {PARTS}, "adapter": %s}}'
INCOMPLETE = '{"format": 1, "architecture": {"backbone": {}, "image_size": [32, 32]}}'
ADAPTER = json.dumps({"base": "swin", "sha256": "0" * 64})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"copy is not a model folder: it has no config\.json"),
        ("{ not JSON", r"config\.json is not valid JSON: "),
        ("\udcff", r"config\.json: is not UTF-8 text"),
        ("[]", r"config\.json does not describe a model of mtlora_jax"),
        ('{"model_type": "swin"}', r"config\.json does not describe a model of mtlora_jax"),
        ('{"format": 1, "architecture": "swin"}', r"config\.json does not describe a model of mtlora_jax"),
        ('{"format": 2, "architecture": {}}', r"config\.json has format 2; this version reads 1"),
        (INCOMPLETE, r"config\.json: architecture = .* must be .* with backbone, tasks, decoder, method"),
        (CONFIG % ('"swin"', "{}", ADAPTER), r'config\.json: architecture: backbone = "swin" must be an object'),
        (CONFIG % ("{}", '["sal"]', ADAPTER), r'config\.json: architecture: tasks = \["sal"\] must be an object'),
        (CONFIG % ("{}", "{}", '"swin"'), r'config\.json: adapter = "swin" must be an object with base, sha256'),
    ],
)
def test_damaged_config(copy, text, message):
    path = copy / "config.json"
    path.unlink()
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        mtlora_jax.load(copy)


def test_scores_that_are_no_numbers(arrays, tmp_path):
    scores = {"sal/mIoU": float("nan"), "sal/F": None, "normals/mean": 3.5}
    model_folder.save(tmp_path / "model", ARCHITECTURE, arrays, {"scores": scores})
    assert model_folder.read_config(tmp_path / "model")["scores"] == {**scores, "sal/mIoU": None}


@pytest.fixture
def run(saved, tmp_path) -> pathlib.Path:
    """The folder of a run that was evaluated."""
    (tmp_path / "run" / "checkpoints" / "24").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text('{"seed": 0}')
    for name in ("initial", "best"):
        shutil.copytree(saved, tmp_path / "run" / name)
    return tmp_path / "run"


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/24", "bset"])
def test_a_run_in_place_of_its_model(run, inside):
    what = "is a run" if not inside else f"is part of the run {run}"
    message = re.escape(f"{run / inside} {what}; its best model is {run / 'best'}")
    with pytest.raises(UserError, match=f"{message}$"):
        mtlora_jax.load(run / inside)
    shutil.rmtree(run / "best")
    with pytest.raises(UserError, match=f"{re.escape(f'{run / inside} {what}')}; it has no best model yet"):
        mtlora_jax.load(run / inside)
    with pytest.raises(UserError, match=r"best is not a model folder: it has no config\.json"):
        mtlora_jax.load(run / "best")


@pytest.mark.parametrize("kept", ["initial", "checkpoints", "best"])
def test_little_is_left_of_a_run(run, kept):
    for name in {"initial", "checkpoints", "best"} - {kept}:
        shutil.rmtree(run / name)
    with pytest.raises(UserError, match="run is a run; it"):
        mtlora_jax.load(run)


def commands(base: pathlib.Path, where: pathlib.Path) -> dict:
    """{place that takes a model folder: calls it with `where`}."""
    out, tasks = str(base / "out"), micro.tasks_of(ARCHITECTURE)
    image = base / "image.png"
    cv2.imwrite(str(image), photograph(32, 32))
    return {
        "predict": lambda: predict([f"--model={where}", f"--images={image}", f"--output={out}"]),
        "export": lambda: export([f"--model={where}", f"--output={out}"]),
        "convert": lambda: convert([str(where), out]),
        "base": lambda: convert([str(where / "best"), out, "--adapter", f"--base={where}"]),
        "init": lambda: initial_weights.load(build(ARCHITECTURE), str(where), ARCHITECTURE, tasks),
        "origin": lambda: initial_weights.origin_of(str(where)),
    }


@pytest.mark.parametrize("place", ["predict", "export", "convert", "base", "init", "origin"])
def test_every_place_that_takes_a_model_folder_knows_a_run(run, place):
    with pytest.raises(UserError, match=f"run is a run; its best model is {re.escape(str(run / 'best'))}$"):
        commands(run.parent, run)[place]()
    assert not (run.parent / "out").exists()


def test_other_folders_with_checkpoints_are_no_runs(saved, tmp_path):
    (tmp_path / "project" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"weights is not a model folder: it has no config\.json"):
        mtlora_jax.load(tmp_path / "project" / "weights")
    shutil.copytree(saved, tmp_path / "project" / "weights")
    assert model_folder.read_config(tmp_path / "project" / "weights")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings_of_config(copy, encoding):
    path = copy / "config.json"
    config = json.loads(path.read_text())
    config["classes"]["semseg"] = ["Straße", "木", "c"]
    path.write_bytes(json.dumps(config, ensure_ascii=False).encode(encoding))
    assert model_folder.is_model_folder(copy)
    assert model_folder.read_config(copy)["classes"] == config["classes"]


def test_home_folders(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert model_folder.read_config("~/model") == model_folder.read_config(saved)
    assert initial_weights.origin_of("~/model")["folder"] == "model"
    assert initial_weights.merged_method("~/model") == {}


@pytest.mark.parametrize("keep", [None, 0, 100, -1])
def test_damaged_weights(copy, keep):
    path = copy / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read: "):
        mtlora_jax.load(copy)


def test_weights_that_do_not_fit(copy, arrays):
    values = dict(arrays)
    lost = [path for path in values if path.startswith("decoders.sal.")][:2]
    for path in lost:
        del values[path]
    values["backbone.head.weight"] = np.zeros(3, np.float32)
    values["backbone.patch_embed.norm.bias"] = np.zeros(5, np.float32)
    rewrite(copy, values)
    with pytest.raises(UserError) as refused:
        mtlora_jax.load(copy)
    assert str(refused.value) == (
        f"{copy} does not fit the model; missing: {', '.join(sorted(lost))} (2); left over: backbone.head.weight (1); "
        "of another shape: backbone.patch_embed.norm.bias (5,) instead of (12,) (1)"
    )


def test_long_lists_of_keys_are_cut(copy, arrays):
    rewrite(copy, {"a": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=rf"missing: ([\w.]+, ){{10}}\.\.\. \({len(arrays)}\); left over: a \(1\)$"):
        mtlora_jax.load(copy)


def test_nothing_is_assigned_unless_everything_fits(arrays):
    model = micro.fresh(ARCHITECTURE)
    before = parameters.host_arrays(model)
    with pytest.raises(UserError, match="missing"):
        parameters.assign(model, dict(list(arrays.items())[1:]), "arrays")
    for path, value in parameters.host_arrays(model).items():
        np.testing.assert_array_equal(value, before[path])


@pytest.mark.parametrize("existing", [False, True])
def test_saving_is_atomic(saved, arrays, tmp_path, existing):
    where = tmp_path / "model"
    if existing:
        shutil.copytree(saved, where)
    before = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        model_folder.save(where, ARCHITECTURE, {path: value + 1 for path, value in arrays.items()}, {"extra": object()})
    assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == ([where] if existing else [])


def test_saving_replaces_an_existing_folder(copy, arrays):
    (copy / "stale.txt").write_text("old")
    model_folder.save(copy, ARCHITECTURE, {path: value + 1 for path, value in arrays.items()})
    assert sorted(path.name for path in copy.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    path = "backbone.patch_embed.norm.scale"
    np.testing.assert_array_equal(model_folder.read(copy)[1][path], arrays[path] + 1)
    assert [entry.name for entry in copy.parent.iterdir()] == ["copy"]
