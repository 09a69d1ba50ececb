"""The batch-job templates, run with stand-ins for the commands of a cluster."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from paths import ROOT

from mtlora_jax import main

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def run(
    script: str, *flags: str, path: pathlib.Path, stand_ins: dict[str, str], **environment: str
) -> tuple[int, list[str]]:
    """Run a script of launch/ and return (exit code, commands that it called, with their arguments).

    `stand_ins` are {command: bash}.
    """
    called = path / "called"
    called.touch()
    for name, body in stand_ins.items():
        command = path / name
        command.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {called}\n{body}\n')
        command.chmod(0o755)
    environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}"} | environment
    done = subprocess.run(
        [LAUNCH / script, *flags], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return done.returncode, called.read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("no shellcheck")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [
        (0, "RUNNING", False),
        (2, "RUNNING", False),
        (134, "RUNNING", False),
        (143, "RUNNING", True),
        (143, "COMPLETING", False),
    ],
)
def test_a_slurm_job_is_requeued_when_it_was_asked_to_stop(tmp_path, code, state, requeued):
    stand_ins = {"srun": f"exit {code}", "squeue": f"echo {state}", "scontrol": ""}
    flags = ["--config=a b.py", "--workdir=w"]
    ended, called = run("slurm.sh", *flags, path=tmp_path, stand_ins=stand_ins, SLURM_JOB_ID="7", PYTHON="python")
    assert ended == code
    assert called[0] == "srun --kill-on-bad-exit=1 --label python -m mtlora_jax.main --config=a b.py --workdir=w"
    assert ("scontrol requeue 7" in called) == requeued


SRUN = """
export SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_LOCALID=0
shift 2
for SLURM_PROCID in 0 1; do
    export SLURM_PROCID
    "$@" &
done
wait -n && wait -n
"""
PROGRAM = """
import sys
import jax
from mtlora_jax.distributed import processes
processes.initialize()
counts = jax.process_count(), jax.local_device_count(), jax.device_count()
open(sys.argv[-1] + str(jax.process_index()), "w").write(" ".join(map(str, counts)))
"""


def test_processes_of_a_slurm_job_find_each_other(tmp_path):
    """Only srun is a stand-in: it starts two processes with the variables that the real one sets."""
    python = tmp_path / "python"
    python.write_text(f"#!/usr/bin/env bash\nexec {sys.executable} {tmp_path / 'program.py'} {tmp_path / 'process'}\n")
    python.chmod(0o755)
    (tmp_path / "program.py").write_text(PROGRAM)
    variables = {
        "SLURM_JOB_ID": str(os.getpid()),
        "PYTHON": str(python),
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    variables["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    code, _ = run("slurm.sh", path=tmp_path, stand_ins={"srun": SRUN}, **variables)
    assert code == 0
    assert [(tmp_path / f"process{i}").read_text() for i in range(2)] == ["2 2 4"] * 2


GCLOUD = """
there={path}/there
case "$4" in
    describe) if [[ -e $there ]]; then cat "$there"; else exit 1; fi ;;
    create) echo READY > "$there" ;;
    delete) rm "$there" ;;
    ssh)
        [[ $* == *mtlora_jax.main* ]] || exit 0
        echo >> {path}/starts
        [[ $(wc -l < {path}/starts) -gt 1 ]] && exit {code}
        echo PREEMPTED > "$there"
        exit 255
        ;;
esac
"""


@pytest.mark.parametrize("code", [0, 2])
def test_a_preempted_tpu_is_made_again(tmp_path, code):
    gcloud = GCLOUD.replace("{path}", str(tmp_path)).replace("{code}", str(code))
    flags = ["name", "zone", "v5litepod-16", "v2-alpha-tpuv5-lite", "--config=a b.py", "--workdir=/shared/run"]
    ended, called = run(
        "tpu_vm.sh", *flags, path=tmp_path, stand_ins={"gcloud": gcloud}, REPOSITORY="https://x/y", PAUSE="0"
    )
    assert ended == code
    verbs = [line.split()[4] for line in called]
    made = ["create", "ssh", "ssh"]  # and mounted, installed
    assert verbs == ["describe", *made, "ssh", "describe", "delete", *made, "ssh"]
    assert called[-1].endswith(
        r"--command=cd mtlora_jax && .venv/bin/python -m mtlora_jax.main --config=a\ b.py --workdir=/shared/run"
    )
    assert all("name --zone=zone" in line for line in called)


def test_a_tpu_that_cannot_be_had_is_tried_again_so_many_times(tmp_path):
    flags = ["name", "zone", "a", "b", "--config=c"]
    environment = {"REPOSITORY": "r", "PAUSE": "0", "TRIES": "3"}
    ended, called = run("tpu_vm.sh", *flags, path=tmp_path, stand_ins={"gcloud": "exit 1"}, **environment)
    assert ended == 1
    assert [line.split()[4] for line in called] == ["describe", "create"] * 3


def test_kubernetes_job_agrees_with_itself_and_the_program():
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((LAUNCH / "gke_job.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert spec["completionMode"] == "Indexed"
    assert (
        spec["completions"]
        == spec["parallelism"]
        == rows * columns / container["resources"]["limits"]["google.com/tpu"]
    )
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    args = main.flags().parse(container["args"])  # raises for what the program does not know
    assert args.config.fault_tolerance.grace_seconds < pod["terminationGracePeriodSeconds"]


def test_container_copies_what_there_is():
    text = (LAUNCH / "Containerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*)", text, re.M) for name in line.split()[:-1]]
    assert {"setup.py", "mtlora_jax", "configs", "requirements"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert 'ENTRYPOINT ["python", "-m", "mtlora_jax.main"]' in text
