"""Files damaged at random: each opens and is right, or is refused in one line. Some minutes: `make test-slow`."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest
from paths import ROOT, SUPPORT

pytestmark = pytest.mark.slow
COUNT = 300
MINUTES = 10  # for the files of one kind
REFUSED, RIGHT = 0.05, 0.01  # minimum shares; below them the damage is too little, or too much to open anything
WORDS_OF_LIBRARIES = (
    "Corrupt JPEG data",
    "Warning: unknown JFIF",
    "libpng ",
)  # libraries whose output OpenCV does not control
KINDS = ("png", "jpeg", "npy", "mat", "safetensors", "config", "run", "checkpoint", "archive", "lists", "log")


@pytest.mark.parametrize("kind", KINDS)
def test_right_or_refused(tmp_path, kind):
    folder = tmp_path / kind
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, SUPPORT / "fuzzing.py", kind, folder, str(COUNT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 * MINUTES)
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    files = [entry["at"] for entry in results if "at" in entry]
    outcomes = [entry for entry in results if "outcome" in entry]
    assert len(files) == len(outcomes), f"the process ended with {done.returncode} at {files[-1]}:\n{said(folder)}"
    assert done.returncode == 0, done.stderr + said(folder)
    for file, entry in zip(files, outcomes, strict=True):
        assert entry["outcome"] in ("right", "refused"), f"{file}: {entry['outcome']}\n{entry['told']}"
    shares = collections.Counter(entry["outcome"] for entry in outcomes if not entry["genuine"])
    assert shares.total() == COUNT
    assert shares["refused"] >= REFUSED * COUNT
    assert shares["right"] >= RIGHT * COUNT
    end_in_one_line(results[-1]["command"], environment | {"JAX_PLATFORMS": "cpu"})


def said(folder: pathlib.Path) -> str:
    return (folder / "said.txt").read_text(errors="replace")[-5000:]


def end_in_one_line(arguments: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True, timeout=60 * MINUTES
    )
    told = [line for line in done.stderr.splitlines() if not line.startswith(WORDS_OF_LIBRARIES)]
    assert done.returncode == 2, done.stderr
    assert len(told) == 1, done.stderr
    assert told[0].startswith("error: ")
