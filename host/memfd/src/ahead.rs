// SPDX-License-Identifier: MIT OR Apache-2.0

/// How many pages are shared with a guest of a protected VM when it touches one of them.
///
/// Linux gives its bounce buffers up in one call and then zeroes them from their first page to
/// their last. So, as with readahead, a touch right behind the pages that came last brings twice as
/// many. Any other touch brings no page that nobody has asked for: those behind it come along only if
/// the guest has given them up as well.
///
/// All-zero bytes are a valid start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ahead {
    /// The page behind those that came last.
    end: u64,
    /// How many pages the last window had; 0: there was none.
    pages: u64,
}

/// Pages from the touched one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// How many.
    pub pages: u64,
    /// Whether the touch is right behind the pages that came last.
    pub is_next: bool,
}

impl Ahead {
    /// The first window: 64 KiB.
    pub const FIRST: u64 = 16;
    /// The largest one: 2 MiB, as many pages as one call of the shim's shares.
    pub const MOST: u64 = 512;

    /// The guest touches a page.
    pub fn window(&mut self, page: u64) -> Window {
        let is_next = self.pages != 0 && page == self.end;
        self.pages = if is_next { (self.pages * 2).min(Self::MOST) } else { Self::FIRST };
        Window { pages: self.pages, is_next }
    }

    /// So far, pages have come.
    pub fn came(&mut self, end: u64) {
        self.end = end;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn windows_grow_as_long_as_touches_follow_each_other() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.window(0), Window { pages: 16, is_next: false }, "the first touch of all");
        let mut page = 0;
        for pages in [32, 64, 128, 256, 512, 512, 512] {
            page += ahead.pages;
            ahead.came(page);
            assert_eq!(ahead.window(page), Window { pages, is_next: true });
        }
        for elsewhere in [page, page + 511, page + 513, 0] {
            let mut ahead = ahead;
            ahead.came(page + 512);
            assert_eq!(ahead.window(elsewhere), Window { pages: 16, is_next: false });
        }
    }

    #[test]
    fn what_did_not_come_is_no_part_of_the_run() {
        let mut ahead = Ahead::default();
        ahead.window(100);
        ahead.came(101);
        assert_eq!(ahead.window(116), Window { pages: 16, is_next: false });
        ahead.came(120);
        assert_eq!(ahead.window(120), Window { pages: 32, is_next: true });
    }

    #[test]
    fn a_memory_of_8192_pages_is_shared_in_a_few_steps() {
        let mut ahead = Ahead::default();
        let (mut page, mut touches) = (4096, 0);
        while page < 4096 + 8192 {
            page += ahead.window(page).pages;
            ahead.came(page);
            touches += 1;
        }
        assert_eq!(touches, 21);
    }
}
