"""MTLoRA+ on Swin-Tiny, PASCAL-Context, four tasks (Table 1).

    python -m mtlora_jax.main --config=configs/mtlora_plus_tiny_448.py:16 --workdir=runs/plus_r16 \\
        --config.init_from=weights/swin_tiny

Patch merging is frozen and has task-agnostic branches of its own. The argument is the rank of all branches,
task-agnostic and task-specific.

| rank | trainable |
|---:|---:|
| 4 | 2,573,114 |
| 8 | 3,148,346 |
| 16 | 4,298,810 |

The scores are in Table 1 of arXiv 2403.20320.
"""

from ml_collections import ConfigDict

from mtlora_jax.defaults import default
from mtlora_jax.errors import UserError

RANKS = ("4", "8", "16")


def get_config(rank: str) -> ConfigDict:
    """Return the config of a rank, one of 4, 8, 16."""
    if rank not in RANKS:
        raise UserError(f"configs/mtlora_plus_tiny_448.py:{rank}: the argument is the rank, one of {', '.join(RANKS)}")
    config = default("mtlora")
    config.method.rank = int(rank)
    config.method.task_rank = int(rank)
    config.method.merging = "lora"
    return config
