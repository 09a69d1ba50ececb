"""The default experiment: MTLoRA on Swin-Tiny at 448, with the recipe of the paper's published rows.

Files in `configs/` start from `default()` and change some values. The config is plain data, and only the programs that
compose the parts read it.
"""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtlora_jax.methods import METHODS

Config = Any  # a ConfigDict: its attributes are its keys, which type checkers do not know

# Table 1 of the paper, row "Single Task": the scores that Delta_m compares with.
PAPER_SINGLE_TASK = {"semseg": 67.21, "human_parts": 61.93, "sal": 62.35, "normals": 17.97}


def default(method: str = "mtlora") -> Config:
    """Return a config whose keys are locked, so that a misspelt one is an error.

    Its group `method` has the options of that method with their defaults; their meaning is documented in its class (see
    `mtlora_jax.methods.METHODS`).
    """
    return ConfigDict(
        {
            "seed": 0,
            "tasks": ("semseg", "human_parts", "sal", "normals"),
            "image_size": (448, 448),  # height, width
            "init_from": "",  # model folder to start from (python -m mtlora_jax.convert); empty: random weights
            # True: all of init_from must fit; False: load what fits, initialise other classifiers and low-rank factors
            "init_strict": True,
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
                "reference_transforms": False,  # True: borders and rounding as in the reference implementation
            },
            "epochs": 300,
            "batch_size": 32,
            "eval_batch_size": 32,
            # the encoder runs on this many parts of a batch in turn: less memory, same result
            "encoder_microbatches": 1,
            # "block" or "stage": keep only the inputs of each, and compute the rest twice: still less memory
            "remat": "none",
            # False: every layer as the paper draws it: more memory, slower on a CPU; one GPU took 7 % less time
            "fused": True,
            # or "bfloat16": matrix products and activations; parameters, softmax, norms, losses stay float32
            "compute_dtype": "float32",
            "frozen_dtype": "float32",  # or "bfloat16": storage of untrained weights on the devices
            "loss_weights": of_any_type({}),  # {task: weight}; other tasks have the recipe's weight
            "optimizer": {
                # this and the next two are multiplied by batch_size / reference_batch_size, once
                "learning_rate": 5e-4,
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
            "checkpoint_every_steps": 0,  # also every so many steps; 0: only at the ends of epochs
            "keep_checkpoints": 2,
            "log_every_steps": 20,
            "fault_tolerance": {
                # a step with a non-finite loss or gradient is skipped; so many in a row end the run
                "max_consecutive_nonfinite_steps": 10,
                # images or labels that cannot be read are left out; more of them end the run
                "max_unreadable_examples": 10,
                # of the examples of a split, rounded up; the smaller of the two limits counts
                "max_unreadable_share": 0.05,
                # from SIGTERM to the end of the process, unless a step ends and is saved before
                "grace_seconds": 20.0,
            },
            "evaluation": {  # of --mode=evaluate
                "original_size": True,  # also score predictions at the size of each image file, beside image_size
                "boundaries": False,  # also boundary F of edges (odsF) at the original size: 2 s per image and worker
                "boundary_tolerance": 0.0075,  # of the image's diagonal: 0.0075 on PASCAL-Context, 0.011 on NYUD
            },
            # {task: single-task score}; Delta_m is the mean over these tasks
            "delta_m_baseline": of_any_type(PAPER_SINGLE_TASK),
            # workdirs of single_task runs, or their metrics.json; they replace delta_m_baseline
            "delta_m_baseline_runs": (),
            "wandb": {"project": "", "mode": "offline"},  # Weights & Biases; no project: unused; mode may be "online"
        }
    ).lock()


def of_any_type(options: dict) -> Config:
    """A part of the config whose values may change type, such as a rank that becomes a list of ranks per stage."""
    return ConfigDict(options, type_safe=False)


def flattened(config: Config) -> dict[str, Any]:
    """Return {dotted key: JSON-able value} of a config."""

    def leaves(group: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in group.items():
            found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        return found

    return leaves(json.loads(config.to_json_best_effort()), "")
