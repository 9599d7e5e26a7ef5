// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether a guest whose RAM is lent is protected, and what its kernel is told then.
//!
//! The guest of a protected VM calls Arm's Realm Services Interface. What it opens to the host is in
//! the shared half of its addresses, those with the shared bit; devices reach nothing else.

use anyhow::{Result, bail};

use super::layout::{self, MIB};
use super::{Sharing, Specification};

/// Whether a guest whose RAM is lent is to be protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// No: it has no devices but a serial line, a clock and a power button.
    No,
    /// If its kernel and Escrow can.
    Auto,
    /// Yes, or it does not start.
    Yes,
}

/// What a guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Devices reach all its RAM.
    Shared,
    /// Devices reach what it opens to them, by addresses with this bit.
    Protected(u64),
    /// Devices reach nothing; why, if that is to be said.
    Alone(Option<String>),
}

impl Decision {
    /// Whether devices reach anything.
    pub fn has_devices(&self) -> bool {
        !matches!(self, Decision::Alone(_))
    }

    /// The bit of addresses that the guest gives to devices.
    pub fn shared_bit(&self) -> Option<u64> {
        match self {
            Decision::Protected(bit) => Some(*bit),
            Decision::Shared | Decision::Alone(_) => None,
        }
    }
}

/// Decides. `kernel_can`: the kernel can be protected. `protect` makes the VM a protected one, and
/// says how many bits its guest's addresses have then; `None` if this host's Escrow cannot.
///
/// # Errors
/// What was asked for cannot be.
pub fn decide(
    machine: &Specification,
    kernel_can: bool,
    protect: impl FnOnce() -> Result<Option<u32>>,
) -> Result<Decision> {
    if machine.sharing == Sharing::Shared {
        return Ok(Decision::Shared);
    }
    if machine.protection == Protection::No {
        return Ok(Decision::Alone(None));
    }
    let reason = if !kernel_can {
        "its kernel has no support for protected memory (Arm's RSI; Debian's kernels have it from \
         7.3 on)"
    } else if let Some(bits) = protect()? {
        let shared_bit = 1_u64.checked_shl(bits.wrapping_sub(1)).unwrap_or(0);
        let most = shared_bit.saturating_sub(layout::RAM);
        if machine.ram > most {
            bail!("a protected guest has {} MiB of RAM here at the most", most / MIB);
        }
        return Ok(Decision::Protected(shared_bit));
    } else {
        "this host's Escrow does not have protected guests"
    };
    if machine.protection == Protection::Yes {
        bail!("the guest cannot be protected: {reason}");
    }
    if machine.has_devices() {
        bail!("the guest's RAM is lent, and devices cannot reach it: {reason}; see --share");
    }
    Ok(Decision::Alone(Some(format!("the guest has its serial console alone: {reason}"))))
}

/// Bytes of a slot of Linux's bounce buffers (`IO_TLB_SIZE`, include/linux/swiotlb.h).
const SLOT: u64 = 2 << 10;

/// How many slots a guest's bounce buffers are to have.
///
/// What a device reads or writes is copied through them. Linux takes a thousandth of RAM unless it is
/// told otherwise, and where they are full, drivers try again: requests of 1 MiB never succeed
/// with 512 KiB of them.
fn slots(machine: &Specification) -> u64 {
    let busy = (machine.disks.len() + machine.nets.len()) as u64;
    // 32 MiB for one disk and one network device, and 16 MiB for each more.
    let wanted = if busy == 0 { 4 * MIB } else { 16 * MIB * busy.max(2) };
    wanted.min(machine.ram / 8) / SLOT
}

/// The command line of a protected guest's kernel: the given one, with the size of its bounce
/// buffers, and with the early console at the address that it has in the shared half. The
/// kernel maps it before it knows that there is one.
pub fn command_line(machine: &Specification, shared_bit: u64) -> Result<String> {
    let mut given = machine.cmdline.split(' ').peekable();
    let mut words = Vec::new();
    let mut sized = false;
    // What follows `--` is for the first process.
    while let Some(word) = given.next_if(|&word| word != "--") {
        sized |= word.starts_with("swiotlb=");
        words.push(match word.strip_prefix("earlycon") {
            Some(console) if !console.split(',').any(|part| has_bit(part, shared_bit)) => {
                format!("earlycon=pl011,{:#x}", shared_bit | layout::SERIAL.start)
            }
            _ => word.to_owned(),
        });
    }
    if !sized {
        words.insert(0, format!("swiotlb={}", slots(machine)));
    }
    words.extend(given.map(str::to_owned));
    let line = words.join(" ");
    if line.len() > layout::CMDLINE_MAX {
        bail!(
            "the command line of a protected guest has {} bytes with what is added to it \
             (swiotlb=), and a kernel takes {}",
            line.len(),
            layout::CMDLINE_MAX
        );
    }
    Ok(line)
}

/// Whether a part of an option is an address with that bit.
fn has_bit(part: &str, bit: u64) -> bool {
    let number = part.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    number.is_some_and(|number| number & bit != 0)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::gunyah::Folios;
    use crate::machine::{Disk, Net, NetLink};

    const BIT: u64 = 1 << 38;

    fn machine(protection: Protection, disks: usize) -> Specification {
        let disk = Disk { path: PathBuf::new(), read_only: false };
        Specification {
            kernel: PathBuf::new(),
            initrd: None,
            cmdline: String::new(),
            cpus: 1,
            ram: 512 * MIB,
            sharing: Sharing::Lent,
            protection,
            folios: Folios::Large,
            populate: false,
            disks: vec![disk; disks],
            nets: Vec::new(),
            vsock: None,
        }
    }

    fn never() -> Result<Option<u32>> {
        panic!("the VM is not to be a protected one")
    }

    #[test]
    fn what_can_be_protected_is() {
        for protection in [Protection::Auto, Protection::Yes] {
            for disks in [0, 1] {
                let decision = decide(&machine(protection, disks), true, || Ok(Some(39)));
                assert_eq!(decision.unwrap(), Decision::Protected(BIT));
            }
        }
    }

    #[test]
    fn what_cannot_says_why() {
        let auto = machine(Protection::Auto, 0);
        let Decision::Alone(Some(old_kernel)) = decide(&auto, false, never).unwrap() else {
            panic!("not alone")
        };
        assert!(old_kernel.contains("its kernel"), "{old_kernel}");
        let Decision::Alone(Some(old_host)) = decide(&auto, true, || Ok(None)).unwrap() else {
            panic!("not alone")
        };
        assert!(old_host.contains("this host"), "{old_host}");
        // What was asked for is not left out.
        for machine in [machine(Protection::Auto, 1), machine(Protection::Yes, 0)] {
            let error = decide(&machine, false, never).unwrap_err().to_string();
            assert!(error.contains("its kernel"), "{error}");
            let error = decide(&machine, true, || Ok(None)).unwrap_err().to_string();
            assert!(error.contains("this host"), "{error}");
        }
        let failed = decide(&auto, true, || bail!("EBUSY")).unwrap_err();
        assert_eq!(failed.to_string(), "EBUSY");
    }

    #[test]
    fn nobody_is_protected_who_does_not_want_it() {
        let no = machine(Protection::No, 0);
        assert_eq!(decide(&no, true, never).unwrap(), Decision::Alone(None));
        let shared = Specification { sharing: Sharing::Shared, ..machine(Protection::Auto, 1) };
        assert_eq!(decide(&shared, true, never).unwrap(), Decision::Shared);
    }

    #[test]
    fn ram_is_below_the_shared_bit() {
        let with = |ram| Specification { ram, ..machine(Protection::Auto, 0) };
        let fits = with(BIT - layout::RAM);
        assert!(decide(&fits, true, || Ok(Some(39))).is_ok());
        let error = decide(&with(fits.ram + 2 * MIB), true, || Ok(Some(39))).unwrap_err();
        assert!(error.to_string().contains("261120 MiB"), "{error}");
        // No shim says so.
        for bits in [0, 1, 30, 65, u32::MAX] {
            assert!(decide(&fits, true, || Ok(Some(bits))).is_err());
        }
    }

    #[test]
    fn bounce_buffers_are_sized_by_devices_and_ram() {
        let size = |ram, disks, nets| {
            let net = Net { link: NetLink::User, mac: None };
            let machine = Specification {
                ram: ram * MIB,
                nets: vec![net; nets],
                ..machine(Protection::Auto, disks)
            };
            slots(&machine) * SLOT / MIB
        };
        assert_eq!([size(512, 0, 0), size(512, 1, 0), size(512, 1, 1)], [4, 32, 32]);
        assert_eq!([size(512, 2, 1), size(512, 9, 0)], [48, 64]);
        assert_eq!([size(64, 1, 0), size(32, 0, 0)], [8, 4]);
    }

    #[test]
    fn the_command_line_has_the_size_of_bounce_buffers() {
        let line = |cmdline: &str| {
            let cmdline = cmdline.to_owned();
            command_line(&Specification { cmdline, ..machine(Protection::Yes, 1) }, BIT).unwrap()
        };
        assert_eq!(line("quiet x"), "swiotlb=16384 quiet x");
        assert_eq!(line("quiet swiotlb=512"), "quiet swiotlb=512");
        assert_eq!(line("quiet -- swiotlb=1 a"), "swiotlb=16384 quiet -- swiotlb=1 a");
        let long = Specification { cmdline: "x".repeat(2040), ..machine(Protection::Yes, 1) };
        assert!(command_line(&long, BIT).unwrap_err().to_string().contains("2054 bytes"));
    }

    #[test]
    fn an_early_console_is_in_the_shared_half() {
        let line = |cmdline: &str| {
            let cmdline = format!("swiotlb=1 {cmdline}");
            command_line(&Specification { cmdline, ..machine(Protection::Yes, 1) }, BIT).unwrap()
        };
        let moved = "swiotlb=1 earlycon=pl011,0x4009000000";
        assert_eq!(line("earlycon"), moved);
        assert_eq!(line("earlycon=pl011,0x9000000"), moved);
        assert_eq!(
            line("earlycon=pl011,mmio32,0x4009000000"),
            "swiotlb=1 earlycon=pl011,mmio32,0x4009000000"
        );
        assert_eq!(line("x -- earlycon"), "swiotlb=1 x -- earlycon");
    }
}
