// SPDX-License-Identifier: MIT OR Apache-2.0

//! Payload runs: which tests a payload had, and how they ended.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use escrow_trace::Counts;
use xtask::layout::RAM_BASE;
use xtask::qemu::Machine;

use crate::artefacts;
use crate::serial::Serial;

/// Where QEMU puts Escrow's image: an `Image` goes 2 MiB above the start of RAM.
const ESCROW: u64 = RAM_BASE + (2 << 20);

/// The settings of one run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The payload.
    pub payload: &'static str,
    /// QEMU's name of the CPU.
    pub cpu: &'static str,
    /// How many.
    pub smp: u32,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// More words for the payload's command line.
    pub arguments: &'static str,
    /// The build of Escrow.
    pub escrow: Build,
    /// Whether the virtual clock counts instructions.
    pub icount: bool,
    /// The time limit.
    pub limit: Duration,
}

/// A build of Escrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// The release build.
    Release,
    /// One that records its changes of tables, TLBs and memory (`docs/trace.md`).
    Traced,
    /// One that checks every call against the executable specification.
    Oracle,
}

impl Run {
    /// A run with 2 CPUs of the best kind and 1 GiB.
    pub fn of(payload: &'static str) -> Run {
        Run {
            payload,
            cpu: "max",
            smp: 2,
            memory_mib: 1024,
            arguments: "",
            escrow: Build::Release,
            icount: false,
            limit: Duration::from_secs(120),
        }
    }

    fn name(&self) -> String {
        let Run { payload, cpu, smp, memory_mib, .. } = self;
        let what = match self.escrow {
            Build::Release => "payload",
            Build::Traced => "trace",
            Build::Oracle => "oracle",
        };
        format!("{what}-{payload}-{cpu}-{smp}-{memory_mib}M")
    }

    /// Boots Escrow with the payload in the host's place; all its tests must
    /// pass. Returns how many did.
    ///
    /// # Panics
    /// One fails, or none ran, or one has no verdict, or the machine does not
    /// end by itself.
    pub fn passes(&self) -> usize {
        self.judge(&self.machine()).0
    }

    /// The same; returns what was on the console.
    ///
    /// # Panics
    /// As for [`Self::passes`].
    pub fn says(&self) -> Vec<String> {
        self.judge(&self.machine()).1.lines().to_vec()
    }

    /// The same on an Escrow that records its changes of tables, and checks the record against the
    /// rules of the architecture (`docs/trace.md`). Returns the counts of what was
    /// checked.
    ///
    /// # Panics
    /// As for [`Self::passes`]; or a rule is broken, or there is no trace.
    pub fn keeps_the_rules(self) -> Counts {
        // Recording takes time, on several CPUs under locks.
        let run = Run { escrow: Build::Traced, limit: 3 * self.limit, ..self };
        let (_, serial) = run.judge(&run.machine());
        let report = match escrow_trace::parse(&serial.lines().join("\n")) {
            Ok(records) => escrow_trace::check(&records),
            Err(error) => serial.fail(&format!("the trace: {error}")),
        };
        if let Some(finding) = report.findings.first() {
            let count = report.findings.len();
            serial.fail(&format!(
                "{count} findings in the trace, as `escrow-trace` shows them; on the console, {finding}"
            ));
        }
        report.counts
    }

    /// Boots Escrow with the payload in the host's place, in a machine that
    /// starts again when it is reset.
    pub fn boot_again_and_again(&self) -> Serial {
        let mut machine = self.machine();
        machine.reboot = true;
        Serial::boot(&self.name(), &machine, self.limit)
    }

    /// Boots Escrow with a payload that resets the machine; returns what is in RAM then.
    ///
    /// # Panics
    /// The machine does not end, or its memory cannot be read.
    pub fn memory_at_the_reset(&self) -> Vec<u8> {
        let mut machine = self.machine();
        let folder = artefacts().image.parent().map(PathBuf::from).unwrap_or_default().join("tmp");
        let file = folder.join(format!("{}.ram", self.name()));
        let size = self.memory_mib;
        let object =
            format!("memory-backend-file,id=ram,size={size}M,share=on,mem-path={}", file.display());
        let extra = ["-object", &object, "-machine", "memory-backend=ram"];
        machine.extra.extend(extra.map(Into::into));
        let made = fs::create_dir_all(&folder);
        let mut serial = Serial::boot(&self.name(), &machine, self.limit);
        // A reset ends QEMU.
        serial.wait_for_end();
        let memory = made.and_then(|()| fs::read(&file));
        let _ = fs::remove_file(&file);
        let broken = serial.lines().iter().find(|line| line.contains(" ... FAILED"));
        match (memory, broken) {
            (Ok(memory), None) => memory,
            (Ok(_), Some(line)) => serial.fail(line),
            (Err(error), _) => serial.fail(&format!("{}: {error}", file.display())),
        }
    }

    fn machine(&self) -> Machine {
        let artefacts = artefacts();
        let escrow = match self.escrow {
            Build::Release => &artefacts.image,
            Build::Traced => &artefacts.traced_image,
            Build::Oracle => &artefacts.oracle_image,
        };
        let mut machine = Machine::new(&artefacts.qemu, escrow);
        machine.cpu = self.cpu.into();
        machine.smp = self.smp;
        machine.memory_mib = self.memory_mib;
        machine.icount = self.icount;
        let image = artefacts.payloads.join(format!("{}.img", self.payload));
        let arguments = format!("escrow={ESCROW:#x} {}", self.arguments);
        if let Err(error) = machine.load_host(&image, None, &arguments) {
            panic!("{}: {error:#}", self.name());
        }
        machine
    }

    /// The same without Escrow: the payload is the kernel.
    ///
    /// # Panics
    /// As for [`Self::passes`].
    pub fn passes_alone(&self) -> usize {
        let artefacts = artefacts();
        let image = artefacts.payloads.join(format!("{}.img", self.payload));
        let mut machine = Machine::new(&artefacts.qemu, image);
        machine.cpu = self.cpu.into();
        machine.smp = self.smp;
        machine.memory_mib = self.memory_mib;
        machine.el2 = false;
        self.judge(&machine).0
    }

    fn judge(&self, machine: &Machine) -> (usize, Serial) {
        let mut serial = Serial::boot(&self.name(), machine, self.limit);
        serial.wait_for_end();
        for note in serial.lines().iter().filter(|line| line.starts_with("note: ")) {
            println!("{}: {note}", self.name());
        }
        match Verdict::read(self.payload, serial.lines()).map(|verdict| verdict.check()) {
            Ok(Ok(passed)) => (passed, serial),
            Ok(Err(why)) | Err(why) => serial.fail(&why),
        }
    }
}

/// A payload's output, parsed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    announced: usize,
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
    /// Its own count of passed, failed and skipped tests.
    sum: [usize; 3],
}

impl Verdict {
    /// Reads the console of a payload's run.
    ///
    /// # Errors
    /// The payload was not there, or did not come to its end.
    pub fn read(payload: &str, lines: &[String]) -> Result<Verdict, String> {
        let mut verdict = Verdict::default();
        let (mut begun, mut ended) = (false, false);
        for line in lines {
            if let Some(rest) = line.strip_prefix("payload panicked") {
                return Err(format!("the payload panicked{rest}"));
            }
            if let Some(said) = line.strip_prefix(&format!("payload {payload}: ")) {
                match numbers(said).as_slice() {
                    [announced] if !begun => (begun, verdict.announced) = (true, *announced),
                    &[passed, failed, skipped] if begun && !ended => {
                        (ended, verdict.sum) = (true, [passed, failed, skipped]);
                    }
                    _ => return Err(format!("what does this mean: {line}")),
                }
            }
            let Some((name, how)) = line.strip_prefix("test ").and_then(|l| l.split_once(" ... "))
            else {
                continue;
            };
            if how == "ok" {
                verdict.passed += 1;
            } else if how.starts_with("skipped: ") {
                verdict.skipped.push(format!("{name}: {how}"));
            } else {
                verdict.failed.push(format!("{name}: {how}"));
            }
        }
        match (begun, ended) {
            (true, true) => Ok(verdict),
            (true, false) => Err("the payload did not come to its end".into()),
            (false, _) => Err("the payload did not begin".into()),
        }
    }

    /// How many tests passed, if none failed.
    ///
    /// # Errors
    /// Some did, or none ran, or the counts do not agree.
    pub fn check(&self) -> Result<usize, String> {
        let Verdict { announced, passed, failed, skipped, sum } = self;
        if !failed.is_empty() {
            return Err(format!("{} failed:\n  {}", failed.len(), failed.join("\n  ")));
        }
        if *passed == 0 {
            return Err("no test passed".into());
        }
        if passed + skipped.len() != *announced || *sum != [*passed, 0, skipped.len()] {
            return Err(format!(
                "{announced} tests announced, {passed} passed, {} skipped; the payload counts {sum:?}",
                skipped.len()
            ));
        }
        for test in skipped {
            println!("{test}");
        }
        Ok(*passed)
    }
}

/// The numbers in a text.
fn numbers(text: &str) -> Vec<usize> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str) -> Result<usize, String> {
        let lines: Vec<_> = text.lines().map(String::from).collect();
        Verdict::read("p", &lines)?.check()
    }

    #[test]
    fn all_is_well() {
        let text = "escrow: boots\npayload p: 3 tests\ntest p::a ... ok\ntest p::b ... ok\n\
                    test p::c ... skipped: no such thing\npayload p: 2 passed, 0 failed, 1 skipped";
        assert_eq!(verdict(text), Ok(2));
    }

    #[test]
    fn nothing_passes_for_success() {
        let silent = "escrow: boots";
        let empty = "payload p: 0 tests\npayload p: 0 passed, 0 failed, 0 skipped";
        let skipped = "payload p: 1 tests\ntest p::a ... skipped: x\n\
                       payload p: 0 passed, 0 failed, 1 skipped";
        let cut = "payload p: 2 tests\ntest p::a ... ok";
        let missing =
            "payload p: 2 tests\ntest p::a ... ok\npayload p: 1 passed, 0 failed, 0 skipped";
        let failed = "payload p: 2 tests\ntest p::a ... ok\ntest p::b ... FAILED: x\n\
                      payload p: 1 passed, 1 failed, 0 skipped";
        let garbled = "payload p: 2 tests\ntest p::a ... ok\ntest p::b ... o\n\
                      payload p: 2 passed, 0 failed, 0 skipped";
        let twice = "payload p: 1 tests\npayload p: 1 tests\ntest p::a ... ok\n\
                     payload p: 1 passed, 0 failed, 0 skipped";
        let dead = "payload p: 1 tests\npayload panicked: at x\n";
        for text in [silent, empty, skipped, cut, missing, failed, garbled, twice, dead] {
            assert!(verdict(text).is_err(), "{text}");
        }
    }
}
