"""User files are opened in few places, each of which handles everything that can be wrong with them."""

import ast

import pytest
from paths import ROOT

PACKAGES = ("mtlora_jax", "tfds_pascal_context", "benchmarks")
FILES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Last words of the calls that open a file or parse its contents.
OPENING = {
    "open", "fdopen", "FileIO", "read_text", "write_text", "read_bytes", "write_bytes", "fromfile", "memmap", "tofile",
    "imread", "imdecode", "imreadmulti", "imwrite", "loadmat", "loadtxt", "genfromtxt", "savetxt",
    "safe_open", "load_file", "save_file",
}  # fmt: skip
FULL = {
    "json.load", "json.loads", "json.dump", "pickle.load", "pickle.loads", "yaml.load", "yaml.safe_load",
    "np.load", "np.save", "np.savez", "np.savez_compressed", "torch.load", "torch.save",
    "safetensors.numpy.load", "safetensors.numpy.save",
}  # fmt: skip
OURS = ("files", "weights", "arrays", "image_files", "checkpoint_reader")  # modules with functions for all callers

# {file: {call: why it is there}}
ALLOWED = {
    "mtlora_jax/io/files.py": dict.fromkeys(
        ("path.read_bytes", "temporary.write_bytes", "os.open", "json.loads", "open"), "the place of files"
    ),
    "mtlora_jax/io/locks.py": {"os.open": "locks are descriptors"},
    "mtlora_jax/io/image_files.py": dict.fromkeys(("PIL.Image.open", "cv2.imdecode"), "the place of pictures"),
    "mtlora_jax/io/weights.py": dict.fromkeys(
        ("safetensors.numpy.load_file", "safetensors.numpy.save_file"), "the place of weights"
    ),
    "mtlora_jax/io/arrays.py": dict.fromkeys(("np.load", "np.lib.format.open_memmap"), "the place of arrays"),
    "mtlora_jax/convert/checkpoint_reader.py": dict.fromkeys(
        (
            *("torch.load", "safetensors.numpy.load_file", "safetensors.safe_open"),
            *("zipfile.ZipFile.open", "archive.open", "path.open"),
        ),
        "the place of checkpoints of others",
    ),
    "mtlora_jax/convert/torchfile.py": {"torch.load": "the place of pickles: weights_only"},
    "mtlora_jax/convert/to_mtlora.py": {
        "temporary.open": "torch.save takes an open file",
        "torch.save": "whole or not at all, by its name",
    },
    "mtlora_jax/io/jsonl.py": {"path.open": "a log of any length, line by line", "json.loads": "one line"},
    "mtlora_jax/metric_writers/writer.py": {"path.open": "grows line by line"},
    "mtlora_jax/cli.py": {"os.open": "of /dev/null"},
    "mtlora_jax/distributed/preemption.py": {"os.open": "of /dev/null"},
    "mtlora_jax/distributed/agreement.py": {"json.loads": "of our own text", "path.read_bytes": "our own sources"},
    "mtlora_jax/model_factory.py": {"json.loads": "of our own text"},
    "mtlora_jax/defaults.py": {"json.loads": "of our own text"},
    "mtlora_jax/experiment.py": {"json.loads": "of our own text"},
    "mtlora_jax/train/run_config.py": {"json.loads": "of our own text"},
    "mtlora_jax/distributed/sharding.py": {"json.loads": "what another process of ours sent"},
    "mtlora_jax/io/output_folder.py": {"np.savez_compressed": "into memory"},
    "mtlora_jax/benchmark/timing.py": {"pathlib.Path('/proc/self/clear_refs').write_text": "a switch of the system"},
    "mtlora_jax/export/__main__.py": {
        "importlib.resources.files(export).joinpath(export.LOADER).read_text": "a resource of the package"
    },
    "mtlora_jax/export/load.py": dict.fromkeys(
        (
            "(folder / 'weights.safetensors').read_bytes",
            "(folder / 'model.jax_export').read_bytes",
            "(folder / 'metadata.json').read_text",
            *("json.loads", "np.load", "np.savez"),
        ),
        "runs without this package",
    ),
    "benchmarks/sweep.py": {"json.loads": "what our own command printed"},
    "tfds_pascal_context/convert.py": dict.fromkeys(
        ("json.loads", "cached.open", "temporary.write_bytes"), "its own cache"
    ),
    "tfds_pascal_context/download.py": dict.fromkeys(
        ("path.open", "part.open"), "an archive of gigabytes, part by part"
    )
    | {"CHECKSUMS.read_text": "a resource of the package"},
    "tfds_pascal_context/dummy.py": {"path.read_bytes": "its own files", "np.save": "its own files"},
    "tfds_pascal_context/workers.py": {"pickle.loads": "what a process of its own sent"},
    "tfds_pascal_context/source.py": {
        "tarfile.open": "members are checked one by one",
        "path.read_bytes": "our own sources",
    },
}


def calls_of(tree: ast.AST) -> list[str]:
    """The calls that open something, as written."""
    names = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    own = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return [name for name in names if is_opening(name) and name not in own and name.split(".")[0] not in OURS]


def is_opening(name: str) -> bool:
    return name in FULL or (name.split(".")[-1] in OPENING and not name.startswith("self."))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("PIL.Image.open(path)", ["PIL.Image.open"]),
        ("from PIL import Image\nImage.open(path)", ["Image.open"]),
        ("cv2.imread(path)", ["cv2.imread"]),
        ("skimage.io.imread(path)\nplt.imread(path)", ["skimage.io.imread", "plt.imread"]),
        ("with open(path) as file: pass", ["open"]),
        ("json.loads(path.read_text())", ["json.loads", "path.read_text"]),
        ("from mtlora_jax.io.files import read_text\nread_text(path)", []),
        ("files.read_json(path)\nfiles.write_text(path, '')", []),
    ],
)
def test_calls_are_found(source, found):
    assert calls_of(ast.parse(source)) == found


@pytest.mark.parametrize("name", FILES)
def test_files_are_opened_in_few_places(name):
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    assert set(calls_of(tree)) <= ALLOWED.get(name, {}).keys()
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"PIL.Image", "json", "cv2"}  # their functions would then have other names


# Flags that name a file or a folder, of whichever command.
FOLDERS = {"--workdir", "--output", "--out", "--images", "--labels", "--manual_dir", "--data_dir", "--compile_cache"}
PATHS = FOLDERS | {"--model", "--base", "--source"}


@pytest.mark.parametrize("name", FILES)
def test_flags_that_are_paths_know_home_folders(name):
    """`--workdir=~/run` reaches the program as it is."""
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".add_argument"):
            flag = ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else ""
            kind = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("type", "str")
            assert kind != "pathlib.Path"
            if flag in PATHS | {"runs", "folder", "checkpoint"}:
                assert kind in ("user_path", "files.user_path") or flag == "--compile_cache"
