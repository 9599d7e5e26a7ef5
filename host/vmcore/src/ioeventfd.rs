// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guest writes that signal an event instead of ending a run.

use alloc::vec::Vec;

use crate::Errno;
use crate::args::IOEVENTFDS_MAX;
use crate::uapi;

/// Writes that an event is for, as a program has named them: equal ones are the same to
/// VM_REMOVE_FUNCTION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    address: u64,
    /// Bytes: 1, 2, 4 or 8; 0 for any. As in v17, it counts together with a value alone.
    size: u32,
    /// The value; `None` for any, of any size.
    data: Option<u64>,
}

impl Filter {
    /// The writes that an IOEVENTFD names.
    ///
    /// # Errors
    /// `Invalid` for unknown flags, a size that no write has, addresses that wrap, and a
    /// value without a size.
    pub fn new(arg: &uapi::IoeventfdArg) -> Result<Filter, Errno> {
        let data = (arg.flags & uapi::IOEVENTFD_DATAMATCH != 0).then_some(arg.datamatch);
        if arg.flags & !uapi::IOEVENTFD_DATAMATCH != 0
            || !matches!(arg.len, 0 | 1 | 2 | 4 | 8)
            || (arg.len == 0 && data.is_some())
            || arg.addr.checked_add(arg.len.into()).is_none()
        {
            return Err(Errno::Invalid);
        }
        Ok(Filter { address: arg.addr, size: arg.len, data })
    }

    /// Whether a write is one of them: of `size` bytes, `data` with zeros above
    /// those.
    pub fn admits(&self, address: u64, size: u32, data: u64) -> bool {
        self.address == address
            && self.data.is_none_or(|wanted| self.size == size && wanted == data)
    }

    /// Whether there can be a write that is one of both.
    fn overlaps(&self, other: &Filter) -> bool {
        self.address == other.address
            && match (self.data, other.data) {
                (Some(one), Some(another)) => self.size == other.size && one == another,
                _ => true,
            }
    }
}

/// The events of one VM. `E` names an event; no two are for the same write.
#[derive(Debug)]
pub struct Ioeventfds<E> {
    /// Sorted by address.
    list: Vec<(Filter, E)>,
}

impl<E> Default for Ioeventfds<E> {
    fn default() -> Self {
        Ioeventfds { list: Vec::new() }
    }
}

impl<E> Ioeventfds<E> {
    /// Adds an event.
    ///
    /// # Errors
    /// `Exists` if another one is for some of the same writes, `NoSpace` if there
    /// are [`IOEVENTFDS_MAX`], `NoMemory`.
    pub fn add(&mut self, filter: Filter, event: E) -> Result<(), Errno> {
        let (at, same) = self.at(filter.address);
        if same.iter().any(|(other, _)| other.overlaps(&filter)) {
            return Err(Errno::Exists);
        }
        if self.list.len() >= IOEVENTFDS_MAX {
            return Err(Errno::NoSpace);
        }
        self.list.try_reserve(1).map_err(|_| Errno::NoMemory)?;
        self.list.insert(at, (filter, event));
        Ok(())
    }

    /// Takes the event away that was added with that filter.
    ///
    /// # Errors
    /// `NotFound`
    pub fn remove(&mut self, filter: &Filter) -> Result<E, Errno> {
        let (at, same) = self.at(filter.address);
        let place = same.iter().position(|(other, _)| other == filter).ok_or(Errno::NotFound)?;
        Ok(self.list.remove(at + place).1)
    }

    /// The event that a write is for.
    pub fn find(&self, address: u64, size: u32, data: u64) -> Option<&E> {
        let (_, same) = self.at(address);
        same.iter().find(|(filter, _)| filter.admits(address, size, data)).map(|(_, event)| event)
    }

    /// The events of an address, and where they begin.
    fn at(&self, address: u64) -> (usize, &[(Filter, E)]) {
        let first = self.list.partition_point(|(filter, _)| filter.address < address);
        let rest = self.list.get(first..).unwrap_or_default();
        let count = rest.partition_point(|(filter, _)| filter.address == address);
        (first, rest.get(..count).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn arg(addr: u64, len: u32, data: Option<u64>) -> uapi::IoeventfdArg {
        let flags = if data.is_some() { uapi::IOEVENTFD_DATAMATCH } else { 0 };
        uapi::IoeventfdArg { addr, len, datamatch: data.unwrap_or(0), flags, ..Default::default() }
    }

    fn filter(addr: u64, len: u32, data: Option<u64>) -> Filter {
        Filter::new(&arg(addr, len, data)).unwrap()
    }

    #[test]
    fn what_names_no_writes_is_refused() {
        for bad in [
            arg(0x6000, 3, None),
            arg(0x6000, 16, None),
            arg(0x6000, 0, Some(0)),
            arg(u64::MAX, 1, None),
            arg(u64::MAX - 6, 8, None),
            uapi::IoeventfdArg { flags: 2, ..arg(0x6000, 4, None) },
            uapi::IoeventfdArg { flags: 1 << 31, ..arg(0x6000, 4, None) },
        ] {
            assert_eq!(Filter::new(&bad), Err(Errno::Invalid), "{bad:x?}");
        }
        assert!(Filter::new(&arg(u64::MAX - 8, 8, None)).is_ok());
        assert!(Filter::new(&arg(u64::MAX, 0, None)).is_ok());
        let unused = uapi::IoeventfdArg { datamatch: 7, ..arg(0x6000, 4, None) };
        assert_eq!(Filter::new(&unused), Ok(filter(0x6000, 4, None)), "without the flag");
    }

    #[test]
    fn no_write_is_for_two_events() {
        let mut events = Ioeventfds::default();
        events.add(filter(0x6000, 4, Some(1)), 'a').unwrap();
        events.add(filter(0x6000, 4, Some(2)), 'b').unwrap();
        events.add(filter(0x6000, 8, Some(1)), 'c').unwrap();
        events.add(filter(0x6004, 4, None), 'd').unwrap();
        for (address, size, data) in [
            (0x6000, 4, Some(1)),
            (0x6000, 4, None),
            (0x6000, 8, Some(1)),
            (0x6000, 0, None),
            (0x6004, 0, None),
            (0x6004, 2, None),
            (0x6004, 4, None),
            (0x6004, 2, Some(0)),
        ] {
            let refused = events.add(filter(address, size, data), 'x');
            assert_eq!(refused, Err(Errno::Exists), "{address:#x} {size} {data:?}");
        }
        assert_eq!(events.find(0x6000, 4, 2), Some(&'b'));
        assert_eq!(events.find(0x6000, 4, 3), None);
        assert_eq!(events.find(0x6000, 8, 1), Some(&'c'));
        assert_eq!(events.find(0x6000, 2, 1), None);
        assert_eq!(events.find(0x6004, 1, 0xff), Some(&'d'), "a length without a value");
        assert_eq!(events.find(0x6002, 2, 1), None);
        assert_eq!(events.remove(&filter(0x6000, 4, None)), Err(Errno::NotFound));
        assert_eq!(events.remove(&filter(0x6004, 0, None)), Err(Errno::NotFound), "named with 4");
        assert_eq!(events.remove(&filter(0x6000, 4, Some(1))), Ok('a'));
        assert_eq!(events.find(0x6000, 4, 1), None);
        events.add(filter(0x6000, 4, Some(1)), 'e').unwrap();
    }

    #[test]
    fn there_is_a_limit() {
        let mut events = Ioeventfds::default();
        for number in 0..IOEVENTFDS_MAX as u64 {
            events.add(filter(number * 8, 4, None), number).unwrap();
        }
        let more = filter(u64::from(u32::MAX), 4, None);
        assert_eq!(events.add(more, 0), Err(Errno::NoSpace));
        events.remove(&filter(8, 4, None)).unwrap();
        events.add(more, 0).unwrap();
    }

    /// Address, size and value of a filter.
    type Parts = (u64, u32, Option<u64>);

    #[derive(Clone, Debug)]
    enum Op {
        Add(u64, u32, Option<u64>),
        Remove(u64, u32, Option<u64>),
        Write(u64, u32, u64),
    }

    /// Few addresses, sizes and values, so that they meet.
    fn op() -> impl Strategy<Value = Op> {
        let address = prop_oneof![0u64..3, Just(u64::MAX - 8)];
        let size = prop_oneof![Just(1u32), Just(2), Just(4), Just(8)];
        let filter = (address.clone(), prop_oneof![1 => Just(0u32), 4 => size.clone()], 0u64..4)
            .prop_map(|(address, size, data)| {
                (address, size, (size != 0 && data != 0).then_some(data))
            });
        prop_oneof![
            3 => filter.clone().prop_map(|(a, s, d)| Op::Add(a, s, d)),
            2 => filter.prop_map(|(a, s, d)| Op::Remove(a, s, d)),
            3 => (address, size, 0u64..4).prop_map(|(a, s, d)| Op::Write(a, s, d)),
        ]
    }

    proptest! {
        /// The table against a list in no order that is searched from its start,
        /// where an overlap is looked for write by write.
        #[test]
        fn behaves_as_its_model(ops in prop::collection::vec(op(), 1..60)) {
            let admits = |(at, len, value): Parts, address, size, data| {
                at == address && value.is_none_or(|v| len == size && v == data)
            };
            let mut model: Vec<(Parts, usize)> = Vec::new();
            let mut events = Ioeventfds::default();
            for (number, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Add(address, size, data) => {
                        let new = (address, size, data);
                        let both = |size, data| {
                            admits(new, address, size, data)
                                && model.iter().any(|&(old, _)| admits(old, address, size, data))
                        };
                        let taken = [1, 2, 4, 8].iter().any(|&s| (0..4).any(|d| both(s, d)));
                        let added = events.add(filter(address, size, data), number);
                        prop_assert_eq!(added, if taken { Err(Errno::Exists) } else { Ok(()) });
                        if !taken {
                            model.push((new, number));
                        }
                    }
                    Op::Remove(address, size, data) => {
                        let old = (address, size, data);
                        let place = model.iter().position(|&(other, _)| other == old);
                        let removed = events.remove(&filter(address, size, data));
                        let expected = place.map(|place| model.swap_remove(place).1);
                        prop_assert_eq!(removed, expected.ok_or(Errno::NotFound));
                    }
                    Op::Write(address, size, data) => {
                        let hit = model.iter().find(|&&(at, _)| admits(at, address, size, data));
                        prop_assert_eq!(
                            events.find(address, size, data).copied(),
                            hit.map(|&(_, event)| event)
                        );
                    }
                }
            }
        }
    }
}
