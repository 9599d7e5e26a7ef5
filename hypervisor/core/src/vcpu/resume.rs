// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the host answers to an exit, applied to the vCPU.

/// An exit that the host has yet to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pending {
    /// None: the guest just goes on.
    #[default]
    None,
}

impl super::Vcpu {
    /// Applies the host's resume data. Refuses what does not fit the exit that
    /// the vCPU ended with, and changes nothing then.
    pub fn resume(&mut self, _data: [u64; 3]) -> Result<(), escrow_abi::Error> {
        match self.pending {
            Pending::None => Ok(()),
        }
    }
}
