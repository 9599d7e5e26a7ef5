// SPDX-License-Identifier: MIT OR Apache-2.0

//! Boots: every sort of machine, the host's power calls, and every bad input.

mod input;
mod machines;
mod power;
