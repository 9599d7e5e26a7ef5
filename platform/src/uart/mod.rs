// SPDX-License-Identifier: MIT OR Apache-2.0

//! Serial ports, as far as it takes to say something.

mod pl011;

pub use pl011::Pl011;
