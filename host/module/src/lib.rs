// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Rust half of the Linux module: what `rust.h` declares and C calls.
//!
//! C is the kernel's side: it locks, allocates, maps and sleeps. What happens
//! to a page, a VM or a vCPU is decided behind these functions, in
//! `escrow-memfd` and `escrow-vmcore`, which know no kernel.
//!
//! The contract with C, for every function here: pointers are not null unless
//! the Rust type is an `Option`, point to initialised objects of the type
//! whose layout `rust.h` asserts, and stay valid for the call. Where Rust
//! takes `&mut`, C holds the lock that `rust.h` names at the function.
//! Errors are negative errno values.

#![no_std]

extern crate alloc;

mod allocator;
mod console;
mod folio;
mod function;
mod hypervisor;
mod interrupts;
mod kernel;
mod layout;
mod panic;
mod vcpu;
mod vm;

use alloc::boxed::Box;
use core::alloc::Layout;
use core::ptr::NonNull;

use escrow_vmcore::Errno;

/// The C form of a result without a value.
fn status(result: Result<(), Errno>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(errno) => errno.to_return(),
    }
}

/// The C form of a result whose value goes through a pointer.
fn store<T>(result: Result<T, Errno>, to: &mut T) -> i32 {
    status(result.map(|value| *to = value))
}

/// Moves a value to the heap; `None` without memory. Types of no size are not
/// for it.
fn new<T>(value: T) -> Option<Box<T>> {
    const { assert!(size_of::<T>() != 0) };
    // SAFETY: the layout is not empty.
    let block = NonNull::new(unsafe { alloc::alloc::alloc(Layout::new::<T>()) })?.cast::<T>();
    // SAFETY: the block has the layout of a `T` and nobody else has it; it is
    // initialised before a `Box` owns it, whose allocator it came from.
    unsafe {
        block.write(value);
        Some(Box::from_raw(block.as_ptr()))
    }
}
