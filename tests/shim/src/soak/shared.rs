// SPDX-License-Identifier: MIT OR Apache-2.0

//! A value that processes share.

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;

use anyhow::{Context as _, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// A value in memory that this process and those that it forks share.
pub struct Shared<T>(NonNull<T>);

impl<T: Sync> Shared<T> {
    /// Puts it there.
    pub fn new(value: T) -> Result<Shared<T>> {
        let size = NonZeroUsize::new(size_of::<T>()).context("nothing to share")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping; nothing that exists is replaced.
        let place = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_SHARED) };
        let place = place.context("mmap")?.cast::<T>();
        // SAFETY: fresh memory of the right size, aligned to a page.
        unsafe { place.write(value) };
        Ok(Shared(place))
    }
}

impl<T: Sync> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: initialised by `new`, mapped until the end of `self`; other
        // processes are as other threads to it, and `T` is `Sync`.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into it.
        let _ = unsafe { munmap(self.0.cast(), size_of::<T>()) };
    }
}
