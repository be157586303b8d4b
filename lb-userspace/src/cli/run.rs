//! `evenkeel run`: the daemon.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::daemon;

/// Serves the configuration in `file` until SIGTERM or SIGINT.
///
/// Exits 2 where the configuration has errors.
///
/// # Errors
///
/// When the daemon cannot start or go on.
pub fn run(file: &Path) -> anyhow::Result<ExitCode> {
    let config = match super::load(file)? {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    super::start_log(config.global.log_level);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(daemon::run(file.to_owned(), config))?;
    Ok(ExitCode::SUCCESS)
}
