"""The demo: a small Swin, pre-trained on rendered scenes by day, fine-tuned to four tasks on scenes in the evening.

It takes minutes on a CPU. The whole demo, and one run of it:

    make demo
    python -m mtlora_jax.main --config=configs/demo.py:mtlora --workdir=demo/mtlora --config.data.root=demo/data

The argument is the method, mtlora or decoders_only. Both have the same data, seed, number of steps and learning rate.
"""

import pathlib

from ml_collections import ConfigDict

import mtlora_jax
from mtlora_jax import defaults
from mtlora_jax.errors import UserError

# With so few steps the features must change gently: patch embedding and merging are frozen, branches not scaled up.
GENTLE = {"scale": 1.0, "task_scale": 1.0, "merging": "freeze", "freeze": ("patch_embed",)}
METHODS = {"mtlora": {"rank": 16, "dropout": 0.0, **GENTLE}, "decoders_only": {}}


def get_config(method: str = "mtlora") -> ConfigDict:
    """Return the config of a method, mtlora or decoders_only."""
    if method not in METHODS:
        raise UserError(f"configs/demo.py:{method}: the argument is the method, one of {', '.join(METHODS)}")
    config = defaults.default(method)
    config.method.update(METHODS[method])
    config.init_from = str(pathlib.Path(mtlora_jax.__file__).parent / "demo" / "swin_micro")
    config.image_size = (160, 160)
    config.backbone.variant = "micro"
    config.backbone.window_size = 5
    config.backbone.drop_path_rate = 0.0
    config.decoder.channels = (8, 16, 32, 64)
    config.data.root = "demo/data"
    config.data.num_workers = 1
    config.batch_size = 8
    config.eval_batch_size = 16
    config.epochs = 1  # no scene is seen twice: a model would soon memorise so few of them
    config.eval_every_epochs = 1
    config.eval_first = True
    config.checkpoint_every_epochs = 1
    config.optimizer.learning_rate = 3e-3
    config.optimizer.reference_batch_size = config.batch_size
    config.optimizer.warmup_epochs = 0.15
    config.loss_weights = defaults.of_any_type({"semseg": 2.0})
    config.delta_m_baseline = defaults.of_any_type({})
    return config
