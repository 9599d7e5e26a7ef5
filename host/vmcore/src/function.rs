// SPDX-License-Identifier: MIT OR Apache-2.0

//! The functions of a VM: what VM_ADD_FUNCTION adds and VM_REMOVE_FUNCTION
//! takes away.
//!
//! Errors are those of Gunyah's driver. It looks at all of an argument when a
//! function is added, and only for one like it when a function is removed: what
//! is malformed is then merely not there.

use escrow_abi::PAGE_SIZE;

use crate::Errno;
use crate::args::VCPUS_MAX;
use crate::ioeventfd::Filter;
use crate::tree::SPIS;
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
    /// An eventfd that interrupts the guest.
    Irqfd {
        /// The eventfd.
        fd: i32,
        /// The label in the device tree.
        label: u32,
        /// The interrupt is level-triggered.
        level: bool,
        /// The eventfd that is signalled when the guest is done with it.
        resample: Option<i32>,
    },
    /// An eventfd that guest writes signal.
    Ioeventfd {
        /// The eventfd.
        fd: i32,
        /// The writes.
        filter: Filter,
    },
    /// A console.
    Console {
        /// Guest address of its page.
        address: u64,
        /// The INTID of its SPI.
        interrupt: Option<u32>,
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
    /// A console, by its guest address.
    Console(u64),
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
            let known = uapi::IRQFD_LEVEL | uapi::IRQFD_RESAMPLE;
            let valid = size == size_of::<uapi::IrqfdArg>() && arg.flags & !known == 0;
            let level = arg.flags & uapi::IRQFD_LEVEL != 0;
            let resample =
                (arg.flags & uapi::IRQFD_RESAMPLE != 0).then(|| descriptor(arg.resample_fd));
            let function =
                Function::Irqfd { fd: descriptor(arg.fd), label: arg.label, level, resample };
            valid.then_some(function).ok_or(Errno::Invalid)
        }
        uapi::FUNCTION_IOEVENTFD => {
            if size != size_of::<uapi::IoeventfdArg>() {
                return Err(Errno::Invalid);
            }
            let arg = ioeventfd(words);
            Ok(Function::Ioeventfd { fd: arg.fd, filter: Filter::new(&arg)? })
        }
        uapi::FUNCTION_CONSOLE => {
            let arg = console(words);
            let valid = size == size_of::<uapi::ConsoleArg>()
                && arg.flags == 0
                && arg.addr & (PAGE_SIZE - 1) == 0
                && (arg.interrupt == 0 || SPIS.contains(&arg.interrupt));
            let interrupt = (arg.interrupt != 0).then_some(arg.interrupt);
            let function = Function::Console { address: arg.addr, interrupt };
            valid.then_some(function).ok_or(Errno::Invalid)
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
        uapi::FUNCTION_CONSOLE if size == size_of::<uapi::ConsoleArg>() => {
            Some(Key::Console(console(words).addr))
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

/// A file descriptor. A number that is too large for one is none.
fn descriptor(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(-1)
}

fn irqfd(words: &Words) -> uapi::IrqfdArg {
    let [first, second, ..] = *words;
    let (flags, resample_fd) = (low(second), high(second));
    uapi::IrqfdArg { fd: low(first), label: high(first), flags, resample_fd }
}

fn console(words: &Words) -> uapi::ConsoleArg {
    let [addr, second, ..] = *words;
    uapi::ConsoleArg { addr, interrupt: low(second), flags: high(second) }
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

    const SIZES: [(u32, usize); 4] = [
        (uapi::FUNCTION_VCPU, 4),
        (uapi::FUNCTION_IRQFD, 16),
        (uapi::FUNCTION_IOEVENTFD, 32),
        (uapi::FUNCTION_CONSOLE, 16),
    ];

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
        for kind in [0, 4, 0x7f, 0x81, u32::MAX] {
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
        let irqfd = |fd, level, resample| Ok(Function::Irqfd { fd, label: 9, level, resample });
        assert_eq!(add(pair(3, 9), 0), irqfd(3, false, None));
        assert_eq!(add(pair(3, 9), 1), irqfd(3, true, None));
        for bad in [2, 3, 1 << 30] {
            assert_eq!(add(pair(3, 9), bad), Err(Errno::Invalid), "{bad:#x}");
        }
        assert_eq!(add(pair(3, 9), pair(1, 1 << 31)), irqfd(3, true, None), "padding");
        assert_eq!(add(pair(u32::MAX, 9), 0), irqfd(-1, false, None));
        let resample = |fd| add(pair(3, 9), pair(uapi::IRQFD_RESAMPLE, fd));
        assert_eq!(resample(4), irqfd(3, false, Some(4)));
        assert_eq!(resample(1 << 31), irqfd(3, false, Some(-1)));
        let remove = |first, second| to_remove(&desc, &[first, second, 0, 0]);
        assert_eq!(remove(pair(77, 9), 1), Ok(Key::Irqfd(9)), "whatever the descriptor");
    }

    #[test]
    fn consoles_are_told_apart_by_their_addresses() {
        let desc = desc(uapi::FUNCTION_CONSOLE, 16);
        let add = |address, second| to_add(&desc, &[address, second, 0, 0]);
        let console = |interrupt| Ok(Function::Console { address: 0x900_0000, interrupt });
        for (intid, interrupt) in [(0, None), (32, Some(32)), (1019, Some(1019))] {
            assert_eq!(add(0x900_0000, intid), console(interrupt));
        }
        for bad in [1, 27, 31, 1020, u64::from(u32::MAX), pair(33, 1)] {
            assert_eq!(add(0x900_0000, bad), Err(Errno::Invalid), "{bad:#x}");
        }
        assert_eq!(add(0x900_0800, 0), Err(Errno::Invalid));
        let remove = to_remove(&desc, &[0x900_0800, 7, 0, 0]);
        assert_eq!(remove, Ok(Key::Console(0x900_0800)), "whatever else, and there is none");
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
