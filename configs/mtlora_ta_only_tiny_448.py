"""MTLoRA without task-specific branches on Swin-Tiny, PASCAL-Context, four tasks: the ablation of Figure 4.

    python -m mtlora_jax.main --config=configs/mtlora_ta_only_tiny_448.py:64 --workdir=runs/ta_only_r64 \\
        --config.init_from=weights/swin_tiny

The argument is the rank of the task-agnostic branches. Every decoder reads the same shared features.

| rank | trainable |
|---:|---:|
| 16 | 4,676,666 |
| 32 | 5,807,162 |
| 64 | 8,068,154 |

Figure 4 of arXiv 2403.20320 plots this ablation and prints no numbers.
"""

from ml_collections import ConfigDict

from mtlora_jax.defaults import default
from mtlora_jax.errors import UserError

RANKS = ("16", "32", "64")


def get_config(rank: str) -> ConfigDict:
    """Return the config of a rank, one of 16, 32, 64."""
    if rank not in RANKS:
        raise UserError(
            f"configs/mtlora_ta_only_tiny_448.py:{rank}: the argument is the rank, one of {', '.join(RANKS)}"
        )
    config = default("mtlora")
    config.method.rank = int(rank)
    config.method.task_rank = 0
    return config
