// SPDX-License-Identifier: MIT OR Apache-2.0

mod crowd;
mod flows;
mod registers;
mod sim;
mod spec;
mod traffic;
mod world;
