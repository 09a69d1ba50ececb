"""Values that a config may have."""

import math

import pytest

from mtlora_jax import config_checks
from mtlora_jax.defaults import default, flattened
from mtlora_jax.errors import UserError


def config(**changes):
    made = default()
    with made.unlocked():
        made.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return made


def test_the_defaults_are_allowed():
    config_checks.check(default())
    assert config_checks.BOUNDS.keys() <= flattened(default()).keys()


FLOATS = [key for key, value in flattened(default()).items() if isinstance(value, float)]


@pytest.mark.parametrize("key", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_infinite(key, value):
    with pytest.raises(UserError, match=rf"{key} = .* must be finite"):
        config_checks.check(config(**{key: value}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer__learning_rate": -1.0}, r"optimizer.learning_rate = -1.0 must be above 0"),
        ({"optimizer__learning_rate": 0.0}, r"optimizer.learning_rate = 0.0 must be above 0"),
        ({"optimizer__weight_decay": -0.1}, r"optimizer.weight_decay = -0.1 must be at least 0"),
        ({"optimizer__b2": 1.0}, r"optimizer.b2 = 1.0 must be at least 0 and below 1"),
        ({"backbone__drop_path_rate": 1.5}, r"backbone.drop_path_rate = 1.5 must be at least 0 and below 1"),
        ({"seed": -1}, r"seed = -1 must be at least 0"),
        ({"epochs": 0}, r"epochs = 0 must be at least 1"),
        ({"eval_batch_size": 0}, r"eval_batch_size = 0 must be at least 1"),
        ({"data__num_workers": -2}, r"data.num_workers = -2 must be at least 0"),
        ({"fault_tolerance__grace_seconds": -1.0}, r"fault_tolerance.grace_seconds = -1.0 must be at least 0"),
        ({"tasks": ()}, r"the config names no task"),
    ],
)
def test_out_of_bounds(changes, told):
    with pytest.raises(UserError, match=told):
        config_checks.check(config(**changes))


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"semseg": math.nan}, r"loss_weights.semseg = nan must be finite"),
        ({"semseg": -5.0}, r"loss_weights.semseg = -5.0 must be at least 0"),
        ({"depth": 1.0}, r"loss_weights.depth: the config trains semseg, human_parts, sal, normals"),
        (dict.fromkeys(("semseg", "human_parts", "sal", "normals"), 0.0), r"all are 0"),
    ],
)
def test_loss_weights(weights, told):
    changed = config()
    with changed.unlocked():
        changed.loss_weights.update(weights)
    with pytest.raises(UserError, match=told):
        config_checks.check(changed)


def test_weights_of_0_are_allowed():
    changed = config()
    with changed.unlocked():
        changed.loss_weights.update({"semseg": 0.0})
    config_checks.check(changed)


def test_a_batch_of_one_image_and_a_norm_of_pooled_features():
    with pytest.raises(
        UserError, match="batch_size = 1: the decoder aspp normalises over the batch and needs at least 2 images"
    ):
        config_checks.check(config(batch_size=1, decoder__name="aspp"))
    config_checks.check(config(batch_size=2, decoder__name="aspp"))
    config_checks.check(config(batch_size=1))
