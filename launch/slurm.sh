#!/usr/bin/env bash
# Trains on any number of nodes of a SLURM cluster, and continues by itself after preemption and after the time limit:
#
#     sbatch launch/slurm.sh --config=configs/mtlora_tiny_448.py:64 --workdir=/shared/runs/r64 \
#         --config.init_from=/shared/weights/swin_tiny
#     sbatch --nodes=4 --gpus-per-node=4 launch/slurm.sh --config=... --workdir=...
#
# Submit from the repository, on a file system that all nodes share; --workdir, data and weights must be on one, too.
#
# One task per node: one process drives all GPUs of its node and reads its share of each batch once, and no GPU may be
# bound to a task. `srun` tells each process its place. (One task per GPU, --ntasks-per-node=8, works as well; then
# --config.data.num_workers is per GPU.)
#
# SLURM sends SIGTERM on preemption and, as set below, two minutes before the time limit; the run saves and exits with
# 143. SIGUSR1 (--signal=USR1@120) does the same, with 138. SLURM itself requeues a preempted job (--requeue); after the
# time limit this script does. Any other failure ends the job.
#
# Checked: shellcheck; tests/project/test_launch.py runs this file with stand-ins for srun, squeue and scontrol,
# including two processes on one machine. Not checked: on a real cluster; partition, account and memory depend on yours.
#
#SBATCH --job-name=mtlora
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output=mtlora-%j.out

set -uo pipefail

cd "${SLURM_SUBMIT_DIR:-.}" || exit
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not take it from sbatch

srun --kill-on-bad-exit=1 --label "${PYTHON:-.venv/bin/python}" -m mtlora_jax.main "$@"
code=$?

# 143 and 138: stopped by a signal, and saved. After scancel, the job is no longer RUNNING and stays ended.
if [[ ($code -eq 143 || $code -eq 138) && $(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T) == RUNNING ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
