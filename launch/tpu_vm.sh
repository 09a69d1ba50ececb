#!/usr/bin/env bash
# Trains on a Cloud TPU VM or pod slice, and starts again on a new one after preemption:
#
#     REPOSITORY=https://... launch/tpu_vm.sh NAME ZONE v5litepod-16 v2-alpha-tpuv5-lite \
#         --config=configs/mtlora_tiny_448.py:64 --workdir=/shared/runs/r64 --config.init_from=/shared/weights/swin_tiny
#
# Needs the Google Cloud CLI, logged in to a project with TPU quota. All hosts of the slice run the same command and
# find each other through the metadata server. MOUNT, if set, is a command that makes /shared the same folder on every
# host, for example
# MOUNT='sudo apt-get install -y nfs-common && sudo mkdir -p /shared && sudo mount FILESTORE_IP:/share /shared'.
#
# Exit codes: 0 finished; 2 a mistake in flags, data or weights, which a new start would not fix. All others start
# again, at most TRIES times.
#
# Checked: shellcheck; tests/project/test_launch.py runs this file with a stand-in for gcloud (a slice that is preempted
# and created again). Not checked: on a real TPU; the names of types and versions are Google's and change.

set -euo pipefail

if [[ $# -lt 5 ]]; then
    echo "usage: REPOSITORY=URL $0 NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION --config=... --workdir=..." >&2
    exit 2
fi
name=$1 zone=$2 type=$3 version=$4
shift 4
: "${REPOSITORY:?the URL that the hosts clone}"

tpu() { # VERB ARGUMENT...
    local verb=$1
    shift
    gcloud compute tpus tpu-vm "$verb" "$name" --zone="$zone" "$@"
}

everywhere() { # COMMAND, on all hosts of the slice
    tpu ssh --worker=all --command="$1"
}

ready() {
    local state
    state=$(tpu describe --format='value(state)' 2>/dev/null) || state=ABSENT
    [[ $state == READY ]] && return
    [[ $state == ABSENT ]] || tpu delete --quiet || return
    tpu create --accelerator-type="$type" --version="$version" --spot &&
        everywhere "${MOUNT:-true}" &&
        everywhere "git clone --quiet '$REPOSITORY' mtlora_jax && cd mtlora_jax &&\
 python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
}

for ((try = 1; try <= ${TRIES:-100}; try++)); do
    code=0
    ready || code=$?
    if [[ $code -eq 0 ]]; then
        everywhere "cd mtlora_jax && .venv/bin/python -m mtlora_jax.main$(printf ' %q' "$@")" || code=$?
        [[ $code -eq 0 || $code -eq 2 ]] && exit "$code"
    fi
    echo "start $try ended with $code; again in ${PAUSE:-60} s" >&2
    sleep "${PAUSE:-60}"
done
exit "$code"
