#!/usr/bin/env bash
# Makes sure that examples/mpi can be built and run: MPI with its headers and launcher, and libclang, which reads the headers.
#
#     scripts/install_mpi.sh
#
# On Debian and Ubuntu both MPICH and Open MPI, which live side by side: mpicc.mpich and mpicc.openmpi build,
# mpiexec.mpich and mpiexec.openmpi run. Elsewhere install one by hand. Installing needs root or sudo. Running it again is free.
set -euo pipefail

# Debian's and Ubuntu's names; what they depend on comes with them. One MPI is enough to go on.
readonly CLANG=(libclang-dev)
readonly MPICH=(mpich libmpich-dev)
readonly OPENMPI=(openmpi-bin libopenmpi-dev)

say() { printf 'install_mpi: %s\n' "$*"; }
fail() {
    printf 'install_mpi: error: %s\n' "$*" >&2
    printf '    Install by hand: MPICH or Open MPI with headers and launcher, and libclang.\n' >&2
    printf '    Debian, Ubuntu: apt-get install %s\n' "${CLANG[*]} ${MPICH[*]} ${OPENMPI[*]}" >&2
    exit 1
}

has() { command -v "$1" >/dev/null; }
has_clang() { compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || compgen -G '/usr/lib*/libclang.so*' >/dev/null; }
has_mpich() { has mpicc.mpich && has mpiexec.mpich; }
has_openmpi() { has mpicc.openmpi && has mpiexec.openmpi; }

apt() {
    local root=()
    if ((EUID != 0)); then root=(sudo --); fi
    ${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null
}

install() {
    say "installing $*"
    apt --quiet --yes --no-install-recommends install "$@" >/dev/null
}

if ! has apt-get; then
    # Another distribution's or a system's own.
    if has mpicc && has mpiexec; then
        say "found $(command -v mpicc)"
        exit 0
    fi
    fail "no mpicc or no mpiexec, and this system has no apt to install them with"
fi
if ! has_clang || ! has_mpich || ! has_openmpi; then
    # A third party's broken source makes 'update' fail; whether that matters, 'install' tells.
    apt --quiet update >/dev/null || true
    has_clang || install "${CLANG[@]}" || fail "apt-get failed"
    has_mpich || install "${MPICH[@]}" || say "MPICH cannot be installed here"
    has_openmpi || install "${OPENMPI[@]}" || say "Open MPI cannot be installed here"
fi
has_clang || fail "installed, but still no libclang"
has_mpich || has_openmpi || fail "neither MPICH nor Open MPI"
for launcher in mpiexec.mpich mpiexec.openmpi; do
    if has "$launcher"; then say "$launcher: $("$launcher" --version 2>&1 | grep -iEm1 'version|open' | tr -s ' ')"; fi
done
