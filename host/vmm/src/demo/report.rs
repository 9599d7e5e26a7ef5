// SPDX-License-Identifier: MIT OR Apache-2.0

use std::io::{self, Write as _};

use anyhow::Result;
use serde::Serialize;

use super::checks::{Check, Checks};

/// How the demo reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A short line for each step, and what was expected and seen where it has
    /// failed.
    Short,
    /// A line for each step, with what was expected and seen.
    Lines,
    /// The same, and before it a line for each check.
    Verbose,
    /// JSON, once at the end.
    Json,
}

/// A step that was tried, or could not be.
#[derive(Debug, Serialize)]
struct Step {
    number: usize,
    title: &'static str,
    checks: Vec<Check>,
    /// Why the step ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    ok: bool,
}

/// What came of the steps so far.
pub struct Report {
    format: Format,
    steps: Vec<Step>,
    /// The first error of printing.
    told: io::Result<()>,
}

impl Report {
    /// A report without steps.
    pub fn new(format: Format) -> Report {
        Report { format, steps: Vec::new(), told: Ok(()) }
    }

    /// Tries the next step, and prints what came of it. What the step made,
    /// if it came to its end; it may have failed nevertheless.
    pub fn step<T>(
        &mut self,
        title: &'static str,
        step: impl FnOnce(&mut Checks) -> Result<T>,
    ) -> Option<T> {
        let mut checks = Checks::default();
        let result = step(&mut checks);
        let checks = checks.into_list();
        let error = result.as_ref().err().map(|error| format!("{error:#}"));
        // A step without checks counts as failed.
        let ok = error.is_none() && !checks.is_empty() && checks.iter().all(|check| check.ok);
        let step = Step { number: self.steps.len() + 1, title, checks, error, ok };
        if self.format == Format::Verbose {
            for check in &step.checks {
                self.say(&check_line(&step, check));
            }
        }
        match self.format {
            Format::Json => {}
            Format::Short if ok => self.say(&short(&step)),
            Format::Short | Format::Lines | Format::Verbose => self.say(&line(&step)),
        }
        self.steps.push(step);
        result.ok()
    }

    /// Says that the next step is not tried, which is neither a pass nor a failure.
    pub fn leave_out(&mut self, title: &str, why: &str) {
        if self.format != Format::Json {
            self.say(&format!("{}. {title} / not tried: {why}", self.steps.len() + 1));
        }
    }

    /// Prints the end of the report. Whether all steps passed.
    pub fn finish(mut self) -> Result<bool> {
        let passed = self.steps.iter().filter(|step| step.ok).count();
        let failed = self.steps.len() - passed;
        if self.format == Format::Json {
            #[derive(Serialize)]
            struct Document<'a> {
                steps: &'a [Step],
                passed: usize,
                failed: usize,
            }
            let document = Document { steps: &self.steps, passed, failed };
            let text = serde_json::to_string_pretty(&document)?;
            self.say(&text);
        } else {
            self.say(&format!("demo: {passed} passed, {failed} failed"));
        }
        match self.told {
            // A closed pipe (`| head`) is no error; the exit status tells the result.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
        Ok(failed == 0 && passed > 0)
    }

    /// Prints a line, unless one could not be printed.
    fn say(&mut self, line: &str) {
        if self.told.is_ok() {
            let mut out = io::stdout().lock();
            self.told = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }
}

fn verdict(ok: bool) -> &'static str {
    if ok { "ok" } else { "FAILED" }
}

/// The line of a step that passed, for who only wants to know that.
fn short(step: &Step) -> String {
    format!("{:>2}. {:<62} {}", step.number, step.title, verdict(step.ok))
}

/// The line of a step. What was seen stands in the order of what was expected,
/// without the names where it is good.
fn line(step: &Step) -> String {
    let list =
        |item: fn(&Check) -> String| step.checks.iter().map(item).collect::<Vec<_>>().join("; ");
    let expected = list(|check| format!("{}: {}", check.what, check.expected));
    let mut seen = list(|check| match check.ok {
        true => check.seen.clone(),
        false => format!("{}: {}!", check.what, check.seen),
    });
    if let Some(error) = &step.error {
        if !seen.is_empty() {
            seen.push_str("; then ");
        }
        seen.push_str(error);
    }
    let expected = if expected.is_empty() { "that it can be tried".to_owned() } else { expected };
    format!(
        "{}. {} / expected: {expected} / seen: {seen} / {}",
        step.number,
        step.title,
        verdict(step.ok)
    )
}

fn check_line(step: &Step, check: &Check) -> String {
    format!(
        "   {} {} / expected: {} / seen: {} / {}",
        step.number,
        check.what,
        check.expected,
        check.seen,
        verdict(check.ok)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_what_its_checks_are() {
        let mut report = Report::new(Format::Lines);
        assert_eq!(
            report.step("good", |checks| {
                checks.equal("answer", 42, 42);
                Ok(7)
            }),
            Some(7)
        );
        report.step("wrong", |checks| {
            checks.equal("answer", 42, 41);
            Ok(())
        });
        assert_eq!(report.step::<()>("broken", |_| anyhow::bail!("no device")), None);
        report.step("empty", |_| Ok(()));
        let ok: Vec<bool> = report.steps.iter().map(|step| step.ok).collect();
        assert_eq!(ok, [true, false, false, false]);
        assert_eq!(short(&report.steps[0]), format!(" 1. good{:59}ok", ""));
        assert_eq!(line(&report.steps[0]), "1. good / expected: answer: 42 / seen: 42 / ok");
        assert_eq!(
            line(&report.steps[1]),
            "2. wrong / expected: answer: 42 / seen: answer: 41! / FAILED"
        );
        assert_eq!(
            line(&report.steps[2]),
            "3. broken / expected: that it can be tried / seen: no device / FAILED"
        );
        assert!(!report.finish().unwrap());
    }

    #[test]
    fn nothing_tried_is_no_pass() {
        assert!(!Report::new(Format::Lines).finish().unwrap());
    }
}
