// SPDX-License-Identifier: MIT OR Apache-2.0

//! Says what Escrow makes of device trees, one line for each file: `cargo run
//! -p escrow-platform --example read_tree -- FILE…`

use std::process::ExitCode;

use escrow_platform::board::{Board, BoardError, Console, Outline};
use escrow_platform::fdt::Fdt;
use escrow_platform::host_tree::Changes;

fn main() -> ExitCode {
    let mut refused = 0;
    for path in std::env::args().skip(1) {
        match std::fs::read(&path).map_err(Into::into).and_then(|mut blob| describe(&mut blob)) {
            Ok(line) => println!("{path}: {line}"),
            Err(error) => {
                println!("{path}: refused: {error}");
                refused += 1;
            }
        }
    }
    if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn describe(blob: &mut [u8]) -> Result<String, Box<dyn std::error::Error>> {
    let fdt = Fdt::open(blob)?;
    let changes = Changes { escrow: &[], ramdisk: None, arguments: b"quiet" };
    let mut out = vec![0; changes.size_bound(&fdt)];
    let size = changes.write(&fdt, &mut out)?;
    Fdt::new(out.get(..size).ok_or("it wrote more than there is room for")?)?;
    let outline = Outline::of(&fdt);
    let console = match Console::find(&outline) {
        Some(console) => format!("{} at {:#x}", console.kind.name(), console.registers.start),
        None => "no console".into(),
    };
    let board = match Board::read(&outline) {
        Ok(board) => format!("{} CPUs, {} MiB", board.cpus.len(), board.ram.size() >> 20),
        // Trees in files have no modules, and often no memory yet.
        Err(error @ (BoardError::NoKernel | BoardError::NoMemory)) => error.to_string(),
        Err(error) => format!("cannot run here: {error}"),
    };
    Ok(format!("{} bytes, {console}; {board}", fdt.content_size()))
}
