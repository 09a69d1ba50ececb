"""What a run remembers across a stop: it is restored as stored; anything that no run stores is refused by name."""

import json
import math

import jax.numpy as jnp
import pytest

from mtlora_jax.errors import UserError
from mtlora_jax.train.loop_state import LoopState, PendingStep, fetch

LOOP = {
    "waiting": [{"step": 7, "metrics": {"loss": 1.5, "grad_norm": math.inf}, "image_ids": ["a", "b\udcff"]}],
    "skipped_in_row": 1,
    "bad_examples": {"c.png: cut off": 3},
}


def test_it_comes_back_as_it_was_stored():
    pending = fetch([PendingStep(7, {"loss": jnp.float32(1.5), "grad_norm": jnp.float32(jnp.inf)}, ["a", "b\udcff"])])
    state = LoopState({"next_batch": 7}, pending, 1, {"c.png: cut off": 3})
    assert state.to_json() == LOOP
    assert LoopState.from_json({"next_batch": 7}, json.loads(json.dumps(state.to_json()))) == state
    assert LoopState.from_json(LoopState().data, LoopState().to_json()) == LoopState()


@pytest.mark.parametrize(
    ("data", "change", "told"),
    [
        ({}, {}, r"data = \{\} must be an object with next_batch$"),
        ({"next_batch": -1}, {}, r"data\.next_batch = -1 must be a whole number from 0"),
        ({"next_batch": 7}, {"waiting": {}}, r"loop\.waiting = \{\} must be a list"),
        (
            {"next_batch": 7},
            {"waiting": [{"step": 7}]},
            r"loop\.waiting\.0 = .* must be an object with step, metrics, image_ids",
        ),
        ({"next_batch": 7}, {"skipped_in_row": True}, r"loop\.skipped_in_row = true must be a whole number"),
        (
            {"next_batch": 7},
            {"bad_examples": {"c.png": "3"}},
            r'loop\.bad_examples\.c\.png = "3" must be a whole number',
        ),
    ],
)
def test_what_no_run_stores_is_refused_by_name(data, change, told):
    with pytest.raises(UserError, match=f"^the checkpoint is of another version of this program: {told}"):
        LoopState.from_json(data, LOOP | change)
    for key in LOOP:
        with pytest.raises(UserError, match="must be an object with waiting, skipped_in_row, bad_examples"):
            LoopState.from_json({"next_batch": 7}, {name: value for name, value in LOOP.items() if name != key})
