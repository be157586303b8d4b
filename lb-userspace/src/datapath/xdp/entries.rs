//! What is desired as entries of the maps, and the way back. Pure.

use std::net::{IpAddr, SocketAddr};

use lb_common::checksum::Delta;
use lb_common::hash::index_key;
use lb_common::net::{Address, Port};
use lb_common::real::{LANES, NextHop, RealServerEntry, real_flag};
use lb_common::service::{
    CHUNKS_COMPARED_MAX, ForwardingMethod, NONE, Run, Scheduler, VirtualServerEntry, service_flag,
};

use super::chains::Source;
use super::places::Role;
use super::way::Way;
use crate::datapath::{Clients, Persistence, Policy};
use crate::model::{Removal, Service, Thresholds, Weight};
use crate::schedule::cost::Cost;
use crate::schedule::{maglev, ring};

/// Where a virtual server's real servers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The ring.
    pub ring: Run,
    /// The chunks of `server_loads`.
    pub chunks: Run,
    /// Lanes from the first chunk's first to the last that is in use.
    pub lanes: u32,
    /// Index of the sorry server.
    pub sorry_server: Option<u16>,
    /// Which clients are served, in `prefixes`; nothing: all.
    pub prefixes: Run,
    /// What tells the list apart.
    pub digest: u64,
}

/// The entry of virtual server number `index`.
pub fn virtual_server(service: Service, index: u32, policy: &Policy, behind: &Behind) -> VirtualServerEntry {
    let Behind { ring, chunks, lanes, sorry_server, prefixes, digest } = *behind;
    let filtered = if prefixes == Run::EMPTY { 0 } else { service_flag::FILTERED };
    let lanes = if rotates(policy.scheduler) { lanes } else { 0 };
    VirtualServerEntry {
        key: service.into(),
        index,
        scheduler: policy.scheduler,
        flags: flags(service, policy) | filtered,
        sorry_server: sorry_server.map_or(NONE, u32::from),
        ring,
        chunks,
        persistence_timeout: policy.persistence.map_or(0, |persistence| persistence.ticks.into()),
        window: if lanes > LANES_COMPARED { WINDOW } else { 0 },
        persistence_mask: policy
            .persistence
            .map_or(Address::UNSPECIFIED, |persistence| mask(service.address.ip(), persistence.prefix_length)),
        no_real_server: policy.no_real_server,
        unknown_connection: policy.unknown_connection,
        lanes,
        padding: 0,
        prefixes,
        prefixes_digest: digest,
        reserved: [0; 4],
    }
}

/// Above so many lanes, a new connection compares only a window of them, that begins with its turn.
#[expect(clippy::cast_possible_truncation, reason = "it is 8")]
const LANES_COMPARED: u32 = CHUNKS_COMPARED_MAX * LANES as u32;
/// The window, in chunks.
const WINDOW: u32 = 8;

/// Whether real servers of equal load have their turns; `fo` and `ovf` always prefer the first.
pub fn rotates(scheduler: Scheduler) -> bool {
    !matches!(scheduler, Scheduler::Fo | Scheduler::Ovf)
}

/// The [`service_flag`]s of a virtual server.
pub fn flags(service: Service, policy: &Policy) -> u32 {
    let all_ports = service.address.port() == 0;
    let flags = [
        (service_flag::WIDE, all_ports || service.address.is_ipv6()),
        (service_flag::ALL_PORTS, all_ports),
        (service_flag::PERSISTENT, policy.persistence.is_some()),
        (service_flag::ONE_PACKET, policy.one_packet),
        (service_flag::SLOPPY_TCP, policy.sloppy_tcp),
        (service_flag::HASH_PORT, policy.hash_port),
        (service_flag::HASH_FALLBACK, policy.hash_fallback),
        (service_flag::STATELESS_REPLIES, policy.stateless_replies),
        (service_flag::KEEP_REMOVED, policy.removed_real_server == Removal::Keep),
    ];
    flags.into_iter().filter(|(_, is_set)| *is_set).fold(0, |flags, (flag, _)| flags | flag)
}

/// Which clients an entry says are served.
pub fn clients(entry: &VirtualServerEntry) -> Option<Clients> {
    (entry.prefixes != Run::EMPTY).then_some(Clients { digest: entry.prefixes_digest, list: None })
}

/// What an entry says of how its virtual server treats connections; `None` where this version did not write it.
pub fn policy(entry: &VirtualServerEntry) -> Option<Policy> {
    let has = |flag| entry.flags & flag != 0;
    let persistence = if has(service_flag::PERSISTENT) {
        let ticks = u16::try_from(entry.persistence_timeout).ok()?;
        let ones: u32 = entry.persistence_mask.octets.iter().map(|octet| octet.count_ones()).sum();
        let mapped = if entry.key.vip.is_ipv4() { MAPPED_BITS } else { 0 };
        Some(Persistence { ticks, prefix_length: u8::try_from(ones.checked_sub(mapped.into())?).ok()? })
    } else {
        None
    };
    Some(Policy {
        scheduler: entry.scheduler,
        hash_port: has(service_flag::HASH_PORT),
        hash_fallback: has(service_flag::HASH_FALLBACK),
        persistence,
        one_packet: has(service_flag::ONE_PACKET),
        sloppy_tcp: has(service_flag::SLOPPY_TCP),
        stateless_replies: has(service_flag::STATELESS_REPLIES),
        no_real_server: entry.no_real_server,
        unknown_connection: entry.unknown_connection,
        removed_real_server: if has(service_flag::KEEP_REMOVED) { Removal::Keep } else { Removal::Expire },
    })
}

/// Bits before those of an IPv4 address in its mapped form.
const MAPPED_BITS: u8 = 96;

/// The leading `prefix_length` bits of addresses like `address`, as they lie in the maps.
fn mask(address: IpAddr, prefix_length: u8) -> Address {
    let ones = if address.is_ipv4() { prefix_length.saturating_add(MAPPED_BITS) } else { prefix_length };
    let zeros = 128_u32.saturating_sub(ones.into());
    Address { octets: u128::MAX.checked_shl(zeros).unwrap_or(0).to_be_bytes() }
}

/// The ring of `real_servers`, which are in the order of their addresses, as positions among them.
///
/// Also for schedulers that go by load: connections without a place in the table are spread over it by hash. It does that
/// as the scheduler would, as far as that goes without counting.
pub fn ring(scheduler: Scheduler, real_servers: &[(SocketAddr, Weight)]) -> Vec<usize> {
    let weights: Vec<u16> = real_servers.iter().map(|(_, weight)| weight.get()).collect();
    match scheduler {
        Scheduler::Rr | Scheduler::Lc => ring::each_once(&weights),
        Scheduler::Wrr | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq | Scheduler::Ovf | Scheduler::Twos => {
            ring::smooth(&weights)
        }
        Scheduler::Fo => ring::highest(&weights),
        Scheduler::Sh | Scheduler::Dh | Scheduler::Mh => {
            let candidate = |(address, weight): &(SocketAddr, Weight)| maglev::Candidate {
                address: *address,
                weight: weight.get(),
            };
            maglev::table(&real_servers.iter().map(candidate).collect::<Vec<_>>())
        }
    }
}

/// The longest ring that `count` real servers may have, of whatever weights.
pub fn ring_length_max(scheduler: Scheduler, count: usize) -> u32 {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    match scheduler {
        Scheduler::Rr | Scheduler::Lc => count,
        Scheduler::Fo => count.min(1),
        Scheduler::Sh | Scheduler::Dh | Scheduler::Mh => {
            maglev::size(usize::try_from(count).unwrap_or(usize::MAX)) * count.min(1)
        }
        Scheduler::Wrr | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq | Scheduler::Ovf | Scheduler::Twos => {
            let longest = u32::try_from(ring::RING_MAX).unwrap_or(u32::MAX);
            if count > 1 { longest } else { count }
        }
    }
}

/// A place in `real_servers` that is free. What it says of the chain still leads a packet on that came here by it.
pub fn free_place(next_same: u32) -> RealServerEntry {
    RealServerEntry {
        generation: 0,
        forwarding: ForwardingMethod::Nat,
        virtual_server: 0,
        port: Port::new(0),
        flags: 0,
        next_hop: NextHop::UNRESOLVED,
        address: Address::UNSPECIFIED,
        address_delta: 0,
        transport_delta: 0,
        tunnel_source: Address::UNSPECIFIED,
        weight: 0,
        upper_threshold: 0,
        lower_threshold: 0,
        next_same,
        active_cost: 0,
        inactive_cost: 0,
        active_limit: NONE,
        tunnel_spread: 0,
        busy_cost: 0,
    }
}

/// A real server as it is to be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealServer {
    /// What for.
    pub role: Role,
    /// Address and port.
    pub address: SocketAddr,
    /// How packets reach it.
    pub forwarding: ForwardingMethod,
    /// Its share of new connections.
    pub weight: Weight,
    /// How many connections it takes.
    pub thresholds: Thresholds,
    /// What they cost.
    pub cost: Cost,
}

impl RealServer {
    /// Its entry, of no generation and at the end of its chain, behind virtual server number `virtual_server`.
    pub fn entry(&self, service: Service, virtual_server: u32, way: &Way) -> RealServerEntry {
        let Self { role, address, forwarding, weight, thresholds, cost } = *self;
        let family = if address.is_ipv6() { real_flag::IPV6 } else { 0 };
        let (address_delta, transport_delta) = match forwarding {
            ForwardingMethod::Nat => deltas(service.address, address),
            ForwardingMethod::Dr | ForwardingMethod::Tun => (0, 0),
        };
        RealServerEntry {
            forwarding,
            virtual_server,
            port: Port::new(address.port()),
            flags: family | if role == Role::Sorry { real_flag::SORRY } else { 0 },
            next_hop: way.next_hop(forwarding),
            address: address.ip().into(),
            address_delta,
            transport_delta,
            tunnel_source: way.tunnel_source(forwarding),
            tunnel_spread: way.tunnel_spread(forwarding),
            weight: weight.get().into(),
            upper_threshold: thresholds.upper,
            lower_threshold: thresholds.lower,
            active_cost: cost.active,
            inactive_cost: cost.inactive,
            active_limit: cost.active_limit,
            busy_cost: cost.busy,
            ..free_place(NONE)
        }
    }
}

/// What becomes of checksums over the address, and over address and port, when `from` is replaced by `to`; the port stays
/// where the virtual server serves all ports.
fn deltas(from: SocketAddr, to: SocketAddr) -> (u32, u32) {
    let (vip, real) = (Address::from(from.ip()), Address::from(to.ip()));
    let addresses = match (vip.is_ipv4(), vip.words(), real.words()) {
        (true, [_, _, _, vip], [_, _, _, real]) => Delta::NONE.replace32(vip, real),
        (false, vip, real) => Delta::NONE.replace128(vip, real),
    };
    let transport = match (from.port(), to.port()) {
        (0, _) | (_, 0) => addresses,
        (from, to) => addresses.replace16(Port::new(from).to_wire(), Port::new(to).to_wire()),
    };
    (addresses.folded(), transport.folded())
}

/// What a real server's entry is there for.
pub fn role(entry: &RealServerEntry) -> Role {
    if entry.flags & real_flag::SORRY == 0 { Role::Real } else { Role::Sorry }
}

/// Address and port of a real server's entry.
pub fn address(entry: &RealServerEntry) -> SocketAddr {
    SocketAddr::new(entry.address.into(), entry.port.number())
}

/// Whether an entry is that of a real server which is gone but for its connections.
pub fn is_removed(entry: &RealServerEntry) -> bool {
    entry.flags & real_flag::REMOVED != 0
}

/// The key of a virtual server in `service_index`.
pub fn service_key(service: Service) -> u64 {
    let Service { address, protocol } = service;
    index_key(&address.ip().into(), Port::new(address.port()), protocol)
}

/// The key in `service_index` of an address that has virtual servers.
pub fn vip_key(vip: IpAddr) -> u64 {
    lb_common::hash::vip_key(&vip.into())
}

/// The key in `reply_index` of an address that has real servers behind `nat`.
pub fn address_key(address: IpAddr) -> u64 {
    lb_common::hash::vip_key(&address.into())
}

/// The key of a real server in `reply_index`.
pub fn reply_key(source: Source) -> u64 {
    let Source { address, protocol } = source;
    index_key(&address.ip().into(), Port::new(address.port()), protocol)
}

#[cfg(test)]
mod tests {
    use lb_common::net::Protocol;
    use lb_common::real::load;
    use lb_common::service::Refusal;
    use proptest::prelude::*;

    use super::*;
    use crate::model;

    fn service(address: &str) -> Service {
        Service { address: address.parse().unwrap(), protocol: Protocol::Tcp }
    }

    fn policy_of(scheduler: Scheduler) -> Policy {
        Policy::new(&model::Policy::new(scheduler), 250)
    }

    const BEHIND: Behind =
        Behind { ring: Run::EMPTY, chunks: Run::EMPTY, lanes: 5, sorry_server: None, prefixes: Run::EMPTY, digest: 0 };

    #[test]
    fn ipv6_and_all_ports_are_wide() {
        let flags = |address| flags(service(address), &policy_of(Scheduler::Rr)) & !service_flag::KEEP_REMOVED;
        assert_eq!(flags("10.0.0.1:80"), 0);
        assert_eq!(flags("[fd00::1]:80"), service_flag::WIDE);
        assert_eq!(flags("10.0.0.1:0"), service_flag::WIDE | service_flag::ALL_PORTS);
    }

    #[test]
    fn masks_are_over_the_mapped_octets() {
        let octets = |address: &str, length| mask(address.parse().unwrap(), length).octets;
        assert_eq!(
            octets("10.0.0.1", 24),
            [255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0]
        );
        assert_eq!(octets("10.0.0.1", 32), [255; 16]);
        assert_eq!(octets("fd00::1", 12), [255, 240, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(octets("fd00::1", 128), [255; 16]);
        assert_eq!(octets("fd00::1", 0), [0; 16]);
    }

    #[test]
    fn many_lanes_are_compared_by_a_window_that_turns() {
        let entry = |scheduler, lanes| {
            virtual_server(service("10.0.0.1:80"), 3, &policy_of(scheduler), &Behind { lanes, ..BEHIND })
        };
        assert_eq!((entry(Scheduler::Wlc, 256).lanes, entry(Scheduler::Wlc, 256).window), (256, 0));
        assert_eq!((entry(Scheduler::Wlc, 257).lanes, entry(Scheduler::Wlc, 257).window), (257, 8));
        assert_eq!((entry(Scheduler::Fo, 999).lanes, entry(Scheduler::Fo, 999).window), (0, 0));
        assert_eq!((entry(Scheduler::Ovf, 999).lanes, entry(Scheduler::Ovf, 999).window), (0, 0));
        assert_eq!(entry(Scheduler::Wlc, 1).index, 3);
        assert_eq!(entry(Scheduler::Wlc, 1).sorry_server, NONE);
    }

    #[test]
    fn each_scheduler_has_its_ring() {
        let real_servers: Vec<_> = [(1_u8, 1), (2, 0), (3, 2)]
            .map(|(n, weight)| (SocketAddr::from(([10, 0, 0, n], 80)), Weight::new(weight)))
            .to_vec();
        for scheduler in Scheduler::ALL {
            let ring = ring(scheduler, &real_servers);
            let expected = match scheduler {
                Scheduler::Rr | Scheduler::Lc => vec![0, 2],
                Scheduler::Fo => vec![2],
                Scheduler::Wrr | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq | Scheduler::Ovf | Scheduler::Twos => {
                    vec![2, 0, 2]
                }
                Scheduler::Sh | Scheduler::Dh | Scheduler::Mh => {
                    assert_eq!(ring.len(), 65_521);
                    continue;
                }
            };
            assert_eq!(ring, expected, "{}", scheduler.name());
        }
    }

    #[test]
    fn no_ring_is_longer_than_foreseen() {
        let all: Vec<_> =
            (0..50).map(|n| (SocketAddr::from(([10, 0, 0, n], 80)), Weight::new(u16::from(n) * 1300))).collect();
        for scheduler in Scheduler::ALL {
            for count in [0, 1, 2, 41, 50] {
                let length = u32::try_from(ring(scheduler, &all[..count]).len()).unwrap();
                assert!(length <= ring_length_max(scheduler, count), "{} {count}", scheduler.name());
            }
        }
    }

    fn real_server(address: &str, forwarding: ForwardingMethod) -> RealServer {
        RealServer {
            role: Role::Real,
            address: address.parse().unwrap(),
            forwarding,
            weight: Weight::new(7),
            thresholds: Thresholds { upper: 9, lower: 4 },
            cost: Cost { active: 512, inactive: 2, busy: load::BUSY, active_limit: 3, base: 1 },
        }
    }

    #[test]
    fn an_entry_holds_what_was_asked_for() {
        let entry = real_server("10.0.1.1:8080", ForwardingMethod::Dr).entry(service("10.0.0.1:80"), 6, &Way::LOCAL);
        assert_eq!(address(&entry), "10.0.1.1:8080".parse().unwrap());
        assert_eq!((entry.virtual_server, entry.weight, entry.generation), (6, 7, 0));
        assert_eq!((entry.upper_threshold, entry.lower_threshold), (9, 4));
        assert_eq!((entry.active_cost, entry.inactive_cost, entry.active_limit), (512, 2, 3));
        assert_eq!((entry.busy_cost, entry.next_same, entry.next_hop), (load::BUSY, NONE, NextHop::LOCAL));
        assert_eq!((entry.address_delta, entry.transport_delta), (0, 0));
    }

    #[test]
    fn nat_knows_what_its_rewriting_does_to_checksums() {
        // The sum of the words 10.0.0.1 and 80, with its carries, complemented: a checksum over them alone.
        let sum = |words: &[[u8; 2]]| {
            let total: u32 = words.iter().map(|word| u32::from(u16::from_ne_bytes(*word))).sum();
            !u16::try_from((total & 0xffff) + (total >> 16)).unwrap()
        };
        let entry = |vip, real| real_server(real, ForwardingMethod::Nat).entry(service(vip), 0, &Way::UNKNOWN);
        let fixed = entry("10.0.0.1:80", "10.0.1.7:8080");
        let (before, after) = ([[10, 0], [0, 1], [0, 80]], [[10, 0], [1, 7], [0x1f, 0x90]]);
        assert_eq!(Delta::from_folded(fixed.transport_delta).apply(sum(&before)), sum(&after));
        assert_eq!(Delta::from_folded(fixed.address_delta).apply(sum(&before[..2])), sum(&after[..2]));
        let all_ports = entry("10.0.0.1:0", "10.0.1.7:0");
        assert_eq!(all_ports.address_delta, fixed.address_delta);
        assert_eq!(all_ports.transport_delta, fixed.address_delta);
        let v6 = entry("[fd00::1]:80", "[fd00::2]:80");
        assert_eq!(Delta::from_folded(v6.transport_delta).apply(sum(&[[0, 1], [0, 80]])), sum(&[[0, 2], [0, 80]]));
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        let refusal = || prop_oneof![Just(Refusal::Reject), Just(Refusal::Drop)];
        let removal = prop_oneof![Just(Removal::Keep), Just(Removal::Expire)];
        let persistence = prop::option::of((1_u16..=0xff00, 1_u8..=32));
        let bools = any::<[bool; 5]>();
        (0..Scheduler::ALL.len(), bools, persistence, refusal(), refusal(), removal).prop_map(
            |(scheduler, bools, persistence, no_real_server, unknown_connection, removed_real_server)| {
                let [hash_port, hash_fallback, one_packet, sloppy_tcp, stateless_replies] = bools;
                Policy {
                    scheduler: Scheduler::ALL[scheduler],
                    hash_port,
                    hash_fallback,
                    persistence: persistence.map(|(ticks, prefix_length)| Persistence { ticks, prefix_length }),
                    one_packet,
                    sloppy_tcp,
                    stateless_replies,
                    no_real_server,
                    unknown_connection,
                    removed_real_server,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_policy_is_read_back_as_it_was_written(desired in any_policy(), is_ipv4: bool) {
            let service = service(if is_ipv4 { "10.0.0.1:80" } else { "[fd00::1]:80" });
            prop_assert_eq!(policy(&virtual_server(service, 0, &desired, &BEHIND)), Some(desired));
        }
    }
}
