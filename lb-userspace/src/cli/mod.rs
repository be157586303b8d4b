//! One file per subcommand. No parsing of arguments: that is `main`'s.

pub mod check;
pub mod cleanup;
pub mod decap;
pub mod run;
pub mod status;
mod table;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use crate::config::{self, Config, LoadError};

/// Ends quietly where the reader of our output has gone away.
fn ignore_closed_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// The configuration in `file`; where it has errors they are printed, and the exit code is 2.
fn load(file: &Path) -> anyhow::Result<Result<Config, ExitCode>> {
    match config::load(file) {
        Ok(config) => Ok(Ok(config)),
        Err(LoadError::Invalid(diagnostics)) => {
            eprintln!("{diagnostics}");
            Ok(Err(ExitCode::from(2)))
        }
        Err(error @ LoadError::Read { .. }) => Err(error.into()),
    }
}
