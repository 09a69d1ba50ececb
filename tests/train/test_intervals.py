"""When a run logs, saves and evaluates."""

from mtlora_jax.defaults import default
from mtlora_jax.train.intervals import Intervals


def intervals(**changes) -> Intervals:
    config = default()
    config.update({"epochs": 5, "eval_every_epochs": 2, "log_every_steps": 4} | changes)
    return Intervals(config, steps_per_epoch=3)


def due(answer) -> list[int]:
    return [step for step in range(16) if answer(step)]


def test_the_last_step_logs_saves_and_evaluates():
    plain = intervals(checkpoint_every_epochs=4)
    assert plain.steps == 15
    assert due(plain.is_log_due)[1:] == [4, 8, 12, 15]
    assert due(plain.is_evaluation_due) == [6, 12, 15]
    assert due(plain.is_checkpoint_due)[1:] == [6, 12, 15]


def test_each_interval_counts_in_its_own_unit():
    often = intervals(eval_first=True, checkpoint_every_steps=5)
    assert due(often.is_evaluation_due) == [0, 6, 12, 15]
    assert due(often.is_checkpoint_due) == [0, 3, 5, 6, 9, 10, 12, 15]


def test_evaluations_left():
    """The very first is not counted: no training time comes before it."""
    assert [intervals().evaluations_left(step) for step in (0, 5, 6, 12, 14)] == [3, 3, 2, 1, 1]
