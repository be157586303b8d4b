//! The process that is to take this daemon's place, seen from here.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::debug;

use super::command_line::CommandLine;
use super::state::State;
use crate::control::protocol::Response;
use crate::handover::{Channel, Message};
use crate::instance::Locks;

/// How long it may prepare: a resolution of next hops and the verifier take a second or two.
const PREPARATION: Duration = Duration::from_secs(60);
/// How long it may take from when this daemon has stopped working until it serves.
const CHANGE: Duration = Duration::from_secs(60);
/// How long it may take to end after it has said that it failed.
const END: Duration = Duration::from_secs(5);

/// The environment variable by which a daemon knows whose place it takes: the other's process id. Its standard input is the
/// [`Channel`] then.
pub const PREDECESSOR: &str = "EVENKEEL_PREDECESSOR";

/// A process that prepares to take this one's place. Dropping it ends it.
pub struct Successor {
    channel: Channel,
    child: Option<Child>,
    /// Who has asked for it.
    answer: Option<oneshot::Sender<Response>>,
    deadline: Instant,
}

/// What is heard of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Word {
    /// A message.
    Said(Message),
    /// It will not take this one's place; why not.
    Failed(String),
}

impl Successor {
    /// Starts it, with copies of the instance's locks.
    ///
    /// # Errors
    ///
    /// When the executable cannot be run.
    pub fn start(line: &CommandLine, locks: &Locks) -> io::Result<Self> {
        let (channel, theirs) = Channel::pair()?;
        let mut command = Command::new(&line.executable);
        command.args(&line.arguments).env(PREDECESSOR, std::process::id().to_string()).stdin(Stdio::from(theirs));
        let child = command.spawn()?;
        // What it holds of the command is its end of the channel, of which it must have the only copy.
        drop(command);
        let successor = Self { channel, child: Some(child), answer: None, deadline: Instant::now() + PREPARATION };
        if let Err(error) = successor.channel.send(&Message::Locks, &[locks.runtime.as_fd(), locks.pins.as_fd()]) {
            // One that has ended already is heard of like any other that does.
            debug!(%error, "the locks were not handed over");
        }
        Ok(successor)
    }

    /// Who is to be told what becomes of it.
    pub fn asked_by(&mut self, answer: oneshot::Sender<Response>) {
        self.answer = Some(answer);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// What it says next.
    pub async fn next(&self) -> Word {
        let received = tokio::time::timeout_at(self.deadline.into(), self.channel.receive()).await;
        match received {
            Ok(Ok(Some((Message::Failed(why), _)))) => Word::Failed(why),
            Ok(Ok(Some((message, _)))) => Word::Said(message),
            Ok(Ok(None)) => Word::Failed("it has ended without a word; its log says more".to_owned()),
            Ok(Err(error)) => Word::Failed(error.to_string()),
            Err(_) => Word::Failed("it took too long".to_owned()),
        }
    }

    /// Hands over the socket and what this daemon has in mind; from now on it must change nothing.
    ///
    /// # Errors
    ///
    /// When it has gone.
    pub fn hand_over(&mut self, listener: &UnixListener, State { drains, rises }: State) -> io::Result<()> {
        self.deadline = Instant::now() + CHANGE;
        self.channel.send(&Message::Yours { drains, rises }, &[listener.as_fd()])
    }

    /// Answers whoever has asked for it.
    pub fn answer(&mut self, response: Response) {
        if let Some(answer) = self.answer.take() {
            // The caller may have hung up.
            drop(answer.send(response));
        }
    }

    /// Waits until it has ended, which it does after a failure; ends it where it does not.
    pub async fn end(&mut self) {
        let deadline = Instant::now() + END;
        while let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(10)).await,
                Ok(Some(_)) | Err(_) => self.child = None,
                Ok(None) => self.kill(),
            }
        }
    }

    /// It is on its own from now on.
    pub fn release(&mut self) {
        self.child = None;
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that has ended by itself needs no more than to be waited for.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        self.kill();
    }
}
