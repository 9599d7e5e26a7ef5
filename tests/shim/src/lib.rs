// SPDX-License-Identifier: MIT OR Apache-2.0

//! What all tests that run on the host share.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod access;
pub mod facts;
pub mod guest;
pub mod gunyah;
pub mod holder;
pub mod modules;
pub mod runner;
pub mod say;
pub mod tree;
