//! The way to a real server, and what a forwarding method makes of it. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::net::Address;
use lb_common::real::{NextHop, NextHopState};
use lb_common::service::ForwardingMethod;

/// The way to an address: what [`crate::nexthop`] found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The next hop.
    pub next_hop: NextHop,
    /// Our own address on that way, the outer source of tunnelled packets unless `tunnel_source` says otherwise.
    pub source: Option<IpAddr>,
    /// The outer source of tunnelled packets where it is configured; a hash of the flow fills the host bits of a prefix.
    pub tunnel_source: Option<IpNet>,
    /// Whether a router stands before the address: `dr` cannot go that way.
    pub is_routed: bool,
    /// Whether the address is this host's own: only `dr` can serve there.
    pub is_local: bool,
    /// Whether the program is attached to the interface that packets leave by; true where that is not known.
    pub is_listed: bool,
}

impl Way {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self {
        next_hop: NextHop::UNRESOLVED,
        source: None,
        tunnel_source: None,
        is_routed: false,
        is_local: false,
        is_listed: true,
    };

    /// This host itself.
    pub const LOCAL: Self = Self { next_hop: NextHop::LOCAL, is_local: true, ..Self::UNKNOWN };

    /// What the packet path does with a packet of this method.
    pub fn next_hop(&self, forwarding: ForwardingMethod) -> NextHop {
        let Self { next_hop, source: _, tunnel_source: _, is_routed, is_local, is_listed } = *self;
        match forwarding {
            ForwardingMethod::Dr if is_local => NextHop::LOCAL,
            ForwardingMethod::Dr if is_routed => NextHop::UNUSABLE,
            ForwardingMethod::Nat | ForwardingMethod::Tun if is_local => NextHop::UNUSABLE,
            ForwardingMethod::Nat | ForwardingMethod::Dr | ForwardingMethod::Tun if is_listed => next_hop,
            ForwardingMethod::Nat | ForwardingMethod::Dr | ForwardingMethod::Tun => {
                NextHop { state: NextHopState::Unlisted, ..next_hop }
            }
        }
    }

    /// The outer source of packets of this method.
    pub fn tunnel_source(&self, forwarding: ForwardingMethod) -> Address {
        match forwarding {
            ForwardingMethod::Tun => {
                let source = self.tunnel_source.map(|source| source.addr()).or(self.source);
                source.map_or(Address::UNSPECIFIED, Address::from)
            }
            ForwardingMethod::Nat | ForwardingMethod::Dr => Address::UNSPECIFIED,
        }
    }

    /// The bits of the last word of [`Self::tunnel_source`], as it lies in memory, that a hash of the flow fills.
    pub fn tunnel_spread(&self, forwarding: ForwardingMethod) -> u32 {
        match (forwarding, self.tunnel_source) {
            (ForwardingMethod::Tun, Some(source)) => {
                let host_bits = source.max_prefix_len().saturating_sub(source.prefix_len());
                let ones = u32::MAX.checked_shr(u32::BITS.saturating_sub(host_bits.into())).unwrap_or(0);
                ones.to_be()
            }
            (ForwardingMethod::Tun, None) | (ForwardingMethod::Nat | ForwardingMethod::Dr, _) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::net::MacAddress;

    use super::*;

    const METHODS: [ForwardingMethod; 3] = [ForwardingMethod::Nat, ForwardingMethod::Dr, ForwardingMethod::Tun];

    fn known() -> Way {
        let mac = MacAddress { octets: [2, 0, 0, 0, 0, 1] };
        let next_hop = NextHop {
            state: NextHopState::Resolved,
            ifindex: 3,
            mtu: 1500,
            destination: mac,
            source: MacAddress::ZERO,
        };
        Way { next_hop, source: Some([10, 0, 0, 254].into()), ..Way::UNKNOWN }
    }

    fn states(way: Way) -> [NextHopState; 3] {
        METHODS.map(|method| way.next_hop(method).state)
    }

    #[test]
    fn each_method_has_its_own_ways() {
        use NextHopState::{Local, Resolved, Unlisted, Unresolved, Unusable};
        assert_eq!(states(known()), [Resolved; 3]);
        assert_eq!(states(Way { is_routed: true, ..known() }), [Resolved, Unusable, Resolved]);
        assert_eq!(states(Way { is_listed: false, ..known() }), [Unlisted; 3]);
        assert_eq!(states(Way { is_listed: false, is_routed: true, ..known() }), [Unlisted, Unusable, Unlisted]);
        assert_eq!(states(Way::LOCAL), [Unusable, Local, Unusable]);
        assert_eq!(states(Way::UNKNOWN), [Unresolved; 3]);
    }

    #[test]
    fn an_interface_without_the_program_is_named_all_the_same() {
        assert_eq!(Way { is_listed: false, ..known() }.next_hop(ForwardingMethod::Nat).ifindex, 3);
    }

    #[test]
    fn only_tunnels_have_an_outer_source() {
        let source = Address::from(IpAddr::from([10, 0, 0, 254]));
        let none = Address::UNSPECIFIED;
        assert_eq!(METHODS.map(|method| known().tunnel_source(method)), [none, none, source]);
        assert_eq!(METHODS.map(|method| Way::UNKNOWN.tunnel_source(method)), [none; 3]);
    }

    #[test]
    fn a_configured_source_stands_before_that_of_the_route() {
        let spread = |source: &str| {
            let way = Way { tunnel_source: Some(source.parse().unwrap()), ..known() };
            let words = METHODS.map(|method| way.tunnel_spread(method));
            assert_eq!(words[..2], [0, 0]);
            (IpAddr::from(way.tunnel_source(ForwardingMethod::Tun)).to_string(), words[2].to_ne_bytes())
        };
        assert_eq!(spread("10.9.0.1/32"), ("10.9.0.1".to_owned(), [0; 4]));
        assert_eq!(spread("10.9.0.0/20"), ("10.9.0.0".to_owned(), [0, 0, 0x0f, 0xff]));
        assert_eq!(spread("10.0.0.0/8"), ("10.0.0.0".to_owned(), [0, 0xff, 0xff, 0xff]));
        assert_eq!(spread("2001:db8::1/128"), ("2001:db8::1".to_owned(), [0; 4]));
        assert_eq!(spread("2001:db8:9::/64"), ("2001:db8:9::".to_owned(), [0xff; 4]));
        assert_eq!(known().tunnel_spread(ForwardingMethod::Tun), 0);
    }
}
