"""The sweep: settings, repeated runs, failures, tables computed by hand, and the whole command on a micro model."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import sweep
import sweep_report
from paths import ROOT
from sweep_plot import draw

from mtlora_jax.errors import UserError

CONFIG = [f"--config={ROOT / 'configs' / 'mtlora_tiny_448.py'}:64", "--config.data.root=none", "--config.batch_size=2"]
CENTRE = {"tasks": 4, "rank": 64, "batch": 2, "side": 448, "precision": "float32", "merged": "no"}


def measured(setting):
    """Made-up measurements: a step costs 4 + tasks + rank / 64 seconds at the batch and side of the centre."""
    size = setting["batch"] / 2 * (setting["side"] / 448) ** 2
    seconds = (4 + setting["tasks"] + setting["rank"] / 64) * size * (0.5 if setting["merged"] == "yes" else 1)
    memory = {"peak_bytes": None, "peak_resident_bytes": int(1e9 * size)}
    told = {"spread": 0.01, "mfu": 0.5, "device": "cpu", "devices": 1, "jax": "0.10.2", "steps": 3}
    rates = {"seconds": seconds, "images_per_second": setting["batch"] / seconds, "gmacs_step": 10 * seconds}
    return rates | memory | told


@pytest.fixture
def machine(monkeypatch):
    """Stands in for the processes; commands with a word of {word: (exit code, message)} fail."""
    calls, failing = [], {}

    def run(command, capture_output, text, timeout):
        calls.append(command)
        for word, (code, said) in failing.items():
            if word in command:
                return subprocess.CompletedProcess(command, code, "", said)
        given = [word.removeprefix("--config.") for word in command if word.startswith("--config.")]
        changes = dict(word.split("=") for word in given)
        setting = {
            "tasks": len(changes.get("tasks", "a,b,c,d").split(",")),
            "rank": int(changes.get("method.rank", 64)),
            "batch": int(changes["batch_size"]),
            "side": int(changes.get("image_size", "448").split(",")[0]),
            "merged": "yes" if "--merged" in command else "no",
        }
        return subprocess.CompletedProcess(command, 0, json.dumps(measured(setting)), "")

    monkeypatch.setattr(sweep.subprocess, "run", run)
    return calls, failing


def results_of(folder):
    return json.loads((folder / "sweep.json").read_text())


def test_a_sweep_and_its_costs(machine, tmp_path, capsys):
    calls, _ = machine
    axes = ["--axes=tasks,rank,batch,side,merged", "--batch=1,8", "--side=224"]
    sweep.main([*CONFIG, f"--output={tmp_path}", *axes, "--steps=3"])
    results = results_of(tmp_path)
    assert results["centre"] == CENTRE
    assert [entry["setting"]["what"] for entry in results["settings"]] == ["train"] * 8 + ["infer"] * 9
    assert results["settings"][0]["setting"] == {"what": "train", **CENTRE}
    assert all(entry["command"].startswith("python -m mtlora_jax.benchmark --config=") for entry in results["settings"])
    assert calls[1][1:] == [
        *("-m", "mtlora_jax.benchmark", *CONFIG, "--config.tasks=semseg"),
        *("--what=train", "--steps=3", "--json"),
    ]
    # Each task adds 1 s to the 6 s of one task (rank 64), and 48 more in rank add 0.75 s to the 8.25 s of rank 16; time
    # is proportional to the batch and to the area.
    table = (tmp_path / "sweep.md").read_text()
    assert "| train | time | 9.00 s | +16.67% (+1.00 s) | +0.19% (+15.62 ms) | x2.00 | x4.00 |  |" in table
    assert "| infer | time | 9.00 s | +16.67% (+1.00 s) | +0.19% (+15.62 ms) | x2.00 | x4.00 | x0.50 |" in table
    assert "| **4** | 9.00 s | 1.00 | 1.000 GB | 1.00 | 90 G | 1.00 | 0.2222 | 1.0% | 50.0% |" in table
    assert "| 224 | 2.25 s | 0.25 | 0.250 GB | 0.25 | 22.5 G | 0.25 | 0.8889 | 1.0% | 50.0% |" in table
    picture = np.asarray(PIL.Image.open(tmp_path / "sweep.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    assert "17/17 infer 4 64 2 448 float32 yes: 4.5 s, spread 1.0%; 0:00:00 left" in capsys.readouterr().out


def test_what_is_measured_is_not_measured_again(machine, tmp_path):
    calls, failing = machine
    exhausted = "XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"
    failing["--config.batch_size=4"] = (1, f"Traceback\n{exhausted}")
    failing["--config.batch_size=8"] = (-9, "")
    failing["--config.method.rank=16"] = (1, "Traceback\nValueError: the cable is out")
    command = [*CONFIG, f"--output={tmp_path}", "--what=train", "--axes=rank,batch", "--batch=4,8"]
    message = "1 settings failed, the first with: ValueError: the cable is out; the same command"
    with pytest.raises(UserError, match=message):
        sweep.main(command)
    assert [entry.get("failed") for entry in results_of(tmp_path)["settings"]] == [
        *(None, "ValueError: the cable is out", "out of memory", "out of memory"),
    ]
    assert "| 8 | out of memory |  |" in (tmp_path / "sweep.md").read_text()
    assert len(calls) == 4
    failing.clear()
    sweep.main(command)
    assert len(calls) == 5  # the cable alone
    sweep.main([*command[:-1], "--batch=1,4,8"])
    assert len(calls) == 6  # the new value alone
    assert len(results_of(tmp_path)["settings"]) == 5


def test_nothing_could_be_measured(machine, tmp_path):
    _, failing = machine
    failing["--json"] = (2, "error: the house is on fire")
    with pytest.raises(UserError, match="2 settings failed, the first with: error: the house is on fire"):
        sweep.main([*CONFIG, f"--output={tmp_path}", "--axes=rank", "--what=infer"])
    assert not (tmp_path / "sweep.md").exists()


def test_without_a_centre_there_are_tables_all_the_same(tmp_path):
    centre, *others = [{"what": "train", **CENTRE, **change} for change in ({}, {"batch": 1}, {"rank": 16})]
    failed = {"setting": centre, "command": "", "failed": "out of memory"}
    entries = [{"setting": setting, "command": "", "measured": measured(setting)} for setting in others]
    results = {"flags": [], "centre": CENTRE, "settings": [failed, *entries]}
    table = sweep_report.tables(results)
    assert "| **2** | out of memory |" in table
    assert "| 1 | 4.50 s |  | 0.500 GB |  | 45 G |  |" in table
    draw(results, tmp_path / "sweep.png")
    assert not (tmp_path / "sweep.png").exists()


def test_a_process_that_takes_too_long(monkeypatch):
    entry = sweep.measure({}, ["-c", "while True: pass"], [], 0.2)
    assert entry["failed"] == "took longer than 0.2 s"


def test_launcher():
    entry = sweep.measure({}, ["-c", "import os; print(os.environ['WORD'])"], ["env", "WORD=7"], 60)
    assert entry["measured"] == 7


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--axes=colour"], "--axes: 'colour' is not one of tasks, rank, batch, side, precision, merged"),
        (["--what=data"], "--what: 'data' is not one of train, infer"),
        (["--batch=1,many"], "--batch: 'many' is not a whole number of at least 1"),
        (["--tasks=5"], "--tasks: '5' is not a whole number from 1 to 4, the tasks of the config"),
        (["--precision=int8"], "--precision: 'int8' is not one of float32, bfloat16"),
        (["--steps=0"], "--steps=0 must be at least 1"),
        (["--config.method.rank=[8,8,16,16]", "--axes=rank"], "the config has no single rank that could be changed"),
        (["--config.image_size=64,32", "--axes=side"], "the config has no single side"),
        (["--config", CONFIG[0].partition("=")[2]], "must be one word"),
        (["--axis=rank"], "unknown flag --axis; did you mean --axes"),
    ],
)
def test_refused(machine, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        sweep.main([*CONFIG, f"--output={tmp_path / 'new'}", *more])
    assert not machine[0]
    assert not (tmp_path / "new").exists()


def test_another_config_is_not_mixed_in(machine, tmp_path):
    command = [f"--output={tmp_path}", "--what=train", "--axes=rank"]
    sweep.main([*CONFIG, *command])
    with pytest.raises(UserError, match="choose another --output"):
        sweep.main([*CONFIG, "--config.remat=block", *command])


def test_the_whole_command(tmp_path):
    """As a user runs it, with real processes and a very small model."""
    run = ("tasks=sal,depth", "batch_size=1", "image_size=32,32")
    model = ("decoder.channels=2,2,2,2", "backbone.variant=micro", "method.rank=2", "method.task_rank=0")
    flags = [*CONFIG[:2], *(f"--config.{flag}" for flag in (*run, *model))]
    quickly = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    arguments = [*flags, "--what=infer", "--axes=tasks,merged", "--tasks=2", "--steps=2", f"--output={tmp_path}"]
    command = [sys.executable, str(ROOT / "benchmarks" / "sweep.py"), *arguments]
    done = subprocess.run(command, env=os.environ | quickly, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [entry["measured"]["merged"] for entry in results_of(tmp_path)["settings"]] == [False, True]
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.json", "sweep.md", "sweep.png"}


SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def gpu(folder, *parts, python):
    environment = os.environ | {"PYTHON": python, "DATA": str(folder / "data")}
    return subprocess.run([SCRIPT, folder / "out", *parts], env=environment, capture_output=True, text=True)


def test_gpu_script_goes_past_failures(tmp_path):
    """Instead of Python it runs programs that print their arguments, or fail."""
    parts = ("train", "peer", "sweep")
    done = gpu(tmp_path, *parts, python="/bin/echo")
    assert done.returncode == 0, done.stderr
    files = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"summary.txt", "errors.txt", "benchmark.jsonl", "peer.jsonl"}
    assert all(line.startswith("-m mtlora_jax.benchmark --config=") for line in files["benchmark.jsonl"].splitlines())
    assert files["peer.jsonl"].count("--what=train") == 2
    assert files["summary.txt"].endswith("\n0 failed\n")
    done = gpu(tmp_path, *parts, python="/bin/false")
    assert done.returncode == 1
    assert done.stdout.count("FAILED (1)") == 9
    assert done.stdout.endswith("9 failed\n")


def test_gpu_script_refuses(tmp_path):
    done = gpu(tmp_path, "trian", python="/bin/echo")
    message = "trian is not one of tests, train, infer, peer, data, end_to_end, sweep\n"
    assert (done.returncode, done.stderr) == (2, message)
    assert not (tmp_path / "out").exists()


def test_gpu_script_is_sound():
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("no shellcheck")
    done = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
