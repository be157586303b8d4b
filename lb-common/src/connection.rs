//! The connection table's key and value: which real server a flow belongs to.
//!
//! Both sides of a `nat` connection have an entry, each under the tuple that its packets carry.

use crate::net::{Address, MacAddress, Port, Protocol};

/// The five-tuple of a packet as it stands on the wire; the key of `connections`.
///
/// For packets of a client, destination, port and protocol are the virtual server.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// Transport protocol.
    pub protocol: Protocol,
}

const _: () = assert!(size_of::<FlowKey>() == 40);

/// Which way an entry's packets go.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the VIP.
    Request = 0,
    /// From the real server back to the client (`nat` only).
    Reply = 1,
}

/// How far a connection has come; decides its timeout.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// A TCP SYN was forwarded, nothing has followed.
    SynReceived = 0,
    /// TCP segments without SYN have followed.
    Established = 1,
    /// A FIN or RST was seen; the next SYN is a new connection.
    Closing = 2,
    /// UDP.
    Udp = 3,
}

/// Value of `connections`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionEntry {
    /// The VIP, which a reply gets as its source.
    pub vip: Address,
    /// The virtual server's port, which a reply gets as its source port.
    pub vip_port: Port,
    /// Ethernet address that the client's packets came from: the way back where the routing table knows no neighbour.
    pub client_mac: MacAddress,
    /// Ethernet address that the client's packets went to.
    pub director_mac: MacAddress,
    /// Always zero.
    pub reserved: u16,
    /// Interface that the client's packets came in by.
    pub client_ifindex: u32,
    /// Which packets this entry is for.
    pub direction: Direction,
    /// How far the connection has come.
    pub state: ConnectionState,
    /// Index into `real_servers`.
    pub real_server: u32,
    /// The real server's generation when the connection was made; another one now means the entry is void.
    pub generation: u32,
    /// Coarse time of the last packet: jiffies / 256, wrapping.
    pub last_seen: u32,
}

const _: () = assert!(size_of::<ConnectionEntry>() == 56);

/// Jiffies are shifted by this to the coarse tick of [`ConnectionEntry::last_seen`].
pub const TICK_SHIFT: u32 = 8;

/// How long an idle entry stays valid, in coarse ticks (256 jiffies each).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// [`ConnectionState::SynReceived`].
    pub syn: u32,
    /// [`ConnectionState::Established`].
    pub established: u32,
    /// [`ConnectionState::Closing`].
    pub closing: u32,
    /// [`ConnectionState::Udp`].
    pub udp: u32,
}

impl Timeouts {
    /// IPVS's defaults (60, 900, 120 and 300 seconds) on a kernel with `hz` jiffies a second.
    pub const fn ipvs_defaults(hz: u32) -> Self {
        Self { syn: ticks(60, hz), established: ticks(900, hz), closing: ticks(120, hz), udp: ticks(300, hz) }
    }

    /// Whether an entry in `state`, last seen at tick `last_seen`, is still valid at tick `now`.
    ///
    /// Another CPU may note a later tick than the one we have read: an entry from the future is valid.
    #[inline(always)]
    pub const fn allow(&self, state: ConnectionState, last_seen: u32, now: u32) -> bool {
        now.wrapping_sub(last_seen).cast_signed() <= self.of(state).cast_signed()
    }

    /// The timeout of `state`.
    #[inline(always)]
    const fn of(&self, state: ConnectionState) -> u32 {
        match state {
            ConnectionState::SynReceived => self.syn,
            ConnectionState::Established => self.established,
            ConnectionState::Closing => self.closing,
            ConnectionState::Udp => self.udp,
        }
    }
}

/// `seconds` in coarse ticks, rounded up.
const fn ticks(seconds: u32, hz: u32) -> u32 {
    (seconds * hz).div_ceil(1 << TICK_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifteen_minutes_at_250_hz_are_879_ticks() {
        // 900 s * 250 / 256 = 878.9
        assert_eq!(Timeouts::ipvs_defaults(250).established, 879);
    }

    #[test]
    fn an_entry_is_valid_for_exactly_its_timeout_also_across_the_wrap_of_the_clock() {
        let timeouts = Timeouts { syn: 1, established: 879, closing: 2, udp: 3 };
        let valid = |last_seen, now| timeouts.allow(ConnectionState::Established, last_seen, now);
        assert!(valid(100, 100) && valid(100, 979) && !valid(100, 980));
        assert!(valid(u32::MAX, 878) && !valid(u32::MAX, 879));
    }

    #[test]
    fn an_entry_that_another_cpu_has_just_touched_is_valid() {
        let timeouts = Timeouts::ipvs_defaults(250);
        assert!(timeouts.allow(ConnectionState::Established, 101, 100));
    }

    #[test]
    fn two_minutes_at_1000_hz_are_469_ticks() {
        // 120 s * 1000 / 256 = 468.75
        assert_eq!(Timeouts::ipvs_defaults(1000).closing, 469);
    }
}
