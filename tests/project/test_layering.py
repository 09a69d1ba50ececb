"""The order of the package: nothing earlier imports anything later, and no file grows long."""

import ast
import pathlib

import pytest
from paths import ROOT

PACKAGE = ROOT / "mtlora_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# First to last, one line per level. A module imports from its own line and those before; a folder is one entry here.
ORDER = """
errors
schema registry
io config_aliases
tasks
data
models
methods
defaults
model_factory
analysis
console
model_io
__init__
metric_writers
distributed
config_checks
experiment
eval
train
config
cli
plot
main summary convert predict benchmark export demo
"""
# Inside two rooms that others build on, their modules in order.
INSIDE = {
    "models": """
        functional initializers inputs task_features
        remat layers
        parameters
        backbones decoders
        multitask
        """,
    "methods": """
        base
        param_groups
        baselines bitfit merged mtlora
        __init__
        """,
}


def numbered(lines: str) -> dict[str, int]:
    """{module: number of its line}."""
    return {module: number for number, line in enumerate(lines.split("\n")) for module in line.split()}


LAYER = numbered(ORDER)
PLAIN = ("models", "methods")  # these take plain numbers, never a ConfigDict


def module_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(node: ast.AST) -> set[str]:
    """Dotted names imported when the code runs, at any place in it; `from a import b` gives a.b."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: write imports of the package in full"
            found |= {f"{child.module}.{alias.name}" for alias in child.names}
        elif not is_for_types_only(child):
            found |= imports_of(child)
    return found


def imports_at_start(tree: ast.Module) -> set[str]:
    """As `imports_of`, without those inside of functions, which break circles."""
    return imports_of(
        ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)], [])
    )


def own_modules(names: set[str]) -> set[str]:
    """Modules of the package that the dotted `names` import, or "__init__" for the package itself."""
    parts = [name.split(".") for name in names if name.split(".")[0] == "mtlora_jax"]
    return {part[1] if len(part) > 1 and (part[1] in LAYER or _is_module(part[1])) else "__init__" for part in parts}


def _is_module(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def test_package_is_found():
    assert len(FILES) > 10


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import mtlora_jax.train.run", {"train"}),
        ("import numpy as np, mtlora_jax.data.pipeline as p", {"data"}),
        ("from mtlora_jax import plot", {"plot"}),
        ("from mtlora_jax.models.layers import Linear", {"models"}),
        ("def f():\n    if 1:\n        from mtlora_jax.errors import UserError", {"errors"}),
        ("from mtlora_jax import load", {"__init__"}),
        ("import mtlora_jax", {"__init__"}),
        ("if TYPE_CHECKING:\n    from mtlora_jax.train.run import train", set()),
        ("import mtlora_jax_extras", set()),
    ],
)
def test_imports_are_read(source, expected):
    assert own_modules(imports_of(ast.parse(source))) == expected


def test_every_module_has_a_layer():
    assert {module_of(path) for path in FILES} <= LAYER.keys()


def test_no_module_stands_twice():
    for lines in (ORDER, *INSIDE.values()):
        assert len(numbered(lines)) == len(lines.split())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_what_comes_later(path):
    module = module_of(path)
    imported = own_modules(imports_of(ast.parse(path.read_text())))
    later = {other for other in imported if LAYER[other] > LAYER[module]}
    assert not later


@pytest.mark.parametrize(
    ("room", "path"), [(room, path) for room in INSIDE for path in sorted((PACKAGE / room).rglob("*.py"))], ids=str
)
def test_nothing_inside_a_room_imports_what_comes_later(room, path):
    order = numbered(INSIDE[room])
    module = path.relative_to(PACKAGE / room).parts[0].removesuffix(".py")
    names = [name.split(".") for name in imports_at_start(ast.parse(path.read_text()))]
    imported = {
        name[2] if name[2] in order else "__init__"
        for name in names
        if name[:2] == ["mtlora_jax", room] and len(name) > 2
    }
    later = {other for other in imported if order[other] > order[module]}
    assert not later


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_does_not_know_the_builders(path):
    """`tfds_pascal_context` imports this package, never the other way round: they share the format of a data set."""
    assert "tfds_pascal_context" not in {name.split(".")[0] for name in imports_of(ast.parse(path.read_text()))}


@pytest.mark.parametrize("folder", PLAIN)
def test_models_and_methods_know_no_config(folder):
    names = set().union(*(imports_of(ast.parse(path.read_text())) for path in (PACKAGE / folder).rglob("*.py")))
    assert names
    assert "ml_collections" not in {name.split(".")[0] for name in names}
    assert "config" not in own_modules(names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_is_short(path):
    assert len(path.read_text().splitlines()) < 400
