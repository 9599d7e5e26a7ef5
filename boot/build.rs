// SPDX-License-Identifier: MIT OR Apache-2.0

//! Links the binary as a position-independent image.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/entry.S");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let manifest = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = Path::new(&manifest).join("../linker/escrow.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    println!("cargo:rustc-link-arg-bins=-T{}", script.display());
    // The target's code is compiled for a fixed address, but reaches everything
    // relative to itself; what is left to relocate are addresses in constants,
    // hence `notext`. They are relocated before they are mapped read-only by
    // Escrow itself, hence `norelro`.
    for argument in [
        "-pie",
        "--no-dynamic-linker",
        "-znotext",
        "-znorelro",
        "--build-id=none",
        // An ADRP at the end of a page may have the wrong result (docs/errata.md).
        "--fix-cortex-a53-843419",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
