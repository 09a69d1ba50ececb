"""Full fine-tuning of Swin-Tiny for one task, PASCAL-Context: "Single Task" of Table 1, the baseline of Delta_m.

    python -m mtlora_jax.main --config=configs/single_task_tiny_448.py:semseg --workdir=runs/single_semseg \\
        --config.init_from=weights/swin_tiny

The argument is the task. The paper counts four such models.

| task | trainable | score in the paper |
|---|---:|---:|
| semseg | 28,018,527 | 67.21 mIoU |
| human_parts | 28,003,393 | 61.93 mIoU |
| sal | 27,996,907 | 62.35 mIoU |
| normals | 27,999,069 | 17.97 degrees (mean, printed as rmse) |
| all four | 112,017,896 | |

The paper prints 112.62 M for the four, which the same encoder gives with other decoders: SegFormer's of width 256 on
the four feature maps before merging, each of them normed.
"""

from ml_collections import ConfigDict

from mtlora_jax.defaults import PAPER_SINGLE_TASK, default
from mtlora_jax.errors import UserError


def get_config(task: str) -> ConfigDict:
    """Return the config of a task, one of semseg, human_parts, sal, normals."""
    if task not in PAPER_SINGLE_TASK:
        raise UserError(
            f"configs/single_task_tiny_448.py:{task}: the argument is the task, one of {', '.join(PAPER_SINGLE_TASK)}"
        )
    config = default("single_task")
    config.tasks = (task,)
    return config
