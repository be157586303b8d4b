//! `evenkeel cleanup`: removes what a daemon that died has left.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::instance::Instance;

/// Removes what an earlier daemon of the instance in `file` has left, and says what that was.
///
/// Exits 1 where something could not be put back, 2 where the configuration has errors.
///
/// # Errors
///
/// When the instance's daemon is running, or a pin cannot be removed.
pub fn cleanup(file: &Path) -> anyhow::Result<ExitCode> {
    let config = match super::load(file)? {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    super::start_log(config.global.log_level);
    let mut instance = Instance::acquire(&config)?;
    let undone = instance.dispose()?;
    drop(instance);
    let mut stdout = io::stdout().lock();
    let mut print = || {
        if undone.done.is_empty() && undone.failed.is_empty() {
            writeln!(stdout, "nothing to clean up for instance {}", config.global.instance)?;
        }
        undone.done.iter().try_for_each(|line| writeln!(stdout, "{line}"))
    };
    super::ignore_closed_pipe(print())?;
    for line in &undone.failed {
        eprintln!("not done: {line}");
    }
    Ok(if undone.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
