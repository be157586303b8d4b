//! The daemon's end of the control socket.

use std::convert::Infallible;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

use super::protocol::{Request, Response};

/// A request and where its answer goes.
pub type Call = (Request, oneshot::Sender<Response>);

/// Longest request line, in bytes.
const REQUEST_MAX: u64 = 64 * 1024;
/// A client that sends no request for this long is hung up on.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens the socket at `path` for owner and group (0660); a stale one there is replaced.
///
/// # Errors
///
/// When the folder does not allow it.
pub fn bind(path: &Path) -> io::Result<net::UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Passes requests on to `calls` and answers back, until the receiver is gone. Each conversation holds `alive` as long as it
/// lasts.
pub async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>, alive: mpsc::Sender<Infallible>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(converse(stream, calls.clone(), alive.clone()))),
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to be closed.
                debug!(%error, "control connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        if calls.is_closed() {
            return;
        }
    }
}

async fn converse(stream: UnixStream, calls: mpsc::Sender<Call>, _alive: mpsc::Sender<Infallible>) {
    if let Err(error) = answer(stream, calls).await {
        debug!(%error, "control connection broken");
    }
}

async fn answer(stream: UnixStream, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reading.take(REQUEST_MAX));
    timeout(PATIENCE, reader.read_line(&mut line)).await.map_err(io::Error::from)??;
    let response = match serde_json::from_str::<Request>(&line) {
        Err(error) => Response::Error(format!("request not understood: {error}")),
        Ok(request) => {
            let (sender, receiver) = oneshot::channel();
            calls.send((request, sender)).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            receiver.await.unwrap_or_else(|_| Response::Error("the daemon is stopping".to_owned()))
        }
    };
    let mut text = serde_json::to_vec(&response).map_err(io::Error::other)?;
    text.push(b'\n');
    writing.write_all(&text).await
}
