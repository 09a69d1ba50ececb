"""Exports to ONNX by jax2onnx: the traced program, operation by operation, with its weights."""

import contextlib
import importlib.metadata
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from mtlora_jax.errors import UserError
from mtlora_jax.export import Size, make_forward, make_images_spec
from mtlora_jax.model_io.model_folder import Model
from mtlora_jax.models import parameters

FILE = "model.onnx"
INSTALL = "pip install 'mtlora_jax[onnx]' && pip install --no-deps jax2onnx==0.17.1"
# Primitives that run an inner program, and the names of that program among their parameters.
CALLS = ("jit", "pjit", "checkpoint", "remat2", "closed_call", "custom_jvp_call", "custom_vjp_call")
INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
TOLERANCE = 1e-4  # of the largest logit, between onnxruntime and JAX; float32 gives 1e-6 to 1e-5


def import_libraries() -> tuple[Any, Any, Any]:
    """Imports (jax2onnx, onnx, onnxruntime). Raises UserError if one is not installed."""
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"--format=onnx needs {error.name}, which is not installed: {INSTALL}") from error
    for name in ("jax2onnx", "onnx_ir"):  # they warn about every inner value without a type
        logging.getLogger(name).setLevel(logging.ERROR)
    return jax2onnx, onnx, onnxruntime


def convert(model: Model, size: Size, inputs: str, path: pathlib.Path) -> dict[str, Any]:
    """Writes an ONNX model for any batch of images of one size, and compares it with the model.

    Args:
      model: with tasks.
      size: (height, width).
      inputs: see `mtlora_jax.export.export_stablehlo`.
      path: of the file; its input is `images`, its outputs have the names of the tasks.

    Returns:
      The part of the metadata about it.

    Raises:
      UserError: if a library is missing, or onnxruntime's logits differ from the model's.
    """
    jax2onnx, onnx, _ = import_libraries()
    run = make_forward(model)
    weights = {path: variable.get_value() for path, variable in parameters.flat_variables(model.module).items()}
    images = make_images_spec(model, size, inputs)
    # Traced here because jax2onnx, when it traces, replaces jax.image.resize by a version that needs a fixed batch.
    program = jax.make_jaxpr(lambda images: [run(weights, images)[task] for task in model.tasks])(images)
    proto = jax2onnx.to_onnx(
        jaxpr_as_fun(fold_constants(program)), [images], input_names=["images"], output_names=list(model.tasks)
    )
    del proto.graph.value_info[:]  # inferred shapes inside the graph, some of which are wrong
    onnx.save(proto, path)
    return {
        "file": FILE,
        "opset": max(entry.version for entry in proto.opset_import),
        "shape": ["B", *size, 3],
        "outputs": list(model.tasks),
        "made_with": {name: importlib.metadata.version(name) for name in ("jax2onnx", "onnx")},
        "difference": check_logits(model, size, inputs, path),
    }


def fold_constants(program: ClosedJaxpr) -> ClosedJaxpr:
    """Inlines inner programs, and replaces operations that depend on no input by constants.

    In a Swin Transformer these are more than half of all operations, such as window masks and interpolation weights.
    The time of jax2onnx grows with the square of their number, since it searches the whole graph for each.
    """

    def run(program: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
        values = dict(zip((*program.jaxpr.constvars, *program.jaxpr.invars), (*program.consts, *inputs), strict=True))
        read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]  # noqa: E731
        for equation in program.jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            inner = next((equation.params[name] for name in INNER if name in equation.params), None)
            if inner is not None and equation.primitive.name in CALLS:
                results = run(inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ()), operands)
            else:
                sizes = [size for variable in equation.outvars for size in variable.aval.shape]
                fixed = all(isinstance(size, int) for size in sizes)
                known = fixed and not any(isinstance(value, Tracer) for value in operands)
                with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
                    results = equation.primitive.bind(*operands, **equation.params)
                results = results if equation.primitive.multiple_results else [results]
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in program.jaxpr.outvars]

    inputs = [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in program.jaxpr.invars]
    return jax.make_jaxpr(lambda *inputs: run(program, inputs))(*inputs)


def check_logits(model: Model, size: Size, inputs: str, path: pathlib.Path) -> float:
    """Compares logits on two random images; returns the largest difference relative to the task's largest logit.

    Raises UserError if it exceeds `TOLERANCE`.
    """
    _, _, onnxruntime = import_libraries()
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    if inputs == "float32":
        images = (images / np.float32(64) - 2).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = dict(zip(model.tasks, session.run(list(model.tasks), {"images": images}), strict=True))
    wanted = {task: np.asarray(logits) for task, logits in model(images, fit="none").items()}
    difference = max(
        float(np.max(np.abs(found[task] - wanted[task])) / np.max(np.abs(wanted[task]))) for task in model.tasks
    )
    if not difference <= TOLERANCE:
        differ = f"onnxruntime's logits differ by {difference:.1e} of the largest"
        raise UserError(f"the ONNX model is not this model: {differ}; use stablehlo")
    return difference
