"""Training starts from the weights of a model folder that fit, and reports the others."""

import copy
import re

import jax
import micro
import numpy as np
import pytest

from mtlora_jax.errors import UserError
from mtlora_jax.model_factory import build
from mtlora_jax.model_io import initial_weights, model_folder
from mtlora_jax.model_io.merging import merged_arrays
from mtlora_jax.models import parameters
from mtlora_jax.tasks import make_tasks

SOURCE = micro.architecture()
NAMES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def arrays():
    return micro.random_arrays(SOURCE, seed=1)


@pytest.fixture(scope="module")
def source(arrays, tmp_path_factory) -> str:
    where = tmp_path_factory.mktemp("models") / "source"
    model_folder.save(where, SOURCE, arrays, {"classes": {"semseg": NAMES, "sal": ["nothing", "something"]}})
    return str(where)


def loaded(source: str, architecture, names=NAMES, **options) -> dict[str, np.ndarray]:
    """The arrays of a model that starts from `source`, without those still to be initialised."""
    model = build(architecture)
    initial_weights.load(model, source, architecture, make_tasks(architecture["tasks"], {"semseg": names}), **options)
    values = {path: variable.get_value() for path, variable in parameters.flat_variables(model).items()}
    return {path: np.asarray(value) for path, value in values.items() if not isinstance(value, jax.ShapeDtypeStruct)}


def changed(**parts):
    architecture = copy.deepcopy(SOURCE)
    for part, value in parts.items():
        architecture[part] = {**architecture[part], **value}
    return architecture


FEWER = micro.architecture(tasks=("semseg", "sal"), task_rank={"semseg": [1, 2], "sal": 2})
CLASSIFIER = {f"decoders.semseg.head.classifier.{name}" for name in ("kernel", "bias")}
MORE, SWAPPED = [*NAMES, "grey"], ["red", "blue", "green"]
HEAD = "decoders.semseg.head.classifier"
OTHERS = {  # {case: (architecture, names of the classes, error message)}
    "more classes": (changed(tasks={"semseg": 4}), MORE, f"{HEAD}: 3 classes there, 4 here"),
    "other names": (SOURCE, SWAPPED, f"{HEAD}: class 1 is 'green' there, 'blue' here"),
    "ranks": (changed(method={"rank": [3, 4]}), NAMES, "low-rank factors: rank 2 there, 4 here"),
    "task ranks": (changed(method={"task_rank": 2}), NAMES, "task-specific factors: rank 1 there, 2 here"),
    "fewer tasks": (FEWER, NAMES, "the config has no task normals"),
    "method": (micro.architecture("full"), NAMES, "low-rank factors there, none here"),
    "locations": (changed(method={"locations": ["qkv", "proj"]}), NAMES, "low-rank factors there, none here"),
    "decoder": (changed(decoder={"name": "segformer", "width": 8}), NAMES, "decoder hrnet there, segformer here"),
    "channels": (changed(decoder={"channels": [2, 4]}), NAMES, "decoders.sal.projections.1: 3 channels there, 4 here"),
}

NEW = {  # {case: pattern in the paths that are initialised anew}
    "more classes": "semseg.head.classifier",
    "other names": "semseg.head.classifier",
    "ranks": "layers.1.*shared_",
    "task ranks": "task_[ab]",
    "fewer tasks": "nothing",
    "method": "nothing",
    "locations": "nothing",
    "decoder": r"decoders\.",
    "channels": r"decoders\..*(projections.1|fuse|norm|classifier.kernel)",
}


def test_everything_fits(source, arrays):
    found = loaded(source, SOURCE)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[path], arrays[path]) for path in arrays)


@pytest.mark.parametrize("case", OTHERS)
def test_what_does_not_fit_is_refused_by_name(source, case):
    architecture, names, told = OTHERS[case]
    with pytest.raises(UserError, match=r"--config\.init_strict=False") as error:
        loaded(source, architecture, names)
    assert told in str(error.value)


@pytest.mark.parametrize("case", OTHERS)
def test_what_fits_is_taken_when_asked(source, arrays, case, capsys):
    architecture, names, told = OTHERS[case]
    found = loaded(source, architecture, names, strict=False)
    own = parameters.flat_variables(build(architecture))
    new = own.keys() - found.keys()
    assert all(re.search(NEW[case], path) for path in new)
    backbone = {path for path in own if path.startswith("backbone.") and not re.search("shared_|task_", path)}
    assert backbone <= found.keys()
    assert all(np.array_equal(found[path], arrays[path]) for path in found)
    assert told in " ".join(capsys.readouterr().out.split())


def test_only_the_classifier_of_other_classes_is_new(source):
    own = parameters.flat_variables(build(SOURCE)).keys()
    assert own - loaded(source, SOURCE, SWAPPED, strict=False).keys() == CLASSIFIER
    more = OTHERS["more classes"][0]
    assert own - loaded(source, more, MORE, strict=False).keys() == CLASSIFIER


def test_an_evaluation_needs_all_of_it(source, tmp_path):
    assert loaded(source, SOURCE, complete=True)
    message = "predicts other classes than the data has: semseg: class 1 is 'green' there, 'blue' here"
    with pytest.raises(UserError, match=message):
        loaded(source, SOURCE, SWAPPED, complete=True, strict=False)
    with pytest.raises(UserError, match="does not fit the model; left over"):
        loaded(source, FEWER, complete=True, strict=False)


@pytest.mark.parametrize(
    "option", [{"scale": 2.0}, {"task_scale": {"semseg": 4.0, "sal": 2, "normals": 4.0}}, {"ts_base": "task"}], ids=str
)
def test_an_evaluation_computes_what_was_trained(source, option):
    ((name, value),) = option.items()
    with pytest.raises(UserError, match=f"computes something else: .*{name} .* there, .* in the config") as error:
        loaded(source, changed(method=option), complete=True)
    assert "give the values it was trained with" in str(error.value)
    harmless = {"dropout": 0.5, "scale": [4, 4.0], "freeze": ["norms"]}
    assert loaded(source, changed(method=harmless, backbone={"drop_path_rate": 0.0}), complete=True)


def test_defaults_of_classes_count_as_attributes():
    model = build(changed(method={"ts_base": "task"}))
    assert initial_weights.computing(model)["carry_tasks"] is False
    model.backbone.carry_tasks = True
    told = initial_weights.computing(model)
    del model.backbone.carry_tasks
    assert model.backbone.carry_tasks
    assert initial_weights.computing(model) == told


def test_an_evaluation_may_order_tasks_otherwise(source):
    tasks = dict(reversed(SOURCE["tasks"].items()))
    assert loaded(source, {**SOURCE, "tasks": tasks}, complete=True)


def test_a_model_that_names_no_classes_contradicts_nothing(arrays, tmp_path):
    model_folder.save(tmp_path / "converted", SOURCE, arrays)
    assert loaded(str(tmp_path / "converted"), SOURCE, ["x", "y", "z"]).keys() == arrays.keys()


@pytest.mark.parametrize("strict", [True, False])
def test_the_backbone_must_be_whole(arrays, tmp_path, strict):
    """Frozen weights are never random."""
    bare = micro.architecture("full", tasks=())
    backbone = {path: arrays[path] for path in parameters.flat_variables(build(bare))}
    model_folder.save(tmp_path / "bare", bare, backbone)
    assert loaded(str(tmp_path / "bare"), SOURCE, strict=strict).keys() == backbone.keys()
    model_folder.save(tmp_path / "less", bare, dict(list(backbone.items())[1:]))
    with pytest.raises(UserError, match=f"missing: {next(iter(backbone))}"):
        loaded(str(tmp_path / "less"), SOURCE, strict=strict)
    window, ratio = {"window_size": 2}, {"mlp_ratio": 4.0}
    for part, told in ((window, "window_size 4 there, 2 in the config"), (ratio, "mlp_ratio 2.0 there, 4.0")):
        with pytest.raises(UserError, match=f"holds another backbone: {told}"):
            loaded(str(tmp_path / "bare"), changed(backbone=part), strict=strict)
    defaults = {key: value for key, value in SOURCE["backbone"].items() if key != "mlp_ratio"}
    with pytest.raises(UserError, match="of another shape: backbone"):
        loaded(str(tmp_path / "bare"), {**SOURCE, "backbone": defaults}, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_a_merged_model_is_no_start(arrays, tmp_path, strict):
    model_folder.save(tmp_path / "merged", *merged_arrays(SOURCE, arrays))
    with pytest.raises(UserError, match="is merged, which cannot be trained further"):
        loaded(str(tmp_path / "merged"), SOURCE, strict=strict)
