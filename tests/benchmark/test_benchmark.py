"""The benchmark command: its output, its error messages, and its numbers computed by hand."""

import contextlib
import io
import json
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import pytest
import tiny_data
from paths import CONFIGS
from tiny_data import write_tiny_dataset

from mtlora_jax.benchmark import device_peaks, roofline, timing
from mtlora_jax.benchmark.__main__ import main
from mtlora_jax.benchmark.report import print_program
from mtlora_jax.data.synthetic import random_batch
from mtlora_jax.errors import UserError
from mtlora_jax.tasks import make_tasks

CONFIG = f"--config={CONFIGS / 'mtlora_tiny_448.py'}:64"
SMALL = ["tasks=semseg,sal", "image_size=32,48", "batch_size=4", "data.name=folder"]
RUN = ["tasks=semseg,normals,depth", "image_size=32,32", "batch_size=2", "data.name=folder", "init_from=nowhere"]
MICRO_MODEL = ["decoder.channels=2,2,2,2", "backbone.variant=micro", "method.rank=2", "method.task_rank=0"]
MICRO = [*RUN, *MICRO_MODEL, "frozen_dtype=bfloat16"]


def as_flags(values):
    return [f"--config.{value}" for value in values]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", ("semseg", "sal"))


@pytest.fixture
def flags(data):
    return [CONFIG, *as_flags([*SMALL, f"data.root={data}"])]


def printed(*argv: str) -> dict:
    """The JSON object that the command prints, and nothing else. XLA optimises little, since compilation dominates."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            main([*argv, "--json"])
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    return json.loads(out.getvalue())


RATES = ["images_per_second", "slowest", "fastest", "spread"]
DATA = ["per_worker", "per_core", "workers", "cores", "batch_size", "image_size", "tasks", "images", "rounds"]


@pytest.mark.parametrize("workers", [0, 2])
def test_data(flags, workers):
    measured = printed(*flags, f"--config.data.num_workers={workers}", "--what=data")
    assert list(measured) == ["what", *RATES, *DATA]
    assert 0 < measured["slowest"] <= measured["images_per_second"] <= measured["fastest"]
    assert measured["per_worker"] == measured["images_per_second"] / max(workers, 1)
    assert measured["per_core"] > 0
    assert measured["images"] == 4 * 4 * max(workers, 1)
    assert (measured["tasks"], measured["image_size"]) == (["semseg", "sal"], [32, 48])


def test_data_as_text(flags, capsys):
    main([*flags, "--config.data.num_workers=0", "--config.data.reference_transforms=true", "--what=data"])
    line = capsys.readouterr().out
    assert line.startswith("data: ")
    assert "0 workers" in line
    assert "32x48, semseg, sal" in line


TIMES = ["tracing_seconds", "lowering_seconds", "compile_seconds", "compile_cached"]
MEMORY = [
    *("argument_bytes", "temporary_bytes", "output_bytes", "accessed_bytes"),
    *("peak_bytes", "peak_resident_bytes", "least_bytes"),
]
PEAK = ["peak_flops", "peak_bandwidth", "peak_precision", "peak_from", "mfu"]
FLOOR = ["floor_products", "floor_bytes", "floor_accessed", "times_floor"]
SETTINGS = ["batch_size", "image_size", "tasks", "method", "compute", "frozen", "device", "devices", "jax"]
PROGRAM = [
    *("what", *RATES, "seconds", "steps", "warm_up"),
    *(*TIMES, "gmacs_step", *MEMORY, *PEAK, *FLOOR, *SETTINGS),
]
EXPLAINED = pathlib.Path(timing.__file__).with_name("__main__.py").read_text().split('"""')[1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """{benchmark: measurements of a very small model}, without a data set or a model to start from."""
    nowhere = tmp_path_factory.mktemp("nothing") / "nowhere"
    flags = [CONFIG, *as_flags([*MICRO, f"data.root={nowhere}"])]
    short = pytest.MonkeyPatch()
    short.setattr(device_peaks, "SECONDS", 0.0)
    found = {"train": printed(*flags, "--what=train", "--steps=2")}
    found["infer"] = printed(*flags, "--what=infer", "--steps=2")
    found["merged"] = printed(*flags, "--what=infer", "--merged", "--steps=2")
    found["planned"] = printed(*flags, "--what=infer", "--merged", "--steps=0")
    short.undo()
    return found


@pytest.mark.parametrize("what", ["train", "infer", "merged"])
def test_a_program(measured, what):
    told = measured[what]
    more = {"train": ["encoder_microbatches", "remat"], "infer": ["merged"], "merged": ["merged"]}[what]
    assert list(told) == [*PROGRAM, *more, "gmacs_forward"]
    assert [key for key in told if not re.search(rf"\b{key}\b", EXPLAINED)] == []
    assert 0 < told["slowest"] <= told["images_per_second"] <= told["fastest"]
    assert told["images_per_second"] == 2 / told["seconds"]
    assert (told["steps"], told["warm_up"], told["batch_size"]) == (2, timing.WARM_UP, 2)
    assert (told["frozen"], told["devices"]) == ("bfloat16", 1)
    assert min(told[f"{name}_seconds"] for name in ("tracing", "lowering", "compile")) > 0
    assert min(told[f"{name}_bytes"] for name in ("argument", "temporary", "output", "accessed", "least")) > 0
    assert told["mfu"] == pytest.approx(2e9 * told["gmacs_step"] / told["peak_flops"] / told["seconds"])
    assert told["times_floor"] == pytest.approx(told["seconds"] / max(told["floor_products"], told["floor_bytes"]))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators have memory of their own")
def test_memory_on_a_cpu_is_that_of_the_process(measured):
    for what in ("train", "infer"):
        assert measured[what]["peak_bytes"] is None
        assert measured[what]["peak_resident_bytes"] > measured[what]["argument_bytes"]
        assert (measured[what]["peak_from"], measured[what]["peak_precision"]) == ("measured", "float32")


def test_costs(measured):
    train, infer, merged = (measured[what] for what in ("train", "infer", "merged"))
    assert train["argument_bytes"] > 100 * train["output_bytes"]  # the state is donated, so that only scalars are new
    # Less than three forward passes, since frozen weights have no gradient.
    assert 2 * train["gmacs_forward"] < train["gmacs_step"] / 2 < 3 * train["gmacs_forward"]
    assert merged["gmacs_forward"] < infer["gmacs_forward"] == infer["gmacs_step"] / 2
    assert merged["argument_bytes"] < infer["argument_bytes"]
    # A forward pass reads its arguments and writes the logits (21 + 3 + 1 channels).
    assert infer["least_bytes"] == pytest.approx(infer["argument_bytes"] + 2 * 32 * 32 * 25 * 4, rel=0.01)
    assert train["least_bytes"] > 1.1 * train["argument_bytes"]


def test_without_steps_nothing_runs(measured):
    planned, merged = measured["planned"], measured["merged"]
    assert list(planned) == list(merged)
    for key in ("images_per_second", "seconds", "mfu", "peak_flops", "times_floor", "peak_resident_bytes"):
        assert planned[key] is None
    for key in ("gmacs_step", "argument_bytes", "temporary_bytes", "least_bytes"):
        assert planned[key] == merged[key]


def test_a_program_as_a_table(measured, capsys):
    print_program(measured["train"])
    table = capsys.readouterr().out
    for text in ("Training step", "images/s", "compilation", "temporary memory", "share of the peak"):
        assert text in table
    assert "2 x 32x32, semseg, normals, depth" in table
    assert "frozen bfloat16" in " ".join(table.split())
    print_program(measured["planned"])
    table = capsys.readouterr().out
    for text in ("Forward pass", "not measured", "unknown", "merged True"):
        assert text in table


def test_feed(flags):
    model = as_flags([*MICRO_MODEL, "frozen_dtype=bfloat16", "data.num_workers=0", "image_size=32,32", "batch_size=2"])
    measured = printed(*flags, *model, "--what=end_to_end", "--steps=2")
    assert list(measured) == [
        *("what", "images_per_second", "seconds", "step_seconds", "device_wait", "host_wait", "steps", "warm_up"),
        *("workers", "cores", "batch_size", "image_size", "tasks", "device", "devices"),
    ]
    assert 0 <= measured["device_wait"] < 1
    assert 0 <= measured["host_wait"] <= 1
    assert measured["images_per_second"] == pytest.approx(2 / measured["seconds"])


def test_products_are_those_that_are_needed():
    """A program with two products, one of them in a loop of three, and others that no output depends on."""
    w, x = jnp.ones((3, 3)), jnp.ones((5, 3))

    def fn(w, x):
        looped, _ = jax.lax.scan(lambda carry, _: (carry @ w, None), x, None, length=3)
        _ = x @ w @ w  # no output depends on it
        return looped @ w

    assert roofline.products(jax.make_jaxpr(fn)(w, x).jaxpr) == 4 * 5 * 3 * 3


def test_products_of_a_gradient():
    """Forward once; backward once through the frozen factor, and once for the trained one."""
    trained, frozen, x = jnp.ones((3, 4)), jnp.ones((4, 2)), jnp.ones((5, 3))
    step = jax.value_and_grad(lambda trained, frozen, x: jnp.sum(jnp.tanh(x @ trained @ frozen)))
    assert roofline.products(jax.make_jaxpr(step)(trained, frozen, x).jaxpr) == 2 * 5 * 3 * 4 + 2 * 5 * 4 * 2


def test_the_floor(monkeypatch):
    peak = device_peaks.Peak(200.0, "float32", 50.0, "data sheet")
    monkeypatch.setattr(roofline, "peak_of", lambda device, compute: peak)
    told = roofline.floor(1000, 1000, 400, 40.0, None, "float32")
    assert (told["floor_products"], told["floor_bytes"], told["floor_accessed"]) == (10.0, 20.0, 8.0)
    assert (told["mfu"], told["times_floor"]) == (0.25, 2.0)


@pytest.mark.parametrize(
    ("kind", "platform", "compute", "exact", "expected"),
    [
        ("NVIDIA H200", "gpu", "bfloat16", None, (989e12, "bfloat16", 4.8e12)),
        ("NVIDIA H200", "gpu", "float32", None, (495e12, "tf32", 4.8e12)),
        ("NVIDIA H100 80GB HBM3", "gpu", "float32", "highest", (67e12, "float32", 3.35e12)),
        ("NVIDIA A100-SXM4-80GB", "gpu", "bfloat16", "highest", (312e12, "bfloat16", 2.039e12)),
        ("TPU v4", "tpu", "float32", None, (275e12, "bfloat16", 1.228e12)),
    ],
)
def test_known_peaks(kind, platform, compute, exact, expected):
    with jax.default_matmul_precision(exact):
        peak = device_peaks.peak_of(types.SimpleNamespace(device_kind=kind, platform=platform), compute)
    assert (peak.flops, peak.precision, peak.bandwidth, peak.source) == (*expected, "data sheet")


def test_a_peak_that_has_to_be_measured(monkeypatch):
    monkeypatch.setattr(device_peaks, "SECONDS", 0.0)
    peak = device_peaks.peak_of(jax.devices("cpu")[0], "bfloat16")
    assert (peak.precision, peak.source) == ("float32", "measured")
    assert peak.flops > 1e8
    assert peak.bandwidth > 1e7


def test_steps_of_the_warm_up_do_not_count():
    calls = []
    steps = timing.time_steps(lambda: calls.append(1), 3, jax.devices()[0])
    assert (len(calls), len(steps.seconds)) == (3 + timing.WARM_UP, 3)
    assert timing.time_steps(lambda: calls.append(1), 0, jax.devices()[0]).median is None
    assert len(calls) == 3 + timing.WARM_UP


def test_rates():
    several, one = timing.compute_rates(10, [1.0, 2.0, 4.0, 5.0, 10.0]), timing.compute_rates(10, [2.0])
    assert several == {"images_per_second": 2.5, "slowest": 1.0, "fastest": 10.0, "spread": 0.75}
    assert one == {"images_per_second": 5.0, "slowest": 5.0, "fastest": 5.0, "spread": None}
    assert set(timing.compute_rates(10, []).values()) == {None}


def test_noise_has_the_form_of_labels():
    tasks = make_tasks(tiny_data.TASKS)
    batch = random_batch(tasks, 3, (32, 48))
    forms = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
    assert forms.pop("image") == ((3, 32, 48, 3), "uint8")
    assert forms.pop("normals") == ((3, 32, 48, 3), "uint16")
    assert forms.pop("depth") == ((3, 32, 48), "float32")
    assert set(forms.values()) == {((3, 32, 48), "uint8")}
    assert all(batch[name].max() == max(tasks[name].channels, 2) - 1 for name in forms)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--what=sleep"], "--what=sleep is not one of train, infer, data, end_to_end"),
        (["--what=train", "--steps=-1"], "--steps=-1 must be at least 0"),
        (["--what=train", "--steps=many"], "--steps"),
        (["--what=train", "--merged"], "--merged needs --what=infer, not --what=train"),
        (["--what=end_to_end", "--steps=0"], "--steps=0 must be at least 1 for --what=end_to_end"),
        (["--what=train", "--config.remat=layer"], "remat = 'layer' is not one of none, block, stage"),
        (
            ["--what=train", "--config.encoder_microbatches=3"],
            "encoder_microbatches = 3 must be at least 1 and divide the 4 images",
        ),
        (["--what=infer", "--config.compute_dtype=int8"], "compute_dtype = 'int8' is not one of float32, bfloat16"),
        (["--what=infer", "--config.batch_size=0"], "batch_size = 0 must be a positive multiple"),
        ([], "--what"),
        (["--what=data", "--jsn"], "unknown flag --jsn; did you mean --json"),
        (["--what=data", "--config.data.root=nowhere"], "nowhere: no such folder"),
        (["--what=end_to_end", "--config.data.root=nowhere"], "nowhere: no such folder"),
        (
            ["--what=data", "--config.data.name=pascal_context", "--config.data.root=nowhere"],
            "no such data set; build it with",
        ),
        (
            ["--what=data", "--config.data.augmentation.discrete_scales=true", "--config.data.augmentation.scale=0,1"],
            "scale",
        ),
    ],
)
def test_refused(flags, more, message):
    with pytest.raises(UserError, match=message) as caught:
        main([*flags, *more])
    assert "\n" not in str(caught.value)
