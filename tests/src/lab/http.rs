//! The HTTP server of a real server, and a small HTTP client for many quick requests (tests with a real one use curl).
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | `realN` and a line end |
//! | `GET /file/BYTES` | that many bytes, the same on every server: see [`super::file_body`] |
//! | `POST /digest` | the digest of the body and a line end: see [`super::digest`] |

use std::io::{self, Read, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::socket;
use tiny_http::{Header, Method, Request, Response, Server};

use super::address::HTTP_PORT;
use super::digest::{Digest, file_body};
use super::namespace::Namespace;

/// Threads that answer; a long download takes one of them.
const WORKERS: usize = 8;

/// A running server on `[::]:80`, both families; dropping it closes the port.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    requests: Arc<AtomicU64>,
}

impl HttpServer {
    /// Starts one in `namespace` that calls itself `name`.
    pub fn start(namespace: &Namespace, name: &str) -> Result<Self> {
        let listener = namespace
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, HTTP_PORT)))?
            .with_context(|| format!("can't listen on [::]:{HTTP_PORT} in {}", namespace.name()))?;
        let copy = listener.try_clone().context("can't duplicate a listener")?;
        // Its threads are outside of the namespace; the sockets alone tie them to it.
        let server = Server::from_listener(copy, None).map_err(|error| anyhow!("can't serve HTTP: {error}"))?;
        // Never dropped: its Drop would connect to [::]:80 of whatever namespace the last thread is in. What ends it is
        // the shutdown of the listener, after which the accept thread frees everything but this one structure.
        let server: &'static Server = Box::leak(Box::new(server));
        let requests = Arc::new(AtomicU64::new(0));
        for _ in 0..WORKERS {
            let (name, requests) = (name.to_owned(), Arc::clone(&requests));
            std::thread::spawn(move || work(server, &name, &requests));
        }
        Ok(Self { listener, requests })
    }

    /// How many requests it has answered.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        // A shut down listener refuses new connections at once and wakes the thread in accept (Linux).
        if let Err(error) = socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(&self.listener), socket::Shutdown::Both) {
            eprintln!("lab: can't stop an HTTP server: {error}");
        }
    }
}

/// Answers until the listener is shut down.
fn work(server: &Server, name: &str, requests: &AtomicU64) {
    while let Ok(request) = server.recv() {
        requests.fetch_add(1, Ordering::Relaxed);
        // A client that went away is no concern of a server.
        drop(answer(request, name));
    }
    // One worker hears of the shutdown; each wakes the next.
    server.unblock();
}

fn answer(mut request: Request, name: &str) -> io::Result<()> {
    let path = request.url().split('?').next().unwrap_or_default().to_owned();
    let length = path.strip_prefix("/file/").map(str::parse::<u64>);
    match (request.method(), path.as_str(), length) {
        (Method::Get, "/", _) => respond(request, name, 200, format!("{name}\n").as_bytes()),
        (Method::Get, _, Some(Ok(length))) => {
            let size = usize::try_from(length).map_err(io::Error::other)?;
            let response = Response::new(200.into(), vec![header(name)], file_body(length), Some(size), None);
            request.respond(response.with_chunked_threshold(usize::MAX))
        }
        (Method::Post, "/digest", _) => {
            let mut digest = Digest::default();
            digest.update_from(request.as_reader())?;
            respond(request, name, 200, format!("{}\n", digest.hex()).as_bytes())
        }
        _ => respond(request, name, 404, b"try /, /file/BYTES or POST /digest\n"),
    }
}

fn respond(request: Request, name: &str, status: u16, body: &[u8]) -> io::Result<()> {
    request.respond(Response::new(status.into(), vec![header(name)], body, Some(body.len()), None))
}

fn header(name: &str) -> Header {
    Header::from_bytes("X-Real-Server", name).unwrap_or_else(|()| unreachable!("names of real servers are ASCII"))
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// 200 and so on.
    pub status: u16,
    /// The header `X-Real-Server`, empty if there is none.
    pub real_server: String,
    /// The body as text.
    pub body: String,
}

/// `GET path` on a connection of its own, from the namespace of the calling thread; all of it within `limit`.
pub fn get(address: SocketAddr, path: &str, limit: Duration) -> io::Result<HttpAnswer> {
    let deadline = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))?;
    // One write, one packet.
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(|error| match error.kind() {
        // What a read timeout is called on Linux says nothing to a reader.
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")),
        _ => error,
    })?;
    drop(stream.shutdown(Shutdown::Both));
    parse(&String::from_utf8_lossy(&bytes))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
}

fn parse(answer: &str) -> Option<HttpAnswer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let named =
        lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("x-real-server"));
    let real_server = named.map(|(_, value)| value.trim().to_owned()).unwrap_or_default();
    Some(HttpAnswer { status, real_server, body: body.to_owned() })
}
