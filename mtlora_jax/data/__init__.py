"""Data sets by name. To add one, write a class with the interface of `pipeline.Dataset` and list it here."""

from mtlora_jax.data.image_folder import FolderDataset
from mtlora_jax.data.tfds import NYUD, PascalContext

DATASETS = {"folder": FolderDataset, "pascal_context": PascalContext, "nyud": NYUD}
