"""Types and bounds of config.json in a model folder, checked before use, since the file may come from a stranger."""

from typing import Any

from mtlora_jax import model_factory
from mtlora_jax.errors import UserError
from mtlora_jax.model_factory import MOST_TASKS, TASK_NAME
from mtlora_jax.schema import LARGEST, either, file_name, list_of, mapping, nothing, number, plain, record, text, whole
from mtlora_jax.tasks import TASKS
from mtlora_jax.tasks.semseg import SemSeg

LARGEST_FILE = 2**20  # bytes; our files have some thousand
NAMES = list_of(text(200), 1, model_factory.MOST_OUTPUTS)

# Building the model checks the parts of its architecture.
DATA = record({}, {"name": file_name, "eval_split": file_name})
CONFIG = record(
    {"architecture": record(dict.fromkeys(model_factory.PARTS, plain))},
    {
        "classes": mapping(NAMES, TASK_NAME, MOST_TASKS),
        "scores": mapping(either(number(), nothing), text(500)),
        "step": whole(0, LARGEST),
        "training": record({}, {"command": file_name, "config": record({}, {"data": DATA})}),
        "converted_from": record({"file": file_name, "format": text(100)}),
        "started_from": record({"folder": file_name}, {"file": file_name, "format": text(100)}),
        "base_model": text(200),
        "adapter": record({"base": file_name, "sha256": text(64, "[0-9a-f]{64}", "a SHA-256")}),
    },
)


def check(config: Any) -> None:
    """Raises UserError, naming the key, unless config.json is valid and describes a model that can be built."""
    CONFIG(config, "")
    architecture = config["architecture"]
    try:
        model_factory.build(architecture)
    except UserError as error:
        raise UserError(f"architecture: {error}") from error
    for task, outputs in architecture["tasks"].items():
        if issubclass(TASKS.get(task, object), SemSeg) and outputs < 2:
            raise UserError(f"architecture.tasks.{task} = {outputs} must be at least 2, the number of classes")
    for task, names in config.get("classes", {}).items():
        outputs = architecture["tasks"].get(task, len(names))
        if issubclass(TASKS.get(task, object), SemSeg) and not len(names) == len(set(names)) == outputs:
            different = len(set(names))
            raise UserError(f"classes.{task} must be {outputs} different names, one per output; there are {different}")
