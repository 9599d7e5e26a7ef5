// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the host answers to an exit, applied to the vCPU.

/// An exit that the host has yet to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pending {
    /// None: the guest just goes on.
    #[default]
    None,
}
