//! How large the maps must be for what is to be served. Pure.

use std::collections::BTreeMap;

use lb_common::REAL_PLACES_MAX;
use lb_common::real::LANES;
use lb_common::service::ForwardingMethod;

use super::entries;
use super::prefix_tree::PrefixTree;
use super::runs::chunks_for;
use crate::datapath::{Servers, ServiceTable};
use crate::model::AccessList;

/// What [`super::object::LoadOptions`] must have for a table, with room for changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Places for real servers: a power of two, 256..=16384.
    pub real_servers_max: u32,
    /// Length of `scheduler_rings`.
    pub ring_chunks: u32,
    /// Length of `prefixes`.
    pub prefix_lines: u32,
    /// Whether any real server is reached by NAT.
    pub nat: bool,
    /// Whether any virtual server has connections that only a tuple tells.
    pub wide_tuples: bool,
}

impl Capacity {
    /// For `table`: half as many places again, 256 at least, and room for each ring thrice: another is written while packets use
    /// one, and rings of different lengths leave gaps.
    pub fn of(table: &ServiceTable) -> Self {
        let (places, chunks) = sizes(table);
        let forwarding = |servers: &Servers| {
            let sorry = servers.sorry_server.map(|(_, forwarding)| forwarding);
            let mut all = servers.real_servers.values().map(|settings| settings.forwarding).chain(sorry);
            all.any(|forwarding| forwarding == ForwardingMethod::Nat)
        };
        Self {
            real_servers_max: (places + places / 2).clamp(PLACES_MIN, REAL_PLACES_MAX).next_power_of_two(),
            ring_chunks: (RING_ROOM * chunks).max(RING_CHUNKS_MIN),
            prefix_lines: PREFIX_ROOM.saturating_mul(prefix_lines(table)).max(PREFIX_LINES_MIN),
            nat: table.values().any(forwarding),
            wide_tuples: table.keys().any(|service| service.address.is_ipv6() || service.address.port() == 0),
        }
    }

    /// Whether maps of this size hold `table`, all of whose rings and lists may be written beside those in use.
    ///
    /// Removed real servers that keep connections have places, too, for a time: that is seen when the places are taken.
    pub fn has_room_for(&self, table: &ServiceTable) -> bool {
        let (places, chunks) = sizes(table);
        let prefixes = prefix_lines(table).saturating_mul(2);
        places <= self.real_servers_max && 2 * chunks <= self.ring_chunks && prefixes <= self.prefix_lines
    }
}

/// As for rings.
const PREFIX_ROOM: u32 = 3;

/// 4 MB, room for a list of 70,000 prefixes of IPv4, or 8000 hosts of IPv6, beside another one.
const PREFIX_LINES_MIN: u32 = 65_536;

/// Lines of `prefixes` for all lists; virtual servers with the same one share it.
fn prefix_lines(table: &ServiceTable) -> u32 {
    let clients = table.values().filter_map(|servers| servers.access.as_ref());
    let lists: BTreeMap<u64, &AccessList> =
        clients.filter_map(|clients| Some((clients.digest, clients.list.as_deref()?))).collect();
    let lines = lists.into_values().map(|list| PrefixTree::new(list).lines().len()).sum::<usize>();
    u32::try_from(lines).unwrap_or(u32::MAX)
}

/// Places for real servers, and chunks of rings.
fn sizes(table: &ServiceTable) -> (u32, u32) {
    (table.values().map(places).sum(), table.values().map(ring_chunks).sum())
}

/// Removed real servers keep their places while they have connections, so that a few servers may be exchanged for others time
/// and again. 32 KB.
const PLACES_MIN: u32 = 256;

/// With twice the length of all rings, exchanging one of `mh` and one of `wrr` in turn soon found no gap for the long one.
const RING_ROOM: u32 = 3;

/// 1 MB. A second real server makes a ring of one element one of 4096 where there are weights: room for 63 such rings, or for
/// three of `mh`, each beside the one in use.
const RING_CHUNKS_MIN: u32 = 16_384;

/// Places that a virtual server takes: whole chunks.
fn places(servers: &Servers) -> u32 {
    let count = servers.real_servers.len() + usize::from(servers.sorry_server.is_some());
    u32::try_from(count.next_multiple_of(LANES)).unwrap_or(REAL_PLACES_MAX)
}

fn ring_chunks(servers: &Servers) -> u32 {
    let ring = entries::ring_length_max(servers.policy.scheduler, servers.real_servers.len());
    // The list of chunks is shorter than that of places.
    chunks_for(ring) + chunks_for(places(servers))
}

#[cfg(test)]
mod tests {
    use lb_common::net::Protocol;
    use lb_common::service::Scheduler;

    use super::*;
    use crate::datapath::{Policy, Settings};
    use crate::model::{self, Service, Thresholds, Weight};

    fn servers(scheduler: Scheduler, count: u8) -> Servers {
        let settings =
            Settings { weight: Weight::ONE, forwarding: ForwardingMethod::Dr, thresholds: Thresholds::default() };
        Servers {
            policy: Policy::new(&model::Policy::new(scheduler), 250),
            access: None,
            real_servers: (0..count).map(|n| (([10, 0, 1, n], 80).into(), settings)).collect(),
            sorry_server: None,
        }
    }

    fn service(address: &str) -> Service {
        Service { address: address.parse().unwrap(), protocol: Protocol::Tcp }
    }

    #[test]
    fn a_small_table_has_the_smallest_maps() {
        let table = BTreeMap::from([(service("10.0.0.1:80"), servers(Scheduler::Rr, 2))]);
        let expected = Capacity {
            real_servers_max: 256,
            ring_chunks: 16_384,
            prefix_lines: 65_536,
            nat: false,
            wide_tuples: false,
        };
        assert_eq!(Capacity::of(&table), expected);
        assert_eq!(Capacity::of(&ServiceTable::new()), expected);
    }

    #[test]
    fn chunks_are_whole_and_rings_have_room_thrice() {
        let mut web = servers(Scheduler::Mh, 40);
        web.sorry_server = Some((([10, 0, 2, 1], 80).into(), ForwardingMethod::Nat));
        let table =
            BTreeMap::from([(service("10.0.0.1:80"), web), (service("[fd00::1]:80"), servers(Scheduler::Wrr, 3))]);
        let more: ServiceTable =
            (1..=3).map(|n| (service(&format!("10.0.0.1:{n}")), servers(Scheduler::Mh, 40))).collect();
        assert_eq!(Capacity::of(&more).ring_chunks, 18_450);
        // 41 and 3 real servers take 48 and 8 places; half again are 84, and the least is 256. Rings of 65,521 and 4096 elements are 2048 and 128 chunks of 32
        // each; 48 and 8 elements for the lists of chunks are 2 and 1: 3 * (2048 + 2 + 128 + 1), less than the least.
        let expected =
            Capacity { real_servers_max: 256, ring_chunks: 16_384, prefix_lines: 65_536, nat: true, wide_tuples: true };
        assert_eq!(Capacity::of(&table), expected);
    }

    #[test]
    fn all_virtual_servers_that_there_may_be_have_room_for_all_real_servers() {
        let table = |counts: &dyn Fn(u16) -> u8| -> ServiceTable {
            (0..1024).map(|n| (service(&format!("10.0.0.1:{}", n + 1)), servers(Scheduler::Rr, counts(n)))).collect()
        };
        // 1024 chunks of eight places, and half again: 12,288.
        assert_eq!(Capacity::of(&table(&|_| 1)).real_servers_max, 16_384);
        // The most places that 4096 real servers take: nine each for 384 virtual servers, one for the others, 11,264 places.
        let most = table(&|n| if n < 384 { 9 } else { 1 });
        assert_eq!(most.values().map(|servers| servers.real_servers.len()).sum::<usize>(), 4096);
        assert_eq!(most.values().map(places).sum::<u32>(), 11_264);
        assert_eq!(Capacity::of(&most).real_servers_max, 16_384);
        // A half of the virtual servers need a half of the room.
        assert_eq!(Capacity::of(&table(&|n| u8::from(n < 512))).real_servers_max, 8192);
    }

    #[test]
    fn what_was_made_for_one_virtual_server_has_room_for_others() {
        let table = |servers_of_each: u8, count: u16| -> ServiceTable {
            let servers = |port| (service(&format!("10.0.0.1:{port}")), servers(Scheduler::Rr, servers_of_each));
            (1..=count).map(servers).collect()
        };
        let capacity = Capacity::of(&table(2, 1));
        // The second real server makes a ring of weights 128 times as long: twice 129 chunks for each; eight places each are all.
        let weighted = |count: u16| -> ServiceTable {
            (1..=count).map(|port| (service(&format!("10.0.0.1:{port}")), servers(Scheduler::Wlc, 2))).collect()
        };
        let single = BTreeMap::from([(service("10.0.0.1:1"), servers(Scheduler::Wlc, 1))]);
        assert!(Capacity::of(&single).has_room_for(&weighted(32)));
        assert!(!Capacity::of(&single).has_room_for(&weighted(33)));
        // 256 places.
        assert!(capacity.has_room_for(&table(128, 2)));
        assert!(!capacity.has_room_for(&table(129, 2)));
        // Twice 2049 chunks for each.
        let hashed = |count: u16| -> ServiceTable {
            (1..=count).map(|port| (service(&format!("10.0.0.1:{port}")), servers(Scheduler::Mh, 2))).collect()
        };
        assert!(capacity.has_room_for(&hashed(3)));
        assert!(!capacity.has_room_for(&hashed(4)));
    }

    #[test]
    fn all_ports_need_tuples() {
        let table = BTreeMap::from([(service("10.0.0.1:0"), servers(Scheduler::Rr, 1))]);
        assert!(Capacity::of(&table).wide_tuples);
    }
}
