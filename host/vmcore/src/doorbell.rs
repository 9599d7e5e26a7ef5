// SPDX-License-Identifier: MIT OR Apache-2.0

//! The doorbells of a VM, by their labels.

use alloc::vec::Vec;

use crate::Errno;

#[derive(Clone, Copy, Debug)]
struct Doorbell {
    label: u32,
    handle: u64,
    is_configured: bool,
}

/// Which doorbells there are.
///
/// Escrow's live as long as their VM. A start that fails may be tried again
/// with another device tree, so some may be there that the tree no longer
/// knows.
#[derive(Debug, Default)]
pub struct Doorbells {
    /// Sorted by label.
    list: Vec<Doorbell>,
}

impl Doorbells {
    /// Makes those doorbells of a device tree that are not there yet. `make` returns
    /// Escrow's handle.
    ///
    /// # Errors
    /// `NoMemory`, and those of `make`. What has been made stays for the next time.
    pub fn configure(
        &mut self,
        labels: impl IntoIterator<Item = u32>,
        mut make: impl FnMut(u32) -> Result<u64, Errno>,
    ) -> Result<(), Errno> {
        for bell in &mut self.list {
            bell.is_configured = false;
        }
        for label in labels {
            match self.list.binary_search_by_key(&label, |bell| bell.label) {
                Ok(at) => {
                    if let Some(bell) = self.list.get_mut(at) {
                        bell.is_configured = true;
                    }
                }
                Err(at) => {
                    self.list.try_reserve(1).map_err(|_| Errno::NoMemory)?;
                    let handle = make(label)?;
                    self.list.insert(at, Doorbell { label, handle, is_configured: true });
                }
            }
        }
        Ok(())
    }

    /// Escrow's handle of the doorbell with a label.
    pub fn find(&self, label: u32) -> Option<u64> {
        let at = self.list.binary_search_by_key(&label, |bell| bell.label).ok()?;
        self.list.get(at).filter(|bell| bell.is_configured).map(|bell| bell.handle)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use super::*;

    #[test]
    fn each_is_made_once() {
        let mut bells = Doorbells::default();
        let mut made = Vec::new();
        let mut make = |label| {
            made.push(label);
            if label == 13 { Err(Errno::NoSpace) } else { Ok(u64::from(label) + 100) }
        };
        assert_eq!(bells.find(5), None);
        assert_eq!(bells.configure([9, 5], &mut make), Ok(()));
        assert_eq!((bells.find(5), bells.find(9), bells.find(7)), (Some(105), Some(109), None));
        // The next start has another tree.
        assert_eq!(bells.configure([7, 9], &mut make), Ok(()));
        assert_eq!((bells.find(5), bells.find(9), bells.find(7)), (None, Some(109), Some(107)));
        assert_eq!(bells.configure([5, 13, 20], &mut make), Err(Errno::NoSpace));
        assert_eq!((bells.find(5), bells.find(13), bells.find(20)), (Some(105), None, None));
        assert_eq!(bells.configure([20, 5], &mut make), Ok(()));
        assert_eq!((bells.find(5), bells.find(20)), (Some(105), Some(120)));
        assert_eq!(made, vec![9, 5, 7, 13, 20]);
    }
}
