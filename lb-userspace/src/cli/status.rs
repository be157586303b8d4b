//! `evenkeel status`: asks a running daemon what it serves.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};

use super::table;
use crate::config;
use crate::control::client::ask;
use crate::control::protocol::{Request, Response};
use crate::instance::Paths;

/// Which daemon is meant.
#[derive(Clone, Debug)]
pub enum Target {
    /// The one with this socket.
    Socket(PathBuf),
    /// The one that runs this configuration.
    Config(PathBuf),
    /// The instance of this name in the default runtime directory.
    Instance(String),
    /// The only one in the default runtime directory.
    Only,
}

/// Prints the daemon's state, as a table or as JSON.
///
/// # Errors
///
/// When no daemon can be asked, or several could be meant.
pub fn status(target: &Target, json: bool) -> anyhow::Result<ExitCode> {
    let socket = match socket(target)? {
        Ok(socket) => socket,
        Err(code) => return Ok(code),
    };
    let Response::Status(status) = ask(&socket, &Request::Status)? else {
        bail!("the daemon answered another question");
    };
    let mut stdout = io::stdout().lock();
    let written = if json {
        let text = serde_json::to_string_pretty(&status)?;
        writeln!(stdout, "{text}")
    } else {
        write!(stdout, "{}", table::status(&status))
    };
    super::ignore_closed_pipe(written)?;
    Ok(ExitCode::SUCCESS)
}

/// The daemon's socket, or the exit code where the configuration that names it has errors.
pub(super) fn socket(target: &Target) -> anyhow::Result<Result<PathBuf, ExitCode>> {
    let directory = config::Global::default().runtime_directory;
    match target {
        Target::Socket(path) => Ok(Ok(path.clone())),
        Target::Config(file) => Ok(super::load(file)?
            .map(|config| Paths::new(&config.global.runtime_directory, &config.global.instance).socket())),
        Target::Instance(name) => Ok(Ok(Paths::new(&directory, name).socket())),
        Target::Only => only_socket(&directory).map(Ok),
    }
}

fn only_socket(directory: &Path) -> anyhow::Result<PathBuf> {
    let sockets = sockets(directory).unwrap_or_default();
    match sockets.as_slice() {
        [socket] => Ok(socket.clone()),
        [] => bail!("no daemon has a socket in {}; name another with --config or --socket", directory.display()),
        several => {
            let name = |path: &PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            let names: Vec<String> = several.iter().filter_map(name).collect();
            bail!("several instances run here, choose one with --instance: {}", names.join(", "))
        }
    }
}

fn sockets(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let mut sockets: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "sock")).collect();
    sockets.sort();
    Ok(sockets)
}
