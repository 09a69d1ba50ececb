"""MTLoRA on Swin-Tiny, NYU Depth v2 (NYUD_MT, 795 and 654 images), four tasks.

The tasks are semseg (40 classes), depth, normals and edge.

    python -m tfds_pascal_context.build --dataset=nyud --data_dir=data --manual_dir=NYUD_MT
    python -m mtlora_jax.main --config=configs/mtlora_nyud_tiny_448.py:64 --workdir=runs/nyud_r64 \\
        --config.init_from=weights/swin_tiny

The argument is the rank of the task-agnostic branches; task-specific branches have rank 4.

| rank | trainable |
|---:|---:|
| 16 | 4,967,199 |
| 32 | 6,097,695 |
| 64 | 8,358,687 |

Data set and augmentation are those of the reference. The augmentation differs from that of PASCAL-Context: mirroring,
and enlarging by 1, 1.2 or 1.5, which brings things nearer; no rotation. The paper has no scores on this data set, so
the best model is the one with the best mean score over the tasks.
"""

from ml_collections import ConfigDict

from mtlora_jax.defaults import default, of_any_type
from mtlora_jax.errors import UserError

RANKS = ("16", "32", "64")


def get_config(rank: str) -> ConfigDict:
    """Return the config of a rank, one of 16, 32, 64."""
    if rank not in RANKS:
        raise UserError(f"configs/mtlora_nyud_tiny_448.py:{rank}: the argument is the rank, one of {', '.join(RANKS)}")
    config = default("mtlora")
    config.method.rank = int(rank)
    config.tasks = ("semseg", "depth", "normals", "edge")
    config.data.name = "nyud"
    config.data.augmentation.update({"degrees": 0.0, "scale": (1.0, 1.2, 1.5), "discrete_scales": True})
    config.evaluation.boundary_tolerance = 0.011
    config.delta_m_baseline = of_any_type({})
    return config
