"""Whole commands with workers, with and without errors: no library prints anything, and no shared memory remains."""

import os
import subprocess
import sys

import pytest
import tiny_runs

QUICK = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}  # no messages of slow compilation either
SIZE = {"image_size": (160, 160)}  # so large that images go through shared memory
ENDED = """
import os, signal
from mtlora_jax import cli, main
from mtlora_jax.eval import evaluator

if __name__ == "__main__":

    def receive(totals, statistics, add=evaluator.add):
        os.kill(os.getpid(), signal.SIGTERM)

    evaluator.add = receive
    cli.run(main.main, main.leave)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A data set, a config and one finished run with two workers."""
    base = tiny_runs.prepare(
        tmp_path_factory.mktemp("base"),
        epochs=2,
        eval_every_epochs=1,
        data__num_workers=2,
        checkpoint_every_steps=0,
        **SIZE,
    )
    assert silent(tiny_runs.command(base, "run"), 0) == ""
    return base


def silent(command, code):
    """Return what the command printed besides its results."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | QUICK)
    assert done.returncode == code, done.stderr
    return done.stderr


def test_an_evaluation(base):
    assert silent(tiny_runs.command(base, "run", "--mode=evaluate", "--config.evaluation.original_size=True"), 0) == ""


def test_an_evaluation_that_fails(base, tmp_path):
    broken = tiny_runs.prepare(tmp_path, data__num_workers=2, fault_tolerance__max_unreadable_examples=0, **SIZE)
    (broken / "data" / "semseg" / "val001.png").write_text("no image")
    told = silent(tiny_runs.command(broken, base / "run", "--mode=evaluate"), 2)
    assert told.startswith("error: 1 examples ")
    assert told.count("\n") == 1


def test_an_evaluation_that_is_ended(base):
    """It ends while batches wait in the queues of the workers."""
    script = base / "ended.py"
    script.write_text(ENDED)
    arguments = tiny_runs.command(base, "run", "--mode=evaluate", "--config.eval_batch_size=1")[3:]
    assert silent([sys.executable, script, *arguments], 143) == "ended by SIGTERM\n"


def test_a_benchmark(base):
    command = [sys.executable, "-m", "mtlora_jax.benchmark", f"--config={base / 'micro.py'}", "--what=data"]
    assert silent(command, 0) == ""
