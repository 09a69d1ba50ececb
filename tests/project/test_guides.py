"""Guides and notebook run as they are; files, headings, commands, flags and config keys in documents exist."""

import json
import os
import pathlib
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys

import nbformat
import pytest
import run_guide
from nbclient import NotebookClient
from paths import ROOT, SUPPORT

import mtlora_jax
from mtlora_jax import defaults
from mtlora_jax.config import BY_TASK
from mtlora_jax.methods import METHODS

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Up to the end of the line or of the code.
COMMAND = re.compile(r"python -m ((?:mtlora_jax|tfds_pascal_context)[\w.]*)((?:\\\n|[^\n`])*)")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*(?=[=\s\])]|$)")
CONFIG_KEY = re.compile(r"--config\.([a-z][\w.]*)")

# Compile with less effort, without XLA's warnings about slow compilation. Level 0 trains three times slower, which
# gains time only for the few steps of a tiny model.
QUICKLY = {
    **{"XLA_FLAGS": "--xla_backend_optimization_level=1", "TF_CPP_MIN_LOG_LEVEL": "3"},
    **{"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
}


def run(guide: str, folder: pathlib.Path, **environment: str) -> None:
    command = [sys.executable, SUPPORT / "run_guide.py", ROOT / "docs" / guide]
    environment = {**os.environ, **QUICKLY, **environment}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.xdist_group("guides")
def test_the_guide_to_own_data(tmp_path):
    run("own_data.md", tmp_path)


@pytest.mark.parametrize("part", ["task", "method", "backbone"])
def test_the_guides_to_own_parts(part, tmp_path):
    shutil.copytree(ROOT / "mtlora_jax", tmp_path / "mtlora_jax", ignore=shutil.ignore_patterns("__pycache__"))
    run(f"own_{part}.md", tmp_path, PYTHONPATH=str(tmp_path), XLA_FLAGS="--xla_backend_optimization_level=0")


@pytest.mark.slow
@pytest.mark.xdist_group("guides")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook(path, tmp_path, monkeypatch):
    for name, value in QUICKLY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook, folder = nbformat.read(path, as_version=4), {"metadata": {"path": tmp_path}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=folder).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_small_and_whole(path):
    assert path.stat().st_size < 500_000
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in cells]
    one_run, no_run = list(range(1, len(cells) + 1)), [None] * len(cells)
    assert counts in (one_run, no_run)
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.parametrize(
    ("text", "raises"),
    [
        ("```python\nvalue = 3\n```\n\n```python\nprint(value, 2.5)\n```\n\n```text\n3 2.5\n```\n", None),
        ("```python\nprint('loss 1.5')\nprint('b')\nprint('c')\n```\n```text\nloss 2.75\n...\nc\n```\n", None),
        ("```python\nprint('b')\nprint('c')\n```\n```text\nc\nb\n```\n", AssertionError),
        ("```python\nprint('b')\nprint('c')\nprint('d')\n```\n```text\nb\nd\n```\n", AssertionError),
        ("```bash\necho one\n```\n```text\ntwo\n```\n", AssertionError),
        ("```bash\nfalse\necho on\n```\n", subprocess.CalledProcessError),
        ("```python\n1 / 0\n```\n", ZeroDivisionError),
        ("```python\n# part/file.py\nx = 1\n```\n```bash\ncat part/file.py\n```\n```text\nx = 1\n```\n", None),
        ("```diff\n--- a/missing.py\n+++ b/missing.py\n@@ -1 +1 @@\n-a\n+b\n```\n", subprocess.CalledProcessError),
    ],
)
def test_blocks_run_and_fail(text, raises, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guide.md").write_text(text)
    if raises:
        with pytest.raises(raises):
            run_guide.run(tmp_path / "guide.md")
    else:
        run_guide.run(tmp_path / "guide.md")


def anchors(document: str) -> set[str]:
    """Targets of links within a document: its headings, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", document, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [*DOCUMENTS, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for link in LINK.findall(path.read_text()):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = path.parent / target if target else path
        assert file.exists(), f"{path.name}: {link}"
        assert not anchor or anchor in anchors(file.read_text()), f"{path.name}: {link}"


def test_the_page_of_the_api_names_what_there_is():
    names = re.findall(r"^\.\. auto\w+:: ([\w.]+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert {f"mtlora_jax.{name}" for name in mtlora_jax.__all__} <= set(names)
    for name in names:
        assert pkgutil.resolve_name(name).__doc__, name


def commands() -> dict[str, set[str]]:
    """{module: flags that documents give it}."""
    found: dict[str, set[str]] = {}
    for path in DOCUMENTS:
        for module, rest in COMMAND.findall(path.read_text()):
            found.setdefault(module.rstrip("."), set()).update(FLAG.findall(rest))
    return found


def test_commands_are_found():
    assert {
        "mtlora_jax.main",
        "mtlora_jax.convert",
        "mtlora_jax.predict",
        "tfds_pascal_context.build",
    } <= commands().keys()
    assert {"--config", "--workdir", "--mode", "--coordinator_address"} <= commands()["mtlora_jax.main"]


@pytest.mark.parametrize("module", commands())
def test_commands_take_the_flags_that_documents_give_them(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    told = capsys.readouterr().out
    assert end.value.code == 0
    assert commands()[module] - set(re.findall(r"--[a-z][\w-]*", told)) == set()


def keys(config, prefix: str = "") -> set[str]:
    """Dotted names of all values and groups."""
    groups = {name: value for name, value in config.items() if hasattr(value, "items")}
    return {prefix + name for name in config} | set().union(
        *(keys(value, f"{prefix}{name}.") for name, value in groups.items())
    )


def test_keys_of_configs_that_documents_name_exist():
    known = set().union(*(keys(defaults.default(method)) for method in METHODS if method != "merged"))
    named = {key.rstrip(".") for path in DOCUMENTS for key in CONFIG_KEY.findall(path.read_text())}
    assert len(named) > 10
    assert {key for key in named - known if key.split(".")[0] not in BY_TASK} == set()


def test_configs_that_documents_name_exist():
    named = {name for path in DOCUMENTS for name in re.findall(r"\bconfigs/\w+\.py", path.read_text())}
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == ["configs/NAME.py"]


def test_the_index_lists_every_document():
    listed = set(LINK.findall((ROOT / "docs" / "README.md").read_text()))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed
    assert {f"notebooks/{path.name}" for path in NOTEBOOKS} <= listed
