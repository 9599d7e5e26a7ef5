#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Links the Rust half of the module, a static library, into one relocatable object,
# with no more in it than C can reach: the functions whose names begin with escrow_,
# and what they need.
#
#   prelink.sh LIBRARY OBJECT
#
# CROSS_COMPILE is what the names of binutils' programs begin with.
set -eu
library=$1
object=$2
cross=${CROSS_COMPILE:-}
# The same order everywhere.
export LC_ALL=C

# Functions that compilers call on their own. The kernel's own are faster than those
# that come with Rust for machines without a C library. What is wrapped is not looked
# for in the library, and gets its own name back: modpost finds it in the kernel.
wraps=
names=
for name in memcpy memmove memset memcmp; do
	wraps="$wraps --wrap=$name"
	names="$names --redefine-sym=__wrap_$name=$name"
done

# nm complains of members that are no objects: rustc adds its metadata.
entries=$("${cross}nm" --defined-only --extern-only "$library" 2>/dev/null |
	sed -n 's/^[0-9a-f]* [A-Z] \(escrow_[A-Za-z0-9_]*\)$/-u \1/p' | sort -u)
if [ -z "$entries" ]; then
	echo "$library defines no function escrow_...: nothing for C to call" >&2
	exit 1
fi

# shellcheck disable=SC2086 # Lists of words.
"${cross}ld" -r --strip-debug --gc-sections -T "$(dirname "$0")/escrow_rust.ld" \
	-o "$object" $entries $wraps "$library"
# The standard library's objects carry their bitcode with them.
# shellcheck disable=SC2086
"${cross}objcopy" --remove-section=.llvmbc --remove-section=.llvmcmd $names "$object"
