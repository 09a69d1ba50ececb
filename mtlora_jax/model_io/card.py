"""The model card, README.md of a model folder: tasks, usage, scores, size, origin."""

from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
import numpy as np

from mtlora_jax import model_factory
from mtlora_jax.analysis.param_counts import count_parameters
from mtlora_jax.model_io import markdown
from mtlora_jax.tasks import TASKS

# {task: pipeline tag of the Hugging Face Hub}; the first task of a model that has one decides.
PIPELINES = {
    "semseg": "image-segmentation",
    "human_parts": "image-segmentation",
    "sal": "image-segmentation",
    "depth": "depth-estimation",
}


def card(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Markdown with the metadata of the Hugging Face Hub on top.

    Args:
      config: config.json of a model folder: "architecture" and, where known, "classes" {task: names}, "scores"
        {"TASK/SCORE": value} and the "step" of their evaluation, "training" {"command": str, "config": dict},
        "started_from" and "converted_from" (each with "file" and "format"), "base_model" (its name on the Hub),
        "adapter" {"base": str, "sha256": str}.
      arrays: {path: array} stored in the folder.
    """
    architecture = config["architecture"]
    tasks = list(architecture["tasks"])
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mtlora_jax.model_io"),
        finalize=markdown.escaped,  # of every value: config.json may come from a stranger
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"code": markdown.code, "block": markdown.block, "as_json": markdown.as_json}
    absent = dict.fromkeys(("step", "started_from", "converted_from", "adapter"))
    training = config.get("training") or {}
    other = "image-to-image" if tasks else "image-feature-extraction"
    names = [architecture["backbone"]["name"], *(task.replace("_", "-") for task in tasks)]
    return environment.get_template("card.md").render(
        config={**absent, "scores": {}, "classes": {}, **config},
        command=training.get("command", ""),
        training=training.get("config", {}),
        data={"name": "", "eval_split": "", **training.get("config", {}).get("data", {})},
        title=title(architecture),
        pipeline=next((PIPELINES[task] for task in tasks if task in PIPELINES), other),
        tags=["mtlora", "multi-task-learning", "jax", "flax", *names],
        base_model=markdown.one_line(base_model(config)),
        method=architecture["method"],
        scores=list(table(tasks, config.get("scores") or {})),
        delta_m=(config.get("scores") or {}).get("delta_m"),
        groups=count_parameters(model_factory.build(architecture), model_factory.method_of(architecture)),
        stored=sum(array.size for array in arrays.values()),
    )


def title(architecture: Mapping[str, Any]) -> str:
    """One line: method, backbone, tasks."""
    encoder = model_factory.backbone_class(architecture["backbone"]).title(architecture["backbone"])
    if not architecture["tasks"]:
        return f"{encoder}, encoder"
    method = architecture["method"]
    name = model_factory.method_class(method).TITLE
    if "of" in method:
        name = f"{model_factory.method_class(method['of']).TITLE}, merged,"
    return f"{name} on {encoder}: {', '.join(architecture['tasks'])}"


def table(tasks: list[str], scores: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """A row for each score, the primary metric of a task first; scores of single classes are left out."""
    for task in tasks:
        kind = TASKS.get(task)
        own = {name.removeprefix(f"{task}/"): value for name, value in scores.items() if name.startswith(f"{task}/")}
        for name in sorted(own, key=lambda name: kind is None or name != kind.primary_metric):
            if "/" not in name:
                note = kind.metric_notes.get(name, "") if kind else ""
                yield {"task": task, "name": name, "value": own[name], "note": note}


def base_model(config: Mapping[str, Any]) -> str:
    """The base's name on the Hub, from the config or from the name of its converted file; empty if unknown."""
    backbone = model_factory.backbone_class(config["architecture"]["backbone"])
    origins = [config.get(key) or {} for key in ("converted_from", "started_from")]
    names = [backbone.hub_name(str(origin.get("file")), str(origin.get("format"))) for origin in origins]
    return config.get("base_model") or next(filter(None, names), "")
