"""The default experiment: MTLoRA on Swin-Tiny at 448, with the recipe of the paper's published rows.

Files in `configs/` start from `default()` and change what they are about. The config is plain data; nothing reads it but the
programs that compose the parts.
"""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtlora_jax.methods import METHODS

Config = Any  # a ConfigDict: its attributes are its keys, which no type checker knows

# Table 1 of the paper, row "Single Task": what Delta_m compares with.
PAPER_SINGLE_TASK = {"semseg": 67.21, "human_parts": 61.93, "sal": 62.35, "normals": 17.97}


def default(method: str = "mtlora") -> Config:
    """Returns a config whose keys are locked, so that a misspelt one is an error.

    Its part `method` has the options of that method, explained in its class (`mtlora_jax.methods.METHODS`), with their defaults.
    """
    return ConfigDict(
        {
            "seed": 0,
            "tasks": ("semseg", "human_parts", "sal", "normals"),
            "image_size": (448, 448),  # height, width
            "init_from": "",  # model folder to start from (python -m mtlora_jax.convert); empty: random weights
            "init_strict": True,  # all of init_from must fit; False: load what fits, start other classifiers and low-rank factors anew
            "backbone": {"name": "swin", "variant": "tiny", "window_size": 7, "drop_path_rate": 0.2},
            "decoder": {"name": "hrnet", "channels": (18, 36, 72, 144)},
            "method": of_any_type({"name": method, **METHODS[method].defaults()}),
            "data": {
                "name": "pascal_context",  # of mtlora_jax.data.DATASETS
                "root": "data",
                "train_split": "train",
                "eval_split": "val",
                "num_workers": 2,  # processes that read and augment; 0: a thread of the training process
                "augmentation": {"flip": 0.5, "degrees": 20.0, "scale": (0.75, 1.25), "discrete_scales": False},
                "reference_transforms": False,  # True: borders and rounding exactly as in the reference implementation
            },
            "epochs": 300,
            "batch_size": 32,
            "eval_batch_size": 32,
            "encoder_microbatches": 1,  # the encoder runs on this many parts of a batch in turn: less memory, same result
            "remat": "none",  # for less memory still: keep only the inputs of each "block" or "stage", and compute the rest twice
            "fused": True,  # False: every layer as the paper draws it, more memory, slower on a CPU; one GPU took 7 % less time
            "compute_dtype": "float32",  # or "bfloat16": matrix products and activations; parameters, softmax, norms, losses stay float32
            "frozen_dtype": "float32",  # or "bfloat16": how weights that are not trained are stored on the devices
            "loss_weights": of_any_type({}),  # {task: weight}; a task that is not here has the recipe's weight
            "optimizer": {
                "learning_rate": 5e-4,  # this and the next two are multiplied by batch_size / reference_batch_size, once
                "warmup_learning_rate": 5e-7,
                "final_learning_rate": 5e-6,
                "reference_batch_size": 512,
                "warmup_epochs": 20.0,
                "weight_decay": 0.05,  # not on vectors
                "clip_norm": 5.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
            },
            "eval_first": False,  # also evaluate before the first step
            "eval_every_epochs": 10,  # the last epoch is always evaluated
            "checkpoint_every_epochs": 1,
            "checkpoint_every_steps": 0,  # also every so many steps; 0: only at ends of epochs
            "keep_checkpoints": 2,
            "log_every_steps": 20,
            "fault_tolerance": {
                "max_consecutive_nonfinite_steps": 10,  # a step with a non-finite loss or gradient is skipped; so many in a row end the run
                "max_unreadable_examples": 10,  # images or labels that cannot be read are left out; more of them end the run
                "max_unreadable_share": 0.05,  # of the examples of a split, rounded up; the smaller of the two limits counts
                "grace_seconds": 20.0,  # from SIGTERM to the end of the process, unless a step ends and is saved before
            },
            "evaluation": {  # of --mode=evaluate
                "original_size": True,  # also score predictions at the size of each image's file, beside those at image_size
                "boundaries": False,  # also the boundary F of edges (odsF), at the original size: two seconds per image and worker
                "boundary_tolerance": 0.0075,  # of the image's diagonal: 0.0075 on PASCAL-Context, 0.011 on NYUD
            },
            "delta_m_baseline": of_any_type(
                PAPER_SINGLE_TASK
            ),  # {task: single-task score}; Delta_m is the mean over these tasks
            "delta_m_baseline_runs": (),  # replaces delta_m_baseline: workdirs, or their metrics.json, of single_task runs
            "wandb": {"project": "", "mode": "offline"},  # Weights & Biases; no project: not used; mode may be "online"
        }
    ).lock()


def of_any_type(options: dict) -> Config:
    """A part of the config whose values may change type, such as a rank that becomes a list of one rank per stage."""
    return ConfigDict(options, type_safe=False)


def flattened(config: Config) -> dict[str, Any]:
    """{dotted key: JSON-able value} of a config."""

    def leaves(group: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in group.items():
            found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        return found

    return leaves(json.loads(config.to_json_best_effort()), "")
