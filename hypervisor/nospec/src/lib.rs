// SPDX-License-Identifier: MIT OR Apache-2.0

//! Looking things up by a number that a VM chose.
//!
//! A CPU that has mispredicted a bounds check goes on with the number that failed
//! it, loads from beyond the array, and leaves traces of what it found in the caches
//! (CVE-2017-5753, "Spectre v1"). So the number is masked after the check, by
//! instructions that predict nothing: where the check should have failed, the load
//! is one of element 0 (Arm, "Cache Speculation Side-channels", "Software
//! mitigations"; Linux's `array_index_nospec` does the same).
//!
//! [`get`] and [`index`] are for each array of EL2 that a VM's number leads into: VMs, vCPUs,
//! doorbells, capabilities, the ledger.

#![cfg_attr(not(test), no_std)]

/// The element of a slice, `None` beyond its end; never one beyond its end, not even
/// speculatively.
#[inline(always)]
pub fn get<T>(slice: &[T], index: usize) -> Option<&T> {
    let index = self::index(index, slice.len())?;
    // SAFETY: `index` has checked it against the length, and leaves a number below that as it
    // is.
    Some(unsafe { slice.get_unchecked(index) })
}

/// A number that is below a length, also speculatively; `None` if it is not.
#[inline(always)]
pub fn index(index: usize, length: usize) -> Option<usize> {
    if index >= length {
        return None;
    }
    Some(masked(index, length))
}

/// `index` if it is below `length`, else 0, without a branch.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn masked(index: usize, length: usize) -> usize {
    let masked;
    // After CSDB, no instruction uses a CSEL's result by a predicted condition (DDI 0487,
    // "CSDB").
    // SAFETY: registers only.
    unsafe {
        core::arch::asm!(
            "cmp {index}, {length}",
            "csel {masked}, {index}, xzr, lo",
            "hint #20",
            index = in(reg) index,
            length = in(reg) length,
            masked = out(reg) masked,
            options(pure, nomem, nostack),
        );
    }
    masked
}

/// The same for the build machine, on which nobody attacks the tests.
#[cfg(not(target_arch = "aarch64"))]
#[inline(always)]
fn masked(index: usize, length: usize) -> usize {
    let below =
        ((index | length.wrapping_sub(1).wrapping_sub(index)) as isize) >> (usize::BITS - 1);
    index & !below as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_like_get() {
        let numbers: Vec<usize> = (0..300).collect();
        for length in [0, 1, 2, 64, 299, 300] {
            let slice = &numbers[..length];
            for index in (0..310).chain([isize::MAX as usize, usize::MAX]) {
                assert_eq!(get(slice, index), slice.get(index), "{index} of {length}");
            }
        }
    }

    #[test]
    fn what_is_beyond_is_the_first() {
        for (index, length) in [(0, 1), (4, 5), (63, 64)] {
            assert_eq!(masked(index, length), index);
        }
        for (index, length) in [(1, 1), (5, 5), (64, 64), (usize::MAX >> 1, 64), (9, 1)] {
            assert_eq!(masked(index, length), 0, "{index} of {length}");
        }
    }
}
