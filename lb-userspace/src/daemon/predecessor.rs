//! The running daemon whose place this process takes, seen from here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;

use tracing::warn;

use super::state::State;
use super::successor::PREDECESSOR;
use crate::handover::{Arrival, Channel, Message};
use crate::instance::Locks;

/// The running daemon.
#[derive(Debug)]
pub struct Predecessor(Channel);

/// What it hands over.
#[derive(Debug)]
pub struct Legacy {
    /// Its control socket.
    pub listener: UnixListener,
    /// What its configuration does not tell.
    pub state: State,
}

/// Why a running daemon's place was not taken.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// Its end of the channel is closed.
    #[error("the running daemon has gone before its place was taken")]
    Gone,
    /// Both are not of one mind.
    #[error("the running daemon says {0} where this version expects something else")]
    Unexpected(String),
    /// The channel is broken.
    #[error("cannot speak with the running daemon")]
    Io(#[from] io::Error),
}

impl Predecessor {
    /// The daemon that has started this process to take its place, where one has. Standard input, which was the way to it, is
    /// empty from now on.
    ///
    /// # Errors
    ///
    /// When standard input cannot be exchanged.
    pub fn find() -> io::Result<Option<Self>> {
        let parent = std::os::unix::process::parent_id().to_string();
        // An heir's heir inherits the variable and not the parent.
        if std::env::var(PREDECESSOR) != Ok(parent) {
            return Ok(None);
        }
        let channel = io::stdin().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Ok(Some(Self(Channel::inherited(channel))))
    }

    /// Its locks.
    ///
    /// # Errors
    ///
    /// As [`HandoverError`] tells.
    pub async fn locks(&self) -> Result<Locks, HandoverError> {
        let (message, descriptors) = self.receive().await?;
        match (message, <[OwnedFd; 2]>::try_from(descriptors)) {
            (Message::Locks, Ok([runtime, pins])) => Ok(Locks { runtime: runtime.into(), pins: pins.into() }),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Has it stop working; what it hands over.
    ///
    /// # Errors
    ///
    /// As [`HandoverError`] tells; it goes on then.
    pub async fn take_place(&self) -> Result<Legacy, HandoverError> {
        self.0.send(&Message::Ready, &[])?;
        let (message, descriptors) = self.receive().await?;
        match (message, <[OwnedFd; 1]>::try_from(descriptors)) {
            (Message::Yours { drains, rises }, Ok([listener])) => {
                Ok(Legacy { listener: listener.into(), state: State { drains, rises } })
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Tells it that this process serves. It may have died meanwhile.
    pub fn serving(&self, arrival: Arrival) {
        if let Err(error) = self.0.send(&Message::Serving(arrival), &[]) {
            warn!(%error, "the daemon before this one has not heard that this one serves");
        }
    }

    /// Tells it why this process does not.
    pub fn failed(&self, why: &str) {
        if let Err(error) = self.0.send(&Message::Failed(why.to_owned()), &[]) {
            warn!(%error, "the running daemon has not heard of the failure");
        }
    }

    async fn receive(&self) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
        self.0.receive().await?.ok_or(HandoverError::Gone)
    }
}

fn unexpected(message: &Message) -> HandoverError {
    HandoverError::Unexpected(format!("{message:?}"))
}
