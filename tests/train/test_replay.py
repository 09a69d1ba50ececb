"""`--mode=replay`: the same step once more, and the module from which its numbers are no longer finite."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from tiny_runs import lines_of, prepare

from mtlora_jax import main
from mtlora_jax.analysis import nonfinite
from mtlora_jax.errors import UserError

POISONED = "backbone.layers.1.blocks.0.mlp.fc1"
OPTIONS = {"keep_checkpoints": 9, "checkpoint_every_steps": 2, "eval_first": False, "log_every_steps": 1, "epochs": 2}


def call(base, workdir, *more: str) -> None:
    main.main([f"--config={base / 'micro.py'}", f"--workdir={base / workdir}", *more])


def replay(base, workdir, step: int, capsys, *more: str) -> str:
    capsys.readouterr()
    call(base, workdir, "--mode=replay", f"--step={step}", *more)
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A whole run of six steps in `run`, and its weights."""
    folder = prepare(tmp_path_factory.mktemp("replay"), eval_every_epochs=2, checkpoint_every_epochs=2, **OPTIONS)
    call(folder, "run")
    return folder


@pytest.fixture(scope="module")
def poisoned(base):
    """A run from weights of which one layer of the backbone overflows float32."""
    arrays = safetensors.numpy.load_file(base / "run" / "initial" / "model.safetensors")
    arrays[f"{POISONED}.kernel"] = np.full_like(arrays[f"{POISONED}.kernel"], 3e38)
    (base / "weights").mkdir()
    safetensors.numpy.save_file(arrays, base / "weights" / "model.safetensors")
    (base / "weights" / "config.json").write_bytes((base / "run" / "initial" / "config.json").read_bytes())
    with pytest.raises(UserError, match="not finite"):
        call(base, "poisoned", f"--config.init_from={base / 'weights'}")
    return base / "poisoned"


def losses(line: str) -> dict[str, float]:
    return {name: value for name, value in json.loads(line).items() if name.startswith("loss")}


def test_a_step_of_a_sound_run_is_repeated_exactly(base, capsys):
    step = 4
    before = {path: path.stat().st_mtime_ns for path in (base / "run").rglob("*")}
    told = replay(base, "run", step, capsys)
    assert "from the checkpoint of step 2" in told
    assert "everything is finite" in told
    logged = next(line for line in lines_of(base / "run") if json.loads(line)["step"] == step)
    for name, value in losses(logged).items():
        assert f"{name} " in told
        assert f"{value:.6g}" in told  # the run's own program, from checkpoints that precede the step
    assert {path: path.stat().st_mtime_ns for path in (base / "run").rglob("*")} == before


def test_the_module_that_overflows_is_named(base, poisoned, capsys):
    told = replay(base, "poisoned", 1, capsys, f"--config.init_from={base / 'weights'}")
    assert f"first not finite: the output of {POISONED}, " in told
    assert "Gradients of parameters" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--mode=replay"], "given together or not at all"),
        (["--step=2"], "given together or not at all"),
        (["--mode=replay", "--step=0"], r"--step=0 must be from 1 to 6, the last step of the run"),
        (["--mode=replay", "--step=7"], r"--step=7 must be from 1 to 6, the last step of the run"),
        (["--mode=replay", "--step=2", "--config.optimizer.learning_rate=0.5"], r"optimizer\.learning_rate was 0\.003"),
    ],
)
def test_what_cannot_be_replayed_is_refused(base, flags, told):
    with pytest.raises(UserError, match=told):
        call(base, "run", *flags)


def test_without_a_run_there_is_nothing_to_replay(base):
    with pytest.raises(UserError, match="nothing to replay: .* holds no run"):
        call(base, "nowhere", "--mode=replay", "--step=1")
    assert not (base / "nowhere").exists()


class Scale(nnx.Module):
    def __init__(self, by: float):
        self.by = by

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.by


class Root(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.sqrt(x)


class Chain(nnx.Module):
    """(x a)^(1/2) b: of x = 0 the value is finite, and the derivative of the root is not."""

    def __init__(self):
        self.first, self.root, self.last = Scale(2.0), Root(), Scale(3.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda row: self.last(self.root(self.first(row))))(x)


def count(x: jax.Array) -> tuple[list[str], dict[str, list[float]]]:
    order: list[str] = []

    def total(x: jax.Array, counts: nonfinite.Counts) -> jax.Array:
        model = Chain()
        nonfinite.watch(model, counts, order)
        return jnp.sum(model(x))

    counts = jax.jit(jax.grad(total, argnums=1))(x, nonfinite.zero_counts(Chain()))
    return order, {path: values.tolist() for path, values in counts.items()}


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([[1.0, 4.0], [9.0, 16.0]], {"first": [0, 0], "root": [0, 0], "last": [0, 0]}),
        ([[0.0, 4.0], [9.0, 0.0]], {"first": [0, 2], "root": [0, 0], "last": [0, 0]}),
        ([[-1.0, 4.0], [jnp.inf, 16.0]], {"first": [1, 1], "root": [2, 0], "last": [2, 0]}),
    ],
)
def test_counts_through_vmap(x, expected):
    order, counts = count(jnp.array(x))
    assert order == ["first", "root", "last"]
    assert counts == expected
