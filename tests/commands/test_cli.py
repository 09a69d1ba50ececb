"""Flags, configurations and overrides: results of good ones, and the one line of each error."""

import re
import subprocess
import sys

import grain
import pytest
from ml_collections import config_dict
from paths import ROOT

from mtlora_jax import cli, config
from mtlora_jax.errors import UserError

CONFIG = """
from ml_collections import ConfigDict
from mtlora_jax.errors import UserError

def get_config(size):
    if size not in ("tiny", "base"):
        raise UserError(f"no size {size!r}; there are tiny, base")
    return ConfigDict({
        "batch_size": 32, "name": "swin", "augment": True, "tasks": ("semseg", "sal"), "rank": (64, 64),
        "scale": (4.0, 4.0), "seed": None, "crops": ((1, 2), (3, 4)), "listed": [1],
        "optim": {"weight_decay": 0.05, "schedule": {"warmup": 5}},
        "loss_weights": ConfigDict({"semseg": 1.0}, type_safe=False),
    })
"""

COMMAND = '''
"""Counts images.

    python -m count --config=x.py --workdir=out
"""
from mtlora_jax import cli

def main(argv=None):
    parser = cli.Parser("count", __doc__, config=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--mode", choices=["train", "evaluate"], default="train")
    args = parser.parse(argv)
    print(args.workdir, args.mode, args.config.batch_size)

if __name__ == "__main__":
    cli.run(main)
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "exp.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("batch_size=8", "batch_size", 8),
        ("name=a=b", "name", "a=b"),
        ("augment=False", "augment", False),
        ("augment=true", "augment", True),
        ("optim.weight_decay=1e-3", "optim.weight_decay", 1e-3),
        ("optim.weight_decay=0", "optim.weight_decay", 0.0),
        ("optim.schedule.warmup=-1", "optim.schedule.warmup", -1),
        ("loss_weights.sal=2", "loss_weights.sal", 2.0),  # of a task that the file does not mention
        ("loss_weights.semseg=2", "loss_weights.semseg", 2.0),
        ("seed=7", "seed", 7),
        ("seed=abc", "seed", "abc"),
        ("tasks=semseg", "tasks", ("semseg",)),
        ("tasks=semseg,sal,normals", "tasks", ("semseg", "sal", "normals")),
        ("tasks=(semseg, sal)", "tasks", ("semseg", "sal")),
        ("tasks=('semseg', 'sal',)", "tasks", ("semseg", "sal")),
        ('tasks=["semseg"]', "tasks", ("semseg",)),
        ("tasks=", "tasks", ()),
        ("rank=16,8,4", "rank", (16, 8, 4)),
        ("rank=16", "rank", (16,)),
        ("scale=4,2.5", "scale", (4.0, 2.5)),
        ("crops=((5, 6),)", "crops", ((5, 6),)),
    ],
)
def test_override_follows_the_type_in_the_file(file, override, key, value):
    result = config.load(f"{file}:tiny", [override])
    for name in key.split("."):
        result = result[name]
    assert result == value
    assert repr(result) == repr(value)  # 1 == 1.0 == True, but they differ in the printed configuration


def test_config_is_locked_and_the_last_override_wins(file):
    result = config.load(f"{file}:tiny", ["batch_size=1", "batch_size=2"])
    assert result.batch_size == 2
    assert result.is_locked
    with pytest.raises(AttributeError):
        result.new = 1


def test_a_value_may_stay_a_placeholder_of_its_type(tmp_path):
    path = tmp_path / "exp.py"
    placeholder = "ConfigDict({'n': config_dict.placeholder(int)})"
    path.write_text(
        f"from ml_collections import ConfigDict, config_dict\n\ndef get_config():\n    return {placeholder}\n"
    )
    assert config.load(str(path), ["n=3"]).n == 3
    with pytest.raises(UserError, match=r"--config.n=x is not a value of the right type"):
        config.load(str(path), ["n=x"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batchsize=8", "--config.batchsize is unknown; did you mean batch_size?"),
        ("weight_decay=0", "--config.weight_decay is unknown; did you mean optim.weight_decay?"),
        ("optim.wait_decay=0", "--config.optim.wait_decay is unknown; did you mean optim.weight_decay?"),
        ("zzz=1", "--config.zzz is unknown; there are augment, batch_size, "),
        ("optim=1", "--config.optim is a group of values; set one of optim."),
        ("batch_size", "--config.batch_size has no value: write --config.batch_size=VALUE"),
        ("batch_size=1.5", "--config.batch_size=1.5 is not a whole number, like 32"),
        ("optim.weight_decay=abc", "--config.optim.weight_decay=abc is not a number, like 0.05"),
        ("augment=maybe", "--config.augment=maybe is not true or false, like True"),
        ("rank=a,b", "--config.rank=a,b is not a list of the same kind, like (64, 64)"),
        ("rank=1.5", "--config.rank=1.5 is not a list of the same kind, like (64, 64)"),
        ("loss_weights.sal=much", "--config.loss_weights.sal=much is not a number"),
        ("loss_weights.sal", "--config.loss_weights.sal is unknown"),
        ("loss_wieghts.sal=1", "--config.loss_wieghts.sal is unknown"),
        ("listed=1", "--config.listed is a list, which cannot be set on the command line: change the file"),
    ],
)
def test_wrong_override_names_what_would_be_right(file, override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        config.load(f"{file}:tiny", [override])


@pytest.mark.parametrize(
    ("source", "spec", "message"),
    [
        (CONFIG, "exp.py", "exp.py needs an argument: --config="),
        (CONFIG, "exp.py:huge", "no size 'huge'; there are tiny, base"),
        (CONFIG, "exo.py:tiny", "exp.py?"),
        (CONFIG, "", "no configuration file"),
        ("def get_config():\n    return 1", "exp.py", "returns int, not ml_collections.ConfigDict"),
        ("def get_config():\n    return 1", "exp.py:x", "exp.py takes no argument, but got 'x'"),
        ("get_config = 3", "exp.py", "defines no function get_config"),
        ("def get_config(:", "exp.py", "line 1: "),
    ],
)
def test_wrong_file_or_argument(tmp_path, source, spec, message):
    (tmp_path / "exp.py").write_text(source)
    with pytest.raises(UserError, match=re.escape(message)):
        config.load(f"{tmp_path}/{spec}")


def test_file_that_is_no_python(tmp_path):
    (tmp_path / "exp.json").write_text("{}")
    with pytest.raises(UserError, match="its name must end in .py"):
        config.load(str(tmp_path / "exp.json"))


def test_mistake_inside_a_file_keeps_its_traceback(tmp_path):
    (tmp_path / "exp.py").write_text("def get_config():\n    return 1 / 0")
    with pytest.raises(ZeroDivisionError):
        config.load(str(tmp_path / "exp.py"))


def parser(takes_config: bool) -> cli.Parser:
    made = cli.Parser("count", "Counts images.\n\n    python -m count --workdir=out", config=takes_config)
    made.add_argument("--workdir", required=True)
    made.add_argument("--mode", choices=["train", "evaluate"], default="train")
    made.add_argument("--steps", type=int, default=3)
    return made


def test_flags_and_config_in_any_order(file):
    args = parser(True).parse(
        ["--config.tasks=('sal', 'edge')", "--workdir", "w", f"--config={file}:base", "--config.batch_size=4"]
    )
    assert (args.workdir, args.mode, args.steps) == ("w", "train", 3)
    assert isinstance(args.config, config_dict.ConfigDict)
    assert (args.config.batch_size, args.config.tasks) == (4, ("sal", "edge"))


@pytest.mark.parametrize(
    ("takes_config", "argv", "message"),
    [
        (False, ["--workdri=x"], "unknown flag --workdri; did you mean --workdir?"),
        (False, ["--workdir=x", "--config.batch_size=3"], "unknown flag --config.batch_size"),
        (False, ["--work=x"], "unknown flag --work; did you mean --workdir?"),
        (False, ["--workdir=x", "-q"], "unrecognized arguments: -q"),
        (False, ["--workdir=x", "stray"], "unrecognized arguments: stray"),
        (False, [], "the following arguments are required: --workdir"),
        (True, ["--workdir=x"], "the following arguments are required: --config"),
        (False, ["--workdir"], "--workdir: expected one argument"),
        (False, ["--workdir="], "--workdir is given, but empty"),
        (False, ["--workdir", ""], "--workdir is given, but empty"),
        (False, ["--workdir=x", "--steps=abc"], "--steps: invalid int value: 'abc' (see python -m count --help)"),
        (False, ["--workdir=x", "--mode=test"], "invalid choice: 'test'"),
    ],
)
def test_wrong_flag(takes_config, argv, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parser(takes_config).parse(argv)


def chained(error: Exception, cause: Exception | None, context: Exception | None) -> Exception:
    error.__cause__, error.__context__ = cause, context
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no file x"), 2, "error: no file x\n"),
        (UserError("two\n  lines"), 2, "error: two lines\n"),
        (chained(RuntimeError("a"), UserError("the cause"), None), 2, "error: the cause\n"),
        (chained(RuntimeError("a"), None, chained(ValueError("b"), UserError("far off"), None)), 2, "error: far off\n"),
        (UserError("class \x1b[2Jred\u202e\ud800 größer"), 2, "error: class \\x1b[2Jred\\u202e\\ud800 größer\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_run_ends_in_one_line(capsys, error, code, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == code
    assert capsys.readouterr() == ("", line)


def test_run_leaves_other_errors_alone():
    def main():
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        cli.run(main)


def test_run_returns_after_success(capsys):
    cli.run(lambda: print("done"))
    assert capsys.readouterr() == ("done\n", "")


class Broken(grain.transforms.Map):
    def map(self, element):
        raise UserError(f"label {element}.png holds 77")


def test_mistake_in_a_data_worker_is_one_line(capsys):
    """The message crosses from a worker process."""
    dataset = (
        grain.MapDataset.range(4)
        .map(Broken())
        .to_iter_dataset()
        .mp_prefetch(grain.MultiprocessingOptions(num_workers=1))
    )

    def main():
        parser(False).parse(["--workdir=x"])
        next(iter(dataset))

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: label 0.png holds 77\n"


@pytest.fixture
def command(tmp_path, file):
    (tmp_path / "count.py").write_text(COMMAND)
    return lambda *argv: subprocess.run(
        [sys.executable, str(tmp_path / "count.py"), *argv], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("argv", "code", "out", "err"),
    [
        (["--config={file}:tiny", "--workdir=w", "--config.batch_size=6"], 0, "w train 6\n", ""),
        (
            ["--config={file}:tiny", "--workdir=w", "--config.batch_size=x"],
            2,
            "",
            "error: --config.batch_size=x is not a whole number, like 32\n",
        ),
    ],
)
def test_command_as_a_person_runs_it(command, file, argv, code, out, err, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = command(*(arg.format(file=file) for arg in argv))
    assert (result.returncode, result.stdout, result.stderr) == (code, out, err)


def test_help_shows_the_example(capsys):
    with pytest.raises(SystemExit) as stop:
        parser(True).parse(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m count ")
    assert "    python -m count --workdir=out" in out
    assert "--config.KEY=VALUE" in out
    assert len(out.splitlines()) < 25
