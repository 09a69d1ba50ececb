"""Old names of config keys and flags: errors give the new ones, and stored configs are translated."""

import json
import re

import pytest
from paths import ROOT

from mtlora_jax import config, config_aliases, main
from mtlora_jax.benchmark import __main__ as benchmark
from mtlora_jax.defaults import default, flattened
from mtlora_jax.errors import UserError

FILE = """
from mtlora_jax.defaults import default

def get_config():
    config = default()
    {change}
    return config
"""
LINE = "config has no key {}; it is called {} now"


@pytest.mark.parametrize(("old", "new"), config_aliases.KEYS.items())
def test_an_old_key_on_the_command_line_is_answered_with_the_new_one(old, new):
    assert any(key == new or key.startswith(f"{new}.") for key in flattened(default())) or new in default()
    with pytest.raises(UserError, match=f"^{re.escape(LINE.format(old, new))}$"):
        config.load(str(ROOT / "configs" / "demo.py"), [f"{old}=5"])


def test_an_entry_of_a_group_and_a_whole_group_are_answered_too():
    for override, told in {
        "single_task.semseg=60": LINE.format("single_task.semseg", "delta_m_baseline.semseg"),
        "precision=bfloat16": "config has no group precision now: compute is compute_dtype, frozen is frozen_dtype",
    }.items():
        with pytest.raises(UserError, match=f"^{re.escape(told)}$"):
            config.load(str(ROOT / "configs" / "demo.py"), [override])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("config.eval_every = 5", LINE.format("eval_every", "eval_every_epochs")),
        ("config.data.workers = 5", LINE.format("data.workers", "data.num_workers")),
        (
            "config.data.augmentation.update({'discrete': True})",
            LINE.format("data.augmentation.discrete", "data.augmentation.discrete_scales"),
        ),
        ("config.guards.grace_seconds = 5.0", "config has no group guards now: max_skipped_in_row is fault_tolerance."),
        ("config['init'] = 'weights'", LINE.format("init", "init_from")),
        ("config.unlock(); config.log_every = 5", LINE.format("log_every", "log_every_steps")),
        ("config.unlock(); config.single_task = {'sal': 1.0}", LINE.format("single_task.sal", "delta_m_baseline.sal")),
    ],
)
def test_a_file_that_sets_an_old_key_is_answered_with_the_new_one(tmp_path, change, told):
    (tmp_path / "mine.py").write_text(FILE.format(change=change))
    with pytest.raises(UserError, match=f"^{re.escape(told)}"):
        config.load(str(tmp_path / "mine.py"))


def test_other_mistakes_in_a_file_stay_what_they_are(tmp_path):
    (tmp_path / "mine.py").write_text(FILE.format(change="config.epoch = 5"))
    with pytest.raises(AttributeError, match="epoch"):
        config.load(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(("old", "new"), config_aliases.FLAGS.items())
def test_an_old_flag_is_answered_with_the_new_one(old, new):
    with pytest.raises(UserError, match=f"^there is no flag {old}; it is called {new} now$"):
        main.main([f"--config={ROOT / 'configs' / 'demo.py'}", "--workdir=nowhere", f"{old}=1"])


def test_an_old_measurement_is_answered_with_the_new_one():
    with pytest.raises(UserError, match=r"^there is no --what=feed; it is called --what=end_to_end now$"):
        benchmark.main([f"--config={ROOT / 'configs' / 'demo.py'}", "--what=feed"])


def test_a_stored_config_is_translated():
    """An old config gets its values under today's keys; a config of today is unchanged."""
    old = json.loads((ROOT / "tests" / "train" / "old_workdir" / "config.json").read_text())
    translated = config_aliases.translate(old)
    assert translated.keys() == json.loads(default().to_json_best_effort()).keys()
    assert (translated["eval_every_epochs"], translated["checkpoint_every_steps"], translated["frozen_dtype"]) == (
        2,
        5,
        "float32",
    )
    assert translated["fault_tolerance"] == dict(default().fault_tolerance)
    assert set(translated["data"]) == set(default().data)
    assert translated["data"]["augmentation"]["discrete_scales"] is False
    assert old["eval_every"] == 2
    assert config_aliases.translate(translated) == translated
    assert config_aliases.translate({"guards": 3, "data": None, "init": "a", "init_from": "b"}) == {
        "guards": 3,
        "data": None,
        "init_from": "b",
    }
