// SPDX-License-Identifier: MIT OR Apache-2.0

use core::fmt;

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// Why a call was refused. Numbers below 0x200 are Gunyah's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum Error {
            $($(#[$doc])* $name = $value,)*
        }

        impl Error {
            /// All errors, for tables and tests.
            pub const ALL: &[Error] = &[$(Error::$name),*];

            /// Reads the error number of a call's `x0`; `None` if it is 0
            /// (success) or no error of this interface.
            pub const fn from_register(x0: u64) -> Option<Error> {
                match x0 as i64 {
                    $($value => Some(Error::$name),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for Error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Error::$name => $text,)* })
            }
        }
    };
}

errors! {
    /// No such call, for this caller.
    Unimplemented = -1, "no such call";
    /// Nothing wrong, try again.
    Retry = -2, "try again";
    /// An argument is out of its range, or a reserved one is not zero.
    InvalidArgument = 1, "invalid argument";
    /// A size or count is out of its range.
    InvalidSize = 2, "invalid size";
    /// An address or size is not aligned as it must be.
    Misaligned = 3, "misaligned";
    /// A VM has too few free metadata pages; `x2` says how many more it needs
    /// for this call. `x1` is 0 if it is the VM that gets or gives back pages, 1 if it is
    /// the calling guest, whose own map has to be split.
    NoMemory = 10, "the VM needs more metadata pages";
    /// An address range wraps or runs past the end of its space.
    AddressOverflow = 20, "address range overflows";
    /// The address is no RAM that the ledger knows, or nothing of the caller's.
    InvalidAddress = 22, "not RAM";
    /// The call is not allowed: in the object's present state, or by the handle's
    /// rights.
    Denied = 30, "denied";
    /// Someone else is using the object right now.
    Busy = 31, "busy";
    /// The handle is null or malformed.
    HandleNull = 50, "null or malformed handle";
    /// The handle's object is dead.
    HandleRevoked = 51, "the handle's object is dead";
    /// The handle names an object of another type.
    HandleType = 52, "handle of the wrong type";
    /// No room for another object of this type.
    TableFull = 54, "no room for another object";
    /// The folio has references that no safe holder accounts for; `x2` says
    /// how many (as a signed number: negative when the report counts more
    /// safe references than there are).
    Excess = 0x200, "folio has excess references";
    /// Kernel users need to reach the folio; `x2` says how many.
    Accessible = 0x201, "folio is in use by the kernel";
    /// The frame belongs to someone else.
    NotOwner = 0x202, "frame belongs to someone else";
    /// The frame is in a state that this call does not start from; `x2` is
    /// the state.
    WrongState = 0x203, "frame is in the wrong state";
    /// Something is at the guest address already: memory, or the VM's interrupt controller.
    GuestMapped = 0x204, "guest address is in use";
    /// Two entries of the list overlap, in frames or in guest addresses; or two frames of an
    /// interrupt controller.
    Overlap = 0x205, "list entries overlap";
    /// The frame is pinned: firmware or a device uses it.
    Pinned = 0x206, "frame is pinned";
    /// The entries of one call belong to different owners or borrowers.
    MixedVms = 0x207, "entries belong to different VMs";
    /// The borrower has not unlocked the page and is alive.
    Locked = 0x208, "the guest has not unlocked the page";
    /// The list lies in memory that does not answer, or whose contents are
    /// broken: EL2 could not read it.
    BrokenMemory = 0x209, "the list's memory is broken";
}

impl Error {
    /// The value of `x0` that reports this error.
    pub const fn to_register(self) -> u64 {
        self as i32 as i64 as u64
    }
}

impl core::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_round_trip() {
        for &error in Error::ALL {
            assert_eq!(Error::from_register(error.to_register()), Some(error));
        }
        assert_eq!(Error::from_register(0), None);
        assert_eq!(Error::Unimplemented.to_register(), u64::MAX);
    }
}
