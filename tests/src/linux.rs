// SPDX-License-Identifier: MIT OR Apache-2.0

//! Boots of Debian as the host, with a script to run there.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use xtask::artefacts::DEBUG_KERNEL;
use xtask::initramfs::Archive;
use xtask::qemu::Machine;

use crate::artefacts;
use crate::serial::Serial;

/// What the host's script prints about lines of its kernel's log that are failures.
const TROUBLE: &str = "the host complains";
/// Patterns of such lines.
const SIGNS: [&str; 5] = ["BUG:", "WARNING:", "Oops", "SError", "Internal error"];

/// Further patterns for debug kernels: UBSAN, debug objects, hung tasks, kmemleak. Data races are handled
/// by [`REPORTS`].
const MORE_SIGNS: [&str; 4] = ["UBSAN:", "ODEBUG:", "INFO: task", "new suspected memory leaks"];
/// Asks kmemleak for leaks, and reads KCSAN's reports of data races. A report stands between lines
/// of equality signs; each access is a headline with its stack below. The kernel
/// has races of its own, also in functions that a module calls. So a race counts as the module's
/// if the module is among the three innermost functions of an access.
const REPORTS: &str = r#"
if [ -e /sys/kernel/debug/kmemleak ]; then
    # What is young may have its pointer in a register still.
    for _ in 1 2; do echo scan > /sys/kernel/debug/kmemleak; sleep 6; done
    cat /sys/kernel/debug/kmemleak
fi
dmesg | awk '/====================/ { if (text ~ /KCSAN/ && ours) printf "%s", text; text = ""; ours = 0; next }
    / by (task|interrupt)/ { depth = 0; text = text $0 RS; next }
    { if (++depth <= 3 && /\[escrow\]/) ours = 1; text = text $0 RS }' | sed 's/^/TROUBLE: /'
"#;
/// The factor by which debug kernels are slower.
const PATIENCE: u32 = 8;
/// Memory in MiB that a debug kernel needs beside that which a test asks for.
const SHADOW_MIB: u64 = 512;
/// The size of a debug kernel's log: it is read at the end, and must hold the messages of hours.
const LOG: &str = " log_buf_len=4M";

/// In the machine's temporary folder.
const INITRAMFS: &str = "initramfs.cpio.gz";
/// `nosoftlockup`: a soft lockup on a slowly emulated machine is no fault of Escrow.
const BOOTARGS: &str = "console=ttyAMA0 panic=-1 nosoftlockup escrow.init=script";

/// Whether a debug kernel replaces the release's own kernel.
pub fn looks_for_mistakes() -> bool {
    std::env::var_os(DEBUG_KERNEL).is_some()
}

/// Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// 6.12
    Older,
    /// 7.x
    Newer,
}

impl Kernel {
    /// Its file.
    #[must_use]
    pub fn image(self) -> &'static Path {
        match self {
            Kernel::Older => &artefacts().host_kernel,
            Kernel::Newer => &artefacts().newer_kernel,
        }
    }
}

/// Whether Debian's real-time kernel replaces the release's own.
fn is_real_time() -> bool {
    let release = artefacts().host_modules.canonicalize();
    release.is_ok_and(|folder| folder.to_string_lossy().contains("-rt-"))
}

/// Features that tests need and a kernel may lack, as a variable for the tests that run there.
#[must_use]
pub fn may_lack(kernel: Kernel) -> &'static str {
    match kernel {
        // The debug kernels lack features that some of the holders' tests need.
        Kernel::Older if looks_for_mistakes() => "SHIM_MAY_LACK=1",
        Kernel::Older if is_real_time() => "SHIM_MAY_LACK='huge pages'",
        Kernel::Older => "",
        // Made for machines in a cloud, it has no displays.
        Kernel::Newer => "SHIM_MAY_LACK=vgem",
    }
}

/// The number of tests that passed, and the names of those that were skipped, from the output of the shim's
/// tests; `None` if one failed, or the output has no end. No test passed is a success if
/// some were skipped because this kernel cannot run them.
#[must_use]
pub fn verdict(lines: &[String]) -> Option<(usize, Vec<&str>)> {
    let sum = lines.iter().find_map(|line| line.strip_suffix(" passed, 0 failed"))?;
    let left_out = lines.iter().map(String::as_str).filter(|line| line.ends_with(" left out"));
    let (passed, left_out) = (sum.parse().ok()?, left_out.collect::<Vec<_>>());
    (passed + left_out.len() > 0).then_some((passed, left_out))
}

/// A machine with Debian as Escrow's host.
pub struct Linux {
    name: String,
    // The initramfs is in it.
    folder: TempDir,
    /// The machine, to be adapted.
    pub machine: Machine,
    /// How long it may take.
    pub limit: Duration,
    /// Further words of the kernel's command line, each with a blank before it.
    words: String,
    kernel: Kernel,
}

impl Linux {
    /// A machine with 2 CPUs and 1 GiB whose host runs `script`, by busybox's
    /// shell, and then switches itself off.
    ///
    /// # Panics
    /// The initramfs cannot be made.
    pub fn with_script(name: &str, script: &str) -> Linux {
        Self::sized(name, "max", 2, 1024, script)
    }

    /// The same with other CPUs and memory (MiB).
    ///
    /// # Panics
    /// The initramfs cannot be made, or does not fit.
    pub fn sized(name: &str, cpu: &str, smp: u32, memory_mib: u64, script: &str) -> Linux {
        Self::with_files(name, cpu, smp, memory_mib, script, &[])
    }

    /// The same with further programs in the host's initramfs: paths and
    /// contents.
    ///
    /// # Panics
    /// The initramfs cannot be made, or does not fit.
    pub fn with_files(
        name: &str,
        cpu: &str,
        smp: u32,
        memory_mib: u64,
        script: &str,
        files: &[(&str, &[u8])],
    ) -> Linux {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut archive = Archive::new();
        // The kernel's messages would cut lines of the script in two; what
        // matters of them comes at the end.
        let (reports, more) = match looks_for_mistakes() {
            true => (REPORTS.replace("TROUBLE", TROUBLE), &MORE_SIGNS[..]),
            false => (String::new(), &[][..]),
        };
        let signs = [&SIGNS[..], more].concat().join("|");
        let text = format!(
            "#!/bin/sh\ndmesg -n 1\n(\n{script}\n)\nstatus=$?\n{reports}\n\
             dmesg | grep -v 'BUG: KCSAN' | grep -E '{signs}' | sed 's/^/{TROUBLE}: /'\n\
             exit $status\n",
        );
        let script = ("test.sh", text.as_bytes());
        for (path, contents) in files.iter().chain([&script]) {
            archive.file(path, 0o755, contents).expect("a file in an archive");
        }
        // The kernel unpacks one archive after the other; each begins at a
        // multiple of 4 bytes.
        let mut initramfs = fs::read(&artefacts().initramfs).expect("the initramfs");
        initramfs.resize(initramfs.len().next_multiple_of(4), 0);
        initramfs.extend(archive.finish().expect("an archive"));
        fs::write(folder.path().join(INITRAMFS), initramfs).expect("a temporary file");

        let mut machine = Machine::new(&artefacts().qemu, &artefacts().image);
        machine.cpu = cpu.into();
        machine.smp = smp;
        machine.memory_mib = memory_mib + if looks_for_mistakes() { SHADOW_MIB } else { 0 };
        let limit = Duration::from_secs(150);
        // What one kernel has said is kept beside what the other has.
        let name = match std::env::var(DEBUG_KERNEL) {
            Ok(kind) => format!("{name}-{kind}"),
            Err(_) => name.to_owned(),
        };
        let (words, kernel) = (String::new(), Kernel::Older);
        Linux { name, folder, machine, limit, words, kernel }.of(kernel)
    }

    /// The same with another kernel.
    ///
    /// # Panics
    /// It does not fit.
    pub fn of(mut self, kernel: Kernel) -> Linux {
        let image = kernel.image();
        let initrd = self.folder.path().join(INITRAMFS);
        let log = if looks_for_mistakes() { LOG } else { "" };
        let words = format!("{BOOTARGS}{log}{}", self.words);
        self.kernel = kernel;
        self.machine.modules.clear();
        if let Err(error) = self.machine.load_host(image, Some(&initrd), &words) {
            panic!("{}: {error:#}", self.name);
        }
        self
    }

    /// The same with another word on the kernel's command line.
    ///
    /// # Panics
    /// It does not fit.
    pub fn with_word(mut self, word: &str) -> Linux {
        self.words += &format!(" {word}");
        let kernel = self.kernel;
        self.of(kernel)
    }

    /// Boots it.
    pub fn boot(&self) -> Serial {
        let patience = if looks_for_mistakes() { PATIENCE } else { 1 };
        Serial::boot(&self.name, &self.machine, self.limit * patience)
    }

    /// Boots it, and waits for its end; the script must have ended with status
    /// 0. Returns all lines of the console.
    ///
    /// # Panics
    /// It has not.
    pub fn passes(&self) -> Vec<String> {
        self.passes_telling(|_| {})
    }

    /// The same, and calls `tell` with each line when it comes.
    ///
    /// # Panics
    /// As [`passes`](Self::passes).
    pub fn passes_telling(&self, tell: impl Fn(&str)) -> Vec<String> {
        let mut serial = self.boot();
        while let Some(line) = serial.next_line() {
            tell(&line);
        }
        let done = "init: /test.sh exited with status 0";
        if !serial.lines().iter().any(|line| line.contains(done)) {
            serial.fail("the script has not succeeded");
        }
        if let Some(line) = serial.lines().iter().find(|line| line.contains(TROUBLE)) {
            serial.fail(line);
        }
        serial.lines().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(text: &str) -> Option<(usize, usize)> {
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        verdict(&lines).map(|(passed, left_out)| (passed, left_out.len()))
    }

    #[test]
    fn tests_that_a_kernel_cannot_run_are_no_failures() {
        let left_out = "test huge::a ... (this kernel has no huge pages) left out";
        assert_eq!(counts("test a ... ok\n1 passed, 0 failed"), Some((1, 0)));
        assert_eq!(counts(&format!("{left_out}\ntest a ... ok\n1 passed, 0 failed")), Some((1, 1)));
        assert_eq!(counts(&format!("{left_out}\n0 passed, 0 failed")), Some((0, 1)));
    }

    #[test]
    fn no_test_and_no_sum_are_failures() {
        assert_eq!(counts("0 passed, 0 failed"), None);
        assert_eq!(counts("test a ... ok"), None);
        assert_eq!(counts("test a ... ok\ntest b ... FAILED: no\n1 passed, 1 failed"), None);
    }
}
