#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Sets the machine up as far as that is needed, builds, and runs every test.
# Ends in the line `N passed, M failed`. Options: --help

exec sh "$(dirname "$0")/../xtask/front-door.sh" test "$@"
