"""What a fresh machine gets: a light import, and locked versions that setup.py accepts."""

import pathlib
import re
import runpy
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
HEAVY = ("torch", "tensorflow", "matplotlib", "transformers")


def test_core_import_needs_no_other_framework():
    program = f"import sys, mtlora_jax, mtlora_jax.cli; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def setup_arguments():
    setuptools = pytest.importorskip("setuptools")
    arguments = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", arguments.update)
        runpy.run_path(str(ROOT / "setup.py"))
    return arguments


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
def test_lock_satisfies_setup(lock, setup_arguments):
    requirements = pytest.importorskip("packaging.requirements")
    locked = versions(lock)
    extra = "dev" if "torch" in locked else "test"
    wanted = [*setup_arguments["install_requires"], *setup_arguments["extras_require"][extra]]
    assert len(wanted) > 10
    for requirement in map(requirements.Requirement, wanted):
        assert requirement.specifier.contains(locked[_plain(requirement.name)]), requirement


def test_converter_is_tested_on_the_oldest_python():
    assert "torch" in versions(LOCKS[0])
