"""ONNX, by jax2onnx: the program that JAX traces, operation by operation, with the weights in it."""

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
from mtlora_jax.export import Size, forward, images_spec
from mtlora_jax.model_io.model_folder import Model
from mtlora_jax.models import parameters

FILE = "model.onnx"
INSTALL = "pip install 'mtlora_jax[onnx]' && pip install --no-deps jax2onnx==0.17.1"
CALLS = ("jit", "pjit", "checkpoint", "remat2", "closed_call", "custom_jvp_call", "custom_vjp_call")  # operations that run a program
INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # the names of it among their parameters
TOLERANCE = 1e-4  # of the largest logit, between onnxruntime and JAX; float32 gives 1e-6 to 1e-5


def libraries() -> tuple[Any, Any, Any]:
    """(jax2onnx, onnx, onnxruntime). Raises UserError where they are not installed."""
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"--format=onnx needs {error.name}, which is not installed: {INSTALL}") from error
    for name in ("jax2onnx", "onnx_ir"):  # they warn of inner values without a type, one by one
        logging.getLogger(name).setLevel(logging.ERROR)
    return jax2onnx, onnx, onnxruntime


def convert(model: Model, size: Size, inputs: str, path: pathlib.Path) -> dict[str, Any]:
    """Writes an ONNX model for any batch of images of one size, and compares it with the model.

    Args:
      model: with tasks.
      size: (height, width).
      inputs: see `mtlora_jax.export.stablehlo`.
      path: of the file; its input is `images`, its outputs have the names of the tasks.

    Returns:
      The part of the metadata that is about it.

    Raises:
      UserError: if libraries are not there, or logits of onnxruntime are not those of the model.
    """
    jax2onnx, onnx, _ = libraries()
    run = forward(model)
    weights = {path: variable.get_value() for path, variable in parameters.variables(model.module).items()}
    images = images_spec(model, size, inputs)
    # Traced before jax2onnx comes into play: where it traces by itself it replaces jax.image.resize, and by one that must know the batch.
    program = jax.make_jaxpr(lambda images: [run(weights, images)[task] for task in model.tasks])(images)
    proto = jax2onnx.to_onnx(jaxpr_as_fun(folded(program)), [images], input_names=["images"], output_names=list(model.tasks))
    del proto.graph.value_info[:]  # shapes inside the graph, of which some are wrong; who needs them works them out
    onnx.save(proto, path)
    return {
        "file": FILE,
        "opset": max(entry.version for entry in proto.opset_import),
        "shape": ["B", *size, 3],
        "outputs": list(model.tasks),
        "made_with": {name: importlib.metadata.version(name) for name in ("jax2onnx", "onnx")},
        "difference": checked(model, size, inputs, path),
    }


def folded(program: ClosedJaxpr) -> ClosedJaxpr:
    """The same program with inner programs written out, and without the operations that depend on no input: their results are constants.

    In a Swin Transformer more than half of the operations are such, among them the masks of the windows and the weights of
    interpolations. jax2onnx looks through the whole graph for each operation: its time grows with the square of their number.
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
                known = not any(isinstance(value, Tracer) for value in operands) and all(isinstance(size, int) for size in sizes)
                with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
                    results = equation.primitive.bind(*operands, **equation.params)
                results = results if equation.primitive.multiple_results else [results]
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in program.jaxpr.outvars]

    inputs = [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in program.jaxpr.invars]
    return jax.make_jaxpr(lambda *inputs: run(program, inputs))(*inputs)


def checked(model: Model, size: Size, inputs: str, path: pathlib.Path) -> float:
    """The largest difference to the model's logits on two random images, relative to the largest logit of the task.

    Raises UserError if it is more than float32 explains.
    """
    _, _, onnxruntime = libraries()
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    if inputs == "float32":
        images = (images / np.float32(64) - 2).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = dict(zip(model.tasks, session.run(list(model.tasks), {"images": images}), strict=True))
    wanted = {task: np.asarray(logits) for task, logits in model(images, fit="none").items()}
    difference = max(float(np.max(np.abs(found[task] - wanted[task])) / np.max(np.abs(wanted[task]))) for task in model.tasks)
    if not difference <= TOLERANCE:
        raise UserError(f"the ONNX model is not this model: onnxruntime's logits differ by {difference:.1e} of the largest; use stablehlo")
    return difference
