//! Virtual machines with Debian's kernels, for what this host's kernel has not: other versions, other devices.
//!
//! QEMU emulates the processor (TCG), since KVM is rarely to be had where tests run: a guest boots in some ten seconds, and
//! nothing measured in it says anything about time. It sees the host's files read-only, so its programs are the host's.

mod emulator;
mod guest;
mod kernel;
mod suite;

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

pub(crate) use guest::Guest;
pub(crate) use kernel::Series;
pub(crate) use suite::{Kernels, Programs, Suite};

use crate::{duration, shell};

/// Options of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The kernel: the newest Debian 12 has of this series.
    #[arg(long, value_name = "SERIES", default_value = "6.1")]
    kernel: Series,
    /// End the command and the machine after this time.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "10m")]
    limit: Duration,
    /// What to put before commands that need root, for example "sudo -E"; only packages that are missing do.
    #[arg(long, value_name = "COMMAND")]
    runner: Option<String>,
    /// Program and arguments; `evenkeel` is what `cargo xtask build` made last. Files below target/ are copied first.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// A command in the machine ended with another exit code than 0.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) u8);

impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            124 => out.write_str("what ran in the virtual machine took too long"),
            code => write!(out, "what ran in the virtual machine ended with exit code {code}"),
        }
    }
}

impl std::error::Error for Ended {}

/// `cargo xtask vm`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { kernel, limit, runner, command } = options;
    let guest = prepare(*kernel, runner.as_deref())?;
    guest.run(std::slice::from_ref(command), &[], *limit)
}

/// Gets what a machine with this kernel needs, where it is not there yet. An error says why it can't be had.
pub(crate) fn prepare(series: Series, runner: Option<&str>) -> Result<Guest> {
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    // One process at a time: another may be fetching the same.
    let path = folder.join("lock");
    let lock = File::create(&path).with_context(|| format!("can't make {}", path.display()))?;
    lock.lock().with_context(|| format!("can't lock {}", path.display()))?;
    let emulator = emulator::find_or_install(runner)?;
    let kernel = kernel::find_or_fetch(series, runner)?;
    eprintln!("virtual machine: {kernel}, {emulator}");
    Ok(Guest::new(kernel, emulator))
}

/// Where everything is kept.
fn folder() -> PathBuf {
    shell::target().join("vm")
}
