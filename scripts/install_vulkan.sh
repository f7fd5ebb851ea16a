#!/usr/bin/env bash
# Makes sure that this machine can build the crate and has a Vulkan driver to run it on.
#
#     scripts/install_vulkan.sh
#
# Linux with a Vulkan loader and at least one driver: says which, changes nothing.
# Linux without:  installs Mesa, whose lavapipe driver runs compute shaders on the CPU.
# macOS, Windows: Metal and Direct3D 12 come with the system; nothing to install.
#
# Installing needs root or sudo. Running it again is free.
set -euo pipefail

readonly MIN_RUST_MINOR=88 # Cargo.toml's rust-version, 1.88

say() { printf 'install_vulkan: %s\n' "$*"; }
fail() {
    printf 'install_vulkan: error: %s\n' "$1" >&2
    shift
    if (($#)); then printf '    %s\n' "$@" >&2; fi
    exit 1
}

# ---------------------------------------------------------------------------------------------
# What a build needs
# ---------------------------------------------------------------------------------------------

check_rust() {
    local version minor
    command -v cargo >/dev/null ||
        fail "cargo is not on the PATH" "Install Rust 1.$MIN_RUST_MINOR or newer, for example with rustup."
    version=$(cargo --version 2>&1) ||
        fail "cargo does not start: $version" "With rustup: rustup default stable"
    minor=$(sed -n 's/^cargo 1\.\([0-9][0-9]*\)\..*/\1/p' <<<"$version")
    if [[ -n $minor ]] && ((minor < MIN_RUST_MINOR)); then
        fail "found $version, but the crate needs Rust 1.$MIN_RUST_MINOR or newer" "With rustup: rustup update stable"
    fi
}

check_linker() {
    command -v cc >/dev/null || fail "no C linker: 'cc' is not on the PATH" \
        "Debian, Ubuntu:  apt-get install gcc libc6-dev" \
        "Fedora:          dnf install gcc" \
        "Arch:            pacman -S gcc" \
        "macOS:           xcode-select --install"
}

# ---------------------------------------------------------------------------------------------
# What is there already
# ---------------------------------------------------------------------------------------------

# Prints the Vulkan loader's path, or nothing.
find_loader() {
    local cache dir
    local -a dirs
    # ldconfig lives in sbin, which is not on every user's PATH.
    cache=$(PATH="$PATH:/usr/sbin:/sbin" ldconfig -p 2>/dev/null || true)
    cache=$(sed -n 's/^[[:space:]]*libvulkan\.so\.1 .*=> //p' <<<"$cache")
    if [[ -n $cache ]]; then
        printf '%s\n' "${cache%%$'\n'*}"
        return
    fi
    IFS=: read -r -a dirs <<<"${LD_LIBRARY_PATH:-}"
    for dir in ${dirs[@]+"${dirs[@]}"} /usr/local/lib /usr/lib64 /usr/lib /usr/lib/*-linux-gnu; do
        if [[ -n $dir && -e $dir/libvulkan.so.1 ]]; then
            printf '%s\n' "$dir/libvulkan.so.1"
            return
        fi
    done
}

# Prints the path of every driver manifest that the loader would read. As in the loader, the two
# environment variables replace the standard folders; an entry may be a file or a folder.
find_drivers() {
    local place file
    local -a places
    if [[ -n ${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}} ]]; then
        IFS=: read -r -a places <<<"${VK_DRIVER_FILES:-$VK_ICD_FILENAMES}"
    else
        places=(/etc/vulkan/icd.d /usr/local/share/vulkan/icd.d /usr/share/vulkan/icd.d)
    fi
    for place in "${places[@]}"; do
        if [[ -f $place ]]; then
            printf '%s\n' "$place"
        elif [[ -d $place ]]; then
            for file in "$place"/*.json; do
                [[ ! -e $file ]] || printf '%s\n' "$file"
            done
        fi
    done
}

# Prints the version of the installed Mesa drivers where the package manager knows it.
mesa_version() {
    if command -v dpkg-query >/dev/null; then
        # shellcheck disable=SC2016 # dpkg-query fills in the format, not the shell
        dpkg-query --show --showformat='${Version}' mesa-vulkan-drivers 2>/dev/null || true
    elif command -v rpm >/dev/null; then
        rpm --query --queryformat '%{VERSION}' mesa-vulkan-drivers 2>/dev/null || true
    fi
}

report() {
    local loader=$1 drivers=$2 mesa
    say "loader $loader"
    say "drivers $(tr '\n' ' ' <<<"$drivers")"
    mesa=$(mesa_version)
    [[ -z $mesa ]] || say "Mesa $mesa"
    if [[ $mesa == 22.* ]]; then
        say "note: this Mesa's software driver has no 16-bit floats, which some tests need."
        say "note: 'apt-get install -t bookworm-backports mesa-vulkan-drivers' brings a newer one."
    fi
}

# ---------------------------------------------------------------------------------------------
# Installing
# ---------------------------------------------------------------------------------------------

# A word about the packages, for everyone for whom they cannot be installed.
readonly PACKAGES_BY_HAND=(
    "Install a Vulkan driver by hand, then run this again. The software driver's packages are"
    "    Debian, Ubuntu:  mesa-vulkan-drivers libvulkan1   (Debian 12: from bookworm-backports)"
    "    Fedora:          mesa-vulkan-drivers vulkan-loader"
    "    Arch:            vulkan-swrast vulkan-icd-loader"
)

# Runs a command as root, through sudo if need be.
as_root() {
    if ((EUID == 0)); then "$@"; else sudo -- "$@"; fi
}

check_root() {
    ((EUID != 0)) || return 0
    if command -v sudo >/dev/null; then
        if sudo -n true 2>/dev/null; then return 0; fi
        # Without a terminal nobody could type the password.
        if [[ -t 0 && -t 2 ]] && sudo -v; then return 0; fi
    fi
    fail "no Vulkan driver, and installing one needs root or sudo" "${PACKAGES_BY_HAND[@]}"
}

LOG=
# Runs a command with its output in the log; shows the log's tail where the command fails.
logged() {
    printf '+ %s\n' "$*" >>"$LOG"
    if ! "$@" </dev/null >>"$LOG" 2>&1; then
        printf 'install_vulkan: failed: %s\n' "$*" >&2
        tail -n 25 "$LOG" | sed 's/^/    | /' >&2
        fail "could not install a Vulkan driver; the whole log is $LOG" "${PACKAGES_BY_HAND[@]}"
    fi
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"
}

# Adds bookworm-backports from the mirror that the system already takes bookworm from.
add_backports() {
    local targets mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    # --no-release-info: also before the first 'apt-get update', as in a fresh container.
    # shellcheck disable=SC2016 # apt-get fills in the format, not the shell
    targets=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages')
    if grep -q '^bookworm-backports main ' <<<"$targets"; then return; fi
    mirror=$(awk '$2 == "main" && $1 ~ /^(bookworm|oldstable|stable)$/ { print $3; exit }' <<<"$targets")
    [[ -n $mirror ]] || fail "apt has no source for Debian 12 (bookworm) to derive bookworm-backports from" \
        "${PACKAGES_BY_HAND[@]}"
    say "adding bookworm-backports from the system's mirror, since Debian 12's own Mesa lacks 16-bit floats"
    {
        echo "# Added by dilated-attention's scripts/install_vulkan.sh for a newer mesa-vulkan-drivers."
        echo "Types: deb"
        echo "URIs: $mirror"
        echo "Suites: bookworm-backports"
        echo "Components: main"
        [[ ! -e $keyring ]] || echo "Signed-By: $keyring"
    } | as_root tee /etc/apt/sources.list.d/dilated-attention-backports.sources >/dev/null
}

install_with_apt() {
    local id codename
    local -a release=()
    id=$(sed -n 's/^ID=//p' /etc/os-release)
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    if [[ $id == debian && $codename == bookworm ]]; then
        add_backports
        release=(--target-release bookworm-backports)
    fi
    LOG=$(mktemp "${TMPDIR:-/tmp}/install_vulkan.XXXXXX.log")
    say "installing mesa-vulkan-drivers and libvulkan1 ..."
    # A third party's broken source makes 'update' fail; whether that matters, 'install' tells.
    apt update </dev/null >>"$LOG" 2>&1 || echo "(apt-get update failed; going on)" >>"$LOG"
    logged apt install --yes --no-install-recommends ${release[@]+"${release[@]}"} mesa-vulkan-drivers libvulkan1
    rm -f "$LOG"
}

# ---------------------------------------------------------------------------------------------

(($# == 0)) || fail "unknown argument '$1'; this script takes none"
check_rust
case $(uname -s) in
Linux) check_linker ;;
Darwin)
    check_linker
    say "macOS: Metal comes with the system; nothing to install"
    exit 0
    ;;
MINGW* | MSYS* | CYGWIN*)
    say "Windows: Direct3D 12 comes with the system; nothing to install"
    exit 0
    ;;
*) fail "unknown system $(uname -s)" "Install a Vulkan driver by hand; nothing else is needed." ;;
esac

loader=$(find_loader)
drivers=$(find_drivers)
if [[ -z $loader || -z $drivers ]]; then
    if [[ -z $drivers && -n ${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}} ]]; then
        fail "VK_DRIVER_FILES or VK_ICD_FILENAMES is set, but names no existing driver manifest" \
            "Unset it, or correct it: ${VK_DRIVER_FILES:-$VK_ICD_FILENAMES}"
    fi
    command -v apt-get >/dev/null ||
        fail "no Vulkan driver found, and this system has no apt to install one with" "${PACKAGES_BY_HAND[@]}"
    check_root
    install_with_apt
    loader=$(find_loader)
    drivers=$(find_drivers)
    [[ -n $loader && -n $drivers ]] ||
        fail "installed, but still no loader or no driver manifest is in sight" "${PACKAGES_BY_HAND[@]}"
fi
report "$loader" "$drivers"
