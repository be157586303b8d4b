//! The command line's end of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{Request, Response};

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no evenkeel daemon answers at {}: {}", path.display(), why_not(source))]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The answer was cut short or is of another version.
    #[error("the daemon at {} gave no usable answer", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        #[source]
        source: io::Error,
    },
    /// The daemon refused.
    #[error("the daemon refused: {0}")]
    Refused(String),
}

fn why_not(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it is not running, or has another socket".to_owned(),
        io::ErrorKind::PermissionDenied => "its socket is open to its owner and group only".to_owned(),
        io::ErrorKind::ConnectionRefused => {
            "it has died, and its program may still be forwarding; start it again, or run `evenkeel cleanup`".to_owned()
        }
        _ => error.to_string(),
    }
}

/// A daemon that answers, answers within this; a reload waits for next hops.
const PATIENCE: Duration = Duration::from_secs(10);
/// A restart waits for another process, which has a minute to prepare and a minute to take over.
const RESTART_PATIENCE: Duration = Duration::from_secs(130);

/// Asks the daemon at `path`.
///
/// # Errors
///
/// As [`ClientError`] tells.
pub fn ask(path: &Path, request: &Request) -> Result<Response, ClientError> {
    let not_running = |source| ClientError::NotRunning { path: path.to_owned(), source };
    let broken = |source| ClientError::Broken { path: path.to_owned(), source };
    let mut stream = UnixStream::connect(path).map_err(not_running)?;
    let patience = if *request == Request::Restart { RESTART_PATIENCE } else { PATIENCE };
    stream.set_read_timeout(Some(patience)).map_err(broken)?;
    let mut line = serde_json::to_vec(request).map_err(|error| broken(io::Error::other(error)))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(broken)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(broken)?;
    match serde_json::from_str(&answer).map_err(|error| broken(io::Error::other(error)))? {
        Response::Error(text) => Err(ClientError::Refused(text)),
        response => Ok(response),
    }
}
