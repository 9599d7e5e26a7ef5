// SPDX-License-Identifier: MIT OR Apache-2.0

//! Boots: every sort of machine, the log, the host's power calls, and every bad input.

mod banks;
mod input;
mod log;
mod machines;
mod memory;
mod power;
