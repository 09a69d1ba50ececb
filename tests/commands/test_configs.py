"""Every config file and every row of the paper's tables: the model and its trained parameters."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from config_files import architecture_of, changed
from flax import nnx
from paths import CONFIGS

from mtlora_jax import config as configs
from mtlora_jax import model_factory
from mtlora_jax.analysis.macs import macs_of
from mtlora_jax.analysis.param_counts import count_parameters, summarise
from mtlora_jax.data.transforms import Augmentation
from mtlora_jax.errors import UserError
from mtlora_jax.experiment import build_tasks, dataset_class
from mtlora_jax.model_io.merging import merged_architecture
from mtlora_jax.models.backbones.swin import Swin
from mtlora_jax.models.parameters import flat_variables

CHANNELS = {"semseg": 21, "human_parts": 7, "sal": 1, "normals": 3}
TASKS = tuple(CHANNELS)
R64 = "mtlora_tiny_448.py:64"


def trainable(architecture: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of trained values: all, low-rank factors, decoders, and the rest."""
    model = model_factory.build(architecture)
    groups = count_parameters(model, model_factory.method_of(architecture))
    count = {group: values["trainable"] for group, values in groups.items()}
    assert sum(values["total"] for values in groups.values()) == sum(
        v.size for v in flat_variables(model).values() if isinstance(v, nnx.Param)
    )
    lora = count.get("ta_lora", 0) + count.get("ts_lora", 0)
    everything = sum(count.values())
    return {
        "all": everything,
        "lora": lora,
        "decoders": count["decoders"],
        "other": everything - lora - count["decoders"],
    }


# Closed formulas of the counts; C, d and heads are those of the four stages.


def encoder_size(embed_dim: int, depths: tuple[int, ...], num_heads: tuple[int, ...]) -> int:
    """Swin without classifier and final norm, window 7, MLP ratio 4."""
    size = 48 * embed_dim + 3 * embed_dim
    for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        c = embed_dim * 2**i
        size += depth * (12 * c**2 + 13 * c + 169 * heads) + (8 * c**2 + 8 * c if i < 3 else 0)
    return size


def decoders_size(embed_dim: int, channels: Mapping[str, int]) -> int:
    """HRNet decoders of the default widths."""
    projections = sum(embed_dim * m * c for m, c in zip((2, 4, 8, 8), (18, 36, 72, 144), strict=True))
    return sum(projections + 270 * 1080 + 3 * 1080 + (1080 + 1) * n for n in channels.values())


PUBLISHED = [  # trained: all, low-rank factors, decoders, the rest
    ("mtlora_tiny_448.py:16", 4_953_146, 1_406_976, 1_946_624, 1_599_546),
    ("mtlora_tiny_448.py:32", 6_083_642, 2_537_472, 1_946_624, 1_599_546),
    ("mtlora_tiny_448.py:64", 8_344_634, 4_798_464, 1_946_624, 1_599_546),
    ("mtlora_plus_tiny_448.py:4", 2_573_114, 575_232, 1_946_624, 51_258),
    ("mtlora_plus_tiny_448.py:8", 3_148_346, 1_150_464, 1_946_624, 51_258),
    ("mtlora_plus_tiny_448.py:16", 4_298_810, 2_300_928, 1_946_624, 51_258),
    ("mtlora_ta_only_tiny_448.py:16", 4_676_666, 1_130_496, 1_946_624, 1_599_546),
    ("mtlora_ta_only_tiny_448.py:32", 5_807_162, 2_260_992, 1_946_624, 1_599_546),
    ("mtlora_ta_only_tiny_448.py:64", 8_068_154, 4_521_984, 1_946_624, 1_599_546),
    ("full_tiny_448.py", 29_464_442, 0, 1_946_624, 27_517_818),
    ("decoders_only_tiny_448.py", 1_946_624, 0, 1_946_624, 0),
    ("bitfit_tiny_448.py", 2_245_736, 0, 1_946_624, 299_112),
    ("single_task_tiny_448.py:semseg", 28_018_527, 0, 500_709, 27_517_818),
    ("single_task_tiny_448.py:human_parts", 28_003_393, 0, 485_575, 27_517_818),
    ("single_task_tiny_448.py:sal", 27_996_907, 0, 479_089, 27_517_818),
    ("single_task_tiny_448.py:normals", 27_999_069, 0, 481_251, 27_517_818),
    ("mtlora_nyud_tiny_448.py:16", 4_967_199, 1_406_976, 1_960_677, 1_599_546),
    ("mtlora_nyud_tiny_448.py:32", 6_097_695, 2_537_472, 1_960_677, 1_599_546),
    ("mtlora_nyud_tiny_448.py:64", 8_358_687, 4_798_464, 1_960_677, 1_599_546),
]


@pytest.mark.parametrize(("spec", "everything", "lora", "decoders", "other"), PUBLISHED)
def test_config_of_the_paper(spec, everything, lora, decoders, other):
    architecture = architecture_of(spec)
    assert trainable(architecture) == {"all": everything, "lora": lora, "decoders": decoders, "other": other}
    assert architecture["image_size"] == [448, 448]
    docstring = (CONFIGS / spec.partition(":")[0]).read_text().split('"""')[1]
    assert f"{everything:,}" in docstring
    assert f"--config=configs/{spec.partition(':')[0]}" in docstring


def test_four_single_task_models():
    counts = [trainable(architecture_of(f"single_task_tiny_448.py:{task}"))["all"] for task in TASKS]
    assert sum(counts) == 112_017_896


def test_no_config_file_is_left_out():
    assert {path.name for path in CONFIGS.glob("*.py")} == {spec.partition(":")[0] for spec, *_ in PUBLISHED} | {
        "ccp.py",
        "demo.py",
    }


@pytest.mark.parametrize("spec", [*(spec for spec, *_ in PUBLISHED), "ccp.py"])
def test_every_config_names_its_data_set(spec):
    config = configs.load(str(CONFIGS / spec))
    name = {"ccp.py": "folder", "mtlora_nyud_tiny_448.py": "nyud"}.get(spec.partition(":")[0], "pascal_context")
    assert (config.data.name, config.data.reference_transforms) == (name, False)
    assert config.data.root == {"folder": "data/ccp"}.get(name, "data")
    augmentation = {"flip": 0.5, "degrees": 20.0, "scale": (0.75, 1.25), "discrete_scales": False}
    nyud = {"flip": 0.5, "degrees": 0.0, "scale": (1.0, 1.2, 1.5), "discrete_scales": True}
    assert Augmentation(**config.data.augmentation) == Augmentation(**(nyud if name == "nyud" else augmentation))
    if name != "folder":
        # It finds its files, or the error says how to build them.
        with pytest.raises(
            UserError, match=f"nowhere/{name}: no such data set; build it with .* --dataset={name} --data_dir=nowhere"
        ):
            dataset_class(config)("nowhere", config.data.train_split, config.tasks)


def test_nyud_has_forty_classes():
    config = configs.load(str(CONFIGS / "mtlora_nyud_tiny_448.py:64"))
    classes = build_tasks(config)["semseg"].classes
    assert (len(classes), classes[0], classes[29], classes[39]) == (40, "wall", "whiteboard", "otherprop")
    assert architecture_of("mtlora_nyud_tiny_448.py:64")["tasks"] == {"semseg": 40, "depth": 1, "normals": 3, "edge": 1}


@pytest.mark.parametrize(
    ("method", "everything", "lora"),
    [
        ({"rank": 16, "merging": "lora"}, 3_469_370, 1_471_488),
        ({"rank": 32, "merging": "lora"}, 4_664_378, 2_666_496),
        ({"rank": 64, "merging": "lora"}, 7_054_394, 5_056_512),
        ({"rank": 4, "merging": "lora", "task_rank": 0}, 2_296_634, 298_752),
        ({"rank": 8, "merging": "lora", "task_rank": 0}, 2_595_386, 597_504),
        ({"rank": 16, "merging": "lora", "task_rank": 0}, 3_192_890, 1_195_008),
        # Table 2, r=64
        ({"locations": ["proj", "fc1", "fc2"]}, 7_214_138, 3_667_968),
        ({"locations": ["qkv", "fc1", "fc2"]}, 7_733_306, 4_187_136),
        ({"locations": ["qkv", "proj", "fc2"]}, 6_816_314, 3_270_144),
        ({"locations": ["qkv", "proj", "fc1"]}, 6_816_314, 3_270_144),
        # Table 3, r=64
        ({"freeze": ["patch_embed"]}, 8_339_930, 4_798_464),
        ({"freeze": ["norms"]}, 8_321_594, 4_798_464),
        ({"freeze": ["position_tables"]}, 8_321_312, 4_798_464),
        ({"merging": "freeze"}, 6_796_346, 4_798_464),
        # A rank per stage and per task gives the sums of the counts of single ranks.
        ({"rank": [64, 64, 64, 64], "task_rank": [4, 4, 4, 4]}, 8_344_634, 4_798_464),
        (
            {"rank": [8, 16, 32, 64]},
            3_546_170 + 16 * (2 * 96 * 8 + 2 * 192 * 16 + 6 * 384 * 32 + 2 * 768 * 64) + 276_480,
            None,
        ),
        (
            {"task_rank": {"semseg": 8, "human_parts": 4, "sal": 2, "normals": [4, 4, 4, 4]}},
            8_344_634 + (8 + 2 - 4 - 4) * 17_280,
            None,
        ),
    ],
)
def test_options_of_mtlora(method, everything, lora):
    count = trainable(changed(R64, method=method))
    assert count["all"] == everything
    assert count["decoders"] == 1_946_624
    if lora is not None:
        assert count["lora"] == lora


def test_norm_of_the_patch_embedding():
    """Its 192 values are in both groups and are trained as long as one of the two is."""
    count = {
        groups: trainable(changed(R64, method={"freeze": list(groups)}))["all"]
        for groups in ((), ("norms",), ("norms", "patch_embed"))
    }
    assert count[()] - count["norms",] == 17_664 + 5_376
    assert count[()] - count["norms", "patch_embed"] == 17_664 + 5_376 + 4_704 + 192


@pytest.mark.parametrize(
    ("tasks", "method", "everything"),
    [
        (("semseg",), {}, 6_691_359),
        (("semseg", "normals"), {}, 7_241_730),
        (("semseg", "sal"), {}, 7_239_568),
        (("semseg", "normals", "sal"), {}, 7_789_939),
        (TASKS, {}, 8_344_634),
        # Table 7 prints 5.83, 5.83 and 6.45 M for two and three tasks: its models have task rank 8 and frozen merging.
        (("semseg", "normals"), {"task_rank": 8, "merging": "freeze"}, 5_831_682),
        (("semseg", "sal"), {"task_rank": 8, "merging": "freeze"}, 5_829_520),
        (("semseg", "normals", "sal"), {"task_rank": 8, "merging": "freeze"}, 6_449_011),
        (TASKS, {"task_rank": 8, "merging": "freeze"}, 7_072_826),
    ],
)
def test_number_of_tasks(tasks, method, everything):
    for order in (tasks, tasks[::-1]):
        architecture = changed(R64, method=method) | {"tasks": {task: CHANNELS[task] for task in order}}
        assert trainable(architecture)["all"] == everything
        assert model_factory.build(architecture).tasks == order


def test_every_set_of_tasks():
    """Each task adds its decoder and its branches, independently of the other tasks and of its position."""
    alone = {task: 478_008 + 1_081 * n + 4 * 17_280 for task, n in CHANNELS.items()}
    for tasks in itertools.chain.from_iterable(itertools.combinations(TASKS, n) for n in (1, 2, 3, 4)):
        architecture = architecture_of(R64, f"tasks={','.join(tasks)}")
        assert list(architecture["tasks"].items()) == [(task, CHANNELS[task]) for task in tasks]
        assert trainable(architecture)["all"] == 1_599_546 + 64 * 70_656 + sum(alone[task] for task in tasks)


@pytest.mark.parametrize(
    ("decoder", "decoders", "everything"),
    [
        ({"name": "hrnet"}, 1_946_624, 6_083_642),
        ({"name": "segformer"}, 2_080_320, 6_217_338),
        ({"name": "segformer", "dead_classifier": False}, 2_072_096, 6_209_114),
        ({"name": "aspp"}, 12_443_168, 16_580_186),
    ],
)
def test_decoders_of_table_5(decoder, decoders, everything):
    count = trainable(changed("mtlora_tiny_448.py:32", decoder=decoder))
    assert (count["decoders"], count["all"]) == (decoders, everything)
    assert everything - decoders == 4_137_018


# Published sizes of the ImageNet classifiers, without their last norm and linear layer.
@pytest.mark.parametrize(
    ("variant", "classifier"),
    [("tiny", 28_288_354), ("small", 49_606_258), ("base", 87_768_224), ("large", 196_532_476)],
)
def test_variant_as_published(variant, classifier):
    architecture = architecture_of("full_tiny_448.py", f"backbone.variant={variant}")
    model = model_factory.build(architecture | {"tasks": {}, "decoder": None})
    features = 8 * Swin.VARIANTS[variant]["embed_dim"]
    size = sum(v.size for v in flat_variables(model).values())
    assert size == classifier - 2 * features - 1000 * (features + 1) == encoder_size(**Swin.VARIANTS[variant])


@pytest.mark.parametrize("variant", Swin.VARIANTS)
def test_ccp(variant):
    stages = Swin.VARIANTS[variant]
    widths = [stages["embed_dim"] * 2**i for i in range(4)]
    channels = {task: CHANNELS[task] for task in ("semseg", "human_parts", "sal")}
    decoders = decoders_size(stages["embed_dim"], channels)
    merging = sum(8 * c**2 for c in widths[:3])
    norms = sum(4 * c * depth for c, depth in zip(widths, stages["depths"], strict=True)) + sum(
        8 * c for c in widths[:3]
    )
    tables = 169 * sum(depth * heads for depth, heads in zip(stages["depths"], stages["num_heads"], strict=True))
    small = norms + tables + (48 + 1 + 2) * widths[0]
    shared = 32 * 16 * sum(c * depth for c, depth in zip(widths, stages["depths"], strict=True))
    specific = 3 * 4 * 12 * sum(widths)
    expected = {
        "mtlora": shared + specific + merging + small + decoders,
        "mtlora_plus": shared + specific + 32 * 6 * sum(widths[:3]) + small + decoders,
        "mtlora_ta_only": shared + merging + small + decoders,
        "decoders_only": decoders,
        "full": encoder_size(**stages) + decoders,
    }
    for method, everything in expected.items():
        architecture = architecture_of(f"ccp.py:{variant},224,{method}")
        assert architecture["image_size"] == [224, 224]
        assert trainable(architecture)["all"] == everything, method


def test_tensors_of_a_reference_checkpoint():
    """The reference's state dict of r=64 has 431 tensors: ours, and those that it could derive but stores."""
    model = model_factory.build(architecture_of(R64))
    blocks = [block for stage in model.backbone.layers for block in stage.blocks]
    index_tables = len(blocks)
    masks = sum(block.attn.shifted for block in blocks)  # at 448 every grid is larger than the window
    batch_counters = len(model.tasks)
    assert len(flat_variables(model)) + index_tables + masks + batch_counters == 431


def test_frozen_weights():
    architecture = architecture_of(R64)
    groups = count_parameters(model_factory.build(architecture), model_factory.method_of(architecture))
    assert groups["linears"] == {"total": 25_918_272, "trainable": 0}
    frozen = {group for group, count in groups.items() if count["trainable"] == 0}
    assert frozen == {"linears"}


def test_multiply_accumulates():
    """By hand for Swin-Tiny at 448: the plain network, and r=64, whose last shared branch no logit depends on."""
    widths, depths, tokens = (96, 192, 384, 768), (2, 2, 6, 2), (12544, 3136, 784, 196)
    stages = list(zip(widths, depths, tokens, strict=True))
    patches = tokens[0] * 48 * 96
    blocks = sum(n * d * (12 * c**2 + 2 * 49 * c) for c, d, n in stages)
    merging = sum(n // 4 * 8 * c**2 for c, _, n in stages[:3])
    features = list(zip((3136, 784, 196, 196), (192, 384, 768, 768), (18, 36, 72, 144), strict=True))
    projections = sum(n * c * out for n, c, out in features)
    decoders = sum(projections + 3136 * 1080 * (270 + n) for n in CHANNELS.values())
    shared = sum(n * d * 16 * c * 64 for c, d, n in stages)
    specific = 4 * sum(n * 12 * c * 4 for c, _, n in stages)

    def summary(spec):
        architecture = architecture_of(spec)
        return summarise(model_factory.build(architecture), model_factory.method_of(architecture), (448, 448))

    plain = summary("full_tiny_448.py")
    assert plain["trainable_unused"] == {"count": 0, "paths": []}
    assert plain["gmacs"] * 1e9 == pytest.approx(patches + blocks + merging + decoders, abs=1)

    r64 = summary(R64)
    pair = "backbone.layers.3.blocks.1.mlp.fc2.shared_"
    assert r64["trainable_unused"] == {"count": 245_760, "paths": [f"{pair}a", f"{pair}b"]}
    reference = patches + blocks + (1 + 4) * merging + decoders + shared + specific
    assert round(reference / 1e9, 2) == 31.01
    assert r64["gmacs"] * 1e9 == pytest.approx(reference - tokens[3] * 245_760, abs=1)

    # Merged: the pairs of the last blocks stay, except the dead one; projections (4C) of tasks contain the reduction
    # (2C).
    last = sum(n * 12 * c * 64 for c, _, n in stages) - tokens[3] * 245_760
    wider = 4 * sum(n * c * out for n, c, out in features[:3])
    merged, _ = macs_of(model_factory.build(merged_architecture(architecture_of(R64))), (448, 448))
    assert merged.products == patches + blocks + merging + decoders + last + specific + wider <= 24.3e9
