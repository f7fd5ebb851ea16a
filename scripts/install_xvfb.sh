#!/usr/bin/env bash
# Makes sure that the viewer's test finds an X server without a screen, and the libraries that a window opens at run time.
#
#     scripts/install_xvfb.sh
#
# Linux only; elsewhere that test does not run. Installing needs root or sudo. Running it again is free.
set -euo pipefail

# Debian's and Ubuntu's names; what they depend on comes with them.
readonly PACKAGES=(xvfb libx11-xcb1 libxcursor1 libxi6 libxkbcommon-x11-0)
readonly LIBRARIES=(libX11.so.6 libX11-xcb.so.1 libXcursor.so.1 libXi.so.6 libxkbcommon.so.0 libxkbcommon-x11.so.0)

# Prints what is missing.
missing() {
    local known library
    command -v Xvfb >/dev/null || printf 'Xvfb '
    # ldconfig lives in sbin, which is not on every user's PATH.
    known=$(PATH="$PATH:/usr/sbin:/sbin" ldconfig -p)
    for library in "${LIBRARIES[@]}"; do
        grep -qF "$library " <<<"$known" || printf '%s ' "$library"
    done
}

fail() {
    printf 'install_xvfb: error: %s\n' "$*" >&2
    printf '    Install by hand. Debian, Ubuntu: apt-get install %s\n' "${PACKAGES[*]}" >&2
    exit 1
}

apt() {
    local root=()
    if ((EUID != 0)); then root=(sudo --); fi
    ${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

[[ $(uname -s) == Linux ]] || exit 0
absent=$(missing)
[[ -n $absent ]] || exit 0
command -v apt-get >/dev/null || fail "no $absent"
printf 'install_xvfb: installing %s\n' "${PACKAGES[*]}"
# A third party's broken source makes 'update' fail; whether that matters, 'install' tells.
apt --quiet update >/dev/null || true
apt --quiet --yes --no-install-recommends install "${PACKAGES[@]}" >/dev/null || fail "apt-get failed"
absent=$(missing)
[[ -z $absent ]] || fail "installed, but still no $absent"
