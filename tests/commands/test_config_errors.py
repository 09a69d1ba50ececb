"""Configs that describe no model: each is refused in one line that names the value."""

import pytest
from config_files import architecture_of, changed

from mtlora_jax import config as configs
from mtlora_jax import model_factory
from mtlora_jax.errors import UserError

R64 = "mtlora_tiny_448.py:64"


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        ("mtlora_tiny_448.py", (), "needs an argument"),
        ("mtlora_tiny_448.py:128", (), "mtlora_tiny_448.py:128: the argument is the rank, one of 16, 32, 64"),
        ("mtlora_nyud_tiny_448.py:8", (), "mtlora_nyud_tiny_448.py:8: the argument is the rank, one of 16, 32, 64"),
        ("mtlora_plus_tiny_448.py:32", (), "mtlora_plus_tiny_448.py:32: the argument is the rank, one of 4, 8, 16"),
        (
            "mtlora_ta_only_tiny_448.py:4",
            (),
            "mtlora_ta_only_tiny_448.py:4: the argument is the rank, one of 16, 32, 64",
        ),
        ("single_task_tiny_448.py:depth", (), "the argument is the task, one of semseg, human_parts, sal, normals"),
        ("full_tiny_448.py:64", (), "takes no argument, but got '64'"),
        ("decoders_only_tiny_448.py:64", (), "takes no argument, but got '64'"),
        ("ccp.py:base,224", (), "ccp.py:base,224: the argument is VARIANT,SIZE,METHOD"),
        ("ccp.py:base,wide,mtlora", (), "the argument is VARIANT,SIZE,METHOD"),
        ("ccp.py:base,224,lora", (), "METHOD one of mtlora, mtlora_plus, mtlora_ta_only, decoders_only, full"),
        ("ccp.py:huge,224,mtlora", (), "backbone.variant = 'huge' is not one of .*tiny, small, base, large"),
        ("mtlora_tiny_46.py:64", (), "no configuration file"),
        (R64, ("method.rnak=8",), "method.rnak is unknown; did you mean method.rank"),
        (R64, ("tasks=semseg,saal",), "unknown task 'saal'; did you mean 'sal'"),
        (R64, ("tasks=semseg,semseg",), "task 'semseg' is given twice"),
        (R64, ("backbone.name=vit",), "backbone.name = 'vit' is not one of swin"),
        (R64, ("decoder.name=hrnt",), "decoder.name = 'hrnt' is not one of hrnet, segformer, aspp"),
        (R64, ("decoder.channels=18,36,72",), r"decoder.channels = \[18, 36, 72\] must have 4 entries"),
        (R64, ("image_size=16,448",), r"image_size = \[16, 448\] must be \(height, width\)"),
        (R64, ("image_size=448",), r"image_size = \[448\] must be \(height, width\)"),
        (
            R64,
            ("method.name=lora",),
            "method.name = 'lora' is not one of mtlora, bitfit, decoders_only, full, single_task",
        ),
        (R64, ("method.merging=frozen",), "method.merging = 'frozen' is not one of train, freeze, lora"),
        (R64, ("method.ts_base=both",), "method.ts_base = 'both' is not one of shared, task"),
        (R64, ("method.locations=qkv,fc3",), "method.locations = 'fc3' is not one of qkv, proj, fc1, fc2"),
        (
            R64,
            ("method.freeze=merging",),
            "method.freeze = 'merging' is not one of ta_lora, patch_embed, norms, position_tables",
        ),
        (R64, ("method.rank=0",), "method ranks must be at least 1"),
        (R64, ("method.task_rank=-1",), "method.task_rank = -1 must be a whole number from 0 to 4096"),
        (R64, ("method.dropout=1.0",), "method.dropout = 1.0 must be at least 0 and below 1"),
        ("full_tiny_448.py", ("method.rank=8",), "method.rank is unknown"),
        (
            "single_task_tiny_448.py:sal",
            ("tasks=sal,semseg",),
            "single_task trains one task at a time; the config has 2: sal, semseg",
        ),
    ],
)
def test_refused(spec, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        model_factory.build(architecture_of(spec, *overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("method", {"rank": [64, 64, 64]}, r"method.rank = \[64, 64, 64\] has 3 entries; the backbone has 4 stages"),
        ("method", {"rank": [64, 64, 64, 0]}, "method ranks must be at least 1"),
        ("method", {"scale": [4.0, 4.0]}, r"method.scale = \[4.0, 4.0\] has 2 entries"),
        (
            "method",
            {"task_rank": {"semseg": 4}},
            "method.task_rank gives no value for human_parts, sal, normals; it has semseg",
        ),
        (
            "method",
            {"task_rank": {"semseg": 0, "human_parts": 4, "sal": 4, "normals": 4}},
            "method ranks must be at least 1",
        ),
        (
            "method",
            {"task_rank": {"semseg": [4, 4], "human_parts": 4, "sal": 4, "normals": 4}},
            r"task_rank.semseg = \[4, 4\] has 2 entries",
        ),
        ("method", {"rnak": 8}, "method 'mtlora' has no option 'rnak'; did you mean rank"),
        ("decoder", {"width": 8}, "decoder 'hrnet' has no option 'width'"),
        ("backbone", {"window": 7}, "backbone 'swin' has no option 'window'; did you mean window_size"),
    ],
)
def test_architecture_refused(part, options, message):
    with pytest.raises(UserError, match=message) as caught:
        model_factory.build(changed(R64, **{part: options}))
    assert "\n" not in str(caught.value)


def test_ranks_per_stage_on_the_command_line():
    config = configs.load(
        "configs/mtlora_tiny_448.py:64", ["method.rank=64,32,16,8", "method.task_rank=2", "method.locations=qkv,proj"]
    )
    assert config.method.rank == (64, 32, 16, 8)
    architecture = model_factory.from_config(config, {"semseg": 21})
    model = model_factory.build(architecture)
    assert model.backbone.layers[3].blocks[0].attn.qkv.shared_a.shape == (768, 8)
    assert not hasattr(model.backbone.layers[3].blocks[0].mlp.fc1, "shared_a")
    for wrong in ("many", "64,32", "64,32,16,x"):
        with pytest.raises(UserError, match=r"method\.rank = "):
            model_factory.build(
                model_factory.from_config(
                    configs.load("configs/mtlora_tiny_448.py:64", [f"method.rank={wrong}"]), {"semseg": 21}
                )
            )
