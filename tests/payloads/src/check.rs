// SPDX-License-Identifier: MIT OR Apache-2.0

//! How a test says that something is not as it should be.

use core::cell::UnsafeCell;
use core::fmt::{self, Write as _};
use core::sync::atomic::{AtomicUsize, Ordering};

use arrayvec::ArrayString;

/// Bytes of a failure's text; the rest of a longer one is cut off.
const TEXT_SIZE: usize = 400;
/// Failures whose texts are kept.
const TEXTS: usize = 64;

/// Why a test did not pass.
#[derive(Debug)]
pub enum Failure {
    /// What was seen is wrong.
    Failed(&'static str),
    /// This machine lacks what the test is about.
    Skipped(&'static str),
}

/// How a test ends.
pub type Outcome<T = ()> = Result<T, Failure>;

/// The texts of failures, each written once.
struct Texts([UnsafeCell<ArrayString<TEXT_SIZE>>; TEXTS]);

// SAFETY: `NEXT` gives each to one failure, which writes it before it shares it.
unsafe impl Sync for Texts {}

static KEPT: Texts = Texts([const { UnsafeCell::new(ArrayString::new_const()) }; TEXTS]);
static NEXT: AtomicUsize = AtomicUsize::new(0);

impl Failure {
    /// A failure seen at a place in the source.
    pub fn new(file: &str, line: u32, what: fmt::Arguments<'_>) -> Failure {
        let Some(text) = KEPT.0.get(NEXT.fetch_add(1, Ordering::Relaxed)) else {
            return Failure::Failed("(one failure of too many)");
        };
        let file = file.rsplit('/').next().unwrap_or(file);
        // SAFETY: nobody else has been or will be given this one.
        unsafe {
            // A text that does not fit is cut.
            let _ = write!(Cut(&mut *text.get()), "{file}:{line}: {what}");
            Failure::Failed((*text.get()).as_str())
        }
    }
}

struct Cut<'a>(&'a mut ArrayString<TEXT_SIZE>);

impl fmt::Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            self.0.try_push(c).map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}

/// Ends the test with a failure.
#[macro_export]
macro_rules! fail {
    ($($what:tt)*) => {
        return Err($crate::Failure::new(file!(), line!(), format_args!($($what)*)))
    };
}

/// Ends the test with a failure unless a condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr $(,)?) => {
        if !$condition {
            $crate::fail!("{}", stringify!($condition))
        }
    };
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            $crate::fail!("{}: {}", stringify!($condition), format_args!($($what)+))
        }
    };
}

/// Ends the test with a failure unless two values are equal.
#[macro_export]
macro_rules! check_eq {
    ($seen:expr, $expected:expr $(,)?) => {
        match (&$seen, &$expected) {
            (seen, expected) => if *seen != *expected {
                $crate::fail!("{}: seen {:x?}, expected {:x?}", stringify!($seen), seen, expected)
            }
        }
    };
    ($seen:expr, $expected:expr, $($what:tt)+) => {
        match (&$seen, &$expected) {
            (seen, expected) => if *seen != *expected {
                $crate::fail!(
                    "{}: {}: seen {:x?}, expected {:x?}",
                    stringify!($seen), format_args!($($what)+), seen, expected
                )
            }
        }
    };
}
