// SPDX-License-Identifier: MIT OR Apache-2.0

use core::fmt;

use escrow_abi::Error;

/// An error as Linux numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Errno {
    /// EPERM: not allowed in the object's state.
    NotPermitted = 1,
    /// ENOENT: nothing is there.
    NotFound = 2,
    /// EIO: the hypervisor said something that makes no sense.
    Io = 5,
    /// E2BIG
    TooLarge = 7,
    /// EAGAIN: somebody uses it at the moment.
    Again = 11,
    /// ENOMEM
    NoMemory = 12,
    /// EACCES: the binding does not allow that access.
    Access = 13,
    /// EBUSY: a guest has it and keeps it.
    Busy = 16,
    /// EEXIST: there is one already.
    Exists = 17,
    /// ENODEV: the object is gone.
    NoDevice = 19,
    /// EINVAL
    Invalid = 22,
    /// ENOSPC: no room for another one.
    NoSpace = 28,
    /// EOVERFLOW: runs past the end of its space.
    Overflow = 75,
    /// EOPNOTSUPP
    Unsupported = 95,
    /// EHWPOISON: the memory is broken.
    Poisoned = 133,
}

impl Errno {
    /// As a system call returns it: negative.
    pub const fn to_return(self) -> i32 {
        -(self as i32)
    }

    /// Reads what a system call returns; an error that this crate has no name
    /// for is `Io`.
    ///
    /// # Errors
    /// What it says, if it is negative.
    pub fn from_return(value: i32) -> Result<(), Errno> {
        if value >= 0 {
            return Ok(());
        }
        let known = Self::ALL.iter().find(|errno| errno.to_return() == value);
        Err(known.copied().unwrap_or(Errno::Io))
    }

    const ALL: [Errno; 15] = [
        Errno::NotPermitted,
        Errno::NotFound,
        Errno::Io,
        Errno::TooLarge,
        Errno::Again,
        Errno::NoMemory,
        Errno::Access,
        Errno::Busy,
        Errno::Exists,
        Errno::NoDevice,
        Errno::Invalid,
        Errno::NoSpace,
        Errno::Overflow,
        Errno::Unsupported,
        Errno::Poisoned,
    ];
}

impl From<Error> for Errno {
    fn from(error: Error) -> Errno {
        match error {
            Error::Unimplemented => Errno::Unsupported,
            Error::Retry | Error::Excess | Error::Accessible => Errno::Again,
            Error::InvalidArgument
            | Error::InvalidSize
            | Error::Misaligned
            | Error::InvalidAddress
            | Error::Overlap
            | Error::MixedVms => Errno::Invalid,
            Error::NoMemory => Errno::NoMemory,
            Error::AddressOverflow => Errno::Overflow,
            Error::Denied => Errno::NotPermitted,
            Error::Busy | Error::NotOwner | Error::WrongState | Error::Pinned | Error::Locked => {
                Errno::Busy
            }
            Error::HandleNull | Error::HandleRevoked | Error::HandleType => Errno::NoDevice,
            Error::TableFull => Errno::NoSpace,
            Error::GuestMapped => Errno::Exists,
            Error::BrokenMemory => Errno::Poisoned,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?} ({})", self.to_return())
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_are_read_back() {
        for errno in Errno::ALL {
            assert_eq!(Errno::from_return(errno.to_return()), Err(errno));
        }
        assert_eq!(Errno::from_return(0), Ok(()));
        assert_eq!(Errno::from_return(7), Ok(()));
        assert_eq!(Errno::from_return(-4), Err(Errno::Io), "EINTR has no name here");
    }

    #[test]
    fn who_is_told_to_try_again_may() {
        for &error in Error::ALL {
            let transient = matches!(error, Error::Retry | Error::Excess | Error::Accessible);
            assert_eq!(Errno::from(error) == Errno::Again, transient, "{error:?}");
        }
    }
}
