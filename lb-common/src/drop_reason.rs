//! Why a packet of a virtual server was not forwarded; each reason has a counter in `drops`.

/// Index into `drops`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
    /// A length in the packet contradicts another or the frame.
    Malformed = 0,
    /// The first fragment of a packet, which cannot be followed.
    Fragment = 1,
    /// An IPv6 packet with extension headers.
    ExtensionHeader = 2,
    /// The virtual server has no real server that takes new connections.
    NoRealServer = 3,
    /// A TCP segment without SYN that belongs to no known connection.
    NoConnection = 4,
    /// The real server already has a connection with the client's address and port, for another virtual server.
    TupleInUse = 5,
    /// The connection table took no new entry.
    TableFull = 6,
    /// The time to live or hop limit ran out here.
    TtlExpired = 7,
    /// Larger than the way to the real server or client takes, encapsulation included.
    PacketTooBig = 8,
    /// The routing table has no way there.
    NoRoute = 9,
    /// The next hop's Ethernet address is not known.
    NoNeighbour = 10,
    /// Forwarding is off on the interface that the packet came in by.
    ForwardingDisabled = 11,
    /// The driver left too little room before the packet for the outer header.
    NoHeadroom = 12,
    /// The way out is by an interface without the program, where redirected frames may vanish unseen.
    UnlistedInterface = 13,
    /// The virtual server's `allow` and `deny` do not let the client in.
    Denied = 14,
}

impl DropReason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 15] = [
        Self::Malformed,
        Self::Fragment,
        Self::ExtensionHeader,
        Self::NoRealServer,
        Self::NoConnection,
        Self::TupleInUse,
        Self::TableFull,
        Self::TtlExpired,
        Self::PacketTooBig,
        Self::NoRoute,
        Self::NoNeighbour,
        Self::ForwardingDisabled,
        Self::NoHeadroom,
        Self::UnlistedInterface,
        Self::Denied,
    ];

    /// A short name for tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Fragment => "fragment",
            Self::ExtensionHeader => "extension_header",
            Self::NoRealServer => "no_real_server",
            Self::NoConnection => "no_connection",
            Self::TupleInUse => "tuple_in_use",
            Self::TableFull => "table_full",
            Self::TtlExpired => "ttl_expired",
            Self::PacketTooBig => "packet_too_big",
            Self::NoRoute => "no_route",
            Self::NoNeighbour => "no_neighbour",
            Self::ForwardingDisabled => "forwarding_disabled",
            Self::NoHeadroom => "no_headroom",
            Self::UnlistedInterface => "unlisted_interface",
            Self::Denied => "denied",
        }
    }

    /// The reason in words for operators, and what they can do about it.
    #[expect(clippy::too_many_lines, reason = "a list of texts")]
    pub const fn explanation(self) -> Explanation {
        let (meaning, remedy) = match self {
            Self::Malformed => (
                "lengths in the packet contradict each other or the frame",
                "nothing, if there are few: they are broken or made up; many from one sender point to its driver or to a middlebox",
            ),
            Self::Fragment => (
                "the first fragment of a packet; fragments are not followed",
                "keep packets whole: raise the MTU on the way here, or have senders of UDP keep below it",
            ),
            Self::ExtensionHeader => (
                "an IPv6 packet with extension headers before TCP or UDP",
                "nothing for ordinary clients, who send none; find out who does",
            ),
            Self::NoRealServer => (
                "no real server takes new connections, and there is no sorry server",
                "look in `evenkeel status` for weight 0, drains and servers at their upper_threshold; add a real server or a sorry_server",
            ),
            Self::NoConnection => (
                "a TCP segment or SCTP chunk that opens nothing, of no connection that is known here",
                "expected after a start with new tables, for clients idle longer than timeouts.tcp, and from port scans; else raise \
                 timeouts.tcp, or have keepalives sent more often",
            ),
            Self::TupleInUse => (
                "nat: the real server already has a connection with the client's address and port, for another virtual server",
                "let virtual servers that share a real server reach it by ports of its own each, or use dr or tun",
            ),
            Self::TableFull => (
                "nat: the connection table took no entry for a new connection; a few with any method: its entry was being written",
                "raise xdp.connections_max and restart; if `evenkeel connections --count` shows mostly half-open ones, it is a flood",
            ),
            Self::TtlExpired => (
                "the time to live or hop limit ran out here",
                "a few are traceroute; many are a loop: check whether routes or two directors send packets in a circle",
            ),
            Self::PacketTooBig => (
                "larger than the way to the real server or client takes, encapsulation included",
                "none where senders heed the ICMP errors that they are sent; if it keeps rising, raise the MTU between director and \
                 real servers, or lower the advertised MSS on the real servers; on veth, switch tso off at the peer",
            ),
            Self::NoRoute => (
                "the routing table has no way there, or one that the forwarding method cannot use: dr by a router, nat or tun to this host",
                "see the next hops in `evenkeel status`; add a route (`ip route get ADDRESS` shows what the host thinks), or change \
                 the forwarding method of the real server that is named there",
            ),
            Self::NoNeighbour => (
                "the next hop's Ethernet address is not known",
                "see the next hops in `evenkeel status`: the real server or router is down or does not answer ARP or ND; drain it",
            ),
            Self::ForwardingDisabled => (
                "forwarding is off on the interface that the packet came in by",
                "sysctl -w net.ipv4.ip_forward=1, net.ipv6.conf.all.forwarding=1",
            ),
            Self::NoHeadroom => (
                "the driver left too little room before the packet for the outer header",
                "use mode \"generic\", forwarding \"dr\" or \"nat\", or another driver",
            ),
            Self::UnlistedInterface => (
                "the way out is by an interface that xdp.interfaces does not list",
                "add the interface to xdp.interfaces and restart",
            ),
            Self::Denied => (
                "the client is in none of the virtual server's allow prefixes, or in one of its deny prefixes",
                "nothing, if that is meant; `evenkeel status` says of which virtual servers; else change allow and deny, and reload",
            ),
        };
        Explanation { meaning, remedy }
    }
}

/// A [`DropReason`] in words, lower case and without a full stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What is so of the packets.
    pub meaning: &'static str,
    /// What to look at or to change.
    pub remedy: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_numbered_without_gaps() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
