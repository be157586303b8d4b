//! A TCP server like sshd towards a network: it speaks first, keeps the connection, and answers line by line.
//!
//! For the director's own address, to see that what is not a virtual server passes untouched.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use nix::sys::socket;

use super::namespace::Namespace;

/// The first line it sends.
const BANNER: &str = "SSH-2.0-evenkeel-lab";

/// A running server; dropping it closes the port and every connection.
#[derive(Debug)]
pub struct SshLike {
    listener: Arc<TcpListener>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl SshLike {
    /// The line it greets with.
    pub const BANNER: &'static str = BANNER;

    /// Starts one in `namespace`; `[::]:22` listens on both families.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = namespace
            .run(|| TcpListener::bind(address))?
            .with_context(|| format!("can't listen on {address} in {}", namespace.name()))?;
        let (listener, connections) = (Arc::new(listener), Arc::new(Mutex::new(Vec::new())));
        let (accepting, kept) = (Arc::clone(&listener), Arc::clone(&connections));
        std::thread::spawn(move || accept(&accepting, &kept));
        Ok(Self { listener, connections })
    }
}

impl Drop for SshLike {
    fn drop(&mut self) {
        if let Err(error) = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both) {
            eprintln!("lab: can't stop a TCP server: {error}");
        }
        for stream in self.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // One that the client has closed can't be shut down, and needn't.
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }
}

/// Accepts until the listener is shut down.
fn accept(listener: &TcpListener, connections: &Mutex<Vec<TcpStream>>) {
    while let Ok((stream, _)) = listener.accept() {
        if let Ok(copy) = stream.try_clone() {
            connections.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
        }
        // A client that went away is no concern of a server.
        std::thread::spawn(move || drop(talk(stream)));
    }
}

fn talk(mut stream: TcpStream) -> io::Result<()> {
    writeln!(stream, "{BANNER}\r")?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        stream.write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}
