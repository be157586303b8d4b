//! `evenkeel run`: the daemon.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::config::LoadError;
use crate::daemon::{self, Predecessor};
use crate::error::chain;

/// Serves the configuration in `file` until SIGTERM or SIGINT, in the place of a running daemon where that has started this
/// process for it.
///
/// Exits 2 where the configuration has errors.
///
/// # Errors
///
/// When the daemon cannot start or go on.
pub fn run(file: &Path) -> anyhow::Result<ExitCode> {
    let predecessor = Predecessor::find().context("cannot open the way to the running daemon")?;
    let result = serve(file, predecessor.as_ref());
    if let (Some(running), Err(error)) = (&predecessor, &result) {
        running.failed(&chain(error.as_ref()));
    }
    match result {
        Err(error) => match error.downcast_ref::<LoadError>() {
            Some(LoadError::Invalid(diagnostics)) => {
                eprintln!("{diagnostics}");
                Ok(ExitCode::from(2))
            }
            _ => Err(error),
        },
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

fn serve(file: &Path, predecessor: Option<&Predecessor>) -> anyhow::Result<()> {
    let config = crate::config::load(file)?;
    super::start_log(config.global.log_level);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(daemon::run(file.to_owned(), config, predecessor))?;
    Ok(())
}
