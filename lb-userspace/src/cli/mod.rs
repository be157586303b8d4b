//! One file per subcommand. No parsing of arguments: that is `main`'s.

pub mod check;
pub mod cleanup;
pub mod connections;
pub mod decap;
mod drops;
pub mod instance;
pub mod operator;
pub mod run;
pub mod status;
pub mod stop;
mod table;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use crate::config::{self, Config, LoadError, LogLevel};

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

/// Logs to stderr; `RUST_LOG` overrides the configured level.
fn start_log(level: LogLevel) {
    use tracing_subscriber::EnvFilter;
    // Libraries' own messages are of interest to those who ask for them.
    let default = format!("warn,lb_userspace={0},balance={0},lb_ebpf={0}", level.name());
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    log.with_ansi(io::stderr().is_terminal()).init();
}
