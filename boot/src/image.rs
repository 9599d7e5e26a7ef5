// SPDX-License-Identifier: MIT OR Apache-2.0

//! Escrow's own image in memory, as the linker script divides it.

use core::sync::atomic::AtomicU64;

use escrow_platform::range::Range;

use crate::mmu::Table;

/// Tables for the map before working memory is found: the root, and for each of
/// image, device tree, console, kernel and working memory at the worst one of
/// level 1, one of level 2 and two of level 3.
const EARLY_TABLES: usize = 1 + 5 * 4;

#[repr(C, align(4096))]
struct EarlyTables([Table; EARLY_TABLES]);

#[unsafe(link_section = ".noinit")]
static TABLES: EarlyTables =
    EarlyTables([const { [const { AtomicU64::new(0) }; 512] }; EARLY_TABLES]);

macro_rules! symbol {
    ($name:ident) => {{
        unsafe extern "C" {
            static $name: u8;
        }
        (&raw const $name).addr() as u64
    }};
}

/// All of the image.
pub fn whole() -> Range {
    Range::new(symbol!(__image_start), symbol!(__image_end))
}

/// Code.
pub fn text() -> Range {
    Range::new(symbol!(__image_start), symbol!(__text_end))
}

/// Constants, those that were relocated too.
pub fn rodata() -> Range {
    Range::new(symbol!(__rodata_start), symbol!(__rodata_end))
}

/// Variables.
pub fn data() -> Range {
    Range::new(symbol!(__data_start), symbol!(__data_end))
}

/// The boot CPU's stack. The page below it is not mapped.
pub fn stack() -> Range {
    Range::new(symbol!(__stack_bottom), symbol!(__stack_top))
}

/// Tables for the first map.
pub fn early_tables() -> &'static [Table] {
    &TABLES.0
}
