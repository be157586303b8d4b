//! Real servers as the packet path sees them: where packets go and how they get there.

use crate::net::{Address, MacAddress, Port};
use crate::service::ForwardingMethod;

/// Whether user space knows the Ethernet address behind a next hop.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHopState {
    /// Not known: the packet path asks the kernel's routing table (`bpf_fib_lookup`).
    Unresolved = 0,
    /// Known: the fields beside it are used as they stand.
    Resolved = 1,
    /// There is none that the forwarding method could use: packets are dropped.
    Unusable = 2,
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
}

/// Value of `real_servers`: one real server of one virtual server.
///
/// 128 bytes in a mmapable array, so that no entry straddles more cache lines than it must.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealServerEntry {
    /// The real server's address.
    pub address: Address,
    /// Outer source address for `tun`; [`Address::UNSPECIFIED`] for the others.
    pub tunnel_source: Address,
    /// The real server's port; the virtual server's own for `dr` and `tun`.
    pub port: Port,
    /// Always zero.
    pub reserved: u16,
    /// How packets reach it.
    pub forwarding: ForwardingMethod,
    /// Weight, 0..=65535; zero takes no new connection.
    pub weight: u32,
    /// Index of the virtual server that it belongs to.
    pub virtual_server: u32,
    /// Rises each time the slot is given to another real server, so that old connections do not follow. Zero: free slot.
    pub generation: u32,
    /// The way there.
    pub next_hop: NextHop,
    /// Always zero.
    pub reserved_tail: [u32; 13],
}

const _: () = assert!(size_of::<RealServerEntry>() == 128);
const _: () = assert!(core::mem::offset_of!(RealServerEntry, next_hop) == 52);
