"""Data sets by name; to add one, write a class with the interface of `FolderDataset` and list it here."""

from mtlora_jax.data.folder import FolderDataset

DATASETS = {"folder": FolderDataset}
