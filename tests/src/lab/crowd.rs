//! Thousands of TCP connections that one client holds to a [`super::TcpEcho`] behind a virtual server, and talks on.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::namespace::Namespace;

/// How long one line and its answer may take, a segment sent again included.
const ROUND: Duration = Duration::from_secs(8);
/// Between two rounds, for others to get on.
const PAUSE: Duration = Duration::from_millis(20);
/// Descriptors of the process beside those of the connections, each of which has two ends here.
const OTHER_DESCRIPTORS: u64 = 1024;

/// Connections that are held; dropping it closes them.
#[derive(Debug, Default)]
pub struct Crowd {
    members: Vec<Member>,
    rounds: Rounds,
}

/// How often a crowd has talked, for one who does something meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Rounds(Arc<AtomicU32>);

impl Rounds {
    /// Waits until every connection has talked that was there and had not ended.
    pub fn pass(&self) -> Result<()> {
        // The round that is going on may have begun before.
        let (last, deadline) = (self.0.load(Ordering::Relaxed) + 2, Instant::now() + 4 * ROUND);
        while self.0.load(Ordering::Relaxed) < last {
            if Instant::now() >= deadline {
                bail!("the crowd has not talked once in {:?}", 4 * ROUND);
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Member {
    stream: TcpStream,
    /// Who answered first.
    server: String,
    /// What ended it.
    ended: Option<io::ErrorKind>,
}

impl Crowd {
    /// Opens `count` connections from `namespace`, one after another, and says a line on each.
    pub fn connect(namespace: &Namespace, target: SocketAddr, count: usize) -> Result<Self> {
        let mut crowd = Self::default();
        crowd.grow(namespace, target, count)?;
        Ok(crowd)
    }

    /// Opens `count` more.
    pub fn grow(&mut self, namespace: &Namespace, target: SocketAddr, count: usize) -> Result<()> {
        make_room(self.members.len() + count)?;
        let open = || (0..count).map(|_| TcpStream::connect_timeout(&target, ROUND).and_then(Member::new)).collect();
        let new: io::Result<Vec<Member>> = namespace.run(open)?;
        self.members.extend(new.with_context(|| format!("can't open {count} connections to {target}"))?);
        Ok(())
    }

    /// Takes over connections that were made in another way, and says a line on each.
    pub fn adopt(streams: impl IntoIterator<Item = TcpStream>) -> Result<Self> {
        let members: io::Result<Vec<Member>> = streams.into_iter().map(Member::new).collect();
        Ok(Self { members: members?, rounds: Rounds::default() })
    }

    /// Says a line on each connection that has not ended, and waits for the answers. A connection ends by an error, by an
    /// answer from another server than the first one, or when none comes in time.
    pub fn talk(&mut self) -> Result<()> {
        let line = format!("{}\n", self.rounds.0.load(Ordering::Relaxed));
        for member in self.members.iter_mut().filter(|member| member.ended.is_none()) {
            if let Err(error) = member.stream.write_all(line.as_bytes()) {
                member.ended = Some(error.kind());
            }
        }
        let deadline = Instant::now() + ROUND;
        let mut waiting: Vec<&mut Member> = self.members.iter_mut().filter(|member| member.ended.is_none()).collect();
        while !waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                waiting.iter_mut().for_each(|member| member.ended = Some(io::ErrorKind::TimedOut));
                break;
            }
            let mut ready = ready(&waiting, left)?.into_iter();
            waiting.retain_mut(|member| !ready.next().unwrap_or(false) || !member.hear(&line));
        }
        self.rounds.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Talks again and again until `stop`, at least once.
    pub fn talk_until(&mut self, stop: &AtomicBool) -> Result<()> {
        loop {
            self.talk()?;
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// To wait for what it does in another thread.
    pub fn rounds(&self) -> Rounds {
        self.rounds.clone()
    }

    /// How many connections each server has that have not ended.
    pub fn servers(&self) -> BTreeMap<String, usize> {
        let mut servers = BTreeMap::new();
        for member in self.members.iter().filter(|member| member.ended.is_none()) {
            *servers.entry(member.server.clone()).or_default() += 1;
        }
        servers
    }

    /// The servers of all connections in the order they were opened.
    pub fn order(&self) -> Vec<&str> {
        self.members.iter().map(|member| member.server.as_str()).collect()
    }

    /// How many connections have ended, by server and by what ended them.
    pub fn ended(&self) -> BTreeMap<(String, io::ErrorKind), usize> {
        let mut ended = BTreeMap::new();
        for member in &self.members {
            if let Some(kind) = member.ended {
                *ended.entry((member.server.clone(), kind)).or_default() += 1;
            }
        }
        ended
    }

    /// Closes the first `count` connections of a server.
    pub fn close(&mut self, server: &str, count: usize) {
        let mut left = count;
        self.members.retain(|member| {
            let goes = left > 0 && member.server == server;
            left -= usize::from(goes);
            !goes
        });
    }
}

impl Member {
    /// Says a line to learn who answers.
    fn new(mut stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ROUND))?;
        stream.write_all(b"who\n")?;
        let mut buffer = [0; 64];
        let length = stream.read(&mut buffer)?;
        let answer = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        let server = answer.strip_suffix(" who\n").ok_or_else(|| io::Error::other(format!("answered {answer:?}")))?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, server: server.to_owned(), ended: None })
    }

    /// Takes the answer to `line`; false if there is none yet.
    fn hear(&mut self, line: &str) -> bool {
        let mut buffer = [0; 64];
        let read = self.stream.read(&mut buffer);
        self.ended = match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => Some(error.kind()),
            Ok(0) => Some(io::ErrorKind::UnexpectedEof),
            Ok(length) => {
                let expected = format!("{} {line}", self.server);
                let is_right = buffer.get(..length) == Some(expected.as_bytes());
                (!is_right).then_some(io::ErrorKind::InvalidData)
            }
        };
        true
    }
}

/// Waits until one of them has something to tell, or `limit` is over: each one's answer in their order.
fn ready(members: &[&mut Member], limit: Duration) -> io::Result<Vec<bool>> {
    let fds = members.iter().map(|member| PollFd::new(member.stream.as_fd(), PollFlags::POLLIN));
    let mut fds: Vec<PollFd<'_>> = fds.collect();
    match poll(&mut fds, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(Errno::EINTR) => Ok(fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()),
        Err(error) => Err(error.into()),
    }
}

/// Lets this process have the descriptors for `connections`, both ends of each.
fn make_room(connections: usize) -> Result<()> {
    let needed = 2 * u64::try_from(connections)? + OTHER_DESCRIPTORS;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed))
            .with_context(|| format!("can't have {needed} open files, the limit is {hard}"))?;
    }
    Ok(())
}
