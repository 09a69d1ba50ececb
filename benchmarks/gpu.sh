#!/usr/bin/env bash
# Runs all measurements on a machine with an accelerator, from the root of the repository:
#
#     benchmarks/gpu.sh runs/gpu                        all of them; the sweep alone takes hours
#     benchmarks/gpu.sh runs/gpu tests train peer       some of: tests train infer peer data end_to_end sweep
#
# The folder (by default $OUT) gets summary.txt (the machine, and the result of each command), tests.txt,
# benchmark.jsonl and peer.jsonl (one JSON object per line), errors.txt (all other output of the commands) and sweep/.
# If a command fails, that is noted and the next one begins; the exit code is then 1. A second run adds lines, and
# resumes the sweep.
#
# CONFIG is the config to measure, BATCH the images in a step, SWEEP further flags of the sweep, PYTHON the interpreter
# (.venv/bin/python if there is one), DATA a folder with PASCAL_MT for `data` and `end_to_end`; without one, scenes are
# rendered and built first.

set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

out=${1:-${OUT:-}}
if [[ -z $out ]]; then
    echo "usage: benchmarks/gpu.sh FOLDER [tests train infer peer data end_to_end sweep]" >&2
    exit 2
fi
shift
if [[ $# -gt 0 ]]; then parts=("$@"); else parts=(tests train infer peer data end_to_end sweep); fi
for part in "${parts[@]}"; do
    if [[ ! $part =~ ^(tests|train|infer|peer|data|end_to_end|sweep)$ ]]; then
        echo "$part is not one of tests, train, infer, peer, data, end_to_end, sweep" >&2
        exit 2
    fi
done
mkdir -p "$out"
out=$(cd "$out" && pwd)

python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
config=(--config="${CONFIG:-configs/mtlora_tiny_448.py:64}" --config.batch_size="${BATCH:-32}")
bfloat16=(--config.compute_dtype=bfloat16 --config.frozen_dtype=bfloat16)
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax} PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=0

# Runs the command and appends its output to the file $1.
run() {
    local file=$1 began=$SECONDS verdict=ok
    shift
    echo "$*" | tee -a "$out/errors.txt"
    "$@" >>"$out/$file" 2>>"$out/errors.txt" || verdict="FAILED ($?)"
    [[ $verdict == ok ]] || failed=$((failed + 1))
    echo "$verdict, $((SECONDS - began)) s: $*" | tee -a "$out/summary.txt"
}

benchmark() { run benchmark.jsonl "$python" -m mtlora_jax.benchmark "${config[@]}" "$@" --json; }
peer() { run peer.jsonl "$python" benchmarks/peer.py "${config[@]}" "$@" --batch_size="${BATCH:-32}" --json; }

# The tests whose numbers come from the device, with exact float32 products: tolerances are those of float32, not of
# TF32.
tests() {
    local files=()
    for name in models methods model_io/test_merge.py train/test_step.py tasks benchmark; do
        files+=("tests/$name")
    done
    run tests.txt env JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}" JAX_DEFAULT_MATMUL_PRECISION=highest \
        "$python" -m pytest "${files[@]}" -m 'not slow' -x -q
}

train() {
    benchmark --what=train "${bfloat16[@]}"
    benchmark --what=train "${bfloat16[@]}" --config.fused=False
    benchmark --what=train
    benchmark --what=train "${bfloat16[@]}" --config.tasks=semseg
}

infer() {
    benchmark --what=infer --merged "${bfloat16[@]}"
    benchmark --what=infer "${bfloat16[@]}"
    benchmark --what=infer --merged
}

# Our training program is the one that `train` has compiled, so it comes from the cache.
peers() {
    local both=(--precision=bfloat16 --config.frozen_dtype=bfloat16)
    peer --what=train "${both[@]}"
    peer --what=infer --merged "${both[@]}"
    peer --what=train "${both[@]}" --compiled
    peer --what=infer --merged "${both[@]}" --compiled
}

# Builds a data set of rendered scenes unless there is one.
find_data() {
    [[ -n ${DATA:-} ]] && return
    DATA=$PWD/runs/benchmark_data
    [[ -d $DATA ]] && return
    run errors.txt "$python" -m tfds_pascal_context.rendered "$DATA.raw" --train=150 --val=50 --size 375 500
    run errors.txt "$python" -m tfds_pascal_context.build --manual_dir="$DATA.raw" --data_dir="$DATA" --allow_partial
}

data() {
    find_data
    benchmark --what=data --config.data.root="$DATA" --config.data.num_workers=1
    benchmark --what=data --config.data.root="$DATA" --config.data.num_workers="$(nproc)"
}

end_to_end() {
    find_data
    benchmark --what=end_to_end --config.data.root="$DATA" --config.data.num_workers="$(nproc)" "${bfloat16[@]}"
}

sweep() {
    local more=()
    read -ra more <<<"${SWEEP:-}"
    run errors.txt "$python" benchmarks/sweep.py "${config[@]}" "${bfloat16[@]}" --output="$out/sweep" "${more[@]}"
}

{
    date -u +"%F %T UTC"
    git rev-parse HEAD
    nproc
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    "$python" -m pip list 2>/dev/null | grep -iE "^(jax|jaxlib|flax|numpy|torch|opencv|grain|triton)"
} >>"$out/summary.txt" 2>>"$out/errors.txt"

for part in "${parts[@]}"; do
    if [[ $part == peer ]]; then peers; else "$part"; fi
done
echo "$failed failed" | tee -a "$out/summary.txt"
[[ $failed == 0 ]]
