//! `evenkeel cleanup`: removes what a daemon that died has left.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::instance::Instance;

/// Removes what an earlier daemon of the instance in `file` has left, and says what that was.
///
/// # Errors
///
/// When the instance's daemon is running, or something cannot be removed.
pub fn cleanup(file: &Path) -> anyhow::Result<ExitCode> {
    let config = match super::load(file)? {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    let (instance, leftovers) = Instance::acquire(&config)?;
    drop(instance);
    let mut stdout = io::stdout().lock();
    let mut print = || {
        if leftovers.is_empty() {
            writeln!(stdout, "nothing to clean up for instance {}", config.global.instance)?;
        }
        leftovers.iter().try_for_each(|line| writeln!(stdout, "{line}"))
    };
    super::ignore_closed_pipe(print())?;
    Ok(ExitCode::SUCCESS)
}
