// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guest addresses of the interrupt controller's frames. No memory may be mapped there.
//!
//! EL2 emulates a guest's accesses to the frames, which fault at stage 2. If the host could map
//! memory there, the guest would use that memory's contents as its GIC's registers.

use escrow_abi::Error;

use super::Span;
use crate::addr::{Ipa, PAGE_SIZE};
use crate::vgic::{DISTRIBUTOR_SIZE, Layout, REDISTRIBUTOR_SIZE};

/// The distributor, and the redistributor of each vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// All of them are in here; nothing is in 0 bytes.
    base: u64,
    size: u64,
    layout: Layout,
    /// The vCPUs that there are, a bit each.
    vcpus: u32,
}

impl Frames {
    /// Those of a VM without an interrupt controller.
    pub const NONE: Frames = Frames {
        base: 0,
        size: 0,
        layout: Layout { distributor: Ipa(0), redistributors: Ipa(0) },
        vcpus: 0,
    };

    /// Those of these vCPUs, in a guest's space that ends at `space`.
    ///
    /// # Errors
    /// [`Error::AddressOverflow`] if one is beyond that, [`Error::Overlap`] if one is in the place of
    /// another.
    pub fn new(layout: Layout, vcpus: u32, space: u64) -> Result<Frames, Error> {
        let mut frames = Frames { layout, vcpus, ..Frames::NONE };
        let (mut base, mut end) = (u64::MAX, 0);
        for (at, size) in frames.iter() {
            let frame_end = at.checked_add(size).filter(|&end| end <= space);
            base = base.min(at);
            end = end.max(frame_end.ok_or(Error::AddressOverflow)?);
        }
        (frames.base, frames.size) = (base, end - base);
        let distributor = layout.distributor.0;
        // Those of vCPUs are side by side.
        match frames
            .redistributors()
            .any(|at| meet((at, REDISTRIBUTOR_SIZE), (distributor, DISTRIBUTOR_SIZE)))
        {
            true => Err(Error::Overlap),
            false => Ok(frames),
        }
    }

    /// With that of one more vCPU. There is an interrupt controller.
    ///
    /// # Errors
    /// As those of [`Self::new`].
    pub fn with(&self, vcpu: u8, space: u64) -> Result<Frames, Error> {
        Frames::new(self.layout, self.vcpus | 1 << (vcpu % 32), space)
    }

    /// Address and size of each.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let distributor = (self.layout.distributor.0, DISTRIBUTOR_SIZE);
        let redistributors = self.redistributors().map(|at| (at, REDISTRIBUTOR_SIZE));
        [distributor].into_iter().chain(redistributors)
    }

    fn redistributors(&self) -> impl Iterator<Item = u64> + use<> {
        let Frames { layout, vcpus, .. } = *self;
        let there = (0..32).filter(move |n| vcpus & 1 << n != 0);
        // Of what is beyond all addresses, `new` sees that its end is.
        there.map(move |n| layout.redistributors.0.saturating_add(n * REDISTRIBUTOR_SIZE))
    }

    /// Whether a range may overlap a frame. A quick check against one range that has all frames: most
    /// memory is outside of it.
    #[inline(always)]
    pub fn may_meet(&self, at: Ipa, size: u64) -> bool {
        // Within the space of addresses, so this does not wrap.
        at.0 < self.base + self.size && self.base < at.0 + size
    }

    /// The first of the pages of a span that overlaps a frame.
    #[cold]
    pub fn first_in(&self, span: Span) -> Option<usize> {
        let size = span.pages as u64 * PAGE_SIZE;
        let met = self.iter().filter(|&frame| meet(frame, (span.at.0, size)));
        let first = met.map(|(at, _)| at.saturating_sub(span.at.0)).min()?;
        Some((first / PAGE_SIZE) as usize)
    }
}

/// Whether two ranges, addresses and sizes, have an address in common.
fn meet(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: u64 = 1 << 39;
    const GICD: u64 = 0x0800_0000;
    const GICR: u64 = 0x080a_0000;

    fn frames(distributor: u64, redistributors: u64, vcpus: u32) -> Result<Frames, Error> {
        let layout = Layout { distributor: Ipa(distributor), redistributors: Ipa(redistributors) };
        Frames::new(layout, vcpus, SPACE)
    }

    fn span(at: u64, pages: usize) -> Span {
        Span { at: Ipa(at), pages, is_block: false }
    }

    #[test]
    fn frames_are_apart_and_in_the_space() {
        assert!(frames(GICD, GICR, !0).is_ok());
        let end = |vcpus: u64| SPACE - vcpus * REDISTRIBUTOR_SIZE;
        for (distributor, redistributors, vcpus, expected) in [
            (GICR, GICR, 1, Some(Error::Overlap)),
            (GICR + 0x1_0000, GICR, 1, Some(Error::Overlap)),
            (GICR + 0x2_0000, GICR, 1, None),
            (GICR + 0x2_0000, GICR, 3, Some(Error::Overlap)),
            // Redistributors of vCPUs that there are not are none.
            (GICR + 0x2_0000, GICR, 5, None),
            (GICR - 0x1_0000, GICR, !0, None),
            (SPACE, GICR, 1, Some(Error::AddressOverflow)),
            (SPACE - 0x1_0000, GICR, 1, None),
            (!0xffff, GICR, 1, Some(Error::AddressOverflow)),
            (GICD, SPACE - 0x1_0000, 1, Some(Error::AddressOverflow)),
            (GICD, end(1), 1, None),
            (GICD, end(1), 3, Some(Error::AddressOverflow)),
            (GICD, end(32), !0, None),
            (GICD, end(31), !0, Some(Error::AddressOverflow)),
            // Round the end of all addresses, and over the distributor.
            (0, !0xffff, 1, Some(Error::AddressOverflow)),
            (0, 0u64.wrapping_sub(0x2_0000), 3, Some(Error::AddressOverflow)),
        ] {
            let found = frames(distributor, redistributors, vcpus).err();
            assert_eq!(found, expected, "{distributor:#x} {redistributors:#x} {vcpus:#x}");
        }
    }

    #[test]
    fn pages_in_their_place_are_found() {
        // vCPUs 0 and 2.
        let frames = frames(GICD, GICR, 5).unwrap();
        for (at, pages, first) in [
            (GICD - 0x1000, 1, None),
            (GICD - 0x1000, 2, Some(1)),
            (GICD, 1, Some(0)),
            (GICD + 0xf000, 8, Some(0)),
            (GICD + 0x1_0000, 1, None),
            (GICR - 0x3000, 3, None),
            (GICR - 0x3000, 512 - 0x9d, Some(3)),
            (GICR + 0x1_f000, 3, Some(0)),
            // That of vCPU 1.
            (GICR + 0x2_0000, 32, None),
            (GICR + 0x3_f000, 2, Some(1)),
            (GICR + 0x5_f000, 1, Some(0)),
            (GICR + 0x6_0000, 1, None),
            (0x0800_0000 - 0x20_0000, 512, None),
        ] {
            let span = span(at, pages);
            assert_eq!(frames.first_in(span), first, "{at:#x} {pages}");
            let may = frames.may_meet(span.at, pages as u64 * PAGE_SIZE);
            assert!(may || first.is_none(), "{at:#x} {pages}");
        }
        assert!(!frames.may_meet(Ipa(GICD - 0x1000), 0x1000));
        assert!(!frames.may_meet(Ipa(GICR + 0x6_0000), 0x1000));
        assert!(!Frames::NONE.may_meet(Ipa(0), SPACE));
    }

    #[test]
    fn a_vcpu_more_needs_room_for_its_own() {
        let frames = frames(GICR + 0x2_0000, GICR, 1).unwrap();
        assert_eq!(frames.with(1, SPACE).err(), Some(Error::Overlap));
        let more = frames.with(2, SPACE).unwrap();
        assert_eq!(more.first_in(span(GICR + 0x4_0000, 1)), Some(0));
        assert_eq!(frames.with(31, GICR + 0x20_0000).err(), Some(Error::AddressOverflow));
    }
}
