// SPDX-License-Identifier: MIT OR Apache-2.0

use anyhow::{Context, Result, bail};
use procfs::process::{PageInfo, Process};

/// The physical address of a byte of this process, whose page must be there
/// (touched). Needs CAP_SYS_ADMIN: the kernel hides the numbers from others.
pub fn physical_address(address: usize) -> Result<u64> {
    let page_size = procfs::page_size() as usize;
    let mut pagemap = Process::myself()
        .and_then(|process| process.pagemap())
        .context("opening /proc/self/pagemap")?;
    let info = pagemap.get_info(address / page_size).context("reading /proc/self/pagemap")?;
    let PageInfo::MemoryPage(flags) = info else {
        bail!("the page at {address:#x} is not in memory");
    };
    let frame = flags.get_page_frame_number().0;
    if frame == 0 {
        bail!("the kernel does not tell where the page at {address:#x} is: are you root?");
    }
    Ok(frame * page_size as u64 + (address % page_size) as u64)
}
