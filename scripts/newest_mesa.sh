#!/usr/bin/env bash
# Runs test binaries on the newest Mesa, whatever Mesa the system itself has.
#
#     scripts/newest_mesa.sh prepare                 makes the root (about a minute, 0.7 GB), or refreshes an old one
#     scripts/newest_mesa.sh run BINARY [ARGS...]    runs a binary built on this system inside it
#     scripts/newest_mesa.sh version                 prints the version of the Mesa inside
#     scripts/newest_mesa.sh remove                  removes the root
#
# The root is a minimal Debian unstable in .newest-mesa/ at the top of the repository, entered by
# chroot. Its C library is the newest there is, so that whatever was linked here also starts there.
#
# Why: a distribution's stable Mesa is what users have, but the newest software driver compiles shaders
# differently, several times faster, and the library chooses another kernel there.
#
# Everything is mounted in a mount namespace of the run's own (unshare): mounts end with the process,
# however it ends, concurrent runs do not see one another's, and no removal of the root can ever reach
# the repository through a bind mount. Needs Linux, and root or sudo.
set -euo pipefail

SELF=$(realpath "${BASH_SOURCE[0]}")
REPO=$(dirname "$(dirname "$SELF")")
readonly SELF REPO
readonly STATE=$REPO/.newest-mesa
readonly ROOT=$STATE/root
readonly HALF_MADE=$STATE/root.half-made # renamed to ROOT when complete
readonly MARKER=etc/newest-mesa-prepared # within the root; its age is the root's age
readonly LOG=$STATE/prepare.log
readonly MAX_AGE_DAYS=${NEWEST_MESA_MAX_AGE_DAYS:-14}
readonly DEBOOTSTRAP_TIMEOUT_SECONDS=900

say() { printf 'newest_mesa: %s\n' "$*" >&2; }
fail() {
    printf 'newest_mesa: error: %s\n' "$1" >&2
    shift
    if (($#)); then printf '    %s\n' "$@" >&2; fi
    exit 1
}

# Goes on as root: returns where this already is root, else starts the script again through sudo.
become_root() {
    ((EUID != 0)) || return 0
    if command -v sudo >/dev/null; then
        # A password can be typed only where there is a terminal.
        if sudo -n true 2>/dev/null || [[ -t 0 && -t 2 ]]; then
            exec sudo --preserve-env -- "$SELF" "$@"
        fi
    fi
    fail "'$1' needs root or sudo, for debootstrap, mount and chroot"
}

check_namespaces() {
    unshare --mount --propagation private true 2>/dev/null || fail "this root may not mount" \
        "In a container: start it with the SYS_ADMIN capability, or use the system's own driver alone."
}

# ---------------------------------------------------------------------------------------------
# Making and removing the root
# ---------------------------------------------------------------------------------------------

is_prepared() { [[ -e $ROOT/$MARKER ]]; }
is_fresh() { is_prepared && [[ -z $(find "$ROOT/$MARKER" -mtime "+$((MAX_AGE_DAYS - 1))") ]]; }

# Descriptor 9 holds the lock: shared while a binary runs inside, exclusive while the root changes.
open_lock() {
    mkdir -p "$STATE"
    exec 9>>"$STATE/lock"
}

# Removes a tree, but never while something is mounted in it, and never across a file system's edge.
remove_tree() {
    local tree=$1 mounted target
    [[ -e $tree ]] || return 0
    while read -r _ _ _ _ mounted _; do
        printf -v target '%b' "$mounted" # the kernel writes a space as \040
        if [[ $target == "$tree" || $target == "$tree"/* ]]; then
            fail "$target is still mounted; not removing $tree" "Unmount it first: umount '$target'"
        fi
    done </proc/self/mountinfo
    rm -rf --one-file-system -- "$tree"
}

# Prints the mirror that the system takes Debian from, or nothing: then debootstrap uses its default.
debian_mirror() {
    local targets id codename
    command -v apt-get >/dev/null || return 0
    id=$(sed -n 's/^ID=//p' /etc/os-release)
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    [[ $id == debian ]] || return 0
    # shellcheck disable=SC2016 # apt-get fills in the format, not the shell
    targets=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages')
    awk -v codename="$codename" '
        $2 == "main" && ($1 == codename || $1 ~ /^(oldstable|stable|testing|unstable|sid)$/) && $3 ~ /^(https?|file):/ {
            print $3
            exit
        }' <<<"$targets"
}

install_debootstrap() {
    ! command -v debootstrap >/dev/null || return 0
    command -v apt-get >/dev/null ||
        fail "debootstrap is missing" "Fedora: dnf install debootstrap; Arch: pacman -S debootstrap debian-archive-keyring"
    say "installing debootstrap ..."
    {
        apt-get -o Acquire::Retries=3 update || echo "(apt-get update failed; going on)"
        DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 \
            install --yes --no-install-recommends debootstrap debian-archive-keyring
    } </dev/null >>"$LOG" 2>&1
}

# Each step ends with 'return 1' by hand: 'set -e' does not reach into a function whose result is tested.
make_root() {
    local mirror
    : >"$LOG"
    remove_tree "$HALF_MADE"
    install_debootstrap || return 1
    mirror=$(debian_mirror) || return 1
    say "making a Debian unstable root with the newest Mesa in $ROOT ..."
    unshare --mount --propagation private timeout "$DEBOOTSTRAP_TIMEOUT_SECONDS" \
        debootstrap --variant=minbase --include=mesa-vulkan-drivers,libvulkan1 \
        sid "$HALF_MADE" ${mirror:+"$mirror"} </dev/null >>"$LOG" 2>&1 || return 1
    rm -f "$HALF_MADE"/var/cache/apt/archives/*.deb
    # What 'run' will do has to work before the root counts as made.
    enter_namespace "$HALF_MADE" /bin/true >>"$LOG" 2>&1 || return 1
    touch "$HALF_MADE/$MARKER"
    remove_tree "$ROOT"
    mv "$HALF_MADE" "$ROOT"
}

prepare() {
    open_lock
    if ! flock --shared --nonblock 9; then
        say "waiting for another 'prepare' ..."
        flock --shared --timeout "$DEBOOTSTRAP_TIMEOUT_SECONDS" 9 || fail "another 'prepare' holds $STATE/lock"
    fi
    if is_fresh; then
        say "ready: Mesa $(version)"
        return
    fi
    check_namespaces
    [[ $STATE != *[[:space:]]* ]] || fail "debootstrap cannot work in a path with a space: $STATE"
    if is_prepared; then
        say "the root is older than $MAX_AGE_DAYS days; refreshing it"
        if ! flock --exclusive --nonblock 9; then
            say "a binary is running inside; keeping Mesa $(version) for now"
            return
        fi
    else
        flock --exclusive --timeout "$DEBOOTSTRAP_TIMEOUT_SECONDS" 9 || fail "another 'prepare' holds $STATE/lock"
        if is_prepared; then # by the one that held the lock before
            say "ready: Mesa $(version)"
            return
        fi
    fi
    if ! (make_root); then
        say "failed; the end of $LOG:"
        tail -n 25 "$LOG" | sed 's/^/    | /' >&2
        is_prepared || fail "could not prepare a root with the newest Mesa"
        say "WARNING: could not refresh the root; keeping Mesa $(version)"
        return
    fi
    say "ready: Mesa $(version)"
}

remove() {
    open_lock
    flock --exclusive --nonblock 9 || fail "a binary is running inside, or the root is being made"
    remove_tree "$HALF_MADE"
    remove_tree "$ROOT"
    remove_tree "$STATE"
}

# Read from dpkg's own table, which any user may do on any system.
version() {
    is_prepared || fail "no root yet" "Make it: scripts/newest_mesa.sh prepare"
    awk '/^Package: /{ found = $2 == "mesa-vulkan-drivers" } found && /^Version: /{ print $2; exit }' \
        "$ROOT/var/lib/dpkg/status"
}

# ---------------------------------------------------------------------------------------------
# Running inside
# ---------------------------------------------------------------------------------------------

# Starts this script once more in a mount namespace of its own; 'in_namespace' goes on there.
enter_namespace() { unshare --mount --propagation private -- "$SELF" --in-namespace "$@"; }

# Mounts a folder of the system at the same path inside the root.
mount_same_path() {
    local root=$1 folder=$2 how=$3
    # A symbolic link inside the root must not lead the mount out of it.
    [[ $(realpath --canonicalize-missing "$root$folder") == "$root"/* ]] || fail "$folder leads out of the root"
    mkdir -p "$root$folder"
    mount "$how" "$folder" "$root$folder"
}

in_namespace() {
    local root=$1 binary=$2 here=$PWD
    local -a drivers identity=()
    shift 2
    # /sys tells Rust and Mesa how many processors they may use.
    mount_same_path "$root" /proc --rbind
    mount_same_path "$root" /sys --rbind
    mount_same_path "$root" /dev --rbind
    # --bind, not --rbind: inside the repository lies the root itself, with these very mounts in it.
    mount_same_path "$root" /tmp --bind
    mount_same_path "$root" "$REPO" --bind
    # A build folder elsewhere (CARGO_TARGET_DIR).
    [[ -e $root$binary ]] || mount_same_path "$root" "$(dirname "$binary")" --bind
    if [[ ! -d $root$here ]]; then
        say "note: $here does not exist inside; running in $REPO"
        here=$REPO
    fi

    # The root's software driver alone: the system's settings name files that are not in here.
    unset VK_ICD_FILENAMES VK_ADD_DRIVER_FILES VK_LAYER_PATH VK_ADD_LAYER_PATH VK_INSTANCE_LAYERS LD_PRELOAD
    drivers=("$root"/usr/share/vulkan/icd.d/lvp_icd*.json)
    [[ -e ${drivers[0]} ]] || fail "the newest Mesa has no lavapipe driver in /usr/share/vulkan/icd.d"
    export VK_DRIVER_FILES=${drivers[0]#"$root"}
    [[ -d $root${TMPDIR:-/tmp} ]] || unset TMPDIR
    # What a test writes belongs to the one who started it, not to root.
    if [[ -n ${SUDO_UID:-} && -n ${SUDO_GID:-} ]]; then
        identity=(--userspec="$SUDO_UID:$SUDO_GID")
    fi
    # shellcheck disable=SC2016 # expanded by the shell inside
    exec chroot ${identity[@]+"${identity[@]}"} "$root" /bin/sh -c 'cd "$1" && shift && exec "$@"' sh "$here" "$binary" "$@"
}

run() {
    local binary
    binary=$(realpath --canonicalize-existing "$1") || fail "no such binary: $1"
    shift
    [[ -f $binary && -x $binary ]] || fail "not an executable file: $binary"
    is_prepared || fail "no root yet" "Make it: scripts/newest_mesa.sh prepare"
    check_namespaces
    open_lock
    flock --shared 9 # held by the binary until it ends
    enter_namespace "$ROOT" "$binary" "$@"
}

# ---------------------------------------------------------------------------------------------

usage() { fail "usage: scripts/newest_mesa.sh prepare | run BINARY [ARGS...] | version | remove"; }

[[ $(uname -s) == Linux ]] || fail "works on Linux only"
(($#)) || usage
case $1 in
prepare | remove)
    (($# == 1)) || usage
    become_root "$@"
    "$1"
    ;;
run)
    (($# >= 2)) || usage
    become_root "$@"
    shift
    run "$@"
    ;;
version)
    (($# == 1)) || usage
    version
    ;;
--in-namespace)
    shift
    in_namespace "$@"
    ;;
*) usage ;;
esac
