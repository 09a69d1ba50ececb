"""The wheel works outside of the repository and contains data files and type information, but no tests."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from checkpoints import multitask, reference, saved, weights
from paths import ROOT
from PIL import Image

PACKAGES = ("mtlora_jax", "tfds_pascal_context")
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "tests", "configs", *PACKAGES)
LEFT_OUT = "tfds_pascal_context/dummy_data"  # invented raw files, from which tests build data sets
PROGRAM = """
import sys
import numpy as np
from PIL import Image
import mtlora_jax, tfds_pascal_context
print(mtlora_jax.__file__, tfds_pascal_context.__file__, mtlora_jax.__version__, sep="\\n")
image = np.asarray(Image.open("photo.png"))
logits = mtlora_jax.load("model")(image)
assert {task: x.shape for task, x in logits.items()} == {"semseg": (40, 56, 21), "edge": (40, 56, 1)}
assert mtlora_jax.postprocess("semseg", logits["semseg"])["labels"].shape == (40, 56)
assert not [name for name in ("torch", "matplotlib") if name in sys.modules]
"""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def run(*command: object, **options) -> str:
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def pip(*arguments: object, **options) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--no-deps", "--no-index", **options)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository without leftovers of builds, so that builds do not change it."""
    folder = tmp_path_factory.mktemp("copy")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(copy):
    pip("wheel", "--no-build-isolation", "--wheel-dir=dist", ".", cwd=copy)
    [path] = (copy / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    pip("install", f"--target={folder}", wheel)
    return folder


def test_wheel_holds_the_packages_and_nothing_else(wheel, copy):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for package in PACKAGES for path in (copy / package).rglob("*") if path.is_file()]
    tracked = {path.relative_to(copy).as_posix() for path in files}
    assert names == {name for name in tracked if not name.startswith(LEFT_OUT)}
    assert {"mtlora_jax/py.typed", "tfds_pascal_context/py.typed"} <= names
    for kind in ("safetensors", "html", "tsv"):
        assert any(name.endswith(f".{kind}") for name in names), kind


def test_wheel_works_from_an_empty_folder(installed, tmp_path):
    source = saved(tmp_path, reference(weights(multitask())), "checkpoint.safetensors")
    work = tmp_path / "work"
    work.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)).save(work / "photo.png")
    # Installed packages come after PYTHONPATH: the libraries are those of the environment, ours is the wheel's.
    environment = os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiled quickly

    def python(*arguments: object) -> str:
        return run(sys.executable, *arguments, cwd=work, env=environment)

    python("-m", "mtlora_jax.convert", source, "model", "--image_size=64")
    package, builder, version = python("-c", PROGRAM).splitlines()[-3:]
    assert pathlib.Path(package).parents[1] == pathlib.Path(builder).parents[1] == installed
    assert f"mtlora_jax-{version}.dist-info" in os.listdir(installed)
    python("-m", "mtlora_jax.predict", "--model=model", "--images=photo.png", "--output=predictions")
    assert "photo" in (work / "predictions" / "index.html").read_text()
    assert "model.safetensors" in os.listdir(work / "model")
