"""A fresh machine: a light import, and locked versions that pyproject.toml accepts."""

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from paths import ROOT

import mtlora_jax
from mtlora_jax.export import onnx

LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
HEAVY = ("torch", "tensorflow", "matplotlib", "transformers")


def test_core_import_needs_no_other_framework():
    program = f"import sys, mtlora_jax, mtlora_jax.cli; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted(project: dict, extra: str) -> list[str]:
    """Requirements of an extra, with the extras it is made of."""
    found = []
    for requirement in project["optional-dependencies"][extra]:
        inner = re.fullmatch(r"mtlora_jax\[(.*)\]", requirement)
        found += [line for name in inner[1].split(",") for line in wanted(project, name)] if inner else [requirement]
    return found


def test_version_is_that_of_pyproject(project):
    assert mtlora_jax.__version__ == project["version"]


def versions(lock: pathlib.Path) -> dict[str, str]:
    return {_plain(name): version for name, version in (line.split("==") for line in lock.read_text().split())}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_there_is_a_lock_for_each_series():
    assert [lock.stem for lock in LOCKS] == ["py311", "py312"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_lock_names_versions_only(lock):
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line) for line in lock.read_text().splitlines())
    assert not [name for name in versions(lock) if name.startswith(("nvidia", "cuda"))]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_lock_satisfies_setup(lock, project):
    requirements = pytest.importorskip("packaging.requirements")
    locked = versions(lock)
    extra = "dev" if "torch" in locked else "test"
    lines = [*project["dependencies"], *wanted(project, extra), *wanted(project, "docs")]
    assert len(lines) > 25
    for requirement in map(requirements.Requirement, lines):
        assert requirement.specifier.contains(locked[_plain(requirement.name)]), requirement


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_style_before_a_commit_is_that_of_make_lint(lock):
    asked = set(re.findall(r"ruff==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text()))
    assert asked == {versions(lock)["ruff"]}


def test_hosted_checks_are_those_of_a_clean_clone():
    targets = re.search(r"^make --keep-going ((?:[a-z-]+ )+)", (ROOT / ".ci" / "run").read_text(), re.M)[1].split()
    hosted = re.search(r"target: \[(.*)\]", (ROOT / ".github" / "workflows" / "ci.yml").read_text())[1].split(", ")
    assert hosted == targets


def test_converter_is_tested_on_the_oldest_python():
    assert "torch" in versions(LOCKS[0])


def test_extras_leave_the_locked_versions_alone(project):
    """`make test-extras` installs them on top of .venv, without resolving their requirements."""
    requirements = pytest.importorskip("packaging.requirements")
    extras = versions(ROOT / "requirements" / "extras" / "py311.lock")
    assert not extras.keys() & versions(LOCKS[0]).keys()
    for requirement in map(requirements.Requirement, wanted(project, "onnx")):
        assert requirement.specifier.contains(extras[_plain(requirement.name)]), requirement
    assert onnx.INSTALL.endswith(f"jax2onnx=={extras['jax2onnx']}")
