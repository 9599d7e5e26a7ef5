// SPDX-License-Identifier: MIT OR Apache-2.0

//! Step 10: a Linux kernel runs on lent memory, from its boot to its power-off.
//!
//! Its initramfs is this program, which as a guest's first process says what it
//! was told to and waits for a line.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::utsname::uname;

use super::checks::Checks;
use super::stage::{Baseline, random};
use crate::gunyah::{Folios, PAGE_SIZE, Protection};
use crate::host::{Facts, Touch, touch};
use crate::machine::layout::{MIB, TREE_ROOM};
use crate::machine::{self, Ending, Machine, Parts, Running, Sharing, Specification};

/// The guest's RAM.
const RAM: u64 = 192 * MIB;
/// What of it is looked at afterwards: the tree and most of the kernel.
const LOOKED_AT: u64 = 32 * MIB;
/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(150);

/// The kernel to boot: the one that was asked for, or this host's own, if that is
/// where distributions install it.
pub fn kernel(wanted: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = wanted {
        return Some(path.to_owned());
    }
    let release = uname().ok()?.release().to_string_lossy().into_owned();
    let own = PathBuf::from(format!("/boot/vmlinuz-{release}"));
    own.exists().then_some(own)
}

/// Step 10.
pub fn and_power_off(checks: &mut Checks, baseline: &Baseline, path: PathBuf) -> Result<()> {
    let kernel = File::open(&path);
    let kernel = kernel.with_context(|| format!("the kernel {}", path.display()))?;
    let token = format!("{:016x}", random()?);
    let machine = Specification {
        kernel: path,
        initrd: None,
        cmdline: format!("quiet panic=-1 -- guest-init {token}"),
        cpus: 1,
        ram: RAM,
        sharing: Sharing::Lent,
        protection: machine::Protection::No,
        folios: Folios::Large,
        populate: false,
        disks: Vec::new(),
        nets: Vec::new(),
        vsock: None,
    };
    let parts = Parts::of(kernel, initramfs()?);
    let machine = Machine::build(&baseline.device, &machine, &parts, &mut |_| {})?;
    let mut console = machine.console()?;
    let running = machine.start()?;

    let said = listen(&mut console, &running, &token)?;
    checks.equal("the guest says", format!("{token} from Linux"), &said);
    // The first page of the guest's kernel, which is lent since its boot.
    let code = running.ram().memory().map(TREE_ROOM, PAGE_SIZE, Protection::Read)?;
    checks.equal("the host loads from its kernel", "SIGBUS", touch(code.address(), Touch::Load));

    console.write_all(b"\n").context("the guest's console")?;
    wait(running.vcpus().ended(), Instant::now() + PATIENCE)?;
    let (ending, ram) = running.finish();
    let ending = match ending {
        Ending::PowerOff => "power-off".to_owned(),
        other => format!("{other:?}"),
    };
    checks.equal("the guest's end", "power-off", ending);

    let left = ram.memory().map(0, LOOKED_AT, Protection::Read)?;
    let step = MIB as usize;
    let used = (0..left.len() / step)
        .filter(|at| left.read(at * step, PAGE_SIZE as usize).iter().any(|&byte| byte != 0));
    checks.equal("parts of the guest's memory that are not zeros", 0, used.count());
    drop(left);
    drop(ram);
    let lent = |facts: &Facts| facts.pages_in(escrow_abi::FrameState::Lent);
    checks.equal("lent pages", lent(&baseline.facts), lent(&Facts::read()?));
    Ok(())
}

/// An initramfs with this program as its first process.
fn initramfs() -> Result<File> {
    let program = "/proc/self/exe";
    let program = fs::read(program).with_context(|| format!("reading {program}"))?;
    let archive = memfd_create("initramfs", MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
    let mut archive = File::from(archive);
    append(&mut archive, "init", 0o100_755, &program)?;
    append(&mut archive, "TRAILER!!!", 0, &[])?;
    archive.rewind()?;
    Ok(archive)
}

/// Appends a file to an archive (Linux, early-userspace/buffer-format.rst).
fn append(archive: &mut File, name: &str, mode: u32, contents: &[u8]) -> Result<()> {
    let size = u32::try_from(contents.len())?;
    let name_size = name.len() as u32 + 1;
    // c_ino, c_mode, c_uid, c_gid, c_nlink, c_mtime, c_filesize, c_maj, c_min,
    // c_rmaj, c_rmin, c_namesize (with the final zero), c_chksum
    let fields = [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut head = b"070701".to_vec();
    fields.iter().try_for_each(|field| write!(head, "{field:08x}"))?;
    head.extend(name.as_bytes());
    head.push(0);
    for part in [&head[..], contents] {
        archive.write_all(part)?;
        let padding = part.len().next_multiple_of(4) - part.len();
        archive.write_all(&[0; 4][..padding])?;
    }
    Ok(())
}

/// Listens until the guest has said a line with `token`: what of it is up to the
/// kernel's version.
fn listen(console: &mut File, running: &Running, token: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut heard = String::new();
    loop {
        let mut bytes = [0; 1024];
        match console.read(&mut bytes) {
            Ok(0) => {}
            Ok(count) => heard.push_str(&String::from_utf8_lossy(&bytes[..count])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("the guest's console"),
        }
        let said = heard.find(&format!("{token} from")).map(|at| &heard[at..]);
        if let Some((line, _)) = said.and_then(|said| said.split_once('\n')) {
            let words = line.split_whitespace().take(3);
            return Ok(words.collect::<Vec<_>>().join(" "));
        }
        let mut fds = [
            PollFd::new(console.as_fd(), PollFlags::POLLIN),
            PollFd::new(running.vcpus().ended(), PollFlags::POLLIN),
        ];
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
        let ended = fds[1].any().unwrap_or(false) && !fds[0].any().unwrap_or(false);
        if ready == 0 || ended {
            let last = heard.lines().last().unwrap_or("nothing");
            let how = if ended { "has ended" } else { "takes too long" };
            bail!("the guest {how}; its last words: {last}");
        }
    }
}

/// Waits for a descriptor.
fn wait(fd: std::os::fd::BorrowedFd, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))? == 0 {
        bail!("the guest does not end");
    }
    Ok(())
}
