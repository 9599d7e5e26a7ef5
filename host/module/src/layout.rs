// SPDX-License-Identifier: MIT OR Apache-2.0

//! What C and Rust must agree on: sizes, offsets and numbers. `arch/rust.h`
//! asserts the same of its side, and `cargo xtask test lint` compares the two
//! lists, so that neither side can change alone.

use core::mem::offset_of;

use escrow_abi::MemEntry;
use escrow_memfd::{Ahead, Counts, Folio, How, Retry};
use escrow_vmcore::exit::Vcpu;
use escrow_vmcore::function::Words;
use escrow_vmcore::lifecycle::{Event, Lifecycle, State};
use escrow_vmcore::line::Line;
use escrow_vmcore::losses::Losses;
use escrow_vmcore::metadata::Metadata;
use escrow_vmcore::uapi::VcpuRun;

use crate::console;
use crate::folio::{ALREADY_THERE, COUNTS, CRefusal, CReport, OUT_OF_TURN, REFUSED};
use crate::function::CFunction;
use crate::hypervisor::CVmInfo;
use crate::vcpu::{CExit, CStep, StepKind};
use crate::vm::{
    CBinding, CMapRequest, EXPORT_CLOEXEC, EXPORT_WRITE, MEM_CLOEXEC, MEM_HUGE, MEM_LEND_FIRST,
};

/// A structure of C's, its size there, and each field's offset.
macro_rules! layout {
    ($($rust:ty = $c:ident, $size:literal { $($field:ident $at:literal),* })*) => {
        $(const _: () = {
            assert!(size_of::<$rust>() == $size && align_of::<$rust>() <= 8);
            $(assert!(offset_of!($rust, $field) == $at);)*
        };)*
    };
}

/// A number of C's, and what it is here.
macro_rules! numbers {
    ($($c:ident = $value:literal, $rust:expr;)*) => {
        $(const _: () = assert!($rust as u64 == $value);)*
    };
}

layout! {
    Folio = escrow_folio_state, 40 {}
    Counts = escrow_counts, 56 {}
    Metadata = escrow_metadata, 8 {}
    Ahead = escrow_ahead, 16 {}
    Vcpu = escrow_vcpu_core, 24 {}
    Line = escrow_line, 16 {}
    Losses = escrow_losses, 144 {}
    MemEntry = escrow_entry, 32 {}
    Lifecycle = escrow_lifecycle, 4 {}
    Words = escrow_fn_arg, 32 {}
    VcpuRun = gunyah_vcpu_run, 40 { immediate_exit 0, exit_reason 8, exit 16 }
    CReport = escrow_report, 12 { refcount 0, safe 4, accessible 8 }
    CRefusal = escrow_refusal, 16 { excess 0, accessible 8, reserved 12 }
    Retry = escrow_retry, 4 {}
    CMapRequest = escrow_map_request, 40 {
        guest 0, size 8, offset 16, how 24, rights 28, unbind 32, reserved 33
    }
    CBinding = escrow_binding, 40 { mem 0, guest 8, size 16, offset 24, how 32, rights 36 }
    CFunction = escrow_function, 32 {
        id 4, fd 8, resample_fd 12, address 16, level 24, resamples 25, reserved 26
    }
    CVmInfo = escrow_vm_info, 32 { started 0, mapped 8, metadata 16, free 24 }
    CExit = escrow_exit, 32 { reason 0, reserved 4, words 8 }
    CStep = escrow_step, 56 { kind 0, down 4, at 8, access 16, exit 24 }
}

numbers! {
    ESCROW_LENT = 0, How::Lent;
    ESCROW_SHARED = 1, How::Shared;
    ESCROW_LEND_THERE = 1, ALREADY_THERE;
    ESCROW_LEND_REFUSED = 2, REFUSED;
    ESCROW_LEND_OUT_OF_TURN = 3, OUT_OF_TURN;
    ESCROW_COUNTS = 7, COUNTS;
    ESCROW_MEM_CLOEXEC = 1, MEM_CLOEXEC;
    ESCROW_MEM_HUGE = 2, MEM_HUGE;
    ESCROW_MEM_LEND_FIRST = 4, MEM_LEND_FIRST;
    ESCROW_EXPORT_CLOEXEC = 1, EXPORT_CLOEXEC;
    ESCROW_EXPORT_WRITE = 2, EXPORT_WRITE;
    ESCROW_STEP_AGAIN = 0, StepKind::Again;
    ESCROW_STEP_SLEEP = 1, StepKind::Sleep;
    ESCROW_STEP_OFF = 2, StepKind::Off;
    ESCROW_STEP_BRING = 3, StepKind::Bring;
    ESCROW_STEP_DOWN = 4, StepKind::Down;
    ESCROW_STEP_EXIT = 5, StepKind::Exit;
    ESCROW_STEP_WRITE = 6, StepKind::Write;
    ESCROW_STEP_WAKE = 7, StepKind::Wake;
    ESCROW_STEP_SPI_DONE = 8, StepKind::SpiDone;
    ESCROW_STEP_READ = 9, StepKind::Read;
    ESCROW_STEP_TOP_UP = 10, StepKind::TopUp;
    ESCROW_CONSOLE_LINE = 1, console::LINE;
    ESCROW_CONSOLE_HIGH = 2, console::HIGH;
    ESCROW_CONSOLE_READABLE = 4, console::READABLE;
    ESCROW_CONSOLE_READABLE_SOON = 8, console::READABLE_SOON;
    ESCROW_CONSOLE_WRITABLE = 16, console::WRITABLE;
    ESCROW_VM_LIVE = 0, State::Live;
    ESCROW_VM_DOWN = 1, State::Down;
    ESCROW_VM_CLOSED = 2, State::Closed;
    ESCROW_VM_STUCK = 3, State::Stuck;
    ESCROW_VM_DESTROYED = 4, State::Destroyed;
    ESCROW_VM_ZOMBIE = 5, State::Zombie;
    ESCROW_VM_HOME = 6, State::Home;
    ESCROW_EVENT_DOWN = 0, Event::Down;
    ESCROW_EVENT_CLOSE = 1, Event::Close;
    ESCROW_EVENT_DESTROYED = 2, Event::Destroyed;
    ESCROW_EVENT_ABANDON = 3, Event::Abandon;
    ESCROW_EVENT_HOME = 4, Event::Home;
    ESCROW_EVENT_UNBORN = 5, Event::Unborn;
}
