//! Real servers that are exchanged for others while connections of the first last.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Scheduler};
use lb_userspace::datapath::xdp::capacity::Capacity;
use lb_userspace::datapath::xdp::object::LoadOptions;
use lb_userspace::datapath::{Change, Datapath as _, Servers};
use lb_userspace::host::jiffies_per_second;
use lb_userspace::model::{Policy, RealServer, Removal, Thresholds, VirtualServer, Weight};

use super::bench::{Bench, OPTIONS, in_namespace};
use super::frame::{ACK, Frame, SYN};
use super::scene::{Family, INGRESS, real_server, service};

const DR: ForwardingMethod = ForwardingMethod::Dr;
/// What is exchanged at once.
const EIGHT: u8 = 8;
const MOST: u8 = 24;

/// The real servers of a generation, from 0.
fn reals(generation: u8) -> Vec<(SocketAddr, u16)> {
    (1..=EIGHT).map(|n| (real_server(Family::V4, DR, generation * EIGHT + n), 1)).collect()
}

fn servers(policy: &Policy, generation: u8) -> Servers {
    let real = |(address, weight)| RealServer {
        address,
        weight: Weight::new(weight),
        forwarding: DR,
        thresholds: Thresholds::default(),
    };
    let server = VirtualServer {
        name: None,
        service: service(Family::V4, Protocol::Tcp),
        policy: *policy,
        real_servers: reals(generation).into_iter().map(real).collect(),
        access: None,
        sorry_server: None,
    };
    Servers::new(&server, jiffies_per_second())
}

fn bench_with(places: u32) -> Bench {
    let mut bench = Bench::load(&LoadOptions { real_servers_max: places, ..OPTIONS });
    (1..=MOST).for_each(|n| bench.way(Family::V4, n, INGRESS, 1500));
    bench
}

/// Eight established connections, all to real servers of this generation.
fn connect(bench: &Bench, generation: u8) {
    for port in (0..u16::from(EIGHT)).map(|n| 1000 + u16::from(generation) * 100 + n) {
        let segment = |flags| Frame::tcp(Family::V4.client(port), service(Family::V4, Protocol::Tcp).address, flags);
        let [first, second] = [SYN, ACK].map(|flags| bench.server_of(&segment(flags)));
        assert_eq!(first, second);
        assert!((generation * EIGHT + 1..=(generation + 1) * EIGHT).contains(&first), "{first}");
    }
}

#[test]
fn real_servers_can_be_exchanged_again_while_connections_of_the_first_last() {
    in_namespace(|| {
        let policy = Policy::new(Scheduler::Rr);
        let table = BTreeMap::from([(service(Family::V4, Protocol::Tcp), servers(&policy, 0))]);
        let mut bench = bench_with(Capacity::of(&table).real_servers_max);
        for generation in 0..MOST / EIGHT {
            bench.serve(service(Family::V4, Protocol::Tcp), DR, &reals(generation));
            connect(&bench, generation);
        }
    });
}

#[test]
fn where_removed_real_servers_have_all_places_the_error_says_so_and_expire_makes_room() {
    in_namespace(|| {
        let service = service(Family::V4, Protocol::Tcp);
        let mut bench = bench_with(16);
        for generation in 0..2 {
            bench.serve(service, DR, &reals(generation));
            connect(&bench, generation);
        }
        let policy = Policy::new(Scheduler::Rr);
        let refused = bench.datapath.apply(&Change::Put(service, servers(&policy, 2)));
        let error = refused.expect_err("8 places are free of 24 that are wanted").to_string();
        let expected =
            "real_servers is full at 16 entries; 8 of them are of removed real servers that still have connections";
        assert!(error.starts_with(expected) && error.contains("removed_real_server = \"expire\""), "{error}");
        connect(&bench, 1);
        // The two generations have all sixteen places; those of the first are wanted for nothing but its connections.
        let policy = Policy { removed_real_server: Removal::Expire, ..policy };
        bench.datapath.apply(&Change::Put(service, servers(&policy, 2))).expect("there is room");
        connect(&bench, 2);
    });
}
