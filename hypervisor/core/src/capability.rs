// SPDX-License-Identifier: MIT OR Apache-2.0

//! What guests may do with other VMs.
//!
//! Each guest has a small table of capabilities, filled by the host. A handle
//! is an entry's place and number. Numbers are never used twice, so a handle
//! that was revoked, or whose object has died, never becomes valid again.

use arrayvec::ArrayVec;
use escrow_abi::{Error, Handle, HandleKind, call};
use escrow_nospec as nospec;

use crate::ledger::GuestId;

/// Capabilities that a guest may have.
pub const MAX_CAPABILITIES: usize = 16;

const ALL_RIGHTS: u64 = call::RIGHT_SHARE | call::RIGHT_LEND | call::RIGHT_DONATE;

/// The right to put pages into a window of another VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The VM that it names.
    pub object: GuestId,
    /// Which of the VMs that lived in that slot.
    pub generation: u64,
    rights: u64,
    base: u64,
    end: u64,
    /// Never used twice by one guest.
    number: u64,
}

impl Capability {
    /// A capability for `object`, whose addresses end at `end`.
    ///
    /// # Errors
    /// `InvalidArgument` for no rights or unknown ones, `Misaligned`, `InvalidSize` and
    /// `AddressOverflow` for the window.
    pub fn new(
        object: (GuestId, u64),
        rights: u64,
        window: (u64, u64),
        address_end: u64,
    ) -> Result<Capability, Error> {
        if rights == 0 || rights & !ALL_RIGHTS != 0 {
            return Err(Error::InvalidArgument);
        }
        let end = crate::hypervisor::check_range(window.0, window.1, address_end)?;
        let (object, generation) = object;
        Ok(Capability { object, generation, rights, base: window.0, end, number: 0 })
    }

    /// Whether it carries a right.
    pub const fn has(&self, right: u64) -> bool {
        self.rights & right != 0
    }

    /// Whether pages may go to a range of the object's addresses.
    pub const fn allows(&self, at: u64, size: u64) -> bool {
        at >= self.base && at < self.end && size <= self.end - at
    }
}

/// A guest's capabilities.
#[derive(Debug, Default)]
pub struct Capabilities {
    table: ArrayVec<Option<Capability>, MAX_CAPABILITIES>,
    numbers: u64,
}

impl Capabilities {
    /// None.
    pub const fn new() -> Capabilities {
        Capabilities { table: ArrayVec::new_const(), numbers: 0 }
    }

    /// Puts a capability in; returns its handle. Entries of which `is_dead` are
    /// free.
    ///
    /// # Errors
    /// `TableFull`.
    pub fn insert(
        &mut self,
        capability: Capability,
        is_dead: impl Fn(&Capability) -> bool,
    ) -> Result<Handle, Error> {
        let free = self.table.iter().position(|entry| entry.as_ref().is_none_or(&is_dead));
        let place = match free {
            Some(place) => place,
            None => {
                self.table.try_push(None).map_err(|_| Error::TableFull)?;
                self.table.len() - 1
            }
        };
        if self.numbers >= Handle::GENERATION_MAX {
            return Err(Error::TableFull);
        }
        self.numbers += 1;
        let number = self.numbers;
        self.table[place] = Some(Capability { number, ..capability });
        Ok(Handle { generation: number, kind: HandleKind::Vm, slot: place as u16, index: 0 })
    }

    /// The capability that a handle names.
    ///
    /// # Errors
    /// `HandleNull`, `HandleType`, or `HandleRevoked` for one that is not there any more.
    pub fn get(&self, handle: u64) -> Result<&Capability, Error> {
        let place = self.find(handle)?;
        self.table[place].as_ref().ok_or(Error::HandleRevoked)
    }

    /// Takes a capability away.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub fn revoke(&mut self, handle: u64) -> Result<(), Error> {
        let place = self.find(handle)?;
        self.table[place] = None;
        Ok(())
    }

    fn find(&self, handle: u64) -> Result<usize, Error> {
        let handle = Handle::from_register(handle).ok_or(Error::HandleNull)?;
        if handle.kind != HandleKind::Vm {
            return Err(Error::HandleType);
        }
        let place = handle.slot as usize;
        if place >= MAX_CAPABILITIES {
            return Err(Error::HandleNull);
        }
        let place = nospec::index(place, self.table.len()).ok_or(Error::HandleRevoked)?;
        match self.table.get(place) {
            Some(Some(entry)) if entry.number == handle.generation => Ok(place),
            _ => Err(Error::HandleRevoked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u64 = 1 << 39;

    fn capability(rights: u64, base: u64, size: u64) -> Result<Capability, Error> {
        Capability::new((GuestId::new(2).unwrap(), 7), rights, (base, size), END)
    }

    #[test]
    fn windows_and_rights_are_checked() {
        assert_eq!(capability(0, 0, 0x1000), Err(Error::InvalidArgument));
        assert_eq!(capability(8, 0, 0x1000), Err(Error::InvalidArgument));
        assert_eq!(capability(1, 0x800, 0x1000), Err(Error::Misaligned));
        assert_eq!(capability(1, 0, 0), Err(Error::InvalidSize));
        assert_eq!(capability(1, END - 0x1000, 0x2000), Err(Error::AddressOverflow));
        assert_eq!(capability(1, !0xfff, 0x2000), Err(Error::AddressOverflow));
        let lend = capability(call::RIGHT_LEND, 0x4000, 0x2000).unwrap();
        assert!(lend.has(call::RIGHT_LEND) && !lend.has(call::RIGHT_SHARE));
        assert!(lend.allows(0x4000, 0x2000) && lend.allows(0x5000, 0x1000));
        assert!(!lend.allows(0x3000, 0x1000) && !lend.allows(0x5000, 0x2000));
        assert!(!lend.allows(0x6000, 0x1000));
    }

    #[test]
    fn a_handle_that_died_stays_dead() {
        let mut table = Capabilities::new();
        let one = capability(1, 0, 0x1000).unwrap();
        let none_dead = |_: &Capability| false;
        let first = table.insert(one, none_dead).unwrap().to_register();
        assert!(table.get(first).is_ok());
        table.revoke(first).unwrap();
        assert_eq!(table.get(first), Err(Error::HandleRevoked));
        assert_eq!(table.revoke(first), Err(Error::HandleRevoked));
        // The next capability gets its slot, but another number.
        let second = table.insert(one, none_dead).unwrap().to_register();
        assert_ne!(first, second);
        assert_eq!(table.get(first), Err(Error::HandleRevoked));
        for _ in 1..MAX_CAPABILITIES {
            table.insert(one, none_dead).unwrap();
        }
        assert_eq!(table.insert(one, none_dead), Err(Error::TableFull));
        // A capability that names a dead VM is replaced.
        table.insert(one, |entry| entry.generation == 7).unwrap();
        assert_eq!(table.get(second), Err(Error::HandleRevoked));
    }

    #[test]
    fn what_is_no_handle_is_refused() {
        let table = Capabilities::new();
        assert_eq!(table.get(0), Err(Error::HandleNull));
        assert_eq!(table.get(Handle::HOST), Err(Error::HandleNull));
        let vcpu = Handle { generation: 1, kind: HandleKind::Vcpu, slot: 0, index: 0 };
        assert_eq!(table.get(vcpu.to_register()), Err(Error::HandleType));
        let far = Handle { generation: 1, kind: HandleKind::Vm, slot: 16, index: 0 };
        assert_eq!(table.get(far.to_register()), Err(Error::HandleNull));
        let none = Handle { generation: 1, kind: HandleKind::Vm, slot: 3, index: 0 };
        assert_eq!(table.get(none.to_register()), Err(Error::HandleRevoked));
    }
}
