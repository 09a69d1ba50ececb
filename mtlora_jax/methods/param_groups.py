"""Groups of parameters: what the methods freeze or train, and what tables of parameters are made of."""

from flax import nnx

from mtlora_jax.methods.mtlora.layers import SharedLoRA, TaskLoRA

GROUPS = {
    "ta_lora": lambda path, variable: isinstance(variable, SharedLoRA),
    "ts_lora": lambda path, variable: isinstance(variable, TaskLoRA),
    "decoders": lambda path, variable: path.startswith("decoders."),
    "patch_embed": lambda path, variable: path.startswith("backbone.patch_embed."),
    "norms": lambda path, variable: path.startswith("backbone.") and "norm" in path.split(".")[-2],
    "position_tables": lambda path, variable: path.endswith("relative_position_bias_table"),
    "merging": lambda path, variable: path.endswith("downsample.reduction.kernel"),
    "linears": lambda path, variable: True,
}


def groups_of(path: str, variable: nnx.Variable) -> list[str]:
    """All groups a parameter is in, most telling first: the norm of the patch embedding is in `patch_embed` and `norms`.

    `linears` (attention and MLP weights) is what no other group claims.
    """
    return [name for name, contains in GROUPS.items() if contains(path, variable)][:-1] or ["linears"]
