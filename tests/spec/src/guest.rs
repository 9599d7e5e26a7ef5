// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest: its life, its pool, its map, its capabilities and its interrupt controller.

use alloc::vec::Vec;

use escrow_abi::Error;

use crate::Refused;
use crate::capability::Capability;
use crate::gic::Gic;
use crate::map::{Entry, Map, Tables};

/// Where a guest is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Being put together.
    Created,
    /// Its vCPU may run.
    Started,
    /// Its pages go home.
    Dead,
}

/// A guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Where it is in its life.
    pub life: Life,
    /// Pages donated for it.
    pub metadata: u64,
    /// Those of them that are not in use.
    pub pool: u64,
    pub(crate) map: Map,
    pub(crate) capabilities: Vec<Capability>,
    /// The vCPUs that there are, a bit each.
    pub(crate) vcpus: u32,
    /// Its interrupt controller.
    pub gic: Option<Gic>,
    /// The page that it reads its stolen time in.
    pub time: Option<u64>,
}

impl Guest {
    /// One page is the root table.
    pub(crate) fn new(metadata: u64) -> Guest {
        Guest {
            life: Life::Created,
            metadata,
            pool: metadata - 1,
            map: Map::default(),
            capabilities: Vec::new(),
            vcpus: 0,
            gic: None,
            time: None,
        }
    }

    /// Whether it has not been destroyed.
    pub fn is_alive(&self) -> bool {
        self.life != Life::Dead
    }

    /// What an address of it leads to.
    pub fn entry(&self, at: u64) -> Entry {
        self.map.get(at)
    }

    /// All addresses that lead anywhere, in ascending order.
    pub fn entries(&self) -> impl Iterator<Item = (u64, Entry)> + '_ {
        self.map.entries()
    }

    pub(crate) fn must_live(&self) -> Result<(), Refused> {
        if self.is_alive() { Ok(()) } else { Err((Error::HandleRevoked, 0, 0)) }
    }

    pub(crate) fn start(&mut self) -> Result<(), Refused> {
        self.must_live()?;
        if self.life != Life::Created || self.vcpus == 0 {
            return Err((Error::Denied, 0, 0));
        }
        self.life = Life::Started;
        Ok(())
    }

    pub(crate) fn destroy(&mut self) -> Result<(), Refused> {
        self.must_live()?;
        self.life = Life::Dead;
        self.map = Map::default();
        self.gic = None;
        self.time = None;
        self.capabilities.clear();
        Ok(())
    }

    /// Takes tables out of the pool. `who` is the index that goes with the
    /// error: 0 for the VM that gets or loses pages by another's call, 1 for
    /// the caller itself.
    pub(crate) fn pay(&mut self, tables: Tables, who: u64) -> Result<(), Refused> {
        if tables.needed > self.pool {
            return Err((Error::NoMemory, who, tables.needed - self.pool));
        }
        self.pool += tables.freed;
        self.pool -= tables.needed;
        Ok(())
    }
}
