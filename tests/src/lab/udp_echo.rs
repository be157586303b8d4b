//! A UDP server that answers with its name and what it got, *from the address that was asked*.
//!
//! With DR and TUN that is the VIP and not the address the kernel would take for the answer.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::sockopt::Ipv6RecvPacketInfo;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockaddrIn6, recvmsg, sendmsg, setsockopt, shutdown,
};

use super::address::UDP_PORT;
use super::namespace::Namespace;

/// A running server on `[::]:5353`, both families; dropping it closes the port.
#[derive(Debug)]
pub struct UdpEcho {
    socket: Arc<UdpSocket>,
    answers: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Starts one in `namespace` that puts `name` and a space in front of what it echoes.
    pub fn start(namespace: &Namespace, name: &str) -> Result<Self> {
        let socket = namespace
            .run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, UDP_PORT)))?
            .with_context(|| format!("can't bind UDP [::]:{UDP_PORT} in {}", namespace.name()))?;
        // For an IPv4 packet the kernel gives the mapped address (::ffff:a.b.c.d), and takes it as a source.
        setsockopt(&socket, Ipv6RecvPacketInfo, &true).context("can't ask for IPV6_RECVPKTINFO")?;
        let (socket, answers) = (Arc::new(socket), Arc::new(AtomicU64::new(0)));
        let (name, shared, counted) = (name.to_owned(), Arc::clone(&socket), Arc::clone(&answers));
        let thread = std::thread::spawn(move || serve(&shared, &name, &counted));
        Ok(Self { socket, answers, thread: Some(thread) })
    }

    /// How many datagrams it has answered.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        // Wakes the thread with an empty read; that the socket isn't connected is an error only in name.
        match shutdown(self.socket.as_raw_fd(), Shutdown::Both) {
            Ok(()) | Err(Errno::ENOTCONN) => drop(self.thread.take().map(JoinHandle::join)),
            Err(error) => eprintln!("lab: can't stop a UDP server: {error}"),
        }
    }
}

fn serve(socket: &UdpSocket, name: &str, answers: &AtomicU64) {
    let mut buffer = vec![0; 65_536];
    loop {
        match echo(socket, name, &mut buffer, answers) {
            Ok(Some(())) => {}
            Ok(None) => return,
            Err(error) => eprintln!("lab: UDP echo of {name}: {error}"),
        }
    }
}

/// Answers one datagram; `None` once the socket is shut down.
fn echo(socket: &UdpSocket, name: &str, buffer: &mut [u8], answers: &AtomicU64) -> nix::Result<Option<()>> {
    let mut control = cmsg_space!(libc::in6_pktinfo);
    let (length, from, asked) = {
        let mut parts = [IoSliceMut::new(buffer)];
        let got = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
        let asked = got.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(info.ipi6_addr),
            _ => None,
        });
        (got.bytes, got.address, asked)
    };
    // Every datagram comes with the address that was asked; without it this is the end of the socket.
    let (Some(from), Some(asked)) = (from, asked) else { return Ok(None) };
    // No interface: the route decides, since the VIP is on `lo`.
    let source = libc::in6_pktinfo { ipi6_addr: asked, ipi6_ifindex: 0 };
    let payload = buffer.get(..length).unwrap_or_default();
    let parts = [IoSlice::new(name.as_bytes()), IoSlice::new(b" "), IoSlice::new(payload)];
    let control = [ControlMessage::Ipv6PacketInfo(&source)];
    // Counted first: a client that has its answer finds it counted.
    answers.fetch_add(1, Ordering::Relaxed);
    sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&from))?;
    Ok(Some(()))
}
