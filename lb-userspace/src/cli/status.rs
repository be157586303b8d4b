//! `evenkeel status`: asks a running daemon what it serves.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;

use super::instance::{Target, socket};
use super::table;
use crate::control::client::ask;
use crate::control::protocol::{Request, Response};

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
