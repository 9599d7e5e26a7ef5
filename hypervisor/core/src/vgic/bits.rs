// SPDX-License-Identifier: MIT OR Apache-2.0

//! INTIDs, and sets of them.

/// The number of an interrupt: below [`Intid::END`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Intid(u16);

/// INTIDs of each vCPU's own: SGIs (0 to 15) and PPIs (16 to 31).
pub(super) const PRIVATE: u32 = 32;

impl Intid {
    /// 1020 and above are special, or message-based, which guests do not have
    /// (IHI 0069, "INTIDs").
    pub const END: u32 = 1020;

    /// The interrupt of a number; `None` if there is none.
    pub const fn new(number: u32) -> Option<Intid> {
        if number < Intid::END { Some(Intid(number as u16)) } else { None }
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    pub(super) const fn is_private(self) -> bool {
        self.number() < PRIVATE
    }

    /// The word of a set of 1,024 that it is in: below 32, also speculatively.
    #[inline(always)]
    pub(super) const fn word(self) -> usize {
        (self.0 as usize / 32) % 32
    }

    /// Its bit in there.
    #[inline(always)]
    pub(super) const fn bit(self) -> u32 {
        1 << (self.0 % 32)
    }
}

/// A shared interrupt: 32 to 1019. The only kind that the host can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi(Intid);

impl Spi {
    /// The shared interrupt of a number; `None` if there is none.
    pub const fn new(number: u32) -> Option<Spi> {
        match Intid::new(number) {
            Some(intid) if !intid.is_private() => Some(Spi(intid)),
            _ => None,
        }
    }

    /// Its INTID.
    pub const fn intid(self) -> Intid {
        self.0
    }
}

/// A set of INTIDs, 32 to a word. `W` is a power of two. If it is below 32, the set holds a range
/// of `W` words, and an INTID is in word `INTID / 32 % W`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bits<const W: usize>([u32; W]);

impl<const W: usize> Bits<W> {
    pub const EMPTY: Bits<W> = Bits([0; W]);

    #[inline(always)]
    pub fn get(&self, intid: Intid) -> bool {
        self.word(intid.word()) & intid.bit() != 0
    }

    #[inline(always)]
    pub fn set(&mut self, intid: Intid, to: bool) {
        let word = &mut self.0[intid.word() % W];
        *word = if to { *word | intid.bit() } else { *word & !intid.bit() };
    }

    /// Sets or clears an INTID. Returns whether it was set.
    #[inline(always)]
    pub fn replace(&mut self, intid: Intid, to: bool) -> bool {
        let before = self.get(intid);
        self.set(intid, to);
        before
    }

    #[inline(always)]
    pub fn word(&self, word: usize) -> u32 {
        self.0[word % W]
    }

    /// Puts in, or takes out, those of a word that are out, or in.
    #[inline(always)]
    pub fn toggle(&mut self, word: usize, bits: u32) {
        self.0[word % W] ^= bits;
    }

    /// All that are in it.
    pub fn iter(&self) -> impl Iterator<Item = Intid> {
        (0u16..).zip(self.0).flat_map(|(word, bits)| ones(bits).map(move |n| Intid(word * 32 + n)))
    }
}

/// The numbers of the bits that are set, lowest first.
#[inline(always)]
pub(crate) fn ones(mut bits: u32) -> impl Iterator<Item = u16> {
    core::iter::from_fn(move || {
        let lowest = bits.trailing_zeros() as u16;
        bits &= bits.wrapping_sub(1);
        (lowest < 32).then_some(lowest)
    })
}
