"""The order of the package: nothing earlier imports anything later, and no file grows long."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "mtlora_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# First to last. A module imports from its own layer and from those before it; a folder is one module here.
LAYERS = [
    {"errors", "defaults", "markdown", "schema", "registry"},
    {"files"},
    {"arrays", "locks", "pictures", "weights"},
    {"losses", "metrics", "boundaries"},
    {"tasks"},
    {"data"},
    {"models"},
    {"methods"},
    {"parameters", "macs", "accounting"},
    {"architecture"},
    {"card", "config_schema", "class_names", "retask", "step"},
    {"folder"},
    {"adapter", "merging", "postprocessing"},
    {"__init__"},
    {"optim", "sharding", "records", "guards", "saved_config"},
    {"agreement", "checkpoint", "config_checks", "shutdown", "distributed", "initial_weights"},
    {"experiment"},
    {"predictions"},
    {"original_size"},
    {"evaluate"},
    {"progress"},
    {"loop"},
    {"train"},
    {"config"},
    {"cli"},
    {"lettering", "outputs", "photographs", "sheets"},
    {"gallery"},
    {"main", "summary", "plot", "convert", "predict", "benchmark", "export", "pretrain", "demo", "memory", "paper"},
]
LAYER = {module: number for number, modules in enumerate(LAYERS) for module in modules}
PLAIN = ("models", "methods")  # these take plain numbers, never a ConfigDict


def module_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(node: ast.AST) -> set[str]:
    """Dotted names that run when the code runs, wherever they stand; `from a import b` gives a.b."""
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


def own_modules(names: set[str]) -> set[str]:
    """What of the package the dotted `names` import: its modules, or "__init__" for the package itself."""
    parts = [name.split(".") for name in names if name.split(".")[0] == "mtlora_jax"]
    return {part[1] if len(part) > 1 and (part[1] in LAYER or _is_module(part[1])) else "__init__" for part in parts}


def _is_module(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def test_package_is_found():
    assert len(FILES) > 10


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import mtlora_jax.train", {"train"}),
        ("import numpy as np, mtlora_jax.data.pipeline as p", {"data"}),
        ("from mtlora_jax import step", {"step"}),
        ("from mtlora_jax.models.layers import Linear", {"models"}),
        ("def f():\n    if 1:\n        from mtlora_jax.errors import UserError", {"errors"}),
        ("from mtlora_jax import load", {"__init__"}),
        ("import mtlora_jax", {"__init__"}),
        ("if TYPE_CHECKING:\n    from mtlora_jax.train import train", set()),
        ("import mtlora_jax_extras", set()),
    ],
)
def test_imports_are_read(source, expected):
    assert own_modules(imports_of(ast.parse(source))) == expected


def test_every_module_has_a_layer():
    assert {module_of(path) for path in FILES} <= LAYER.keys()


def test_layers_share_no_module():
    assert len(LAYER) == sum(map(len, LAYERS))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_what_comes_later(path):
    module = module_of(path)
    imported = own_modules(imports_of(ast.parse(path.read_text())))
    later = {other for other in imported if LAYER[other] > LAYER[module]}
    assert not later


@pytest.mark.parametrize("folder", PLAIN)
def test_models_and_methods_know_no_config(folder):
    names = set().union(*(imports_of(ast.parse(path.read_text())) for path in (PACKAGE / folder).rglob("*.py")))
    assert names
    assert "ml_collections" not in {name.split(".")[0] for name in names}
    assert "config" not in own_modules(names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_is_short(path):
    assert len(path.read_text().splitlines()) < 400
