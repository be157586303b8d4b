//! Virtual servers as the packet path sees them: the key that packets match and what stands behind it.

use crate::net::{Address, Port, Protocol};

/// (VIP, port, protocol): the identity of a virtual server, and the key of `virtual_servers`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// The virtual IP that clients address.
    pub vip: Address,
    /// The port that clients address.
    pub port: Port,
    /// Always zero.
    pub reserved: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

const _: () = assert!(size_of::<ServiceKey>() == 24);

impl ServiceKey {
    /// The key of `protocol` on `vip`:`port`.
    #[inline(always)]
    pub const fn new(vip: Address, port: Port, protocol: Protocol) -> Self {
        Self { vip, port, reserved: 0, protocol }
    }
}

/// How a virtual server chooses a real server for a new connection; IPVS's names.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduler {
    /// Round robin: the real servers in turn.
    Rr = 0,
}

impl Scheduler {
    /// The word of the configuration file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
        }
    }
}

/// How packets reach a real server; IPVS's terms.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardingMethod {
    /// Network address translation: the destination is rewritten, and the reply on its way back through the director.
    Nat = 0,
    /// Direct routing: only the Ethernet addresses change; the real server holds the VIP and answers the client itself.
    Dr = 1,
    /// Tunnelling: the packet travels in IPIP (RFC 2003) or IP6IP6 (RFC 2473); the reply as with direct routing.
    Tun = 2,
}

impl ForwardingMethod {
    /// The word of the configuration file: `nat`, `dr` or `tun`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dr => "dr",
            Self::Tun => "tun",
        }
    }
}

/// Value of `virtual_servers`.
///
/// The kernel replaces a hash map's element whole, so a packet sees the old ring or the new one, never a mixture.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualServerEntry {
    /// Index into `vs_counters` and `rr_cursors`, below [`crate::VIRTUAL_SERVERS_MAX`].
    pub index: u32,
    /// How a new connection gets its real server.
    pub scheduler: Scheduler,
    /// First element of this virtual server's ring in `scheduler_rings`.
    pub ring_start: u32,
    /// Elements of the ring; zero when no real server takes new connections.
    pub ring_length: u32,
}

const _: () = assert!(size_of::<VirtualServerEntry>() == 16);
