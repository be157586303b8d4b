//! `evenkeel run`: the daemon.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::config::LogLevel;
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
    start_log(config.global.log_level);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(daemon::run(config))?;
    Ok(ExitCode::SUCCESS)
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
