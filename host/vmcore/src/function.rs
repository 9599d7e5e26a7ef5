// SPDX-License-Identifier: MIT OR Apache-2.0

//! The functions of a VM: what VM_ADD_FUNCTION adds and VM_REMOVE_FUNCTION
//! takes away.
//!
//! Errors are those of Gunyah's driver. It looks at all of an argument when a
//! function is added, and only for one like it when a function is removed: what
//! is malformed is then merely not there.

use crate::Errno;
use crate::args::VCPUS_MAX;
use crate::ioeventfd::Filter;
use crate::uapi;

/// The largest argument of a function that there is, in words of 8 bytes.
pub const ARG_WORDS: usize = size_of::<uapi::IoeventfdArg>() / 8;

/// An argument as it was copied from user space, with zeros behind its end.
pub type Words = [u64; ARG_WORDS];

/// A checked function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// A vCPU.
    Vcpu {
        /// Its number, less than [`VCPUS_MAX`].
        id: u32,
    },
    /// An eventfd that rings a doorbell.
    Irqfd {
        /// The eventfd.
        fd: i32,
        /// The doorbell's label.
        label: u32,
        /// The interrupt is level-triggered.
        level: bool,
    },
    /// An eventfd that guest writes signal.
    Ioeventfd {
        /// The eventfd.
        fd: i32,
        /// The writes.
        filter: Filter,
    },
}

/// What tells a function from others of its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A vCPU, by its number.
    Vcpu(u32),
    /// An IRQFD, by its label.
    Irqfd(u32),
    /// An IOEVENTFD, by the writes that signal it.
    Ioeventfd(Filter),
}

/// Checks a function that is to be added.
///
/// # Errors
/// `NotFound` for a type that there is not; `Invalid` for an argument of
/// another size, unknown flags, and what no function of the type can be.
pub fn to_add(desc: &uapi::FunctionDesc, words: &Words) -> Result<Function, Errno> {
    let size = desc.arg_size as usize;
    match desc.kind {
        uapi::FUNCTION_VCPU => {
            let id = low(words[0]);
            let valid = size == size_of::<uapi::VcpuArg>() && id < VCPUS_MAX;
            valid.then_some(Function::Vcpu { id }).ok_or(Errno::Invalid)
        }
        uapi::FUNCTION_IRQFD => {
            let arg = irqfd(words);
            let valid = size == size_of::<uapi::IrqfdArg>() && arg.flags & !uapi::IRQFD_LEVEL == 0;
            let level = arg.flags & uapi::IRQFD_LEVEL != 0;
            // A number that is too large for a descriptor is none.
            let fd = i32::try_from(arg.fd).unwrap_or(-1);
            let function = Function::Irqfd { fd, label: arg.label, level };
            valid.then_some(function).ok_or(Errno::Invalid)
        }
        uapi::FUNCTION_IOEVENTFD => {
            if size != size_of::<uapi::IoeventfdArg>() {
                return Err(Errno::Invalid);
            }
            let arg = ioeventfd(words);
            Ok(Function::Ioeventfd { fd: arg.fd, filter: Filter::new(&arg)? })
        }
        _ => Err(Errno::NotFound),
    }
}

/// The function that is to be removed.
///
/// # Errors
/// `NotFound` if no function can be like that.
pub fn to_remove(desc: &uapi::FunctionDesc, words: &Words) -> Result<Key, Errno> {
    let size = desc.arg_size as usize;
    let key = match desc.kind {
        uapi::FUNCTION_VCPU if size == size_of::<uapi::VcpuArg>() => Some(Key::Vcpu(low(words[0]))),
        uapi::FUNCTION_IRQFD if size == size_of::<uapi::IrqfdArg>() => {
            Some(Key::Irqfd(irqfd(words).label))
        }
        uapi::FUNCTION_IOEVENTFD if size == size_of::<uapi::IoeventfdArg>() => {
            Filter::new(&ioeventfd(words)).ok().map(Key::Ioeventfd)
        }
        _ => None,
    };
    key.ok_or(Errno::NotFound)
}

fn low(word: u64) -> u32 {
    word as u32
}

fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

fn irqfd(words: &Words) -> uapi::IrqfdArg {
    let [first, second, ..] = *words;
    uapi::IrqfdArg { fd: low(first), label: high(first), flags: low(second), padding: high(second) }
}

fn ioeventfd(words: &Words) -> uapi::IoeventfdArg {
    let [datamatch, addr, third, fourth] = *words;
    uapi::IoeventfdArg {
        datamatch,
        addr,
        len: low(third),
        fd: high(third) as i32,
        flags: low(fourth),
        padding: high(fourth),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desc(kind: u32, arg_size: usize) -> uapi::FunctionDesc {
        uapi::FunctionDesc { kind, arg_size: arg_size as u32, arg: 0 }
    }

    fn pair(low: u32, high: u32) -> u64 {
        u64::from(low) | u64::from(high) << 32
    }

    const SIZES: [(u32, usize); 3] =
        [(uapi::FUNCTION_VCPU, 4), (uapi::FUNCTION_IRQFD, 16), (uapi::FUNCTION_IOEVENTFD, 32)];

    #[test]
    fn sizes_and_types_must_fit() {
        for (kind, size) in SIZES {
            for wrong in [0, size - 1, size + 1, 256] {
                let desc = desc(kind, wrong);
                assert_eq!(to_add(&desc, &[0; ARG_WORDS]), Err(Errno::Invalid), "{desc:?}");
                assert_eq!(to_remove(&desc, &[0; ARG_WORDS]), Err(Errno::NotFound), "{desc:?}");
            }
            assert!(to_add(&desc(kind, size), &[0; ARG_WORDS]).is_ok());
            assert!(to_remove(&desc(kind, size), &[0; ARG_WORDS]).is_ok());
        }
        for kind in [0, 4, u32::MAX] {
            assert_eq!(to_add(&desc(kind, 4), &[0; ARG_WORDS]), Err(Errno::NotFound));
            assert_eq!(to_remove(&desc(kind, 4), &[0; ARG_WORDS]), Err(Errno::NotFound));
        }
    }

    #[test]
    fn vcpus_have_numbers_in_range() {
        let add = |id| to_add(&desc(uapi::FUNCTION_VCPU, 4), &[id, 0, 0, 0]);
        assert_eq!(add(31), Ok(Function::Vcpu { id: 31 }));
        assert_eq!(add(32), Err(Errno::Invalid));
        assert_eq!(add(u64::from(u32::MAX)), Err(Errno::Invalid));
    }

    #[test]
    fn irqfds_are_told_apart_by_their_labels() {
        let desc = desc(uapi::FUNCTION_IRQFD, 16);
        let add = |first, second| to_add(&desc, &[first, second, 0, 0]);
        assert_eq!(add(pair(3, 9), 0), Ok(Function::Irqfd { fd: 3, label: 9, level: false }));
        assert_eq!(add(pair(3, 9), 1), Ok(Function::Irqfd { fd: 3, label: 9, level: true }));
        for bad in [2, 3, 1 << 31] {
            assert_eq!(add(pair(3, 9), bad), Err(Errno::Invalid), "{bad:#x}");
        }
        let padded = add(pair(3, 9), pair(1, 1 << 31));
        assert_eq!(padded, Ok(Function::Irqfd { fd: 3, label: 9, level: true }));
        let none = add(pair(u32::MAX, 9), 0);
        assert_eq!(none, Ok(Function::Irqfd { fd: -1, label: 9, level: false }));
        let remove = |first, second| to_remove(&desc, &[first, second, 0, 0]);
        assert_eq!(remove(pair(77, 9), 1), Ok(Key::Irqfd(9)), "whatever the descriptor");
    }

    #[test]
    fn ioeventfds_are_told_apart_by_their_writes() {
        let desc = desc(uapi::FUNCTION_IOEVENTFD, 32);
        let good = [5, 0x6000, pair(4, 3), pair(uapi::IOEVENTFD_DATAMATCH, 0)];
        let Ok(Function::Ioeventfd { fd: 3, filter }) = to_add(&desc, &good) else {
            panic!("refused");
        };
        assert!(filter.admits(0x6000, 4, 5) && !filter.admits(0x6000, 4, 6));
        let other = [5, 0x6000, pair(4, 8), good[3]];
        assert_eq!(to_remove(&desc, &other), Ok(Key::Ioeventfd(filter)));
        let bad = [5, 0x6000, pair(3, 3), good[3]];
        assert_eq!(to_add(&desc, &bad), Err(Errno::Invalid));
        assert_eq!(to_remove(&desc, &bad), Err(Errno::NotFound));
        let none = [5, 0x6000, pair(4, u32::MAX), good[3]];
        assert_eq!(to_add(&desc, &none), Ok(Function::Ioeventfd { fd: -1, filter }));
    }
}
