//! Virtual servers as the packet path sees them: the key that packets match and what stands behind it.

use crate::net::{Address, Port, Protocol};

/// (VIP, port, protocol): the identity of a virtual server, and the key of `virtual_servers`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// The virtual IP that clients address.
    pub vip: Address,
    /// The port that clients address; zero for all ports that have no virtual server of their own.
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
    /// Weighted round robin: in turn, each as often as its weight says, evenly interleaved.
    Wrr = 1,
    /// Least connections: least of 256 × active + inactive.
    Lc = 2,
    /// Weighted least connections: least of (256 × active + inactive) / weight.
    Wlc = 3,
    /// Source hashing: by the client's address.
    Sh = 4,
    /// Destination hashing: by the VIP.
    Dh = 5,
    /// Maglev hashing: by the client's address, over a table that changes little with its real servers.
    Mh = 6,
    /// Shortest expected delay: least of (active + 1) / weight.
    Sed = 7,
    /// Never queue: a real server without active connection first, else as [`Scheduler::Sed`].
    Nq = 8,
    /// Weighted failover: the available real server with the highest weight.
    Fo = 9,
    /// Weighted overflow: the one with the highest weight whose active connections do not exceed it.
    Ovf = 10,
    /// The better, by [`Scheduler::Wlc`], of two drawn at random by weight.
    Twos = 11,
}

impl Scheduler {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Sh,
        Self::Dh,
        Self::Mh,
        Self::Sed,
        Self::Nq,
        Self::Fo,
        Self::Ovf,
        Self::Twos,
    ];

    /// The word of the configuration file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Sh => "sh",
            Self::Dh => "dh",
            Self::Mh => "mh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Fo => "fo",
            Self::Ovf => "ovf",
            Self::Twos => "twos",
        }
    }

    /// Whether the same client gets the same real server without any memory of it: `sh`, `dh` and `mh`.
    ///
    /// These pick up a connection in mid-stream; the others refuse a TCP segment of an unknown one.
    pub const fn is_hash(self) -> bool {
        matches!(self, Self::Sh | Self::Dh | Self::Mh)
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
    /// Tunnelling: the packet travels in another one, of the family of the real server's address (IPv4 in IPv4, RFC 2003; IPv6
    /// in IPv4, RFC 4213; either in IPv6, RFC 2473); the reply as with direct routing.
    Tun = 2,
}

impl ForwardingMethod {
    /// The method with this number; `None` for those that are none.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Nat),
            1 => Some(Self::Dr),
            2 => Some(Self::Tun),
            _ => None,
        }
    }

    /// The word of the configuration file: `nat`, `dr` or `tun`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dr => "dr",
            Self::Tun => "tun",
        }
    }
}

/// What a client is told whose packet finds no real server.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// TCP gets a RST, SCTP an ABORT, UDP an ICMP port unreachable, at most so many a second.
    Reject = 0,
    /// Silence.
    Drop = 1,
}

impl Refusal {
    /// The refusal with this number; `None` for those that are none.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Reject),
            1 => Some(Self::Drop),
            _ => None,
        }
    }
}

/// A run of elements in `scheduler_rings`, or of lines in `prefixes`, read as one word so that it is never half old and half new.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First element, in `scheduler_rings` a multiple of [`RING_CHUNK`].
    pub start: u32,
    /// Number of elements.
    pub length: u32,
}

impl Run {
    /// Nothing.
    pub const EMPTY: Self = Self { start: 0, length: 0 };
}

/// Most of [`VirtualServerEntry::chunks`] that are compared for a new connection: those of 256 real servers. With 128 of them
/// the verifier would process 280,000 instructions more.
pub const CHUNKS_COMPARED_MAX: u32 = 32;

/// Elements in a value of `scheduler_rings`: a cache line of them.
pub const RING_CHUNK: usize = 32;

/// Value of `scheduler_rings`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingChunk {
    /// Indexes into `real_servers`, or into `server_loads` in a run of [`VirtualServerEntry::chunks`].
    pub elements: [u16; RING_CHUNK],
}

const _: () = assert!(size_of::<RingChunk>() == 64);

/// [`VirtualServerEntry::flags`].
pub mod service_flag {
    /// Keys are fingerprints and have a tuple: IPv6, or all ports.
    pub const WIDE: u32 = 1;
    /// All ports: a packet's own destination port counts.
    pub const ALL_PORTS: u32 = 1 << 1;
    /// A client's connections go to one real server ([`super::VirtualServerEntry::persistence_timeout`]).
    pub const PERSISTENT: u32 = 1 << 2;
    /// One-packet scheduling: each datagram for itself, nothing is remembered.
    pub const ONE_PACKET: u32 = 1 << 3;
    /// A TCP segment of an unknown connection is scheduled as if it opened one.
    pub const SLOPPY_TCP: u32 = 1 << 4;
    /// `sh` and `mh` hash the client's port too.
    pub const HASH_PORT: u32 = 1 << 5;
    /// `sh`, `dh` and `mh` go to another real server where theirs takes no new connection.
    pub const HASH_FALLBACK: u32 = 1 << 6;
    /// The TCP connections of a real server that is removed go on. For user space: packets see it in the real server's entry.
    pub const KEEP_REMOVED: u32 = 1 << 7;
    /// A reply of a real server behind `nat` is rewritten without a connection too, where it can be nobody else's.
    pub const STATELESS_REPLIES: u32 = 1 << 8;
    /// Only some clients are served: [`super::VirtualServerEntry::prefixes`].
    pub const FILTERED: u32 = 1 << 9;
}

/// Value of `virtual_servers`, and at [`VirtualServerEntry::index`] of `services`, which the packet path reads.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualServerEntry {
    /// What clients address.
    pub key: ServiceKey,
    /// Index into `services`, `vs_counters` and `rr_cursors`, below [`crate::VIRTUAL_SERVERS_MAX`].
    pub index: u32,
    /// How a new connection gets its real server.
    pub scheduler: Scheduler,
    /// [`service_flag`]s.
    pub flags: u32,
    /// Index of the real server for connections that would find none; [`NONE`] without one.
    pub sorry_server: u32,
    /// Real servers in the order of the scheduler: `rr` and `wrr` in turn, `sh`, `dh` and `mh` by hash, `twos` at random;
    /// by hash also for any scheduler when the connection table has no room. Those of weight 0 are not in it.
    pub ring: Run,
    /// For schedulers that compare loads: the chunks of `server_loads` that hold its real servers. Where there is no turn,
    /// in the order of the best in each, so that those past [`CHUNKS_COMPARED_MAX`] are the last that anybody would choose.
    pub chunks: Run,
    /// Ticks that a persistence template outlives its last new connection; zero where there is no persistence.
    pub persistence_timeout: u32,
    /// Most chunks that a new connection compares, beginning with its turn; zero: [`CHUNKS_COMPARED_MAX`].
    pub window: u32,
    /// What of a client's address makes its template.
    pub persistence_mask: Address,
    /// What happens to a new connection that finds no real server.
    pub no_real_server: Refusal,
    /// What happens to a TCP segment of an unknown connection.
    pub unknown_connection: Refusal,
    /// Lanes that the turn of a comparison goes round, counted from the first chunk's first.
    pub lanes: u32,
    /// Always zero.
    pub padding: u32,
    /// Which clients are served: first line and number of lines in `prefixes`; where there is none, all are.
    pub prefixes: Run,
    /// Tells lists of prefixes apart: the same for the same list.
    pub prefixes_digest: u64,
    /// Always zero.
    pub reserved: [u32; 4],
}

const _: () = assert!(size_of::<VirtualServerEntry>() == 128);
const _: () = assert!(core::mem::offset_of!(VirtualServerEntry, ring) == 40);
const _: () = assert!(core::mem::offset_of!(VirtualServerEntry, persistence_mask) == 64);
const _: () = assert!(core::mem::offset_of!(VirtualServerEntry, prefixes) == 96);

/// No index.
pub const NONE: u32 = u32::MAX;

/// Entries in a value of `service_index` and `reply_index`: a cache line of them.
pub const INDEX_SLOTS: usize = 4;

/// One key of an index. In `service_index` each VIP has one too ([`crate::hash::vip_key`]), which leads to any of its virtual
/// servers and has no flags.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexEntry {
    /// [`crate::hash::index_key`] or [`crate::hash::vip_key`]; zero for a free entry.
    pub key: u64,
    /// What the key leads to: an index into `services` or `real_servers`.
    pub index: u32,
    /// The virtual server's [`service_flag`]s.
    pub flags: u32,
}

/// Value of `service_index` (virtual servers) and `reply_index` (real servers behind `nat`).
///
/// Both hold two copies of as many buckets; `lookups` tells which is valid and under which seed.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexBucket {
    /// In no order.
    pub entries: [IndexEntry; INDEX_SLOTS],
}

const _: () = assert!(size_of::<IndexBucket>() == 64);

/// Value of `lookups`, element 0: which copy of each index is valid. One word each, so that a copy and its seed change together.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// Of `service_index`: the seed, and in bit 32 the copy.
    pub services: u64,
    /// Of `reply_index`, likewise.
    pub replies: u64,
    /// Non-zero when a virtual server serves all ports.
    pub all_ports: u32,
    /// Raised with every change of routes or neighbours, so that the ways back to clients are looked up again; never zero.
    pub routes: u32,
    /// Always zero.
    pub reserved: [u64; 5],
}

const _: () = assert!(size_of::<Lookups>() == 64);

impl Lookups {
    /// A seed and a copy (0 or 1) as one word.
    pub const fn word(seed: u32, copy: u32) -> u64 {
        seed as u64 | (copy as u64) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_are_numbered_without_gaps() {
        for (index, scheduler) in Scheduler::ALL.into_iter().enumerate() {
            assert_eq!(scheduler as usize, index);
        }
    }
}
