//! Types that both the XDP program and user space compile: what lies in the BPF maps, and the arithmetic on it.
//!
//! Nothing here allocates, does I/O or depends on the host; every map type has a fixed layout, asserted at compile time.

#![cfg_attr(not(test), no_std)]

pub mod bench;
pub mod checksum;
pub mod connection;
pub mod counters;
pub mod crc32c;
pub mod drop_reason;
pub mod fragment;
pub mod hash;
pub mod interface;
#[cfg(test)]
mod layout;
pub mod net;
pub mod origin;
#[cfg(feature = "user")]
mod pod;
pub mod prefix;
pub mod real;
pub mod service;

/// Version of every layout in this crate; a daemon never reads pinned maps of another version.
///
/// Raise it with any change to a map's key, value or meaning; `layout.txt` has what a test compares them with.
pub const ABI_VERSION: u32 = 8;

/// Most virtual servers that one instance serves.
pub const VIRTUAL_SERVERS_MAX: u32 = 1024;

/// Most real servers of all virtual servers together that a configuration names; each virtual server counts its own.
pub const REAL_SERVERS_MAX: u32 = 4096;

/// Most places for real servers. A virtual server takes them by [`real::LANES`], so that [`REAL_SERVERS_MAX`] real servers
/// of [`VIRTUAL_SERVERS_MAX`] virtual servers may take 11,264; the rest is room for changes.
pub const REAL_PLACES_MAX: u32 = 16_384;

/// Most prefixes that a virtual server allows and denies.
pub const PREFIXES_MAX: u32 = 100_000;

/// Entries of `client_hops`: clients that can be reached by so many ways, less one, are remembered by theirs.
pub const CLIENT_HOPS_LENGTH: u32 = 4096;

/// Most addresses of this host in `own_addresses`.
pub const OWN_ADDRESSES_MAX: u32 = 16_384;

/// Programs in `stages`, to which `balance` jumps.
pub const STAGES_LENGTH: u32 = 4;

/// The place in `stages` of the program for IPv4 packets that `balance` does not read.
pub const STAGE_EXCEPTIONAL: u32 = 0;

/// The place in `stages` of the program for ICMP errors.
pub const STAGE_ICMP: u32 = 1;

/// The place in `stages` of the program for fragments without ports.
pub const STAGE_FRAGMENT: u32 = 2;

/// The place in `stages` of the program for IPv6 packets that `balance` does not read.
pub const STAGE_EXCEPTIONAL_IPV6: u32 = 3;

/// Slots in `interfaces`; an interface lies at its index modulo this.
pub const INTERFACES_LENGTH: u32 = 256;
