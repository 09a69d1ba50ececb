"""BitFit per task on a frozen Swin-Tiny, PASCAL-Context, four tasks: Table 1.

    python -m mtlora_jax.main --config=configs/bitfit_tiny_448.py --workdir=runs/bitfit \\
        --config.init_from=weights/swin_tiny

2,245,736 parameters are trained: the decoders, and 299,112 biases and entries of position tables of the encoder,
separate for each task. The paper prints 2.85 M, with other decoders (2,848,136). Its scores are in Table 1 of arXiv
2403.20320.
"""

from ml_collections import ConfigDict

from mtlora_jax.defaults import default


def get_config() -> ConfigDict:
    """Return the config; it has no argument."""
    return default("bitfit")
