//! `evenkeel status`: asks a running daemon what it serves.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;

use super::instance::{Target, socket};
use super::{drops, table};
use crate::control::client::ask;
use crate::control::protocol::{Request, Response};

/// What of the daemon's state is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// What is served, and all that was counted.
    Everything,
    /// Why packets were dropped; with `all` also the reasons that none was dropped for.
    Drops {
        /// Every reason.
        all: bool,
    },
}

/// Prints the daemon's state, as text or as JSON.
///
/// # Errors
///
/// When no daemon can be asked, or several could be meant.
pub fn status(target: &Target, topic: Topic, json: bool) -> anyhow::Result<ExitCode> {
    let socket = match socket(target)? {
        Ok(socket) => socket,
        Err(code) => return Ok(code),
    };
    let Response::Status(status) = ask(&socket, &Request::Status)? else {
        bail!("the daemon answered another question");
    };
    let text = match topic {
        Topic::Everything if json => serde_json::to_string_pretty(&status)? + "\n",
        Topic::Everything => table::status(&status),
        Topic::Drops { all } => {
            let lines = drops::lines(&status.drops, all);
            if json { serde_json::to_string_pretty(&lines)? + "\n" } else { drops::text(&lines) }
        }
    };
    let written = write!(io::stdout().lock(), "{text}");
    super::ignore_closed_pipe(written)?;
    Ok(ExitCode::SUCCESS)
}
