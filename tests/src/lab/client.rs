//! What clients do, from any namespace: HTTP by curl, UDP, ping, lines over TCP. All with a time limit.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::digest::{digest, file_body};
use super::namespace::Namespace;

/// Limit of one request without a large body, seconds for curl.
const REQUEST_SECONDS: &str = "5";
/// Limit of a download or upload, seconds for curl.
const TRANSFER_SECONDS: &str = "60";

/// Separators that no body of a real server has, between the body, curl's exit code, its message, and the next answer.
const FIELD: char = '\u{1f}';
const RECORD: char = '\u{1e}';

/// What one request of [`Namespace::try_fetch`] led to: the body, or curl's message.
pub type Answer = Result<String, String>;

/// A file that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    /// Its length in bytes.
    pub length: u64,
    /// Its digest, to compare with `file_body(length).digest()`.
    pub digest: String,
}

impl Namespace {
    /// Fetches `url` `count` times, one connection after another, from one curl; returns the bodies without their line
    /// ends. The first request that fails is an error.
    pub fn fetch(&self, url: &str, count: u32) -> Result<Vec<String>> {
        let answers = self.try_fetch(url, count)?;
        let all = answers.into_iter().zip(1..).map(|(answer, number): (Answer, u32)| {
            answer.map_err(|message| anyhow!("request {number} of {count} for {url} failed: {message}"))
        });
        all.collect()
    }

    /// As [`Namespace::fetch`], but a request that fails is an answer too. Each may take 5 s.
    pub fn try_fetch(&self, url: &str, count: u32) -> Result<Vec<Answer>> {
        let write_out = format!("{FIELD}%{{exitcode}}{FIELD}%{{errormsg}}{RECORD}");
        let seconds = REQUEST_SECONDS.parse::<u32>()? * count + 5;
        // The query only makes curl's globbing repeat the request; `[` of an IPv6 address is left alone by it.
        let globbed = if count == 1 { url.to_owned() } else { format!("{url}?[1-{count}]") };
        let arguments =
            ["-s", "-f", "-H", "Connection: close", "--max-time", REQUEST_SECONDS, "-w", &write_out, &globbed];
        let curl = self.command("curl")?.args(arguments).limit(Duration::from_secs(seconds.into())).finish()?;
        let output = String::from_utf8_lossy(&curl.stdout).into_owned();
        let answers: Vec<Answer> = output.split_terminator(RECORD).filter_map(answer).collect();
        if answers.len() != usize::try_from(count)? {
            bail!(
                "curl gave {} answers to {count} requests for {url} ({}): {}",
                answers.len(),
                curl.status,
                curl.stderr
            );
        }
        Ok(answers)
    }

    /// Fetches one file with curl.
    pub fn download(&self, url: &str) -> Result<Download> {
        let arguments = ["-sS", "-f", "-H", "Connection: close", "--max-time", TRANSFER_SECONDS, url];
        let curl = self.command("curl")?.args(arguments).limit(Duration::from_secs(70)).finish()?;
        if !curl.status.success() {
            bail!("curl {url} failed ({}): {}", curl.status, curl.stderr.trim());
        }
        Ok(Download { length: curl.stdout.len() as u64, digest: digest(&curl.stdout) })
    }

    /// Fetches the same file `count` times at once.
    pub fn downloads(&self, url: &str, count: usize) -> Result<Vec<Download>> {
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..count).map(|_| scope.spawn(|| self.download(url))).collect();
            running.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    }

    /// Posts the first `length` bytes of [`file_body`] to `url` (`http://…/digest`); returns the body of the answer.
    pub fn upload(&self, url: &str, length: u64) -> Result<String> {
        let mut body = Vec::new();
        file_body(length).read_to_end(&mut body)?;
        let arguments =
            ["-sS", "-f", "-H", "Connection: close", "--max-time", TRANSFER_SECONDS, "--data-binary", "@-", url];
        let answer = self.command("curl")?.args(arguments).stdin(body).limit(Duration::from_secs(70)).run()?;
        Ok(answer.trim_end().to_owned())
    }

    /// Sends a datagram from a new port and waits for the answer, which must come from the address that was asked.
    pub fn udp_echo(&self, target: SocketAddr, payload: &str, limit: Duration) -> Result<String> {
        self.run(|| udp_ask(target, payload, limit))?
            .with_context(|| format!("no answer from UDP {target} within {limit:?}"))
    }

    /// Sends `count` echo requests; an error unless all are answered.
    pub fn ping(&self, target: IpAddr, count: u32) -> Result<()> {
        let (target, count) = (target.to_string(), count.to_string());
        let arguments = ["-n", "-c", &count, "-i", "0.05", "-W", "1", "-w", "10", &target];
        let printed = self.command("ping")?.args(arguments).limit(Duration::from_secs(15)).run()?;
        if !printed.contains(" 0% packet loss") {
            bail!("ping {target} lost packets: {printed}");
        }
        Ok(())
    }

    /// Connects to a [`super::SshLike`] server, sends `lines` one by one, and returns all lines that came, the banner first.
    pub fn talk(&self, target: SocketAddr, lines: &[&str], limit: Duration) -> Result<Vec<String>> {
        let talk = || -> io::Result<Vec<String>> {
            let mut stream = TcpStream::connect_timeout(&target, limit)?;
            stream.set_read_timeout(Some(limit))?;
            let mut reader = BufReader::new(stream.try_clone()?);
            let mut heard = vec![read_line(&mut reader)?];
            for line in lines {
                writeln!(stream, "{line}")?;
                heard.push(read_line(&mut reader)?);
            }
            Ok(heard)
        };
        self.run(talk)?.with_context(|| format!("no conversation with TCP {target}"))
    }
}

/// As [`Namespace::udp_echo`], from the namespace of the calling thread.
pub fn udp_ask(target: SocketAddr, payload: &str, limit: Duration) -> io::Result<String> {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // A connected socket hears only the address it is connected to.
    socket.connect(target)?;
    socket.set_read_timeout(Some(limit))?;
    socket.send(payload.as_bytes())?;
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).map_err(|error| match error.kind() {
        // What a read timeout is called on Linux says nothing to a reader.
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")),
        _ => error,
    })?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
}

fn read_line(reader: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// One record of curl's output; `None` if it isn't one.
fn answer(record: &str) -> Option<Answer> {
    let mut fields = record.rsplitn(3, FIELD);
    let (message, code, body) = (fields.next()?, fields.next()?, fields.next()?);
    if code == "0" { Some(Ok(body.trim_end().to_owned())) } else { Some(Err(format!("curl {code}: {message}"))) }
}
