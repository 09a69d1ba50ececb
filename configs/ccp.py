"""Street photographs of Clothing Co-Parsing (400 + 100 images), three tasks: clothes, body regions, saliency.

    python -m mtlora_jax.main --config=configs/ccp.py:base,224,mtlora --workdir=runs/ccp \\
        --config.init_from=weights/swin_base

The argument is VARIANT,SIZE,METHOD: tiny, small, base or large; the side of the images in pixels; mtlora, mtlora_plus,
mtlora_ta_only, decoders_only or full. The schedule takes minutes to hours instead of 300 epochs: the learning rate is
not scaled down by the batch size. Results are in docs/results.md; the paper has none on these photographs.

The files have the layout of the folder data set (`mtlora_jax.data.image_folder`). There are no single-task scores for
them, so the best model is the one with the best mean score over the tasks.
"""

from ml_collections import ConfigDict

from mtlora_jax import defaults
from mtlora_jax.errors import UserError

METHODS = {
    "mtlora": ("mtlora", {"rank": 32}),
    "mtlora_plus": ("mtlora", {"rank": 32, "merging": "lora"}),
    "mtlora_ta_only": ("mtlora", {"rank": 32, "task_rank": 0}),
    "decoders_only": ("decoders_only", {}),
    "full": ("full", {}),
}


def get_config(argument: str = "base,224,mtlora") -> ConfigDict:
    """Return the config of VARIANT,SIZE,METHOD."""
    variant, size, method = checked(argument)
    name, options = METHODS[method]
    config = defaults.default(name)
    config.method.update(options)
    config.tasks = ("semseg", "human_parts", "sal")
    config.image_size = (size, size)
    config.backbone.variant = variant
    config.data.name = "folder"
    config.data.root = "data/ccp"
    config.batch_size = 8
    config.eval_batch_size = 20
    config.epochs = 8
    config.eval_every_epochs = 2
    config.eval_first = True
    config.optimizer.learning_rate = 5e-4
    config.optimizer.reference_batch_size = config.batch_size
    config.optimizer.warmup_epochs = 0.5
    config.log_every_steps = 10
    config.delta_m_baseline = defaults.of_any_type({})
    return config


def checked(argument: str) -> tuple[str, int, str]:
    """Split the argument into (variant, size, method). Raises UserError if it is wrong."""
    parts = argument.split(",")
    if len(parts) != 3 or not parts[1].isdigit() or parts[2] not in METHODS:
        methods = ", ".join(METHODS)
        raise UserError(
            f"configs/ccp.py:{argument}: the argument is VARIANT,SIZE,METHOD, METHOD one of {methods}; "
            "such as base,224,mtlora"
        )
    return parts[0], int(parts[1]), parts[2]
