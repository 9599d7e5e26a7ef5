// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the front door (`cargo xtask`) shares with the test suite: where the
//! artefacts of a build are, and how QEMU is started with them.

pub mod artefacts;
pub mod console;
pub mod initramfs;
pub mod layout;
pub mod qemu;
