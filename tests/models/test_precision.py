"""bfloat16 and recomputation: the precision of each operation, and the distance of the results from float32."""

import functools
import math

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from flax import nnx

from mtlora_jax import model_factory
from mtlora_jax.analysis.macs import subprograms
from mtlora_jax.distributed.sharding import make_mesh
from mtlora_jax.errors import UserError
from mtlora_jax.experiment import Experiment
from mtlora_jax.model_io import model_folder
from mtlora_jax.models import parameters
from mtlora_jax.models.inputs import normalise
from mtlora_jax.train.step import compute_losses

ARCHITECTURE = micro.architecture(stages=1, tasks=("semseg", "sal"))
TASKS = micro.tasks_of(ARCHITECTURE)
WEIGHTS = {name: task.weight for name, task in TASKS.items()}
ARRAYS = micro.random_arrays(ARCHITECTURE)
UNIT = 2.0**-8  # the largest relative error of rounding to 8 significant bits


class Setting:
    """The micro model, executed in one way; dropout and stochastic depth are on if there is a `key`."""

    def __init__(self, frozen: str = "float32", key: jax.Array | None = None, **options):
        model = model_factory.build(ARCHITECTURE)
        model_factory.configure(model, **options)
        parameters.assign(model, ARRAYS, "arrays")
        self.graph, self.trainable, self.frozen, self.stats = parameters.partition(
            model, model_factory.method_of(ARCHITECTURE).is_trainable
        )
        self.frozen = parameters.cast_matrices(self.frozen, frozen)
        self.batch = jax.device_put(micro.random_batch(2))
        self.key = key

    def loss(self, trainable):
        model = parameters.bind(self.graph, trainable, self.frozen, self.stats)
        rngs = None if self.key is None else nnx.Rngs(dropout=self.key)
        logits = model(normalise(self.batch["image"]), train=True, rngs=rngs)
        return compute_losses(logits, self.batch, TASKS, WEIGHTS)[0], (logits, parameters.batch_statistics(model))

    def program(self):
        """The program that computes the gradient of the loss, not compiled."""
        return jax.make_jaxpr(jax.grad(self.loss, has_aux=True))(self.trainable).jaxpr

    def results(self):
        """((loss, (logits, batch statistics)), gradients)."""
        return jax.device_get(micro.jit(jax.value_and_grad(self.loss, has_aux=True))(self.trainable))


@pytest.fixture(scope="module")
def exact():
    return Setting().results()


def distance(values: dict, others: dict) -> float:
    """Norm of the difference of all values together, relative to their own norm."""
    norm = functools.partial(functools.reduce, math.hypot)
    return norm(np.linalg.norm(values[k].astype(np.float64) - others[k]) for k in values) / norm(
        np.linalg.norm(v) for v in values.values()
    )


def equations(program):
    """All operations of a program and of those inside it, except interpolation, which JAX makes a matrix product."""
    for equation in program.eqns:
        if equation.params.get("name") != "_resize":
            yield equation
            for inner in subprograms(equation.params.values()):
                yield from equations(inner)


def summands(equation) -> int:
    """How many numbers a sum adds for each of its results."""
    return math.prod(equation.invars[0].aval.shape[axis] for axis in equation.params["axes"])


def test_bfloat16_is_as_close_to_float32_as_eight_bits_are(exact):
    """Rounding errors of independent sign add up as a random walk does: n of them to about sqrt(n) of one.

    A logit passes about 50 of them (22 in each of two blocks, the rest in patch embedding and decoder), a gradient as
    many again and those of the values it is multiplied by, some 150. The mean error of one is 1 / sqrt(3) of the
    largest.
    """
    (loss, (logits, stats)), gradients = exact
    (other_loss, (other_logits, other_stats)), other_gradients = Setting(compute="bfloat16").results()
    one = UNIT / math.sqrt(3)
    assert one < distance(logits, other_logits) < 1.5 * math.sqrt(50) * one
    assert one < distance(gradients, other_gradients) < 1.5 * math.sqrt(150) * one
    assert 0 < abs(loss - other_loss) < UNIT * loss  # a mean over pixels, whose errors cancel
    assert distance(stats, other_stats) < UNIT
    assert {
        value.dtype.name
        for value in (other_loss, *other_logits.values(), *other_stats.values(), *other_gradients.values())
    } == {"float32"}


def test_products_are_bfloat16_and_what_is_delicate_is_float32():
    found: dict[str, set[str]] = {}
    for equation in equations(Setting(compute="bfloat16").program()):
        if equation.primitive.name == "reduce_sum" and summands(equation) <= len(TASKS):
            continue  # gradients of the tasks meet in the shared stream
        dtypes = {
            variable.aval.dtype.name
            for variable in equation.invars
            if jnp.issubdtype(variable.aval.dtype, jnp.floating)
        }
        found.setdefault(equation.primitive.name, set()).update(dtypes)
    assert found["dot_general"] == found["conv_general_dilated"] == {"bfloat16"}
    # Softmax and losses (exp, log1p), norms (sqrt), GELU (erf), and every long sum, also gradients of biases and
    # scales.
    for name in ("exp", "log1p", "sqrt", "erf", "reduce_sum", "reduce_max"):
        assert found[name] == {"float32"}, name


def test_float32_holds_nothing_narrower():
    dtypes = {variable.aval.dtype.name for equation in equations(Setting().program()) for variable in equation.outvars}
    assert "bfloat16" not in dtypes
    assert "float64" not in dtypes


@pytest.mark.parametrize("options", [{"remat": "block"}, {"remat": "stage"}, {"fused": False}], ids=str)
def test_how_it_is_executed_changes_nothing(options, with_dropout):
    """All have the same draws of dropout and stochastic depth, and so differ only by rounding."""
    (loss, (logits, stats)), gradients = with_dropout
    (other_loss, (other_logits, other_stats)), other_gradients = Setting(key=jax.random.key(1), **options).results()
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    assert distance(logits, other_logits) < 3e-6
    assert distance(stats, other_stats) < 1e-6
    assert distance(gradients, other_gradients) < 3e-6


@pytest.fixture(scope="module")
def with_dropout(exact):
    results = Setting(key=jax.random.key(1)).results()
    difference = abs(results[0][0] - exact[0][0])
    assert difference > 1e-3 * exact[0][0]  # the draws matter, so equal results imply equal draws
    return results


@pytest.mark.parametrize(("remat", "expected"), [("none", 2), ("block", 2 + 2 + 2), ("stage", 1 + 2 + 2)])
def test_what_is_recomputed(remat, expected):
    """The losses of two tasks are always recomputed; besides, two blocks in one stage, and two decoders."""
    setting = Setting(remat=remat)
    program = jax.make_jaxpr(lambda trainable: setting.loss(trainable)[0])(setting.trainable).jaxpr
    assert sum("prevent_cse" in equation.params for equation in equations(program)) == expected


def test_frozen_weights_take_half_the_memory_and_are_otherwise_rounded_ones():
    narrow, wide = Setting("bfloat16"), Setting()
    matrices = {path for path, value in wide.frozen.items() if value.ndim > 1}
    assert matrices
    for path, value in wide.frozen.items():
        assert narrow.frozen[path].nbytes == value.nbytes // (2 if path in matrices else 1)
    assert {value.dtype.name for value in narrow.trainable.values()} == {"float32"}
    wide.frozen = {
        path: value.astype(jnp.bfloat16).astype(jnp.float32) if path in matrices else value
        for path, value in wide.frozen.items()
    }
    one, other = (jax.device_get(micro.jit(setting.loss)(setting.trainable)) for setting in (narrow, wide))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
    assert distance(one[1][0], other[1][0]) < 1e-6


def test_models_are_saved_in_float32(tmp_path):
    setting = Setting("bfloat16")
    method = model_factory.method_of(ARCHITECTURE)
    parts = setting.graph, setting.trainable, setting.frozen, setting.stats
    Experiment(make_mesh(), TASKS, ARCHITECTURE, method, *parts).save(
        tmp_path / "model", setting.trainable, setting.stats, {}
    )
    _, values = model_folder.read(tmp_path / "model")
    assert {value.dtype.name for value in values.values()} == {"float32"}
    for path, value in setting.frozen.items():
        np.testing.assert_array_equal(values[path], np.asarray(value, np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute": "float16"}, r"compute_dtype = 'float16' is not one of float32, bfloat16"),
        ({"remat": "layer"}, r"remat = 'layer' is not one of none, block, stage"),
        ({"frozen": "int8"}, r"frozen_dtype = 'int8' is not one of float32, bfloat16"),
    ],
)
def test_refused(options, message):
    with pytest.raises(UserError, match=message):
        Setting(**options)
