// SPDX-License-Identifier: MIT OR Apache-2.0

//! userfaultfd on guest memory: nobody else resolves its faults. Write
//! protection that the kernel resolves itself is allowed on all mappings, and
//! leaves marks in tables in the place of pages.

use anyhow::{Context as _, Result, bail};
use escrow_shim_tests::runner::Lacking;
use nix::errno::Errno;

use super::{AT, GUESTS, HOSTS, OFFSET, at_home, on_a_lent_page};
use crate::access::{read, write};
use crate::guest::Order;
use crate::gunyah::PAGE;
use crate::tests::{refused, same};
use crate::uffd::{MINOR, MISSING, Uffd, WP_ASYNC, WP_UNPOPULATED, WRITE_PROTECT};

/// Linux 7 asks the mapping's owner, who offers nothing.
fn is_refused_by_kernel() -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let (major, _) = release.split_once('.').context("no release")?;
    Ok(major.parse::<u32>()? >= 7)
}

/// All modes but one are refused; under that one, pages come and go.
pub fn only_asynchronous_write_protection() -> Result<()> {
    let guest = at_home()?;
    let page = guest.mapping.at(OFFSET);
    let uffd = Uffd::new(0).context("userfaultfd")?;
    for (name, mode) in [("missing", MISSING), ("minor", MINOR), ("write", WRITE_PROTECT)] {
        refused(uffd.register(page, PAGE, mode), Errno::EINVAL).context(name)?;
    }

    let uffd = match Uffd::new(WP_ASYNC | WP_UNPOPULATED) {
        Err(Errno::EINVAL) => {
            bail!(Lacking("asynchronous write protection".to_owned()));
        }
        uffd => uffd.context("asynchronous")?,
    };
    refused(uffd.register(page, PAGE, MISSING), Errno::EINVAL).context("missing")?;
    let registered = uffd.register(page, PAGE, WRITE_PROTECT);
    if is_refused_by_kernel()? {
        return refused(registered, Errno::EINVAL).context("on a newer kernel");
    }
    registered.context("registering")?;
    for round in 0..4 {
        write(&guest.mapping, OFFSET, HOSTS)?;
        uffd.write_protect(page, PAGE, true).context("protecting")?;
        same(guest.ask(Order::Load(AT))?, HOSTS).context("lent under protection")?;
        on_a_lent_page(&guest, || {
            refused(read(&guest.mapping, OFFSET), Errno::EFAULT)?;
            refused(write(&guest.mapping, OFFSET, 1), Errno::EFAULT)?;
            uffd.write_protect(page, PAGE, round % 2 == 0)?;
            refused(write(&guest.mapping, OFFSET, 1), Errno::EFAULT)
        })?;
        same(read(&guest.mapping, OFFSET)?, GUESTS)?;
        write(&guest.mapping, OFFSET, round)?;
        same(read(&guest.mapping, OFFSET)?, round).context("written through the protection")?;
    }
    Ok(())
}
