//! Fragments: what becomes of a packet's first one, for the others, which have no ports.

use crate::net::{Address, MacAddress};

/// How long the others are expected after a packet's first fragment, in seconds: as long as Linux waits for the rest of a
/// packet, and IPVS for the rest of what it forwards.
pub const FRAGMENT_SECONDS: u32 = 30;

/// Packets in fragments that are remembered at a time; the one that was used least recently makes room.
pub const FRAGMENTS_MAX: u32 = 32_768;

/// [`FragmentKey::protocol`] of IPv6, whose fragments do not all tell: the number of the fragment header.
pub const IPV6_FRAGMENT: u32 = 44;

/// Key of `fragments`: what all fragments of a packet have in common (RFC 791 §2.3, RFC 8200 §4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey {
    /// Source address, as the packet comes in.
    pub source: Address,
    /// Destination address, as the packet comes in.
    pub destination: Address,
    /// Identification: 16 bits for IPv4, 32 for IPv6, in the order of the wire.
    pub identification: u32,
    /// IANA number of the transport protocol for IPv4; [`IPV6_FRAGMENT`] for IPv6.
    pub protocol: u32,
}

const _: () = assert!(size_of::<FragmentKey>() == 40);

/// What becomes of the other fragments of a packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FragmentWay {
    /// Up to the host, untouched.
    Pass = 0,
    /// To a real server.
    ToServer = 1,
    /// Back to the client of a `nat` connection.
    ToClient = 2,
}

/// Value of `fragments`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentEntry {
    /// Where they go.
    pub way: FragmentWay,
    /// Index of the real server that they go to or come from.
    pub real_server: u32,
    /// The real server's generation when the first came; another one now means that it is another real server.
    pub generation: u32,
    /// When the first came: jiffies / 256.
    pub since: u32,
    /// The source address that the first left with.
    pub source: Address,
    /// The destination address that the first left with.
    pub destination: Address,
    /// The client's way: interface that the first left by.
    pub ifindex: u32,
    /// The client's way: largest IP packet that it takes, in bytes.
    pub mtu: u32,
    /// The client's way: Ethernet address of the next hop.
    pub next_hop: MacAddress,
    /// The client's way: Ethernet address of the interface.
    pub interface: MacAddress,
}

const _: () = assert!(size_of::<FragmentEntry>() == 68);

/// Value of `current_fragment`: what a CPU knows of the packet that it is at.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurrentFragment {
    /// How far the extension headers have been followed.
    pub walk: Walk,
    /// Which packet a fragment is one of.
    pub key: FragmentKey,
    /// What is to be remembered of that.
    pub entry: FragmentEntry,
    /// Non-zero where that is to be remembered of it, should it pass: a first fragment of somebody's who may be served.
    pub may_pass: u32,
}

const _: () = assert!(size_of::<CurrentFragment>() == 128);

/// Where in its extension headers a packet is being read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// What has been found, in the program's own marks.
    pub found: u64,
    /// Offset of the next header in the frame.
    pub offset: u32,
    /// Its number.
    pub next: u32,
}
