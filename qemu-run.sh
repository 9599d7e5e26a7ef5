#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Boots Debian under Escrow in QEMU, runs the demo, and leaves you at a shell.
# Sets the machine up first, as far as that is needed. Options: --help

exec sh "$(dirname "$0")/xtask/front-door.sh" run "$@"
