// SPDX-License-Identifier: MIT OR Apache-2.0

//! Taking away what builds and set-up made.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use crate::build::Workspace;
use crate::say;
use crate::setup::Cache;

#[derive(clap::Args)]
pub struct Args {
    /// Also what set-up fetched (not the packages it installed)
    #[arg(long)]
    cache: bool,
}

pub fn clean(args: &Args) -> Result<()> {
    remove(Workspace::find()?.paths().root())?;
    if args.cache {
        remove(Cache::open()?.path())?;
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Ok(()) => say!("removed {}", folder.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
        }
    }
    Ok(())
}
