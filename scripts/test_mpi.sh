#!/usr/bin/env bash
# Builds examples/mpi with every MPI that is installed, and runs mpi_collectives, mpi_seqpar and mpi_train_lm: all is well on 1 to 5
# ranks, and what goes wrong ends, in time, with an error that says what and where. All but the first need an adapter, a software one
# will do.
#
#     scripts/install_mpi.sh
#     scripts/test_mpi.sh
#
# Fails if one case does not behave; prints how long each MPI took.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

readonly LIMIT=10 # seconds within which everything has to end
scratch=$(mktemp -d)
output=$scratch/output
trap 'rm -rf "$scratch"' EXIT

fail() {
    printf 'test_mpi: error: %s\n' "$*" >&2
    sed 's/^/    | /' "$output" >&2
    exit 1
}

# run RANKS [OPTIONS...]: runs `program`; sets `status` and `seconds`.
run() {
    local ranks=$1 started=$EPOCHREALTIME
    shift
    status=0
    # Longer than a software driver compiles.
    timeout --kill-after=5 300 "${launch[@]}" -n "$ranks" "$folder/$program" "$@" >"$output" 2>&1 || status=$?
    seconds=$(awk -v from="$started" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f", to - from }')
    what="$name, $program, $ranks ranks${*:+, $*}"
    printf '%-100s status %3d, %5s s\n' "$what" "$status" "$seconds"
}

# says COUNT TEXT: so many lines of the output have the text.
says() {
    local count
    count=$(grep -cF -- "$2" "$output" || true)
    [[ $count == "$1" ]] || fail "$what: $count lines instead of $1 say '$2'"
}

succeeds() {
    ((status == 0)) || fail "$what: status $status"
}

fails() {
    ((status != 0)) || fail "$what: it should have failed"
    ((status != 124 && status != 137)) || fail "$what: it hung"
    awk -v seconds="$seconds" -v limit="$LIMIT" 'BEGIN { exit !(seconds < limit) }' || fail "$what: more than $LIMIT s"
}

# The others cannot have an error value: the launcher ends them, and tells.
is_killed() {
    fails
    grep -qiE 'bad termination|exited on signal' "$output" || fail "$what: no message of the launcher"
}

collectives() {
    local ranks
    program=mpi_collectives
    for ranks in 1 2 4 5; do
        run "$ranks"
        succeeds
        says "$ranks" "350 calls"
        says "$ranks" "three groups at the same time"
        says "$ranks" "bytes received"
    done
    # Messages that are cut, whose last piece is shorter.
    run 3 --largest-message 999 --bytes 100000
    succeeds

    run 4 --fail 2
    fails
    says 1 "rank 2 of 4: error: as --fail says"
    says 3 "error: rank 2: as --fail says"
    run 4 --mismatch 1
    fails
    says 4 "error: --rounds is 50 on rank 0, but 51 on rank 1"
    run 4 --stray 3
    fails
    says 4 "error: the call is agree as number 2 on rank 0, but barrier as number 2 on rank 3"
    run 4 --panic 1
    fails
    says 1 "rank 1 of 4: error: it panicked"
    run 4 --kill 3
    is_killed
    run 4 --hang 1 --timeout 2
    fails
    says 3 "error: agree: waited 2s, the time-out, for rank 1"
}

# near_one_rank: forward and backward, not causal and causal.
near_one_rank() {
    succeeds
    says 2 "of the largest"
}

shares() {
    local ranks
    program=mpi_seqpar
    for ranks in 1 3 4 5; do
        run "$ranks"
        near_one_rank
        # Of all branches, not causal and causal.
        says "$((3 * ranks))" "dense keys and values"
        says "$((2 * ranks))" "bytes at most"
    done
    # Fewer tokens than ranks, and none at all.
    run 5 --tokens 3
    near_one_rank
    run 2 --tokens 0
    near_one_rank
    # Borders inside segments, some longer than a share, some many to a share; outputs on other ranks than their queries.
    run 4 --tokens 1501 --branches 7/1 100/3 999/5 --torchscale
    near_one_rank
    run 3 --tokens 777 --branches 500/3 --heads 5 --head-dim 8 --dtype f16
    near_one_rank
    run 3 --dtype bf16 --torchscale
    near_one_rank

    run 4 --mismatch 1
    fails
    says 4 "error: attention is "
    run 4 --kill 3
    is_killed
}

# The training of train_lm by four processes: 20 steps lose what those of one process do, to 1e-5 of the largest loss.
training() {
    local columns options=(--data src --layers 1 --heads 2 --ffn 128 --tokens 128 --steps 20 --rate 1e-2 --generate 0)
    program=mpi_train_lm
    if [[ ! -e $scratch/alone ]]; then
        cargo build --locked --profile checks --example train_lm
        "${CARGO_TARGET_DIR:-target}/checks/examples/train_lm" "${options[@]}" --out "$scratch" --losses "$scratch/alone" >"$output" 2>&1 ||
            fail "train_lm failed"
    fi
    for columns in 1 2 4; do
        run 4 "${options[@]}" --ranks-per-sequence "$columns" --out "$scratch" --losses "$scratch/together"
        succeeds
        paste "$scratch/alone" "$scratch/together" >"$output"
        awk '{ off = $1 - $2; if (off < 0) off = -off; if (off > worst) worst = off; if ($1 > largest) largest = $1 }
            END { exit !(NR == 20 && worst <= 1e-5 * largest) }' "$output" || fail "$what: losses differ"
    done
}

# test_with COMPILER LAUNCHER
test_with() {
    local started=$SECONDS version
    launch=("$2")
    version=$("$2" --version 2>&1)
    if [[ $version == *"Open MPI"* || $version == *OpenRTE* ]]; then
        name="Open MPI"
        # More ranks than cores, of which each has threads of its driver; and in a container the user is root.
        launch+=(--oversubscribe --bind-to none)
        if ((EUID == 0)); then launch+=(--allow-run-as-root); fi
    else
        name=MPICH
    fi
    printf '\n==== %s: %s\n' "$name" "$(grep -iEm1 'version|open' <<<"$version" | tr -s ' ')"
    # A folder for each: cargo does not see that MPICC has changed. All but mpi-sys, and what stands on it, is the same.
    local target=target/mpi/$1
    if [[ -n $first && ! -e $target ]]; then
        cp -a "$first" "$target"
        CARGO_TARGET_DIR=$target cargo clean --profile checks -p mpi-sys --manifest-path examples/mpi/Cargo.toml
    fi
    first=${first:-$target}
    MPICC=$1 CARGO_TARGET_DIR=$target cargo build --locked --profile checks --manifest-path examples/mpi/Cargo.toml
    built=$((SECONDS - started))
    folder=$target/checks
    collectives
    shares
    training
    times+=("$(printf '%-10s build %4d s, cases %3d s' "$name" "$built" "$((SECONDS - started - built))")")
}

first=
times=()
for suffix in .mpich .openmpi; do
    if command -v "mpicc$suffix" >/dev/null && command -v "mpiexec$suffix" >/dev/null; then
        test_with "mpicc$suffix" "mpiexec$suffix"
    fi
done
# Where a system has one, under the common names alone.
if ((${#times[@]} == 0)); then
    if ! command -v mpicc >/dev/null || ! command -v mpiexec >/dev/null; then
        fail "no MPI; scripts/install_mpi.sh installs it"
    fi
    test_with mpicc mpiexec
fi
printf '\n==== all cases passed\n'
printf '%s\n' "${times[@]}"
