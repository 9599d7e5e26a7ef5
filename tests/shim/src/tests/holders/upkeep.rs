// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the kernel does to memory by itself, or is told to: pages of guest
//! memory stay where they are, at home and lent, and nothing that has looked
//! at one keeps it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use escrow_shim_tests::runner::Lacking;
use nix::errno::Errno;

use super::advice::madvise;
use super::{AT, HELD, HOSTS, OFFSET, PATIENCE, at_home, on_a_lent_page};
use crate::access::{frame, read, write};
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::PAGE;
use crate::tests::{refused, same};

/// `linux/mempolicy.h`
const MPOL_MF_MOVE: i32 = 1 << 1;
const MPOL_MF_MOVE_ALL: i32 = 1 << 2;

/// Pages that are watched: some around the one that all tests are about.
const WATCHED: std::ops::Range<u64> = 2..14;

fn frames(guest: &Guest) -> Result<Vec<Option<u64>>> {
    WATCHED.map(|page| frame(&guest.mapping, page * PAGE)).collect()
}

/// Does something to the host's memory with all pages at home, with one lent,
/// and with one home again.
fn stays_put(what: impl Fn(&Guest) -> Result<()>) -> Result<()> {
    let guest = at_home()?;
    for page in WATCHED.filter(|page| *page != HELD) {
        write(&guest.mapping, page * PAGE, page)?;
    }
    let places = frames(&guest)?;
    ensure!(places.iter().all(Option::is_some), "a page is nowhere");
    what(&guest).context("at home")?;
    same(read(&guest.mapping, OFFSET)?, HOSTS)?;
    for page in WATCHED.filter(|page| *page != HELD) {
        same(read(&guest.mapping, page * PAGE)?, page)?;
    }
    same(frames(&guest)?, places.clone()).context("where the pages are")?;
    // Whoever looked at them has let go: no try is refused.
    for page in WATCHED.filter(|page| *page != HELD) {
        same(guest.ask(Order::Load(RAM + page * PAGE))?, page)?;
    }
    same(guest.ask(Order::Load(AT))?, HOSTS)?;
    on_a_lent_page(&guest, || {
        what(&guest)?;
        refused(read(&guest.mapping, OFFSET), Errno::EFAULT)
    })?;
    same(frame(&guest.mapping, OFFSET)?, places[(HELD - WATCHED.start) as usize])?;
    what(&guest).context("home again")
}

/// `/proc/sys/vm/compact_memory`
pub fn compaction() -> Result<()> {
    stays_put(|_| {
        for _ in 0..3 {
            fs::write("/proc/sys/vm/compact_memory", "1")?;
        }
        Ok(())
    })
}

/// `move_pages`, `migrate_pages`, `mbind`; from one node to the other where
/// there are two.
pub fn migration() -> Result<()> {
    let online = fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
    let nodes: &[i32] = if online.trim() == "0-1" { &[0, 1] } else { &[0] };
    stays_put(|guest| {
        for &node in nodes {
            move_to(guest, node)?;
        }
        // SAFETY: moves pages of this process.
        let moved = unsafe { libc::syscall(libc::SYS_migrate_pages, 0, 64, &3u64, &1u64) };
        Errno::result(moved).context("migrate_pages")?;
        // SAFETY: a policy for a mapping.
        let bound = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                guest.mapping.at(OFFSET),
                PAGE,
                libc::MPOL_BIND,
                &1u64,
                64,
                MPOL_MF_MOVE,
            )
        };
        Errno::result(bound).context("mbind")?;
        Ok(())
    })
}

fn move_to(guest: &Guest, node: i32) -> Result<()> {
    let page = guest.mapping.at(OFFSET);
    let mut status = [i32::MAX; 1];
    // SAFETY: the kernel reads a pointer and a number, and writes a status.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            1usize,
            &page,
            &node,
            status.as_mut_ptr(),
            MPOL_MF_MOVE | MPOL_MF_MOVE_ALL,
        )
    };
    Errno::result(result).context("move_pages")?;
    // Where it is, or why it cannot be moved: it is on no list (EBUSY), or
    // not there (ENOENT, EFAULT).
    let known = [0, 1, -libc::EBUSY, -libc::ENOENT, -libc::EFAULT, -libc::EACCES];
    ensure!(known.contains(&status[0]), "move_pages says {}", status[0]);
    Ok(())
}

/// KSM is told to look at the mapping, and runs.
pub fn same_page_merging() -> Result<()> {
    const KSM: &str = "/sys/kernel/mm/ksm";
    let scans =
        || -> Result<u64> { Ok(fs::read_to_string(format!("{KSM}/full_scans"))?.trim().parse()?) };
    fs::write(format!("{KSM}/sleep_millisecs"), "0")?;
    fs::write(format!("{KSM}/run"), "1")?;
    // Something that is merged, so that scans are of something.
    let anonymous = vec![0x5au8; 64 * PAGE as usize];
    let end = anonymous.as_ptr().addr() + anonymous.len();
    let start = anonymous.as_ptr().addr().next_multiple_of(PAGE as usize);
    let size = (end - start) / PAGE as usize * PAGE as usize;
    // SAFETY: contents stay the same.
    Errno::result(unsafe { libc::madvise(start as *mut _, size, libc::MADV_MERGEABLE) })?;
    let result = stays_put(|guest| {
        madvise(&guest.mapping, libc::MADV_MERGEABLE)?;
        let before = scans()?;
        crate::wait::until("two scans of KSM", || Ok(scans()? >= before + 2))
    });
    let merged = fs::read_to_string(format!("{KSM}/pages_sharing"))?;
    fs::write(format!("{KSM}/run"), "2")?;
    ensure!(merged.trim() != "0", "KSM has merged nothing at all");
    result
}

/// Reclaim with somewhere to swap to: advice, caches dropped, and all of the
/// control group's memory asked for.
pub fn reclaim() -> Result<()> {
    for module in ["lz4_compress", "lz4hc_compress"] {
        crate::modules::load_if_there(module)?;
    }
    crate::modules::load("zram", "num_devices=1", "/sys/block/zram0")?;
    fs::write("/sys/block/zram0/disksize", "64M")?;
    let made = std::process::Command::new("mkswap").arg("/dev/zram0").output()?;
    ensure!(made.status.success(), "mkswap");
    // SAFETY: switches swapping on.
    Errno::result(unsafe { libc::swapon(c"/dev/zram0".as_ptr(), 0) }).context("swapon")?;
    let result = stays_put(|guest| {
        madvise(&guest.mapping, libc::MADV_COLD)?;
        madvise(&guest.mapping, libc::MADV_PAGEOUT)?;
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        // Anonymous memory that is advised away goes, so there is a swap.
        let mut anonymous = vec![1u8; 16 * PAGE as usize];
        let start = anonymous.as_mut_ptr().addr().next_multiple_of(PAGE as usize);
        // SAFETY: contents stay the same.
        Errno::result(unsafe {
            libc::madvise(start as *mut _, 8 * PAGE as usize, libc::MADV_PAGEOUT)
        })?;
        ensure!(anonymous.iter().all(|byte| *byte == 1));
        Ok(())
    });
    // SAFETY: switches it off.
    Errno::result(unsafe { libc::swapoff(c"/dev/zram0".as_ptr()) }).context("swapoff")?;
    fs::write("/sys/block/zram0/reset", "1")?;
    result
}

/// Huge pages of 32 MiB are made of whatever memory lies side by side
/// (`alloc_contig_pages`): what a guest has is neither moved nor taken for
/// free.
pub fn contiguous_allocations() -> Result<()> {
    const WANTED: &str = "/sys/kernel/mm/hugepages/hugepages-32768kB/nr_hugepages";
    stays_put(|_| {
        // More than there can be.
        fs::write(WANTED, "40")?;
        let got: u64 = fs::read_to_string(WANTED)?.trim().parse()?;
        fs::write(WANTED, "0")?;
        ensure!(got > 0, "not one huge page");
        Ok(())
    })
}

/// Memory is taken offline, block by block, or is not.
pub fn offlining() -> Result<()> {
    const BLOCKS: &str = "/sys/devices/system/memory";
    if !fs::exists(BLOCKS)? {
        return Err(Lacking("blocks of memory".to_owned()).into());
    }
    let size = fs::read_to_string(format!("{BLOCKS}/block_size_bytes"))?;
    let size = u64::from_str_radix(size.trim(), 16)?;
    stays_put(|guest| {
        let Some(frame) = frame(&guest.mapping, OFFSET)? else {
            // It is lent: all blocks are tried.
            return offline_all();
        };
        let block = format!("{BLOCKS}/memory{}/state", frame * PAGE / size);
        refuses(&block)
    })
}

fn refuses(block: &str) -> Result<()> {
    let begin = std::time::Instant::now();
    let result = fs::write(block, "offline");
    ensure!(begin.elapsed() < PATIENCE, "{block} takes its time");
    let errno = result.err().and_then(|error| error.raw_os_error());
    let known = [libc::EBUSY, libc::EPERM, libc::EINVAL, libc::ENOMEM];
    ensure!(errno.is_some_and(|errno| known.contains(&errno)), "{block}: {errno:?}");
    Ok(())
}

fn offline_all() -> Result<()> {
    for entry in fs::read_dir("/sys/devices/system/memory")? {
        let state = entry?.path().join("state");
        if state.exists() {
            refuses(&state.to_string_lossy())?;
        }
    }
    Ok(())
}
