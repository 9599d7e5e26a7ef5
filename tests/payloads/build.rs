// SPDX-License-Identifier: MIT OR Apache-2.0

//! Links each payload as a position-independent image.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let manifest = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = Path::new(&manifest).join("../../linker/payload.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    println!("cargo:rustc-link-arg-bins=-T{}", script.display());
    // `-z notext`: a payload relocates its read-only data as well, before its
    // MMU is on.
    for argument in ["-pie", "--no-dynamic-linker", "-znotext", "-znorelro", "--build-id=none"] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
