//! The tables in the kernel's own maps, compared with what was asked for. They need root and the XDP programs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lb_common::connection::Timeouts;
use lb_common::hash::{Secret, index_bucket};
use lb_common::net::Protocol;
use lb_common::real::{NextHop, NextHopState, ServerCounts};
use lb_common::service::{ForwardingMethod, IndexBucket, Refusal, Scheduler};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::datapath::xdp::capacity::Capacity;
use crate::datapath::xdp::object::{self, LoadOptions};
use crate::datapath::xdp::rest::REST;
use crate::datapath::xdp::{attach, pins};
use crate::datapath::{Persistence, Policy};
use crate::model::{self, Removal};
use crate::reconcile::{plan, reconcile};
use crate::schedule::cost::{costs, load_word};

mod adopted;

pub const OPTIONS: LoadOptions = LoadOptions {
    connections_max: 1024,
    real_servers_max: 256,
    // Each of the virtual servers below with two tables of 65,521 elements.
    ring_chunks: 32_768,
    prefix_lines: 1024,
    nat: true,
    wide_tuples: true,
    reject_rate: 1000,
    packet_log: false,
    timeouts: Timeouts::ipvs_defaults(250),
    secret: Secret { words: [1, 2] },
};

/// The loaded program with empty tables; without root or the program, says so and is `None`.
pub fn load(options: &LoadOptions) -> Option<XdpDatapath> {
    let missing = if !object::is_embedded() {
        "the XDP programs are not built in; run `cargo xtask test`"
    } else if !nix::unistd::geteuid().is_root() {
        "loading them needs root; run `cargo xtask test` as root"
    } else {
        let ebpf = object::load(attach::PROGRAM, &pins::MAPS, options).expect("the program loads");
        return Some(XdpDatapath::new(ebpf).expect("its maps are there"));
    };
    assert!(std::env::var_os("EVENKEEL_REQUIRE_LAB").is_none_or(|value| value != "1"), "{missing}");
    eprintln!("skipped: {missing}");
    None
}

const SERVICES: [(&str, Protocol); 6] = [
    ("10.0.0.1:80", Protocol::Tcp),
    ("10.0.0.1:0", Protocol::Tcp),
    ("10.0.0.2:80", Protocol::Tcp),
    ("10.0.0.2:80", Protocol::Udp),
    ("[fd00::1]:80", Protocol::Tcp),
    ("[fd00::1]:0", Protocol::Tcp),
];
const METHODS: [ForwardingMethod; 3] = [ForwardingMethod::Nat, ForwardingMethod::Dr, ForwardingMethod::Tun];

fn service(number: usize) -> Service {
    let (address, protocol) = SERVICES[number];
    Service { address: address.parse().unwrap(), protocol }
}

/// Real server `n` of a virtual server: the same for all of its family, so that replies are ambiguous.
fn real(service: Service, method: ForwardingMethod, n: u8) -> SocketAddr {
    let port = match (service.address.port(), method) {
        (80, ForwardingMethod::Nat) => 8080,
        (port, _) => port,
    };
    let address: IpAddr =
        if service.address.is_ipv4() { [10, 0, 1, n].into() } else { [0xfd00, 0, 0, 0, 0, 0, 1, u16::from(n)].into() };
    SocketAddr::new(address, port)
}

fn policy(scheduler: Scheduler) -> Policy {
    Policy::new(&model::Policy::new(scheduler), 250)
}

fn servers(service: Service, method: ForwardingMethod, scheduler: Scheduler, weights: &[(u8, u16)]) -> Servers {
    let settings =
        |weight| Settings { weight: Weight::new(weight), forwarding: method, thresholds: Thresholds::default() };
    let real_servers = weights.iter().map(|(n, weight)| (real(service, method, *n), settings(*weight))).collect();
    Servers { policy: policy(scheduler), real_servers, sorry_server: None, access: None }
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let persistence = prop::option::of((1_u16..=0xff00, 1_u8..=32));
    (0..Scheduler::ALL.len(), any::<[bool; 8]>(), persistence).prop_map(|(scheduler, bools, persistence)| {
        let [hash_port, hash_fallback, one_packet, sloppy_tcp, stateless_replies, rejects, refuses, keeps] = bools;
        let refusal = |is_reject| if is_reject { Refusal::Reject } else { Refusal::Drop };
        Policy {
            scheduler: Scheduler::ALL[scheduler],
            hash_port,
            hash_fallback,
            persistence: persistence.map(|(ticks, prefix_length)| Persistence { ticks, prefix_length }),
            one_packet,
            sloppy_tcp,
            stateless_replies,
            no_real_server: refusal(rejects),
            unknown_connection: refusal(refuses),
            removed_real_server: if keeps { Removal::Keep } else { Removal::Expire },
        }
    })
}

fn any_servers(number: usize) -> impl Strategy<Value = Servers> {
    let weight = prop_oneof![Just(0), 1_u16..5, any::<u16>()];
    let one = (0..METHODS.len(), weight, 0_u32..9, 0_u32..5);
    (any_policy(), btree_map(1_u8..24, one, 0..20), prop::option::of((0..METHODS.len(), 1_u8..24))).prop_map(
        move |(policy, reals, sorry)| {
            let service = service(number);
            let reals = reals.into_iter().map(|(n, (method, weight, upper, lower))| {
                let (forwarding, weight) = (METHODS[method], Weight::new(weight));
                (real(service, forwarding, n), Settings { weight, forwarding, thresholds: Thresholds { upper, lower } })
            });
            let sorry = sorry.map(|(method, n)| (real(service, METHODS[method], n), METHODS[method]));
            Servers { policy, real_servers: reals.collect(), sorry_server: sorry, access: None }
        },
    )
}

fn any_table() -> impl Strategy<Value = ServiceTable> {
    let one = (0..SERVICES.len()).prop_flat_map(|number| any_servers(number).prop_map(move |it| (service(number), it)));
    vec(one, 0..6).prop_map(|list| list.into_iter().collect())
}

#[test]
fn after_any_changes_nothing_is_left_to_do_and_everything_fits_together() {
    let Some(mut datapath) = load(&OPTIONS) else { return };
    let cases = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    let datapath = std::cell::RefCell::new(&mut datapath);
    let result = TestRunner::new(cases).run(&vec((any_table(), 0..Scheduler::ALL.len()), 1..4), |history| {
        let datapath = &mut **datapath.borrow_mut();
        let with_another_scheduler = |(table, number): (ServiceTable, usize)| {
            let mut other = table.clone();
            other.values_mut().for_each(|servers| servers.policy.scheduler = Scheduler::ALL[number]);
            [table, other]
        };
        for desired in history.into_iter().flat_map(with_another_scheduler) {
            reconcile(datapath, &desired).unwrap();
            prop_assert_eq!(plan(&desired, &datapath.installed().unwrap()), []);
            check(datapath, &desired);
        }
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Looks at the maps as the packet path does.
fn check(datapath: &XdpDatapath, desired: &ServiceTable) {
    let all_ports = desired.keys().any(|service| service.address.port() == 0);
    assert_eq!(datapath.views.lookups.get(0).unwrap().all_ports != 0, all_ports);
    let readable: BTreeMap<u32, VirtualServerEntry> =
        datapath.maps.virtual_servers().unwrap().into_iter().map(|(_, entry)| (entry.index, entry)).collect();
    assert_eq!(readable.len(), desired.len());
    let mut runs = Vec::new();
    let mut chunks = BTreeSet::new();
    for (service, servers) in desired {
        let hit = find(datapath, "service_index", SERVICES_WORD, entries::service_key(*service)).expect("is served");
        let entry = datapath.views.services.get(hit.index).unwrap();
        assert_eq!(entry, readable[&hit.index]);
        assert_eq!(hit.flags, entry.flags);
        let listed = check_virtual_server(datapath, *service, servers, &entry);
        assert!(listed.iter().all(|chunk| chunks.insert(*chunk)), "a chunk of two virtual servers");
        runs.extend([entry.ring, entry.chunks].into_iter().filter(|run| run.length != 0));
    }
    for service in (0..SERVICES.len()).map(self::service).filter(|service| !desired.contains_key(service)) {
        let hit = find(datapath, "service_index", SERVICES_WORD, entries::service_key(service));
        assert!(hit.is_none(), "{service} is still served");
    }
    for vip in (0..SERVICES.len()).map(|index| service(index).address.ip()) {
        let hit = find(datapath, "service_index", SERVICES_WORD, entries::vip_key(vip));
        assert_eq!(hit.is_some(), desired.keys().any(|service| service.address.ip() == vip), "{vip}");
        // To whichever of its virtual servers: an IPv6 address is compared with theirs.
        assert!(hit.is_none_or(|hit| IpAddr::from(readable[&hit.index].key.vip) == vip));
    }
    runs.sort_by_key(|run| run.start);
    assert!(runs.iter().all(|run| run.start.is_multiple_of(32)));
    assert!(runs.windows(2).all(|pair| pair[0].start + pair[0].length <= pair[1].start), "{runs:?}");
    check_replies(datapath);
    // Whoever is not there takes no connection.
    for index in 0..u16::try_from(datapath.views.real_servers.length()).unwrap() {
        if datapath.real_server(index).unwrap().generation == 0 {
            assert_eq!(word(datapath, index), load::NO_WEIGHT);
        }
    }
}

/// Returns the chunks that it compares.
fn check_virtual_server(
    datapath: &XdpDatapath,
    service: Service,
    servers: &Servers,
    entry: &VirtualServerEntry,
) -> Vec<u16> {
    let ring = elements(datapath, entry.ring);
    let live: Vec<_> = servers.real_servers.iter().filter(|(_, settings)| settings.weight != Weight::ZERO).collect();
    let in_ring: BTreeSet<SocketAddr> =
        ring.iter().map(|index| entries::address(&datapath.real_server(*index).unwrap())).collect();
    match servers.policy.scheduler {
        Scheduler::Fo => assert_eq!(in_ring.len(), live.len().min(1)),
        _ => assert!(in_ring.iter().eq(live.iter().map(|(address, _)| *address)), "{in_ring:?}"),
    }
    if servers.policy.scheduler == Scheduler::Rr {
        let order: Vec<_> = ring.iter().map(|index| entries::address(&datapath.real_server(*index).unwrap())).collect();
        assert!(order.is_sorted() && order.len() == live.len());
    }
    let chunks = elements(datapath, entry.chunks);
    let weights: Vec<Weight> = servers.real_servers.values().map(|settings| settings.weight).collect();
    let costs = costs(servers.policy.scheduler, &weights);
    let mut seen = 0;
    for (place, index) in chunks.iter().flat_map(|chunk| chunk * 8..chunk * 8 + 8).enumerate() {
        let real = datapath.real_server(index).unwrap();
        let address = entries::address(&real);
        let is_real = real.generation != 0 && !entries::is_removed(&real) && entry.sorry_server != u32::from(index);
        assert!(real.generation == 0 || real.virtual_server == entry.index);
        if !is_real {
            assert!(word(datapath, index) >= load::UNAVAILABLE);
            continue;
        }
        let settings = servers.real_servers[&address];
        let at = servers.real_servers.keys().position(|other| *other == address).unwrap();
        let counts = ServerCounts::default();
        let expected = load_word(&costs[at], counts, settings.weight, settings.thresholds, false);
        assert_eq!(word(datapath, index), expected, "{service} {address}");
        assert!(entry.lanes == 0 || place < usize::try_from(entry.lanes).unwrap());
        seen += 1;
    }
    assert_eq!(seen, servers.real_servers.len());
    chunks
}

/// Every real server behind `nat` is in the chain that its replies lead to, and the chain is in order and has no other.
fn check_replies(datapath: &XdpDatapath) {
    let mut expected: BTreeMap<Source, BTreeSet<u16>> = BTreeMap::new();
    for (tenant, index) in datapath.slots.places.all() {
        let entry = datapath.real_server(index).unwrap();
        assert!(entry.generation & 0xff != 0);
        assert_eq!(entries::address(&entry), tenant.address);
        if entry.forwarding == ForwardingMethod::Nat {
            let source = Source { address: tenant.address, protocol: tenant.service.protocol };
            expected.entry(source).or_default().insert(index);
        }
    }
    for (source, indexes) in &expected {
        let head = find(datapath, "reply_index", REPLIES_WORD, entries::reply_key(*source)).expect("replies are known");
        let mut chain = vec![u16::try_from(head.index).unwrap()];
        while let Ok(next) = u16::try_from(datapath.real_server(chain[chain.len() - 1]).unwrap().next_same) {
            chain.push(next);
            assert!(chain.len() <= 64);
        }
        assert!(chain.iter().eq(indexes), "{source:?}: {chain:?} {indexes:?}");
        let owner = datapath.real_server(chain[0]).unwrap().virtual_server;
        assert_eq!(head.flags, datapath.views.services.get(owner).unwrap().flags);
    }
    let addresses: BTreeSet<IpAddr> = expected.keys().map(|source| source.address.ip()).collect();
    for address in &addresses {
        let any =
            find(datapath, "reply_index", REPLIES_WORD, entries::address_key(*address)).expect("addresses are known");
        let real = datapath.real_server(u16::try_from(any.index).unwrap()).unwrap();
        assert_eq!((entries::address(&real).ip(), real.forwarding), (*address, ForwardingMethod::Nat));
    }
    let buckets = datapath.maps.mapped::<IndexBucket>("reply_index").unwrap();
    let copy = u32::try_from(datapath.views.lookups.get(0).unwrap().replies >> 32).unwrap();
    let half = buckets.length() / 2;
    let valid = (copy * half..(copy + 1) * half).flat_map(|bucket| buckets.get(bucket).unwrap().entries);
    assert_eq!(valid.filter(|entry| entry.key != 0).count(), expected.len() + addresses.len());
}

const SERVICES_WORD: usize = super::SERVICES;
const REPLIES_WORD: usize = super::REPLIES;

fn find(datapath: &XdpDatapath, map: &'static str, valid: usize, key: u64) -> Option<IndexEntry> {
    let buckets = datapath.maps.mapped::<IndexBucket>(map).unwrap();
    let valid = datapath.views.lookups.word(valid).unwrap().load(std::sync::atomic::Ordering::Acquire);
    let (seed, copy) = (u32::try_from(valid & 0xffff_ffff).unwrap(), u32::try_from(valid >> 32).unwrap());
    let mask = buckets.length() / 2 - 1;
    let bucket = buckets.get(index_bucket(key, seed, mask) + copy * (mask + 1)).unwrap();
    bucket.entries.into_iter().find(|entry| entry.key == key)
}

fn elements(datapath: &XdpDatapath, run: Run) -> Vec<u16> {
    let element = |at: u32| {
        let chunk = datapath.views.rings.get(at / 32).unwrap();
        chunk.elements[usize::try_from(at % 32).unwrap()]
    };
    (run.start..run.start + run.length).map(element).collect()
}

fn word(datapath: &XdpDatapath, index: u16) -> u64 {
    datapath.views.loads.word(index.into()).unwrap().load(std::sync::atomic::Ordering::Acquire)
}

fn set_counts(datapath: &XdpDatapath, index: u16, active: u64) {
    datapath.views.counts.word(index.into()).unwrap().store(active << 32, Release);
}

fn put(datapath: &mut XdpDatapath, service: Service, servers: Servers) {
    datapath.apply(&Change::Put(service, servers)).unwrap();
}

/// The place of real server `n` of the first virtual server, and its entry.
fn place_of(datapath: &XdpDatapath, n: u8) -> Option<(u16, RealServerEntry)> {
    let address = real(service(0), ForwardingMethod::Dr, n);
    let (_, index) = datapath.slots.places.of(service(0)).find(|(tenant, _)| tenant.address == address)?;
    Some((index, datapath.real_server(index).unwrap()))
}

#[test]
fn a_removed_real_server_keeps_its_place_until_its_last_connection_has_ended() {
    let Some(mut datapath) = load(&OPTIONS) else { return };
    let web = service(0);
    let with = |weights: &[(u8, u16)]| servers(web, ForwardingMethod::Dr, Scheduler::Wlc, weights);
    put(&mut datapath, web, with(&[(1, 1), (2, 1)]));
    let (index, before) = place_of(&datapath, 2).unwrap();
    set_counts(&datapath, index, 3);
    put(&mut datapath, web, with(&[(1, 1)]));
    let (_, removed) = place_of(&datapath, 2).unwrap();
    assert!(entries::is_removed(&removed) && removed.generation == before.generation && removed.weight == 0);
    assert!(word(&datapath, index) >= load::UNAVAILABLE);
    assert_eq!(datapath.installed().unwrap(), BTreeMap::from([(web, with(&[(1, 1)]))]));
    thread::sleep(REST);
    assert_eq!(datapath.release_idle().unwrap(), 0);

    // It comes back to the same place and to its connections: three active ones cost 256 each with weight 1.
    put(&mut datapath, web, with(&[(1, 1), (2, 1)]));
    let (again, back) = place_of(&datapath, 2).unwrap();
    assert_eq!((again, back.generation, back.flags, back.weight), (index, before.generation, 0, 1));
    assert_eq!(word(&datapath, index), 768);

    put(&mut datapath, web, with(&[(1, 1)]));
    set_counts(&datapath, index, 0);
    thread::sleep(REST);
    assert_eq!(datapath.release_idle().unwrap(), 1);
    assert_eq!(place_of(&datapath, 2), None);
    assert_eq!(datapath.real_server(index).unwrap().generation, 0);
}

#[test]
fn a_real_server_whose_connections_expire_goes_at_once_and_its_place_is_given_when_they_are_gone() {
    let Some(mut datapath) = load(&OPTIONS) else { return };
    let web = service(0);
    let with = |weights: &[(u8, u16)]| {
        let mut servers = servers(web, ForwardingMethod::Dr, Scheduler::Rr, weights);
        servers.policy.removed_real_server = Removal::Expire;
        servers
    };
    put(&mut datapath, web, with(&[(1, 1), (2, 1)]));
    let (index, before) = place_of(&datapath, 2).unwrap();
    set_counts(&datapath, index, 1);
    put(&mut datapath, web, with(&[(1, 1)]));
    assert_eq!(datapath.real_server(index).unwrap().generation, 0);
    thread::sleep(REST);
    put(&mut datapath, web, with(&[(1, 1), (3, 1)]));
    assert_ne!(place_of(&datapath, 3).unwrap().0, index);
    set_counts(&datapath, index, 0);
    put(&mut datapath, web, with(&[(1, 1), (3, 1), (4, 1)]));
    let (given, entry) = place_of(&datapath, 4).unwrap();
    assert_eq!((given, entry.generation), (index, before.generation + 1));
}

#[test]
fn another_forwarding_method_is_another_generation_and_another_weight_is_not() {
    let Some(mut datapath) = load(&OPTIONS) else { return };
    // All ports, where every method has the same address and port.
    let all = service(1);
    let generation = |datapath: &XdpDatapath| datapath.real_server(0).unwrap().generation;
    put(&mut datapath, all, servers(all, ForwardingMethod::Dr, Scheduler::Rr, &[(1, 1)]));
    assert_eq!(generation(&datapath), 1);
    put(&mut datapath, all, servers(all, ForwardingMethod::Dr, Scheduler::Wlc, &[(1, 9)]));
    assert_eq!(generation(&datapath), 1);
    put(&mut datapath, all, servers(all, ForwardingMethod::Nat, Scheduler::Wlc, &[(1, 9)]));
    assert_eq!(generation(&datapath), 2);
    check_replies(&datapath);
    put(&mut datapath, all, servers(all, ForwardingMethod::Tun, Scheduler::Wlc, &[(1, 9)]));
    assert_eq!(generation(&datapath), 3);
    check_replies(&datapath);
}

#[test]
fn a_changed_weight_makes_the_load_of_the_connections_that_are_there() {
    let Some(mut datapath) = load(&OPTIONS) else { return };
    let web = service(0);
    put(&mut datapath, web, servers(web, ForwardingMethod::Dr, Scheduler::Wlc, &[(1, 1), (2, 1)]));
    set_counts(&datapath, 0, 10);
    datapath.views.loads.word(0).unwrap().store(2560, Release);
    // Weights 1 and 2: an active connection of the first costs 512, of the second 256.
    put(&mut datapath, web, servers(web, ForwardingMethod::Dr, Scheduler::Wlc, &[(1, 1), (2, 2)]));
    assert_eq!([word(&datapath, 0), word(&datapath, 1)], [5120, 0]);
    put(&mut datapath, web, servers(web, ForwardingMethod::Dr, Scheduler::Wlc, &[(1, 0), (2, 2)]));
    assert_eq!(word(&datapath, 0) & load::NO_WEIGHT, load::NO_WEIGHT);
}

#[test]
fn a_way_reaches_every_real_server_of_its_address() {
    let Some(mut datapath) = load(&OPTIONS) else { return };
    for (number, method) in [(0, ForwardingMethod::Dr), (2, ForwardingMethod::Nat), (3, ForwardingMethod::Tun)] {
        put(&mut datapath, service(number), servers(service(number), method, Scheduler::Rr, &[(1, 1), (2, 1)]));
    }
    datapath.set_way([10, 0, 1, 1].into(), Way { source: Some([10, 0, 1, 254].into()), ..Way::LOCAL }).unwrap();
    let state = |index: u16| datapath.real_server(index).unwrap().next_hop.state;
    assert_eq!([0, 8, 16].map(state), [NextHopState::Local, NextHopState::Unusable, NextHopState::Unusable]);
    assert_eq!([1, 9, 17].map(state), [NextHopState::Unresolved; 3]);
    assert_eq!(datapath.real_server(0).unwrap().next_hop, NextHop::LOCAL);
    assert_eq!(IpAddr::from(datapath.real_server(16).unwrap().tunnel_source), IpAddr::from([10, 0, 1, 254]));
}

#[test]
fn a_full_table_says_so_and_what_was_there_stands() {
    let Some(mut datapath) = load(&LoadOptions { real_servers_max: 8, ..OPTIONS }) else { return };
    let nine: Vec<(u8, u16)> = (1..=9).map(|n| (n, 1)).collect();
    let web = service(0);
    let three = servers(web, ForwardingMethod::Dr, Scheduler::Rr, &nine[..3]);
    put(&mut datapath, web, three.clone());
    let table = BTreeMap::from([(web, three.clone())]);
    let refused = datapath.apply(&Change::Put(web, servers(web, ForwardingMethod::Dr, Scheduler::Rr, &nine)));
    assert!(matches!(refused, Err(DatapathError::Full { table: "real_servers", capacity: 8, remedy: _ })));
    assert_eq!(datapath.installed().unwrap(), table);
    check(&datapath, &table);
    // Another virtual server needs a chunk of its own, and is not there at all.
    let other = service(1);
    let refused = datapath.apply(&Change::Put(other, servers(other, ForwardingMethod::Nat, Scheduler::Rr, &nine[..1])));
    assert!(refused.is_err());
    assert_eq!(datapath.installed().unwrap(), table);
    check(&datapath, &table);
    // All eight places can be had, once those of a refused attempt have rested.
    put(&mut datapath, web, servers(web, ForwardingMethod::Dr, Scheduler::Rr, &nine[..8]));
}

#[test]
fn as_many_virtual_servers_as_there_may_be_are_found() {
    let Some(mut datapath) = load(&LoadOptions { real_servers_max: 8, ..OPTIONS }) else { return };
    let none =
        Servers { policy: policy(Scheduler::Rr), real_servers: BTreeMap::new(), sorry_server: None, access: None };
    // Each has its own VIP, which is one entry more.
    let vip = |port: u16| IpAddr::from([10, 0, port.to_be_bytes()[0], port.to_be_bytes()[1]]);
    let service = |port| Service { address: SocketAddr::new(vip(port), port), protocol: Protocol::Udp };
    let desired: ServiceTable = (1..=1024).map(|port| (service(port), none.clone())).collect();
    let since = Instant::now();
    assert_eq!(reconcile(&mut datapath, &desired).unwrap(), 1024);
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    for port in 1..=1024 {
        assert!(find(&datapath, "service_index", SERVICES_WORD, entries::service_key(service(port))).is_some());
        assert!(find(&datapath, "service_index", SERVICES_WORD, entries::vip_key(vip(port))).is_some());
    }
    let refused = datapath.apply(&Change::Put(service(1025), none));
    assert!(matches!(refused, Err(DatapathError::Full { table: "virtual_servers", capacity: 1024, remedy: _ })));
}

/// The most that a configuration may name, and the time that it takes to install.
#[test]
fn as_many_real_servers_as_there_may_be_are_installed() {
    let settings =
        Settings { weight: Weight::ONE, forwarding: ForwardingMethod::Nat, thresholds: Thresholds::default() };
    let desired: ServiceTable = (0..1024_u16)
        .map(|number| {
            let service = Service { address: ([10, 0, 0, 1], number + 1).into(), protocol: Protocol::Tcp };
            // Each real server behind 64 of them.
            let [high, low] = (number / 64).to_be_bytes();
            let real_servers = (1..=4).map(|n| (SocketAddr::from(([10, 1 + high, low, n], 80)), settings)).collect();
            (service, Servers { policy: policy(Scheduler::Wlc), real_servers, sorry_server: None, access: None })
        })
        .collect();
    let Some((mut datapath, took)) = installed_for(&desired) else { return };
    eprintln!("1024 virtual servers with 4 real servers each: {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(datapath.installed().unwrap(), desired);
    check_replies(&datapath);
    let since = Instant::now();
    datapath.set_way([10, 1, 0, 1].into(), Way::LOCAL).unwrap();
    assert!(since.elapsed() < Duration::from_millis(100), "{:?}", since.elapsed());
}

#[test]
fn many_real_servers_of_one_virtual_server_are_compared_or_have_their_turn() {
    let settings = |n: u16| Settings {
        weight: Weight::new(1 + n % 7),
        forwarding: ForwardingMethod::Dr,
        thresholds: Thresholds::default(),
    };
    // By a window that turns, or all of them.
    for (scheduler, count, window) in [(Scheduler::Wlc, 1024, 8), (Scheduler::Wlc, 256, 0), (Scheduler::Fo, 256, 0)] {
        let address = |n: u16| SocketAddr::new(IpAddr::from((0x0a02_0000 + u32::from(n)).to_be_bytes()), 80);
        let real_servers = (0..count).map(|n| (address(n), settings(n))).collect();
        let all = Servers { policy: policy(scheduler), real_servers, sorry_server: None, access: None };
        let desired = ServiceTable::from([(service(0), all)]);
        let Some((datapath, took)) = installed_for(&desired) else { return };
        eprintln!("{count} real servers by {}: {took:?}", scheduler.name());
        assert!(took < Duration::from_secs(5), "{took:?}");
        let entry = datapath.views.services.get(0).unwrap();
        assert_eq!((entry.window, entry.chunks.length), (window, u32::from(count) / 8));
        check(&datapath, &desired);
    }
}

/// A datapath of the right size with `desired`, and the time that it took to install.
fn installed_for(desired: &ServiceTable) -> Option<(XdpDatapath, Duration)> {
    let Capacity { real_servers_max, ring_chunks, prefix_lines, nat, wide_tuples } = Capacity::of(desired);
    let mut datapath = load(&LoadOptions { real_servers_max, ring_chunks, prefix_lines, nat, wide_tuples, ..OPTIONS })?;
    let since = Instant::now();
    assert_eq!(reconcile(&mut datapath, desired).unwrap(), desired.len());
    Some((datapath, since.elapsed()))
}

#[test]
fn the_best_of_a_failover_are_compared_first() {
    let Some(mut datapath) = load(&OPTIONS) else { return };
    let web = service(0);
    // Chunks of eight by address: weights of 1, of 2, and of 2 but for one of 9.
    let weights: Vec<(u8, u16)> = (1..=24).map(|n| (n, if n == 20 { 9 } else { 1 + u16::from(n > 8) })).collect();
    for (scheduler, expected) in [(Scheduler::Fo, [2, 1, 0]), (Scheduler::Ovf, [2, 1, 0]), (Scheduler::Lc, [0, 1, 2])] {
        put(&mut datapath, web, servers(web, ForwardingMethod::Dr, scheduler, &weights));
        let entry = datapath.views.services.get(0).unwrap();
        assert_eq!(elements(&datapath, entry.chunks), expected, "{}", scheduler.name());
    }
}

#[test]
fn changed_routes_are_told_and_never_by_zero() {
    let Some(mut datapath) = load(&OPTIONS) else { return };
    let routes = |datapath: &XdpDatapath| datapath.views.lookups.get(0).unwrap().routes;
    assert_eq!(routes(&datapath), 1);
    let present = datapath.views.lookups.get(0).unwrap();
    datapath.views.lookups.set(0, &Lookups { routes: u32::MAX, ..present }).unwrap();
    datapath.routes_changed().unwrap();
    assert_eq!(routes(&datapath), 1);
}

#[test]
fn lanes_are_counted_to_the_last_that_is_in_use() {
    assert_eq!(lanes(&[], &[]), 0);
    assert_eq!(lanes(&[2], &[16, 18]), 3);
    // The chunks are in the order in which the virtual server got them.
    assert_eq!(lanes(&[5, 2], &[40, 47, 17]), 10);
}
