"""MTLoRA on Swin-Tiny, PASCAL-Context, four tasks: the published rows of Table 1.

    python -m mtlora_jax.main --config=configs/mtlora_tiny_448.py:64 --workdir=runs/mtlora_r64 \\
        --config.init_from=weights/swin_tiny

The argument is the rank of the task-agnostic branches; task-specific branches have rank 4.

| rank | trainable | in the paper | semseg | human_parts | sal | normals | Delta_m |
|---:|---:|---:|---:|---:|---:|---:|---:|
| 16 | 4,953,146 | 4.95 M | 68.19 | 58.99 | 64.48 | 17.03 | +1.35 |
| 32 | 6,083,642 | 6.08 M | 67.74 | 59.46 | 64.90 | 16.59 | +2.16 |
| 64 | 8,344,634 | 8.34 M | 67.9 | 59.84 | 65.40 | 16.60 | +2.55 |

Scores as printed: mIoU in percent; normals in degrees (the mean, printed as rmse). Recomputed from the four scores,
Delta_m is +1.34, +2.14 and +2.54.
"""

from ml_collections import ConfigDict

from mtlora_jax.defaults import default
from mtlora_jax.errors import UserError

RANKS = ("16", "32", "64")


def get_config(rank: str) -> ConfigDict:
    """Return the config of a rank, one of 16, 32, 64."""
    if rank not in RANKS:
        raise UserError(f"configs/mtlora_tiny_448.py:{rank}: the argument is the rank, one of {', '.join(RANKS)}")
    config = default("mtlora")
    config.method.rank = int(rank)
    return config
