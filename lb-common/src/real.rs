//! Real servers as the packet path sees them: where packets go, how they get there, and how loaded each server is.

use crate::net::{Address, MacAddress, Port};
use crate::service::ForwardingMethod;

/// Whether user space knows the Ethernet address behind a next hop.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHopState {
    /// Not known: the packet path asks the kernel's routing table (`bpf_fib_lookup`).
    Unresolved = 0,
    /// Known, and by an interface with the program: the fields beside it are used as they stand.
    Resolved = 1,
    /// There is none that the forwarding method could use: packets are dropped.
    Unusable = 2,
    /// The way leads out by an interface without the program: packets are dropped.
    Unlisted = 3,
    /// The real server is this host: packets go up (`dr` only).
    Local = 4,
}

impl NextHopState {
    /// The state with this number; `None` for those that are none.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Unresolved),
            1 => Some(Self::Resolved),
            2 => Some(Self::Unusable),
            3 => Some(Self::Unlisted),
            4 => Some(Self::Local),
            _ => None,
        }
    }
}

/// The way to a real server's first hop, resolved by user space from netlink.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Whether the other fields may be used.
    pub state: NextHopState,
    /// Interface that packets leave by.
    pub ifindex: u32,
    /// Largest IP packet that the route takes, in bytes.
    pub mtu: u32,
    /// Ethernet address of the next hop.
    pub destination: MacAddress,
    /// Ethernet address of the interface that packets leave by.
    pub source: MacAddress,
}

const _: () = assert!(size_of::<NextHop>() == 24);

impl NextHop {
    /// Nothing known.
    pub const UNRESOLVED: Self = Self {
        state: NextHopState::Unresolved,
        ifindex: 0,
        mtu: 0,
        destination: MacAddress::ZERO,
        source: MacAddress::ZERO,
    };

    /// Known to be of no use.
    pub const UNUSABLE: Self = Self { state: NextHopState::Unusable, ..Self::UNRESOLVED };

    /// This host itself.
    pub const LOCAL: Self = Self { state: NextHopState::Local, ..Self::UNRESOLVED };
}

/// [`RealServerEntry::flags`].
pub mod real_flag {
    /// It has been removed and keeps its TCP connections until they end; UDP goes elsewhere at once.
    pub const REMOVED: u16 = 1;
    /// Its address is IPv6; with `tun` the outer header is, whatever the family of the VIP.
    pub const IPV6: u16 = 1 << 1;
    /// It is its virtual server's sorry server, which may have the address of one of the real servers; never changes while the
    /// place is not free.
    pub const SORRY: u16 = 1 << 2;
}

/// Value of `real_servers`: one real server of one virtual server.
///
/// Two cache lines in a mmapable array: the first has what a packet of a known connection needs.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealServerEntry {
    /// Rises each time the place is given to another real server, so that old connections do not follow; its low octet,
    /// which slots hold, is never zero. Zero: free place.
    pub generation: u32,
    /// How packets reach it.
    pub forwarding: ForwardingMethod,
    /// Index of the virtual server that it belongs to.
    pub virtual_server: u32,
    /// The real server's port; the virtual server's own for `dr` and `tun`, zero where that serves all ports.
    pub port: Port,
    /// [`real_flag`]s.
    pub flags: u16,
    /// The way there.
    pub next_hop: NextHop,
    /// The real server's address.
    pub address: Address,
    /// `nat`: what replacing VIP by address does to a checksum ([`crate::checksum::Delta::folded`]).
    pub address_delta: u32,
    /// `nat`: the same with the ports.
    pub transport_delta: u32,
    // The second line: schedulers, tunnels, replies.
    /// Outer source address for `tun`, of the family of `address`; [`Address::UNSPECIFIED`] for the others.
    pub tunnel_source: Address,
    /// Weight, 0..=65535; zero takes no new connection.
    pub weight: u32,
    /// Connections from which on it takes no new one; zero: no limit.
    pub upper_threshold: u32,
    /// Connections below which it takes new ones again; zero: three quarters of the upper threshold.
    pub lower_threshold: u32,
    /// `nat`: the next real server with the same address, port and protocol, for another virtual server;
    /// [`crate::service::NONE`] at the end.
    pub next_same: u32,
    /// What an active connection adds to its load.
    pub active_cost: u64,
    /// What an inactive connection adds to its load.
    pub inactive_cost: u64,
    /// Active connections above which it takes no new one (`ovf`); [`crate::service::NONE`]: no limit.
    pub active_limit: u32,
    /// `tun`: bits of the last word of `tunnel_source`, as it lies in memory, that a hash of the flow fills; zero for none.
    pub tunnel_spread: u32,
    /// What the first active connection adds on top (`nq`: [`load::BUSY`]); zero for the others.
    pub busy_cost: u64,
}

const _: () = assert!(size_of::<RealServerEntry>() == 128);
const _: () = assert!(core::mem::offset_of!(RealServerEntry, next_hop) == 16);
const _: () = assert!(core::mem::offset_of!(RealServerEntry, tunnel_source) == 64);

/// Real servers in a value of `server_loads` and `server_counts`; those of one value belong to one virtual server.
pub const LANES: usize = 8;

/// The parts of a real server's word in `server_loads`: the lower, the sooner it gets a new connection.
pub mod load {
    /// The load proper: the sum of what its connections cost, plus what the scheduler starts with.
    pub const COST_BITS: u32 = 56;
    /// `nq`: it has an active connection.
    pub const BUSY: u64 = 1 << 56;
    /// Words from here on are those of real servers that take no new connection.
    pub const UNAVAILABLE: u64 = 1 << 60;
    /// More active connections than `ovf` allows.
    pub const OVERFLOWING: u64 = 1 << 60;
    /// Above its upper threshold, and not yet below the lower.
    pub const OVERLOADED: u64 = 1 << 61;
    /// Weight 0, or no real server at all.
    pub const NO_WEIGHT: u64 = 1 << 62;
}

/// Value of `server_loads`: the real server of index i is lane i modulo 8 of element i / 8.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadChunk {
    /// See [`load`].
    pub lanes: [u64; LANES],
}

const _: () = assert!(size_of::<LoadChunk>() == 64);

/// Connections of a real server, in one word that is changed by addition only.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerCounts {
    /// All but the active ones: half-open and closing TCP, UDP.
    pub inactive: u32,
    /// Established TCP.
    pub active: u32,
}

/// Value of `server_counts`, laid out like `server_loads`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountChunk {
    /// By real server.
    pub lanes: [ServerCounts; LANES],
}

const _: () = assert!(size_of::<CountChunk>() == 64);

/// [`ClientHop::state`]. Packets make an entry and hand out its number; user space takes it back from
/// [`hop_state::READABLE`] by way of [`hop_state::RETIRING`], once no connection names it any more.
pub mod hop_state {
    /// Nothing is there.
    pub const FREE: u32 = 0;
    /// It is being written, and nobody else may look.
    pub const WRITING: u32 = 1;
    /// It can be read, and connections get its number. From here on all can be read.
    pub const READABLE: u32 = 2;
    /// It can be read, and no further connection gets its number.
    pub const RETIRING: u32 = 3;
}

/// Value of `client_hops`: a way back to clients of `nat` connections. Element 0 is none.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientHop {
    /// [`crate::service::Lookups::routes`] when the routing table was last asked; zero: never.
    pub routes: u32,
    /// One of [`hop_state`].
    pub state: u32,
    /// Interface that packets leave by.
    pub ifindex: u32,
    /// Largest IP packet that the way takes, in bytes.
    pub mtu: u32,
    /// Ethernet address of the next hop.
    pub destination: MacAddress,
    /// Ethernet address of the interface that packets leave by.
    pub source: MacAddress,
    /// Always zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<ClientHop>() == 32);
// User space changes both in one word.
const _: () = assert!(core::mem::offset_of!(ClientHop, routes) == 0 && core::mem::offset_of!(ClientHop, state) == 4);
