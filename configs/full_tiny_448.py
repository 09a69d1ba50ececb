"""Full fine-tuning of one Swin-Tiny for four tasks, PASCAL-Context: "MTL - Full FT" of Table 1.

    python -m mtlora_jax.main --config=configs/full_tiny_448.py --workdir=runs/full --config.init_from=weights/swin_tiny

29,464,442 parameters are trained. The paper prints 30.06 M, which the same encoder gives with other decoders:
SegFormer's of width 256 on the four feature maps before merging, each of them normed. Its scores are in Table 1 of
arXiv 2403.20320.
"""

from ml_collections import ConfigDict

from mtlora_jax.defaults import default


def get_config() -> ConfigDict:
    """Return the config; it has no argument."""
    return default("full")
