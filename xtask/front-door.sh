#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# `cargo xtask "$@"`, also on a machine that has no cargo yet: gets Rust and a
# C compiler to link with, and leaves all other set-up to xtask.

set -eu
cd "$(dirname "$0")/.."

# The workspace's rust-version.
oldest_minor=88

say() { echo "escrow: $*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }
is_debian() { [ -r /etc/os-release ] && grep -qx 'ID=debian' /etc/os-release && have apt-get; }
may_install() { is_debian && [ "$(id -u)" = 0 ]; }

# Installs packages; options for apt may stand before them.
install() {
    options='' names=''
    for word in "$@"; do
        case $word in
        -o*) options="$options $word" ;;
        *) names="$names $word" ;;
        esac
    done
    say "installing$names"
    log=$(mktemp)
    # One broken source among the user's many is no reason to give up.
    # shellcheck disable=SC2086 # a list of words
    apt-get -q $options update >"$log" 2>&1 || true
    if DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y --no-install-recommends -oDPkg::Lock::Timeout=300 install "$@" >>"$log" 2>&1
    then
        rm -f "$log"
    else
        tail -n 20 "$log" >&2
        rm -f "$log"
        return 1
    fi
}

# A cargo that runs here (rustup's may have no toolchain) and is recent enough.
cargo_works() {
    version=$(cargo --version 2>/dev/null) || return 1
    minor=${version#cargo 1.}
    [ "${minor%%.*}" -ge "$oldest_minor" ] 2>/dev/null
}

# Set to 0, it says that rustup shall not download.
rustup_may_download() { [ "${RUSTUP_AUTO_INSTALL:-1}" != 0 ]; }

rustup_toolchain() {
    rustup_may_download && have rustup || return 1
    say "fetching Rust with rustup"
    rustup toolchain install stable --profile minimal --component rustfmt --component clippy >&2 &&
        cargo_works
}

debian_rustup() {
    rustup_may_download && may_install || return 1
    install rustup ca-certificates && rustup_toolchain
}

rustup_installer() {
    rustup_may_download || return 1
    have curl || { may_install && install curl ca-certificates; } || return 1
    say "fetching rustup"
    curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs |
        sh -s -- -y --no-modify-path --profile minimal --component rustfmt --component clippy >&2 &&
        cargo_works
}

# Debian's own Rust: of backports, with the user's sources as they are.
debian_rust() {
    may_install || return 1
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    # shellcheck disable=SC2016 # apt's own words
    mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        sed -n "s/^$codename //p" | grep -m 1 '/debian/*$') || return 1
    apt=$(mktemp -d)
    mkdir -p "$apt/lists/partial" "$apt/sources"
    cp /etc/apt/sources.list.d/* "$apt/sources" 2>/dev/null || true
    echo "deb $mirror $codename-backports main" >"$apt/sources/backports.list"
    packages=
    for package in cargo rustc rustfmt rust-clippy; do
        packages="$packages $package/$codename-backports"
    done
    # shellcheck disable=SC2086 # a list of words
    install -oDir::State::lists="$apt/lists" -oDir::Etc::sourceparts="$apt/sources" \
        $packages ca-certificates && cargo_works
}

PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
export PATH

if ! have cc; then
    if ! may_install || ! install gcc libc6-dev; then
        say 'a C compiler is missing (cc): as root on Debian, apt-get install gcc libc6-dev'
        exit 1
    fi
fi
if ! cargo_works; then
    rustup_toolchain || debian_rustup || rustup_installer || debian_rust || {
        say "Rust 1.$oldest_minor or newer is missing: see https://rustup.rs"
        say 'or, as root on Debian 13, install cargo, rustc, rustfmt, rust-clippy from its backports'
        exit 1
    }
fi

# The first time that takes long enough to say so.
[ -x "${CARGO_TARGET_DIR:-target}/debug/xtask" ] || say 'building xtask, which does everything else'
exec cargo xtask "$@"
