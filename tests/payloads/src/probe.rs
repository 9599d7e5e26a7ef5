// SPDX-License-Identifier: MIT OR Apache-2.0

//! Accesses that may fault, and what they ended with.

use core::arch::asm;

use crate::exception::Frame;

/// An exception that a probe took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `ESR_EL1`.
    pub esr: u64,
    /// `FAR_EL1`.
    pub far: u64,
}

impl Fault {
    /// The exception class.
    pub const fn class(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// The fault status code.
    pub const fn status(&self) -> u64 {
        self.esr & 0x3f
    }

    /// Whether it was a write.
    pub const fn is_write(&self) -> bool {
        self.esr & 1 << 6 != 0
    }
}

unsafe extern "C" {
    static probe_begin: u8;
    static probe_end: u8;
    static probe_fetch_returned: u8;
    static probe_fetch_failed: u8;
}

/// Lets a probe go on whose access took the exception of `frame`; `false` if
/// none did.
pub(crate) fn handle(frame: &mut Frame) -> bool {
    let [begin, end] = [&raw const probe_begin, &raw const probe_end].map(|at| at as u64);
    let returned = &raw const probe_fetch_returned as u64;
    if (begin..end).contains(&frame.elr) {
        frame.elr = frame.x[30];
    } else if frame.x[30] == returned && frame.esr >> 26 == 0x21 {
        frame.elr = &raw const probe_fetch_failed as u64;
    } else {
        return false;
    }
    frame.x[1] = frame.esr;
    frame.x[2] = frame.far;
    true
}

macro_rules! probes {
    ($($(#[$doc:meta])* $name:ident, $symbol:literal;)*) => {$(
        $(#[$doc])*
        pub fn $name(address: u64, value: u64) -> Result<u64, Fault> {
            let (result, esr, far);
            // SAFETY: the routine makes one access, to an address that the
            // test means to try; it changes no memory that Rust knows of
            // unless the test has the right to that page. A fault comes back
            // as a value.
            unsafe {
                asm!(
                    concat!("bl ", $symbol),
                    inout("x0") address => result,
                    inout("x1") value => esr,
                    out("x2") far,
                    out("x3") _,
                    out("x30") _,
                );
            }
            if esr == 0 { Ok(result) } else { Err(Fault { esr, far }) }
        }
    )*};
}

mod raw {
    use super::{Fault, asm};
    probes! {
        load8, "probe_load8";
        load16, "probe_load16";
        load32, "probe_load32";
        load64, "probe_load64";
        store8, "probe_store8";
        store16, "probe_store16";
        store32, "probe_store32";
        store64, "probe_store64";
        load_pair, "probe_load_pair";
        store_pair, "probe_store_pair";
        load_acquire, "probe_load_acquire";
        store_release, "probe_store_release";
        load_exclusive, "probe_load_exclusive";
        load_vector, "probe_load_vector";
        store_vector, "probe_store_vector";
        add, "probe_add";
        zero, "probe_zero";
        prefetch, "probe_prefetch";
        fetch, "probe_fetch";
    }
}

/// Loads 64 bits.
pub fn read(address: u64) -> Result<u64, Fault> {
    raw::load64(address, 0)
}

/// Stores 64 bits.
pub fn write(address: u64, value: u64) -> Result<(), Fault> {
    raw::store64(address, value).map(|_| ())
}

/// Calls what is at the address.
pub fn fetch(address: u64) -> Result<(), Fault> {
    raw::fetch(address, 0).map(|_| ())
}

/// Asks for a line to be brought into the cache. Never faults.
pub fn prefetch(address: u64) -> Result<(), Fault> {
    raw::prefetch(address, 0).map(|_| ())
}

/// A kind of access.
#[derive(Clone, Copy)]
pub struct Access {
    /// Its name for people.
    pub name: &'static str,
    /// Whether it faults as a write.
    pub is_write: bool,
    run: fn(u64, u64) -> Result<u64, Fault>,
}

impl Access {
    /// Makes the access. A store stores `value`.
    pub fn run(&self, address: u64, value: u64) -> Result<u64, Fault> {
        (self.run)(address, value)
    }
}

macro_rules! accesses {
    ($($name:ident: $is_write:literal,)*) => {
        &[$(Access { name: stringify!($name), is_write: $is_write, run: raw::$name }),*]
    };
}

/// The kinds of data access that every CPU has.
pub const ACCESSES: &[Access] = accesses! {
    load8: false,
    load16: false,
    load32: false,
    load64: false,
    store8: true,
    store16: true,
    store32: true,
    store64: true,
    load_pair: false,
    store_pair: true,
    load_acquire: false,
    store_release: true,
    load_exclusive: false,
    load_vector: false,
    store_vector: true,
    zero: true,
};

/// An atomic addition, on CPUs with FEAT_LSE. It reports a write only if it
/// could have read, so which it is is left open.
pub fn atomic_add(address: u64, value: u64) -> Result<u64, Fault> {
    raw::add(address, value)
}
