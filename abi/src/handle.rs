// SPDX-License-Identifier: MIT OR Apache-2.0

/// What a handle names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandleKind {
    /// A virtual machine.
    Vm = 1,
    /// A virtual CPU.
    Vcpu = 2,
    /// A doorbell.
    Doorbell = 3,
}

/// A name for an object of EL2's. Callers pass it back and do not look inside.
///
/// The host's handles are made like this. A guest's
/// ([`CAP_GRANT`](crate::call::CAP_GRANT)) look the same, with the entry of the
/// guest's own table in place of the slot.
///
/// | bits | meaning |
/// | --- | --- |
/// | 63:24 | generation, from 1: never used twice for one slot |
/// | 23:20 | kind: 1 VM, 2 vCPU, 3 doorbell |
/// | 19:8 | the VM's slot |
/// | 7:0 | the vCPU's or doorbell's index, 0 for a VM |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    /// How many objects have lived in the slot, this one included.
    pub generation: u64,
    /// What it names.
    pub kind: HandleKind,
    /// The VM's slot, 0 to 4095.
    pub slot: u16,
    /// The vCPU's or doorbell's index in its VM.
    pub index: u8,
}

impl Handle {
    /// What every guest calls its host, for
    /// [`MEM_DONATE`](crate::call::MEM_DONATE).
    pub const HOST: u64 = 1 << 20;

    /// Lowest bit of the slot.
    pub const SLOT_SHIFT: u32 = 8;

    /// The largest generation that a handle can carry.
    pub const GENERATION_MAX: u64 = (1 << 40) - 1;

    /// Packs the handle into a register.
    pub const fn to_register(self) -> u64 {
        self.generation << 24
            | (self.kind as u64) << 20
            | ((self.slot & 0xfff) as u64) << Self::SLOT_SHIFT
            | self.index as u64
    }

    /// Unpacks a register; `None` if no handle looks like that.
    pub const fn from_register(value: u64) -> Option<Handle> {
        let kind = match value >> 20 & 0xf {
            1 => HandleKind::Vm,
            2 => HandleKind::Vcpu,
            3 => HandleKind::Doorbell,
            _ => return None,
        };
        Handle::of_kind(value, kind)
    }

    /// The same for a handle that is to be of a kind; `None` if it is not.
    #[inline(always)]
    pub const fn of_kind(value: u64, kind: HandleKind) -> Option<Handle> {
        if value >> 20 & 0xf != kind as u64 {
            return None;
        }
        let index = value as u8;
        let generation = value >> 24;
        if generation == 0 || (matches!(kind, HandleKind::Vm) && index != 0) {
            return None;
        }
        Some(Handle { generation, kind, slot: (value >> Self::SLOT_SHIFT & 0xfff) as u16, index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_round_trip() {
        for kind in [HandleKind::Vm, HandleKind::Vcpu, HandleKind::Doorbell] {
            for generation in [1, 2, Handle::GENERATION_MAX] {
                for slot in [0, 1, 0xfff] {
                    let index = if kind == HandleKind::Vm { 0 } else { 31 };
                    let handle = Handle { generation, kind, slot, index };
                    assert_eq!(Handle::from_register(handle.to_register()), Some(handle));
                }
            }
        }
    }

    #[test]
    fn noise_is_no_handle() {
        for value in [0, u64::MAX, 1 << 20, 4 << 20 | 1 << 24, 1 << 24 | 1 << 20 | 1] {
            assert_eq!(Handle::from_register(value), None, "{value:#x}");
        }
    }
}
