"""Decoders on a frozen Swin-Tiny, PASCAL-Context, four tasks: "MTL - Tuning Decoders Only" of Table 1.

    python -m mtlora_jax.main --config=configs/decoders_only_tiny_448.py --workdir=runs/decoders_only \\
        --config.init_from=weights/swin_tiny

1,946,624 parameters are trained; the paper prints 1.94 M. Its scores are in Table 1 of arXiv 2403.20320.
"""

from ml_collections import ConfigDict

from mtlora_jax.defaults import default


def get_config() -> ConfigDict:
    """Return the config; it has no argument."""
    return default("decoders_only")
