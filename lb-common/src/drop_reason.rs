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
}

impl DropReason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 14] = [
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
        }
    }
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
