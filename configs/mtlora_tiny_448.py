"""MTLoRA on Swin-Tiny, PASCAL-Context, four tasks: the published rows of Table 1.

    python -m mtlora_jax.main --config=configs/mtlora_tiny_448.py:64 --workdir=runs/mtlora_r64 --config.init=weights/swin_tiny

The argument is the rank of the task-agnostic branches; task-specific branches have rank 4.

| rank | trainable | paper | Delta_m in the paper |
|---:|---:|---:|---:|
| 16 | 4,953,146 | 4.95 M | +1.35 |
| 32 | 6,083,642 | 6.08 M | +2.16 |
| 64 | 8,344,634 | 8.34 M | +2.55 |

The paper's r=64 scores: semseg 67.9, human_parts 59.84, sal 65.40 mIoU, normals 16.60 degrees (mean, printed as rmse).
"""

from ml_collections import ConfigDict

from mtlora_jax.defaults import default
from mtlora_jax.errors import UserError

RANKS = ("16", "32", "64")


def get_config(rank: str) -> ConfigDict:
    """rank: one of 16, 32, 64."""
    if rank not in RANKS:
        raise UserError(f"configs/mtlora_tiny_448.py:{rank}: the argument is the rank, one of {', '.join(RANKS)}")
    config = default("mtlora")
    config.method.rank = int(rank)
    return config
