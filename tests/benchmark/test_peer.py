"""The PyTorch peer against the reference and our model, and the command that compares their speed."""

import json
import sys

import numpy as np
import pytest
from paths import GOLDEN

torch = pytest.importorskip("torch")

import jax  # noqa: E402
import micro  # noqa: E402
import peer  # noqa: E402
from torch_peer import check, lora, model, timing, training  # noqa: E402

from mtlora_jax import cli, model_factory  # noqa: E402
from mtlora_jax.convert import convert, to_mtlora  # noqa: E402
from mtlora_jax.data.synthetic import random_batch  # noqa: E402
from mtlora_jax.errors import UserError  # noqa: E402
from mtlora_jax.models import parameters  # noqa: E402
from mtlora_jax.models.inputs import normalise  # noqa: E402
from mtlora_jax.tasks import TASKS, make_tasks  # noqa: E402

TINY = {
    "name": "swin",
    "embed_dim": 8,
    "depths": (2, 1, 1, 1),
    "num_heads": (1, 2, 2, 4),
    "window_size": 2,
    "drop_path_rate": 0.1,
}
CONFIG = f"""
from mtlora_jax.defaults import default, of_any_type


def get_config():
    config = default("mtlora")
    with config.unlocked():
        config.backbone = {TINY}
    config.method.update({{"rank": 2, "task_rank": 1}})
    config.tasks = ("semseg", "sal")
    config.image_size = (64, 64)
    config.decoder.channels = (2, 3, 4, 5)
    config.data.root = "nowhere"
    config.init_from = "nowhere"
    return config
"""


def tiny(tasks=("semseg", "sal", "normals"), **method):
    """An architecture with different ranks and scales for each task."""
    options = {
        "name": "mtlora",
        "rank": [2, 3, 4, 5],
        "scale": [4.0, 3.0, 2.0, 1.0],
        "task_rank": {task: 1 + i for i, task in enumerate(tasks)},
        "task_scale": {task: 1.0 + i for i, task in enumerate(tasks)},
        "dropout": 0.05,
    }
    return {
        "backbone": {**TINY, "depths": list(TINY["depths"]), "num_heads": list(TINY["num_heads"])},
        "tasks": {task: TASKS[task]().channels for task in tasks},
        "decoder": {"name": "hrnet", "channels": [2, 3, 4, 5]},
        "method": options | method,
        "image_size": [64, 64],
    }


@pytest.fixture(autouse=True)
def little_compilation():
    """Lets XLA optimise little, since compilation dominates."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class Golden:
    """Numbers of the reference, and the peer with the reference's weights."""

    def __init__(self, name):
        self.io = np.load(GOLDEN / name / "io.npz")
        self.gradients = dict(np.load(GOLDEN / name / "grads.npz"))
        conversion = convert(GOLDEN / name / "checkpoint.pth")
        self.architecture, self.arrays = conversion.architecture, conversion.arrays
        self.images = torch.from_numpy(self.io["image"].astype(np.float32))
        self.weights = {name: task.weight for name, task in make_tasks(self.architecture["tasks"]).items()}

    def peer(self):
        return check.peer_of(check.without_chance(self.architecture), self.arrays)

    def label(self, task):
        label = torch.from_numpy(self.io[f"label/{task}"])
        return label.float() if task in ("normals", "depth") else label[:, 0].long()


@pytest.fixture(scope="module", params=["mtlora", "mtlora_plus", "swin_multitask"])
def golden(request):
    return Golden(request.param)


def test_logits_of_the_reference(golden):
    with torch.inference_mode():
        logits = golden.peer().eval()(golden.images)
    for task, found in logits.items():
        expected = golden.io[f"logits/{task}"]
        np.testing.assert_allclose(found[..., ::4, ::4], expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_training_of_the_reference(golden):
    peer = golden.peer().train()
    labels = {task: golden.label(task) for task in golden.architecture["tasks"]}
    total = training.total_loss(peer(golden.images), labels, golden.weights)
    total.backward()
    np.testing.assert_allclose(total.item(), golden.io["train_loss/total"], rtol=1e-5)
    norm = float(golden.io["grad_norm"])
    found = {name: p.grad.numpy() for name, p in peer.named_parameters() if p.grad is not None}
    assert found.keys() == golden.gradients.keys()  # no frozen weight has one
    for name, expected in golden.gradients.items():
        # The input of one ReLU in the golden run is nearer to 0 than float32 resolves: gradients move by up to 1.4e-3.
        assert np.linalg.norm(found[name] - expected) <= max(2e-3 * np.linalg.norm(expected), 1e-6 * norm), name


def test_derived_buffers_are_those_of_the_checkpoint():
    architecture = tiny()
    state = to_mtlora.make_state_dict(architecture, check.random_arrays(architecture, 0))
    buffers = dict(model.MTLoRA(architecture).named_buffers())
    derived = [name for name in state if name.endswith(model.DERIVED)]
    assert len(derived) == 5 + 1
    for name in derived:
        np.testing.assert_array_equal(buffers[name], state[name], err_msg=name)


@pytest.mark.parametrize(
    "method",
    [{"merging": "lora", "locations": ["qkv", "fc1"]}, {"task_rank": 0, "merging": "freeze", "freeze": ["norms"]}],
    ids=["some locations", "no task branches"],
)
def test_logits_equal_ours(method):
    architecture = tiny(**method)
    arrays, batch = check.random_arrays(architecture, 0), random_batch({}, 2, (64, 64))
    logits = micro.logits_of(micro.holding(architecture, arrays), np.asarray(normalise(batch["image"])))
    assert check.compare_logits(logits, check.peer_of(architecture, arrays), batch)["logits"] <= 1e-5


def test_random_weights_have_no_zero():
    arrays = check.random_arrays(tiny(), 0)
    assert all(value.all() and value.dtype == np.float32 for value in arrays.values())
    assert all((value > 0.5).all() for path, value in arrays.items() if path.endswith("norm.var"))


def test_what_trains_has_the_published_size():
    config = {
        "backbone": {"name": "swin", "variant": "tiny"},
        "decoder": {"name": "hrnet", "channels": [18, 36, 72, 144]},
        "method": {"name": "mtlora", "rank": 64},
        "image_size": [448, 448],
    }
    architecture = model_factory.from_config(config, {"semseg": 21, "human_parts": 7, "sal": 1, "normals": 3})
    shapes = {path: v.shape for path, v in parameters.flat_variables(model_factory.build(architecture)).items()}
    peer = check.peer_of(architecture, {path: np.zeros(shape, np.float32) for path, shape in shapes.items()})
    assert sum(p.numel() for p in peer.parameters() if p.requires_grad) == 8_344_634
    optimizer = training.optimizer_of(peer, {"weight_decay": 0.05, "b1": 0.9, "b2": 0.999, "eps": 1e-8})
    sizes = {group["weight_decay"]: sum(p.numel() for p in group["params"]) for group in optimizer.param_groups}
    assert sum(sizes.values()) == 8_344_634
    assert sizes[0.0] == sum(p.numel() for p in peer.parameters() if p.requires_grad and p.ndim == 1)


def test_losses_by_hand():
    logits = torch.tensor([[[[0.0, 2.0, -1.0, 5.0]]]])
    label = torch.tensor([[[1, 0, 0, 255]]])
    softplus = np.log1p(np.exp([0.0, 2.0, -1.0]))
    balanced, edge = (softplus * [2, 1, 1]).sum() / 9, (softplus * [0.95, 0.05, 0.05]).sum() / 3
    np.testing.assert_allclose(training.balanced_cross_entropy(logits, label), balanced, rtol=1e-6)
    np.testing.assert_allclose(training.edge_cross_entropy(logits, label), edge, rtol=1e-6)
    np.testing.assert_allclose(training.depth_l1(logits, torch.tensor([[[1.0, 2.5, 255.0, 4.0]]])), (1 + 0.5 + 1) / 3)
    normals, label = torch.tensor([3.0, 0.0, 4.0]).view(1, 3, 1, 1), torch.tensor([0.0, 1.0, 255.0]).view(1, 3, 1, 1)
    np.testing.assert_allclose(training.normals_l1(normals, label), (0.6 + 1.0) / 2, rtol=1e-6)


def test_stochastic_depth_drops_whole_images():
    torch.manual_seed(0)
    drop = lora.DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    rows = drop(x).flatten(1)
    assert (rows == rows[:, :1]).all()
    np.testing.assert_allclose(rows.unique(), [0, 4 / 3], rtol=1e-6)
    assert abs((rows[:, 0] == 0).float().mean() - 0.25) < 0.03
    assert (drop.eval()(x) == 1).all()


def test_dropout_acts_on_the_shared_input_alone():
    layer = lora.LoRALinear(3, 3, True, lora.Adaptation(("fc1",), 1, 1.0, 0.999, {"sal": 1}, {"sal": 1.0}), True)
    for parameter in layer.parameters():
        torch.nn.init.ones_(parameter)
    x = torch.ones(1, 3)
    torch.manual_seed(0)
    shared, tasks = layer(x, {"sal": x})
    assert shared.tolist() == [[4.0] * 3]  # 3 + 1 of the frozen layer, nothing of the dropped input
    assert tasks["sal"].tolist() == [[7.0] * 3]


def test_turns_and_medians(monkeypatch):
    """Two rounds of three steps, by a clock that only steps move."""
    now, order = [0.0], []
    seconds = {"ours": [9, 9, 1, 2, 3, 1, 1, 1], "peer": [50, 9, 4, 4, 4, 6, 6, 6]}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def side(name):
        def step():
            order.append(name)
            now[0] += seconds[name].pop(0)

        def forget():
            order.append("forget")

        peak = {"ours": 30, "peer": 60}[name]
        return timing.Side(f"device of {name}", "1.0", step, forget, lambda: peak, compile_seconds=100)

    told = timing.alternated(side("ours"), side("peer"), 2, 3, 8)
    one = ["ours"] * 3 + ["peer"] * 3
    assert order == ["ours", "peer", "ours", "forget", "peer", "forget", *one, *one]
    assert (told["ours"]["seconds"], told["peer"]["seconds"]) == (1.0, 5.0)
    assert (told["ratio"], told["ratio_lowest"], told["ratio_highest"], told["memory_ratio"]) == (5.0, 2.0, 6.0, 0.5)
    assert (told["peer"]["first_seconds"], told["peer"]["images_per_second"], told["ours"]["fastest"]) == (150, 1.6, 8)
    assert told["ours"]["device"] == "device of ours"
    empty = [timing.Side("", "", lambda: None)] * 2
    now[0] = 0
    monkeypatch.setattr(timing.time, "perf_counter", iter(range(100)).__next__)
    assert timing.alternated(*empty, 1, 1, 1)["memory_ratio"] is None


@pytest.fixture
def flags(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return [f"--config={tmp_path / 'tiny.py'}", "--batch_size=2", "--steps=2", "--rounds=2"]


RATES = {"seconds", "images_per_second", "slowest", "fastest", "spread"}
SIDE = RATES | {"first_seconds", "peak_bytes", "device", "version"}


@pytest.mark.slow  # three programs to compile, two of them with gradients
def test_training_as_json(flags, capsys):
    peer.main([*flags, "--what=train", "--json", "--config.frozen_dtype=bfloat16"])
    told = json.loads(capsys.readouterr().out)  # which has nothing else in it
    assert told["differences"].keys() == check.BOUNDS.keys()
    assert told["differences"]["logits"] <= 1e-5
    assert told["differences"]["loss"] <= 2e-6
    assert told["ours"].keys() == told["peer"].keys() == SIDE
    assert told["ratio"] == told["peer"]["seconds"] / told["ours"]["seconds"]
    assert told["ratio_lowest"] <= told["ratio_highest"]
    assert (told["merged"], told["compiled"]) == (False, False)
    assert (told["precision"], told["float32_products"]) == ("float32", "highest")
    assert (told["batch_size"], told["rounds"], told["steps"], told["memory_ratio"]) == (2, 2, 2, None)
    assert (told["frozen"], told["ours"]["device"]) == ("bfloat16", "cpu")
    assert told["peer"]["version"].startswith("torch 2.")
    assert all(key in peer.__doc__ for key in (*told, *SIDE))


def test_inference_as_text(flags, capsys):
    peer.main([*flags, "--what=infer", "--merged", "--precision=bfloat16"])
    printed = capsys.readouterr().out
    assert printed.startswith("differences: logits ")
    assert "gradients" not in printed
    for text in ("infer, 2 rounds of 2 steps each", "PyTorch", "batch 2 x 64x64, semseg, sal"):
        assert text in printed
    for text in ("bfloat16", "merged True", "ours is "):
        assert text in printed


def test_another_model_is_not_timed(flags, monkeypatch, capsys):
    monkeypatch.setattr(model, "MASK_VALUE", -1.0)
    monkeypatch.setattr(sys, "argv", ["peer.py", *flags, "--what=infer"])
    with pytest.raises(SystemExit) as ended:
        cli.run(peer.main)
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ours and the peer are not the same model: logits differ by ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("value", [2e-5, float("nan"), float("inf")])
def test_bounds(value):
    check.refuse(check.BOUNDS)
    with pytest.raises(UserError, match="loss differ by .*, more than 1e-05"):
        check.refuse({"logits": 1e-5, "loss": value})


def test_without_pytorch(flags, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="needs PyTorch, install it with"):
        peer.main([*flags, "--what=infer"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--what"),
        (["--what=data"], "--what=data is not one of train, infer"),
        (["--what=train", "--merged"], "--merged needs --what=infer"),
        (["--what=train", "--precision=float16"], "--precision=float16 is not one of float32, bfloat16"),
        (["--what=train", "--rounds=0"], "--rounds=0 must be at least 1"),
        (["--what=train", "--steps=-3"], "--steps=-3 must be at least 1"),
        (["--what=train", "--batch_size=0"], "--batch_size=0 must be at least 1"),
        (["--what=train", "--batch_size=two"], "--batch_size"),
        (["--what=infer", "--compile"], "unknown flag --compile; did you mean --compiled"),
        (["--what=infer", "--config.image_size=64,96"], "needs square images"),
        (["--what=infer", "--config.method.ts_base=task"], "ts_base"),
        (["--what=infer", "--config.decoder.name=aspp"], "the peer has decoder hrnet only, not aspp"),
    ],
)
def test_refused(flags, more, message):
    with pytest.raises(UserError, match=message) as caught:
        peer.main([*flags, *more])
    assert "\n" not in str(caught.value)
