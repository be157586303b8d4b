//! A TCP server for thousands of long-lived connections: it puts its name in front of each line it echoes.
//!
//! One thread serves them all. A client sends a line and waits for the answer before it sends the next, as [`super::Crowd`] does.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket;

use super::namespace::Namespace;

/// A running server; dropping it closes the port and every connection.
#[derive(Debug)]
pub struct TcpEcho {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl TcpEcho {
    /// Starts one in `namespace` on `port` of all its addresses, both families, that calls itself `name`.
    pub fn start(namespace: &Namespace, port: u16, name: &str) -> Result<Self> {
        Self::start_at(namespace, Ipv6Addr::UNSPECIFIED.into(), port, name)
    }

    /// The same on one address.
    pub fn start_at(namespace: &Namespace, ip: IpAddr, port: u16, name: &str) -> Result<Self> {
        let listener = namespace
            .run(|| TcpListener::bind((ip, port)))?
            .with_context(|| format!("can't listen on TCP {ip} port {port} in {}", namespace.name()))?;
        listener.set_nonblocking(true)?;
        let listener = Arc::new(listener);
        let (accepting, name) = (Arc::clone(&listener), name.to_owned());
        let thread = std::thread::spawn(move || {
            if let Err(error) = serve(&accepting, &name) {
                eprintln!("lab: TCP echo of {name}: {error}");
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for TcpEcho {
    fn drop(&mut self) {
        match socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both) {
            Ok(()) => drop(self.thread.take().map(JoinHandle::join)),
            Err(error) => eprintln!("lab: can't stop a TCP server: {error}"),
        }
    }
}

/// Serves until the listener is shut down.
fn serve(listener: &TcpListener, name: &str) -> io::Result<()> {
    let mut streams: Vec<TcpStream> = Vec::new();
    loop {
        let ready = ready(listener, &streams)?;
        let mut ready = ready.into_iter();
        let listens = ready.next().unwrap_or(false);
        streams.retain_mut(|stream| !ready.next().unwrap_or(false) || echo(stream, name).unwrap_or(false));
        if listens && !accept(listener, &mut streams)? {
            return Ok(());
        }
    }
}

/// Takes in all who wait; false once the listener is shut down.
fn accept(listener: &TcpListener, streams: &mut Vec<TcpStream>) -> io::Result<bool> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                streams.push(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            // The client was gone before we came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// Waits until one of them has something to tell: the listener first, then the streams in their order.
fn ready(listener: &TcpListener, streams: &[TcpStream]) -> io::Result<Vec<bool>> {
    let fds = std::iter::once(listener.as_fd()).chain(streams.iter().map(std::os::fd::AsFd::as_fd));
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()),
        }
    }
}

/// Answers what has come; false once the client is gone.
fn echo(stream: &mut TcpStream, name: &str) -> io::Result<bool> {
    let mut buffer = [0; 256];
    let length = match stream.read(&mut buffer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
        read => read?,
    };
    let mut answer = format!("{name} ").into_bytes();
    answer.extend_from_slice(buffer.get(..length).unwrap_or_default());
    // A short line to a client that waits for it: there is room for it.
    if length != 0 {
        stream.write_all(&answer)?;
    }
    Ok(length != 0)
}
