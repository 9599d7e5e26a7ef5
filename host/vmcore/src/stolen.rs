// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where a VM's guest finds the time that its vCPUs could have run and did not: a page of
//! EL2's, at the address that the device tree names ([`tree`](crate::tree)).

use crate::Errno;
use crate::tree::Refusal;

/// The address of that page. EL2 keeps it as long as the VM lives.
///
/// A start that fails may be tried again with another device tree, which must name the same.
#[derive(Debug, Default)]
pub struct StolenTime(Option<u64>);

impl StolenTime {
    /// Makes the page that a device tree names, if there is one. `give` has EL2 give the VM a page at
    /// an address.
    ///
    /// # Errors
    /// `Invalid` for a tree that does not fit the VM, and those of `give`.
    pub fn configure(
        &mut self,
        at: Option<u64>,
        give: impl FnOnce(u64) -> Result<(), Errno>,
    ) -> Result<(), Refusal> {
        match (self.0, at) {
            (None, Some(at)) => give(at)?,
            (has, wanted) if has == wanted => {}
            _ => {
                return Err(Refusal::wrong(
                    "its stolen time is not where the VM has it since a start before",
                ));
            }
        }
        self.0 = at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_given_once_and_stays() {
        let mut time = StolenTime::default();
        let never = |_| panic!("again");
        time.configure(None, never).unwrap();
        // EL2 refuses the first start; the next one succeeds.
        let refused = time.configure(Some(0x1000), |_| Err(Errno::NoMemory));
        assert_eq!(refused, Err(Errno::NoMemory.into()));
        let mut given = None;
        time.configure(Some(0x2000), |at| {
            given = Some(at);
            Ok(())
        })
        .unwrap();
        assert_eq!(given, Some(0x2000));
        time.configure(Some(0x2000), never).unwrap();
        for other in [None, Some(0x3000)] {
            let refused = time.configure(other, never).unwrap_err();
            assert_eq!((refused.errno, refused.why.is_some()), (Errno::Invalid, true));
        }
        time.configure(Some(0x2000), never).unwrap();
    }
}
