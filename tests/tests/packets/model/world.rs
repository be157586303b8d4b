//! What is installed: virtual servers and real servers, as an operator would describe them, and where they lie.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use ipnet::IpNet;
use lb_common::hash::{self, Secret};
use lb_common::net::{Address, Port, Protocol};
use lb_common::service::{ForwardingMethod, Refusal, Scheduler};

use lb_userspace::model::Access;

use super::super::scene::Mac;

/// A virtual server.
#[derive(Clone, Debug)]
pub struct VirtualServer {
    /// Its index, which keys contain.
    pub index: u16,
    /// VIP and port; port 0 for all that have no virtual server of their own.
    pub address: SocketAddr,
    pub protocol: Protocol,
    pub scheduler: Scheduler,
    pub hash_port: bool,
    pub hash_fallback: bool,
    pub one_packet: bool,
    pub sloppy_tcp: bool,
    pub stateless_replies: bool,
    pub persistence: Option<Persistence>,
    pub no_real_server: Refusal,
    pub unknown_connection: Refusal,
    /// Prefixes that it serves or not.
    pub access: Vec<(IpNet, Access)>,
    /// Real server for connections that would find none.
    pub sorry: Option<u16>,
    /// Real servers in the order of the scheduler.
    pub ring: Rc<[u16]>,
    /// Groups of eight real servers, in the order of comparison; each is named by its number, the indexes divided by eight.
    pub groups: Vec<u16>,
    /// How many real servers a comparison begins with in turn.
    pub lanes: u32,
    /// Most groups that are compared; 0: all.
    pub window: u32,
    /// Choices so far.
    pub cursor: u64,
}

/// A client's connections go to one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// In ticks.
    pub timeout: u16,
    pub prefix_length: u8,
}

/// A real server of one virtual server.
#[derive(Clone, Debug)]
pub struct RealServer {
    pub index: u16,
    pub virtual_server: u16,
    pub address: SocketAddr,
    pub forwarding: ForwardingMethod,
    /// Which tenant of its place it is.
    pub generation: u8,
    pub weight: u16,
    /// Removed, but its TCP connections go on.
    pub is_removed: bool,
    /// Connections from which on it gets no more; 0: no limit.
    pub upper: u32,
    /// Connections below which it gets more again; 0: three quarters of `upper`.
    pub lower: u32,
    /// Its place among those that share address and port behind `nat`.
    pub rank: usize,
    pub hop: Hop,
    /// Where tunnelled packets come from: our own address on the way there, or what is configured.
    pub tunnel_source: Option<IpNet>,
    pub active: u32,
    pub inactive: u32,
    /// Whether it came to `upper` and has not been below `lower` since.
    pub is_overloaded: bool,
}

/// The way to a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    Known {
        ifindex: u32,
        mtu: usize,
        to: Mac,
        from: Mac,
    },
    /// Nothing is known, and the kernel's routing table knows nothing either: this is what it says.
    Unknown(lb_common::drop_reason::DropReason),
    /// This host is the real server.
    Local,
}

impl VirtualServer {
    pub fn is_wide(&self) -> bool {
        self.address.is_ipv6() || self.address.port() == 0
    }

    /// The key of a connection from `client` to `vip_port`.
    pub fn connection_key(&self, client: SocketAddr, vip_port: u16, secret: &Secret) -> u64 {
        self.key(client.ip(), client.port(), vip_port, secret)
    }

    /// Whether it serves a client: the longest prefix decides, and where none does, whether some are to be served only.
    pub fn serves(&self, client: IpAddr) -> bool {
        let around = self.access.iter().filter(|(prefix, _)| prefix.contains(&client));
        match around.max_by_key(|(prefix, _)| prefix.prefix_len()) {
            Some((_, access)) => *access == Access::Permitted,
            None => self.access.iter().all(|(_, access)| *access == Access::Denied),
        }
    }

    /// The key of the template of all clients in `network`.
    pub fn template_key(&self, network: IpAddr, secret: &Secret) -> u64 {
        self.key(network, 0, 0, secret)
    }

    fn key(&self, client: IpAddr, client_port: u16, vip_port: u16, secret: &Secret) -> u64 {
        match client {
            IpAddr::V4(v4) if !self.is_wide() => {
                hash::exact_key(u32::from_ne_bytes(v4.octets()), Port::new(client_port), self.index)
            }
            _ => {
                let (client_port, vip_port) = (Port::new(client_port), Port::new(vip_port));
                hash::fingerprint(Address::from(client).halves(), client_port, vip_port, self.index, secret)
            }
        }
    }

    /// What of a client's address its template is for.
    pub fn network(&self, client: IpAddr, persistence: Persistence) -> IpAddr {
        let bits = u32::from(persistence.prefix_length);
        match client {
            IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) & u32::MAX.checked_shl(32 - bits).unwrap_or(0)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & u128::MAX.checked_shl(128 - bits).unwrap_or(0)).into(),
        }
    }
}

impl RealServer {
    /// Whether `virtual_server`'s scheduler may choose it.
    pub fn is_available(&self, scheduler: Scheduler) -> bool {
        let is_overflowing = scheduler == Scheduler::Ovf && self.active > u32::from(self.weight);
        self.takes_any() && !self.is_overloaded && !is_overflowing
    }

    /// Whether it takes connections at all, were they not too many.
    pub fn takes_any(&self) -> bool {
        self.weight > 0 && !self.is_removed
    }

    /// Where `nat` sends a packet to `vip_port`.
    pub fn destination(&self, vip_port: u16) -> SocketAddr {
        let port = if self.address.port() == 0 { vip_port } else { self.address.port() };
        SocketAddr::new(self.address.ip(), port)
    }

    /// A connection has come.
    pub fn note_added(&mut self) {
        if self.upper != 0 && self.active + self.inactive >= self.upper {
            self.is_overloaded = true;
        }
    }

    /// A connection has gone.
    pub fn note_taken_away(&mut self) {
        if self.upper == 0 {
            return;
        }
        let total = self.active + self.inactive;
        let is_below = if self.lower == 0 { total * 4 < self.upper * 3 } else { total < self.lower };
        if is_below {
            self.is_overloaded = false;
        }
    }
}

#[test]
fn a_network_is_the_leading_bits() {
    let mut server = super::tests::virtual_server(Scheduler::Rr);
    let persistence = |prefix_length| Persistence { timeout: 1, prefix_length };
    let network = |text: &str, bits| server.network(text.parse().expect("an address"), persistence(bits)).to_string();
    assert_eq!(network("192.0.2.255", 24), "192.0.2.0");
    assert_eq!(network("192.0.2.255", 32), "192.0.2.255");
    assert_eq!(network("2001:db8:ffff::1", 33), "2001:db8:8000::");
    server.address.set_port(0);
    assert!(server.is_wide());
}
