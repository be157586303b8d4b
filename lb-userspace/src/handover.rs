//! What a daemon and the one that takes its place say to each other: one message a packet, over a pair of sockets.
//!
//! ```text
//! old                                        new, a child of the old one
//!   locks ─────────────────────────────────►   checks, loads, resolves; touches nothing
//!   ◄──────────────────────────────── ready
//!   stops its scan, its tasks, its socket
//!   yours (socket, drains, slow starts) ───►   adopts, attaches
//!   ◄────────────────────────────── serving
//!   leaves everything as it is
//! ```
//! Whatever goes wrong before `serving`, the old one goes on, once the new one has ended. What either does is in
//! `daemon/successor.rs` and `daemon/predecessor.rs`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tracing::debug;

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The old one's locks come with it: of the runtime directory, of the pins.
    Locks,
    /// The new one has done everything that can fail and changes nothing that is in use.
    Ready,
    /// The old one does nothing any more; its listening socket comes with it.
    Yours {
        /// What operators have drained.
        drains: Vec<Drain>,
        /// Whose weight is on its way up.
        #[serde(default)]
        rises: Vec<Rise>,
    },
    /// The new one serves.
    Serving(Arrival),
    /// The new one cannot, and has ended or is about to.
    Failed(String),
}

/// A drained real server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// VIP and port of its virtual server.
    pub virtual_server: SocketAddr,
    /// IANA number of its protocol.
    pub protocol: u8,
    /// Address and port.
    pub real_server: SocketAddr,
    /// For how long still; `None`: until it is given back.
    pub milliseconds: Option<u64>,
}

/// A real server whose weight is on its way up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rise {
    /// VIP and port of its virtual server.
    pub virtual_server: SocketAddr,
    /// IANA number of its protocol.
    pub protocol: u8,
    /// Address and port.
    pub real_server: SocketAddr,
    /// For how long it has been.
    pub milliseconds: u64,
}

/// Who has taken a daemon's place, and what it has cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arrival {
    /// What was lost with tables that did not fit.
    pub lost: Option<Lost>,
    /// The interfaces on which the old program had to go before the new one came.
    pub gaps: Vec<String>,
    /// Its version.
    pub version: String,
    /// The file that it runs, symbolic links resolved.
    pub executable: PathBuf,
}

/// Tables that were given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Why they did not fit.
    pub differences: Vec<String>,
    /// Connections in them; `None` where they could not be counted.
    pub connections: Option<u64>,
}

/// One end of the pair.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// Largest message, in bytes: each of 4096 real servers is drained or on its way up.
const MESSAGE_MAX: usize = 1 << 20;

impl Channel {
    /// Both ends.
    ///
    /// # Errors
    ///
    /// From the kernel.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // Without the right to more than the usual 208 KB there is room for a thousand drains or two.
        if let Err(error) = sockopt::set_socket_send_buffer_size_force(&ours, MESSAGE_MAX) {
            debug!(%error, "a list of very many drains cannot be handed over");
        }
        Ok((Self(ours), theirs))
    }

    /// The end that was inherited.
    pub fn inherited(end: OwnedFd) -> Self {
        Self(end)
    }

    /// Sends a message and what comes with it, at most two descriptors.
    ///
    /// # Errors
    ///
    /// When the other one has gone, or the message is too long.
    pub fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(self.0.as_fd(), &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next message and what comes with it; `None` once the other one has gone.
    ///
    /// # Errors
    ///
    /// From the kernel, and for a message that is none (`InvalidData`).
    pub async fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        // To wait for it is the same as with a socket for streams.
        let watched = UnixStream::from_std(self.0.try_clone()?.into())?;
        loop {
            watched.readable().await?;
            match watched.try_io(Interest::READABLE, || receive(watched.as_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received,
            }
        }
    }
}

fn receive(fd: BorrowedFd<'_>) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let length = match recvmsg(fd, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
        // It has gone without reading everything, which is told once, before what it has said.
        Err(Errno::CONNRESET) => recvmsg(fd, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?.bytes,
        other => other?.bytes,
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(bytes.get(..length).unwrap_or_default())?;
    Ok(Some((message, descriptors)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// What is upgraded from or to may be a version before or after this one.
    #[test]
    fn what_a_version_does_not_know_it_leaves_out() {
        let yours: Message = serde_json::from_str(r#"{"Yours":{"drains":[]}}"#).unwrap();
        assert_eq!(yours, Message::Yours { drains: Vec::new(), rises: Vec::new() });
        let serving: Message = serde_json::from_str(r#"{"Serving":{"lost":null,"more":1}}"#).unwrap();
        assert_eq!(serving, Message::Serving(Arrival::default()));
    }

    #[test]
    fn a_message_arrives_whole_with_its_descriptors_and_the_end_is_seen() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::inherited(theirs);
        let drain = |n: u16| Drain {
            virtual_server: ([10, 0, 0, 1], n).into(),
            protocol: 6,
            real_server: ([10, 0, 1, 1], n).into(),
            milliseconds: Some(u64::from(n)),
        };
        let yours = Message::Yours { drains: (0..1000).map(drain).collect(), rises: Vec::new() };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"held").unwrap();
        theirs.send(&Message::Ready, &[]).unwrap();
        ours.send(&yours, &[file.as_fd()]).unwrap();
        runtime().block_on(async {
            let (message, descriptors) = ours.receive().await.unwrap().unwrap();
            assert_eq!((message, descriptors.len()), (Message::Ready, 0));
            let (message, mut descriptors) = theirs.receive().await.unwrap().unwrap();
            assert_eq!(message, yours);
            let mut same = File::from(descriptors.pop().unwrap());
            let mut text = String::new();
            same.rewind().unwrap();
            same.read_to_string(&mut text).unwrap();
            assert_eq!(text, "held");
            // What is not read does not hide what was said.
            theirs.send(&Message::Failed("why".to_owned()), &[]).unwrap();
            ours.send(&Message::Ready, &[]).unwrap();
            drop(theirs);
            assert_eq!(ours.receive().await.unwrap().unwrap().0, Message::Failed("why".to_owned()));
            assert!(ours.receive().await.unwrap().is_none());
        });
    }
}
