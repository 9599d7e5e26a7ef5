// SPDX-License-Identifier: MIT OR Apache-2.0

//! A VM's life and its pool.

use escrow_abi::Error;

use crate::Refused;
use crate::tables::Tables;

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Being put together.
    Created,
    /// Its vCPU may run.
    Started,
    /// Its pages go home.
    Dead,
}

/// A VM.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Where it is in its life.
    pub life: Life,
    /// Pages donated for it.
    pub metadata: u64,
    /// Those of them that are not in use.
    pub pool: u64,
    pub(crate) tables: Tables,
    has_vcpu: bool,
}

impl Vm {
    /// One page is the root table.
    pub(crate) fn new(metadata: u64) -> Vm {
        let tables = Tables::default();
        Vm { life: Life::Created, metadata, pool: metadata - 1, tables, has_vcpu: false }
    }

    pub(crate) fn must_be_live(&self) -> Result<(), Refused> {
        if self.life == Life::Dead { Err((Error::HandleRevoked, 0, 0)) } else { Ok(()) }
    }

    pub(crate) fn create_vcpu(&mut self) -> Result<(), Refused> {
        self.must_be_live()?;
        if self.life != Life::Created || self.has_vcpu {
            return Err((Error::Denied, 0, 0));
        }
        if self.pool == 0 {
            return Err((Error::NoMemory, 0, 1));
        }
        self.pool -= 1;
        self.has_vcpu = true;
        Ok(())
    }

    pub(crate) fn start(&mut self) -> Result<(), Refused> {
        self.must_be_live()?;
        if self.life != Life::Created || !self.has_vcpu {
            return Err((Error::Denied, 0, 0));
        }
        self.life = Life::Started;
        Ok(())
    }
}
