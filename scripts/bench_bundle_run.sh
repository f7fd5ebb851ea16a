#!/usr/bin/env bash
# Runs what lies beside this file (scripts/bench_bundle made it) on this machine: conformance, tests,
# benchmarks, peers. Needs a Vulkan driver; Python with torch for the PyTorch rows; no network.
#
#     ./run.sh OUTPUT [--quick]
#
# OUTPUT gets a log of each step, rows as JSON (*.jsonl), one table of all (table.txt) and a line a
# step (summary.txt). A step that fails does not stop the others; the exit status tells.
set -uo pipefail

here=$(cd -P "$(dirname "${BASH_SOURCE[0]}")" && pwd)
quick=()
case $#:${2:-} in
1:) ;;
2:--quick) quick=(--quick) ;;
*)
    printf 'usage: run.sh OUTPUT [--quick]\n' >&2
    exit 2
    ;;
esac
mkdir -p "$1" || exit 2
output=$(cd -P "$1" && pwd)
: >"$output/summary.txt"
failures=0

# step NAME COMMAND [ARGS...]: with a log of its own.
step() {
    local name=$1 started=$SECONDS status
    shift
    printf '\n######## %s: %s\n' "$name" "$*"
    "$@" 2>&1 | tee "$output/$name.log"
    status=${PIPESTATUS[0]}
    ((status == 0)) || failures=$((failures + 1))
    printf '%-18s %6d s  exit %d\n' "$name" "$((SECONDS - started))" "$status" >>"$output/summary.txt"
}

# What is compared with files of the sources stays where those are; conformance has the golden files.
without_files=(--skip golden --skip weights::)
tests=()
golden=("$here/golden")
if [[ ${#quick[@]} -gt 0 ]]; then
    tests=(hazard)
    golden=("$here"/golden/{sdpa_d64_causal,ts_core_aligned,ts_grad_aligned}.safetensors)
fi

step conformance "$here/conformance" "${golden[@]}"
step tests "$here/integration" ${tests[@]+"${tests[@]}"} "${without_files[@]}" --test-threads=1
step roofline "$here/roofline" ${quick[@]+"${quick[@]}"} --json "$output/roofline.jsonl"
if [[ -e $here/burn-peer.gz ]]; then
    unpacked=$(mktemp -d)
    trap 'rm -rf -- "$unpacked"' EXIT
    gzip -dc "$here/burn-peer.gz" >"$unpacked/burn-peer"
    chmod +x "$unpacked/burn-peer"
    step burn "$unpacked/burn-peer" ${quick[@]+"${quick[@]}"} --json "$output/burn.jsonl"
fi

python=${PYTHON:-python3}
if "$python" -c 'import torch' 2>/dev/null; then
    torch=("$python" "$here/pytorch/longnet_torch.py")
    if [[ ${#quick[@]} -gt 0 ]]; then
        step torch "${torch[@]}" --set quick --repetitions 3 --json "$output/torch.jsonl"
    elif "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        for dtype in f32 f16 bf16; do
            step "torch-$dtype" "${torch[@]}" --device cuda --dtype "$dtype" --json "$output/torch-$dtype.jsonl"
        done
    else
        step torch "${torch[@]}" --device cpu --json "$output/torch.jsonl"
    fi
else
    printf '%-18s not run: %s has no torch\n' torch "$python" >>"$output/summary.txt"
fi

"$here/roofline" --join "$output"/*.jsonl | tee "$output/table.txt"
printf '\n'
cat "$output/summary.txt"
((failures == 0))
