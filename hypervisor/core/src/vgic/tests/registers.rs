// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every register of the frames: its widths, what of it can be written, and that there is
//! nothing else. The lists are IHI 0069's, not the code's.

use super::world::FakePages;
use crate::addr::Ipa;
use crate::vgic::{Access, Effects, Frame, Layout, Vgic};

/// A guest whose vCPUs are all out.
struct Guest(Vgic<FakePages>);

impl Guest {
    fn new(vcpus: usize, intids: u32) -> Guest {
        let vgic = Vgic::new(FakePages::new(vcpus, intids));
        for index in 0..vcpus {
            vgic.admit(index as u8, true, &mut Effects::default());
        }
        Guest(vgic)
    }

    fn access(&self, frame: Frame, offset: u32, size: u32, write: Option<u64>) -> u64 {
        let mut effects = Effects::default();
        match self.0.access(0, frame, offset, size, write, &mut effects) {
            Access::Done(value) => value,
            Access::Wait(_) => panic!("nobody is in the guest"),
        }
    }

    fn read(&self, frame: Frame, offset: u32, size: u32) -> u64 {
        self.access(frame, offset, size, None)
    }

    fn write(&self, frame: Frame, offset: u32, size: u32, value: u64) {
        self.access(frame, offset, size, Some(value));
    }
}

const GICD: Frame = Frame::Distributor;
const GICR: Frame = Frame::Redistributor(0);
const SGI: u32 = 0x1_0000;

/// Registers side by side.
#[derive(Clone, Copy)]
struct Row {
    frame: Frame,
    first: u32,
    /// The first byte behind the last.
    end: u32,
    /// Bytes of one.
    width: u32,
    /// What else it may be accessed by.
    narrower: &'static [u32],
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Read-only, with values known elsewhere or here.
    Fixed(u64),
    ReadOnly,
    /// These bits can be written, others are 0.
    Bits(u64),
    /// As the last, beside bits that are always set.
    BitsAnd(u64, u64),
    /// Writing ones sets; the register 0x80 further on clears, and reads the same.
    Set(u64),
    Clear,
}

const fn row(frame: Frame, first: u32, end: u32, kind: Kind) -> Row {
    Row { frame, first, end, width: 4, narrower: &[], kind }
}

/// All that there is in a guest with SPIs 32 to 95, seen by vCPU 0 of two.
const ROWS: &[Row] = &[
    row(GICD, 0x0000, 0x0004, Kind::BitsAnd(3, 0x50)),
    row(GICD, 0x0004, 0x0008, Kind::Fixed(9 << 19 | 2)),
    row(GICD, 0x0008, 0x000c, Kind::Fixed(0x4500_0000)),
    row(GICD, 0x0084, 0x008c, Kind::Bits(0xffff_ffff)),
    row(GICD, 0x0104, 0x010c, Kind::Set(0xffff_ffff)),
    row(GICD, 0x0184, 0x018c, Kind::Clear),
    row(GICD, 0x0204, 0x020c, Kind::Set(0xffff_ffff)),
    row(GICD, 0x0284, 0x028c, Kind::Clear),
    row(GICD, 0x0304, 0x030c, Kind::Set(0xffff_ffff)),
    row(GICD, 0x0384, 0x038c, Kind::Clear),
    Row { narrower: &[1], ..row(GICD, 0x0420, 0x0460, Kind::Bits(0xf8f8_f8f8)) },
    row(GICD, 0x0c08, 0x0c18, Kind::Bits(0xaaaa_aaaa)),
    Row { width: 8, narrower: &[4], ..row(GICD, 0x6100, 0x6300, Kind::Bits(0x80ff_ffff)) },
    row(GICD, 0xffd0, 0x1_0000, Kind::ReadOnly),
    row(GICR, 0x0000, 0x0004, Kind::Bits(0x0300_0000)),
    row(GICR, 0x0004, 0x0008, Kind::Fixed(0x4500_0000)),
    Row { width: 8, narrower: &[4], ..row(GICR, 0x0008, 0x0010, Kind::Fixed(1 << 5)) },
    row(GICR, 0x0014, 0x0018, Kind::ReadOnly),
    row(GICR, 0xffd0, 0x1_0000, Kind::ReadOnly),
    row(GICR, SGI + 0x0080, SGI + 0x0084, Kind::Bits(0xffff_ffff)),
    row(GICR, SGI + 0x0100, SGI + 0x0104, Kind::Set(0xffff_ffff)),
    row(GICR, SGI + 0x0180, SGI + 0x0184, Kind::Clear),
    row(GICR, SGI + 0x0200, SGI + 0x0204, Kind::Set(0xffff_ffff)),
    row(GICR, SGI + 0x0280, SGI + 0x0284, Kind::Clear),
    row(GICR, SGI + 0x0300, SGI + 0x0304, Kind::Set(0xffff_ffff)),
    row(GICR, SGI + 0x0380, SGI + 0x0384, Kind::Clear),
    Row { narrower: &[1], ..row(GICR, SGI + 0x0400, SGI + 0x0420, Kind::Bits(0xf8f8_f8f8)) },
    row(GICR, SGI + 0x0c00, SGI + 0x0c04, Kind::Fixed(0xaaaa_aaaa)),
    row(GICR, SGI + 0x0c04, SGI + 0x0c08, Kind::Fixed(0)),
];

impl Row {
    fn registers(&self) -> impl Iterator<Item = u32> + use<> {
        (self.first..self.end).step_by(self.width as usize)
    }

    /// Whether an access is to one of these, in a width that is allowed.
    fn takes(&self, frame: Frame, offset: u32, size: u32) -> bool {
        frame == self.frame
            && (self.first..self.end).contains(&offset)
            && offset.is_multiple_of(size)
            && (size == self.width || self.narrower.contains(&size))
    }

    /// The values of all.
    fn values(&self, guest: &Guest) -> Vec<u64> {
        self.registers().map(|at| guest.read(self.frame, at, self.width)).collect()
    }
}

#[test]
fn every_register_keeps_what_can_be_written() {
    for row in ROWS {
        for at in row.registers() {
            // A guest for each, so that nobody sees what others wrote.
            let guest = Guest::new(2, 96);
            let read = || guest.read(row.frame, at, row.width);
            let write = |value| guest.write(row.frame, at, row.width, value);
            let before = read();
            write(u64::MAX);
            let ones = read();
            write(0x5555_5555_5555_5555);
            let some = read();
            write(0);
            let zeros = read();
            let (bits, set) = match row.kind {
                Kind::Fixed(value) => {
                    assert_eq!(before, value, "{at:#x}");
                    (0, before)
                }
                Kind::ReadOnly => {
                    if at == 0x14 {
                        continue;
                    }
                    (0, before)
                }
                Kind::Bits(bits) => (bits, 0),
                Kind::BitsAnd(bits, set) => (bits, set),
                Kind::Set(bits) => {
                    assert_eq!([before, ones, some, zeros], [0, bits, bits, bits], "{at:#x}");
                    let clear = |value| guest.write(row.frame, at + 0x80, 4, value);
                    clear(0x5555_5555);
                    assert_eq!(read(), bits & 0xaaaa_aaaa, "{at:#x} after a clear");
                    assert_eq!(guest.read(row.frame, at + 0x80, 4), read());
                    clear(u64::MAX);
                    assert_eq!(read(), 0);
                    continue;
                }
                Kind::Clear => {
                    assert_eq!([before, ones, some, zeros], [0; 4], "{at:#x}");
                    continue;
                }
            };
            assert_eq!(before, set, "{at:#x} at first");
            assert_eq!(ones, bits | set, "{at:#x} after ones");
            assert_eq!(some, bits & 0x5555_5555_5555_5555 | set, "{at:#x}");
            assert_eq!(zeros, set, "{at:#x} after zeros");
        }
    }
}

#[test]
fn there_is_nothing_else() {
    let guest = Guest::new(2, 96);
    let before: Vec<_> = ROWS.iter().map(|row| row.values(&guest)).collect();
    for (frame, end) in [(GICD, 0x1_0000), (GICR, 0x2_0000)] {
        for offset in 0..end {
            for size in [1, 2, 4, 8] {
                if !ROWS.iter().any(|row| row.takes(frame, offset, size)) {
                    assert_eq!(guest.read(frame, offset, size), 0, "{frame:?} {offset:#x} {size}");
                    guest.write(frame, offset, size, u64::MAX);
                }
            }
        }
    }
    let after: Vec<_> = ROWS.iter().map(|row| row.values(&guest)).collect();
    assert_eq!(before, after);
    // Of a vCPU that there is not.
    for offset in (0..0x2_0000).step_by(4) {
        guest.write(Frame::Redistributor(2), offset, 4, u64::MAX);
        let id = (0xffd0..0x1_0000).contains(&offset);
        assert!(id || guest.read(Frame::Redistributor(2), offset, 4) == 0, "{offset:#x}");
    }
}

#[test]
fn what_is_written_in_parts_is_read_as_a_whole() {
    let guest = Guest::new(2, 96);
    for (n, value) in [(0, 0x12), (1, 0xff), (2, 0x80), (3, 0x07)] {
        guest.write(GICD, 0x420 + n, 1, value);
        guest.write(GICR, SGI + 0x404 + n, 1, value);
    }
    assert_eq!(guest.read(GICD, 0x420, 4), 0x0080_f810);
    assert_eq!(guest.read(GICR, SGI + 0x404, 4), 0x0080_f810);
    assert_eq!(guest.read(GICD, 0x421, 1), 0xf8);
    guest.write(GICD, 0x6100, 4, 0x8001_0203);
    guest.write(GICD, 0x6104, 4, u64::MAX);
    assert_eq!(guest.read(GICD, 0x6100, 8), 0x8001_0203);
    assert_eq!(guest.read(GICD, 0x6104, 4), 0);
    guest.write(GICD, 0x6100, 8, u64::MAX);
    assert_eq!(guest.read(GICD, 0x6100, 4), 0x80ff_ffff);
}

#[test]
fn a_wide_read_shows_the_affinity() {
    let guest = Guest::new(32, 1024);
    for vcpu in 0..32u64 {
        let last = if vcpu == 31 { 1 << 4 } else { 0 };
        let affinity = vcpu >> 4 << 8 | vcpu & 15;
        let expected = affinity << 32 | vcpu << 8 | 1 << 5 | last;
        assert_eq!(guest.read(Frame::Redistributor(vcpu as u8), 8, 8), expected);
        assert_eq!(guest.read(Frame::Redistributor(vcpu as u8), 12, 4), affinity);
    }
}

#[test]
fn interrupts_end_where_the_guest_s_do() {
    for intids in [64, 96, 512, 544, 992, 1024u32] {
        let guest = Guest::new(1, intids);
        assert_eq!(guest.read(GICD, 4, 4), u64::from(9 << 19 | (intids / 32 - 1)));
        for word in 0..32 {
            let bits = match word {
                0 => 0,
                31 if intids == 1024 => 0x0fff_ffff,
                _ if word < intids / 32 => 0xffff_ffff,
                _ => 0,
            };
            for field in [0x80, 0x100, 0x200, 0x300] {
                guest.write(GICD, field + word * 4, 4, u64::MAX);
                assert_eq!(guest.read(GICD, field + word * 4, 4), bits, "{field:#x} {word}");
            }
        }
        for intid in 0..1024u32 {
            let exists = (32..intids.min(1020)).contains(&intid);
            guest.write(GICD, 0x400 + intid, 1, 0x48);
            let priority = guest.read(GICD, 0x400 + intid, 1);
            assert_eq!(priority, if exists { 0x48 } else { 0 }, "{intid}");
            guest.write(GICD, 0x6000 + 8 * intid, 8, 1);
            let route = guest.read(GICD, 0x6000 + 8 * intid, 8);
            assert_eq!(route, u64::from(exists), "{intid}");
        }
    }
}

#[test]
fn who_it_is() {
    let guest = Guest::new(1, 64);
    let ids = |frame| -> Vec<u64> {
        (0xffd0..0x1_0000).step_by(4).map(|at| guest.read(frame, at, 4)).collect()
    };
    assert_eq!(ids(GICD), [0x44, 0, 0, 0, 0x92, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1]);
    assert_eq!(ids(GICR), [0x44, 0, 0, 0, 0x93, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn a_redistributor_sleeps_with_its_children() {
    let guest = Guest::new(1, 64);
    assert_eq!(guest.read(GICR, 0x14, 4), 0);
    guest.write(GICR, 0x14, 4, 0xffff_fffb);
    assert_eq!(guest.read(GICR, 0x14, 4), 6);
    guest.write(GICR, 0x14, 4, 4);
    assert_eq!(guest.read(GICR, 0x14, 4), 0);
}

#[test]
fn a_vcpu_that_joins_late_knows_the_distributor() {
    let guest = Guest::new(2, 64);
    guest.write(GICD, 0, 4, 2);
    let vgic = Vgic::new(FakePages { cpus: vec![], ..guest.0.into_pages() });
    let mut pages = vgic.into_pages();
    pages.cpus.push(crate::vgic::Cpu::new());
    let late = Guest(Vgic::new(pages));
    late.0.admit(0, true, &mut Effects::default());
    let enabled = late.0.pages().cpus[0].state.lock().enabled_groups;
    assert_eq!(enabled, crate::vgic::lr::Groups(2));
}

#[test]
fn frames_are_where_the_layout_says() {
    let layout = Layout { distributor: Ipa(0x800_0000), redistributors: Ipa(0x80a_0000) };
    let find = |at| layout.find(Ipa(at), 3);
    assert_eq!(find(0x7ff_ffff), None);
    assert_eq!(find(0x800_0000), Some((GICD, 0)));
    assert_eq!(find(0x800_ffff), Some((GICD, 0xffff)));
    assert_eq!(find(0x801_0000), None);
    assert_eq!(find(0x809_ffff), None);
    assert_eq!(find(0x80a_0000), Some((GICR, 0)));
    assert_eq!(find(0x80b_0080), Some((GICR, 0x1_0080)));
    assert_eq!(find(0x80c_0000), Some((Frame::Redistributor(1), 0)));
    assert_eq!(find(0x80f_ffff), Some((Frame::Redistributor(2), 0x1_ffff)));
    assert_eq!(find(0x810_0000), None);
    assert_eq!(find(u64::MAX), None);
}

/// Both banks, their ends, and what is beside them in the same registers.
#[test]
fn each_spi_has_fields_of_its_own() {
    let guest = Guest::new(1, 1024);
    for word in 1..32 {
        for field in [0x80, 0x100, 0x200, 0x300] {
            guest.write(GICD, field + word * 4, 4, u64::MAX);
        }
        for half in [0, 4] {
            guest.write(GICD, 0xc00 + word * 8 + half, 4, u64::MAX);
        }
    }
    let all = || -> Vec<u64> {
        let bits = (1..32).flat_map(|word| [0x80, 0x100, 0x200, 0x300].map(|at| at + word * 4));
        let config = (2..64).map(|word| 0xc00 + word * 4);
        bits.chain(config).map(|at| guest.read(GICD, at, 4)).collect()
    };
    let full = all();
    assert_eq!(guest.read(GICD, 0xcfc, 4), 0x00aa_aaaa, "INTIDs from 1020 on are none");
    for intid in [32, 63, 64, 511, 512, 543, 991, 992, 1019u32] {
        let (at, bit) = (intid / 32 * 4, 1 << (intid % 32));
        for set in [0x100, 0x200, 0x300] {
            let before = guest.read(GICD, set + at, 4);
            guest.write(GICD, set + 0x80 + at, 4, bit);
            assert_eq!(guest.read(GICD, set + at, 4), before & !bit, "{set:#x} {intid}");
            guest.write(GICD, set + at, 4, bit);
            assert_eq!(all(), full, "{set:#x} {intid}");
        }
        let (at, bit) = (0xc00 + intid / 16 * 4, 2 << (intid % 16 * 2));
        let before = guest.read(GICD, at, 4);
        guest.write(GICD, at, 4, before & !bit);
        assert_eq!(guest.read(GICD, at, 4), before & !bit, "{intid}");
        guest.write(GICD, at, 4, before);
        assert_eq!(all(), full, "{intid}");
    }
}

#[test]
fn each_vcpu_has_private_registers_of_its_own() {
    let guest = Guest::new(3, 64);
    for (offset, value) in [
        (0x0000, 1 << 24),
        (0x0014, 2),
        (SGI + 0x80, 1 << 20),
        (SGI + 0x100, 1 << 3),
        (SGI + 0x200, 1 << 27),
        (SGI + 0x300, 1 << 16),
        (SGI + 0x408, 0x40),
    ] {
        let read = |n| guest.read(Frame::Redistributor(n), offset, 4);
        let before = [0, 2].map(read);
        guest.write(Frame::Redistributor(1), offset, 4, value);
        assert_eq!([0, 2].map(read), before, "{offset:#x}");
        assert_ne!(read(1), before[0], "{offset:#x}");
    }
}
