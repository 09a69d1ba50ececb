"""As CONTRIBUTING promises, a method or a backbone is one file and one line of a dict, and every command takes it."""

import json
import os
import subprocess
import sys

import pytest
import tiny_runs
from paths import ROOT

# Run the file of a newcomer, then the real command, in a process of its own.
TOYS = """
import dataclasses
import sys

import jax
from flax import nnx

from mtlora_jax import cli, main
from mtlora_jax.methods import METHODS
from mtlora_jax.methods.base import AdapterParam, Method
from mtlora_jax.models.backbones import BACKBONES
from mtlora_jax.models.backbones.base import Backbone, Stage
from mtlora_jax.models.layers import MLP, ONES, Conv, Layer, LayerNorm, Linear, abstract_param
from mtlora_jax.models.task_features import TaskFeatures
from mtlora_jax.schema import whole


class Mixer(nnx.Module):
    def __init__(self, width):
        self.norm = LayerNorm(width)
        self.mix, self.out = Linear(width, width), Linear(width, width)
        self.mlp = MLP(width, 2 * width)

    def __call__(self, x, rngs=None):
        x = x + self.out.forward(self.mix.forward(self.norm.forward(x), rngs), rngs)
        return x + self.mlp(x, rngs)


class Level(Stage):
    def __init__(self, inputs, width, stride):
        self.patches = Conv(inputs, width, stride, stride=stride)
        self.blocks = nnx.List([Mixer(width)])

    def __call__(self, x, rngs=None):
        return self.run_blocks(self.patches.forward(x), rngs)


class Toy(Backbone):
    OPTIONS = {"width": whole(1, 64)}
    VARIANTS = {"small": {"width": 4}}
    LINEAR_LAYERS = {"qkv": ("mix",), "proj": ("out",), "fc1": ("mlp.fc1",), "fc2": ("mlp.fc2",)}
    PARAM_GROUPS = {"patch_embed": r".*\\.patches\\..*", "norms": r".*\\.norm\\..*"}

    def __init__(self, *, width):
        self.levels = nnx.List([Level(3, width, 8), Level(width, 2 * width, 2)])
        self.out_channels, self.strides = (width, 2 * width), (8, 16)

    @property
    def stages(self):
        return self.levels

    @property
    def smallest_open_side(self):
        return 16

    def __call__(self, images, rngs=None):
        return self.run_stages(TaskFeatures(images), rngs)


class Gain(AdapterParam):
    group = "gains"
    described = "gains"
    per_task = True


class GainLinear(Linear):
    def forward(self, x, rngs=None):
        gains = jax.numpy.stack([self.gain[task][...] for task in self.tasks])
        return super().forward(x, rngs).combine(lambda y, gain: y * gain.astype(y.dtype), TaskFeatures(None, gains))


@dataclasses.dataclass(frozen=True)
class Gains(Method):
    TITLE = "Gains"
    places: tuple = ("fc2",)

    def adapt(self, model):
        for stage in model.backbone.stages:
            for block in stage.blocks:
                for place in self.places:
                    for owner, name in model.backbone.block_layers(block)[place]:
                        layer = getattr(owner, name)
                        layer.__class__ = GainLinear
                        layer.tasks = model.tasks
                        shape = layer.bias.shape
                        layer.gain = nnx.Dict({task: abstract_param(shape, ONES, Gain) for task in model.tasks})

    def is_trainable(self, path, variable):
        return isinstance(variable, Gain) or path.startswith("decoders.")


BACKBONES["toy"] = Toy
METHODS["gains"] = Gains
"""


def toy_command(folder, module, *flags):
    program = "import toys\nfrom mtlora_jax import cli\nimport importlib\n"
    program += f"cli.run(importlib.import_module('mtlora_jax.{module}').main)"
    done = subprocess.run(
        [sys.executable, "-c", program, *flags], cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def environment(folder):
    return os.environ | {
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "COLUMNS": "200",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_runs.prepare(tmp_path_factory.mktemp("toys"))
    (folder / "toys.py").write_text(TOYS)
    return folder


@pytest.mark.parametrize(
    ("backbone", "method"), [("toy", "gains"), ("toy", "mtlora"), ("toy", "full"), ("swin", "gains")]
)
def test_a_toy_trains_by_the_real_command(folder, backbone, method):
    text = (folder / "micro.py").read_text()
    if backbone == "toy":
        start = text.index("        config.backbone = ")
        text = (
            text[:start]
            + '        config.backbone = {"name": "toy", "width": 4}\n'
            + text[text.index("\n", start) + 1 :]
        )
    name = f"{backbone}_{method}"
    (folder / f"{name}.py").write_text(text)
    config, workdir = f"--config={folder / name}.py:{method}", folder / f"run_{name}"
    toy_command(
        folder, "main", config, f"--workdir={workdir}", "--config.epochs=1", "--config.optimizer.warmup_epochs=0.0"
    )
    log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) >= 2
    assert all(0 < loss < 100 for loss in losses)
    assert any(key.startswith("grad_norm/") for key in log[-1] | log[1])
    told = toy_command(folder, "summary", config, "--json")
    assert json.loads(told)["trainable"] > 0
    card = (workdir / "best" / "README.md").read_text()
    assert ("Toy small" if backbone == "toy" else "Swin") in card
    assert "Gains" in card or method != "gains"
