#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Builds the Rust half of the module from its source in rust/, into
# escrow_rust.o_shipped, where there is a Rust tool chain. DKMS runs this before it
# builds the module (PRE_BUILD). Where the half cannot be built, the object that came
# with the package stays, and a line says why.
#
#   ESCROW_RUST=no    leaves the object that is there
#   ESCROW_RUST=yes   builds it, or fails
#
# Needed are cargo and rustc (how new a one, rust/Cargo.toml says), the source of
# Rust's library (Debian's rust-src, or `rustup component add rust-src`) and binutils;
# no network: all crates are in rust/vendor. Rust's library is built as well, because
# what is delivered with a tool chain has no branch protection and uses x18.
set -u
cd "$(dirname "$0")" || exit 1
target=aarch64-unknown-none-softfloat
wish=${ESCROW_RUST:-auto}

stay() {
	echo "escrow: $1; the Rust half stays the one that came with the package" >&2
	[ "$wish" != yes ]
	exit
}

[ "$wish" = no ] && exit 0
for program in cargo rustc "${CROSS_COMPILE:-}ld" "${CROSS_COMPILE:-}nm" "${CROSS_COMPILE:-}objcopy"; do
	command -v "$program" >/dev/null || stay "there is no $program"
done
# Cargo can be told of another place.
library=${__CARGO_TESTS_ONLY_SRC_ROOT:-$(rustc --print sysroot)/lib/rustlib/src/rust/library}
[ -d "$library/core" ] || stay "the source of Rust's library is not there"

# Cargo looks for what any part of Rust's library needs, also for parts that are not built.
for crate in "$library"/vendor/*; do
	[ -d "$crate" ] || stay "the crates of Rust's library are not there"
	[ -e "rust/vendor/${crate##*/}" ] || ln -s "$crate" rust/vendor/
done
# -Zbuild-std, and flags that are not stable: as in the kernel's own build of Rust.
export RUSTC_BOOTSTRAP=1
export CARGO_FUTURE_INCOMPAT_REPORT_FREQUENCY=never
built=${CARGO_TARGET_DIR:-$PWD/rust/target}
# These are all flags there are, whatever cargo has been told elsewhere. A panic names
# its file; where that was at the time makes no difference to the object.
CARGO_ENCODED_RUSTFLAGS=$(
	tr '\n' '\037' <rust/flags
	printf '%s\037%s' "--remap-path-prefix=$PWD/rust/vendor=crates" \
		"--remap-path-prefix=$library=library"
)
export CARGO_ENCODED_RUSTFLAGS
(
	cd rust &&
		CARGO_TARGET_DIR=$built cargo build --quiet --release --frozen --target $target \
			-Zbuild-std=core,alloc --package escrow-module
) || stay "cargo does not build it"
sh ./prelink.sh "$built/$target/release/libescrow_module.a" escrow_rust.o_new ||
	stay "it cannot be linked"
mv escrow_rust.o_new escrow_rust.o_shipped
[ "$built" != "$PWD/rust/target" ] || rm -rf rust/target
echo "escrow: $(rustc --version) has built the Rust half" >&2
