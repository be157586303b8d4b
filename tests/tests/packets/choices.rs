//! What schedulers choose, against what was worked out independently: whole rounds, long connections, Maglev's table.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::hash::{self, Secret};
use lb_common::net::{Address, Protocol};
use lb_common::service::{ForwardingMethod, Scheduler};
use lb_userspace::datapath::xdp::object::LoadOptions;
use lb_userspace::model::Policy;

use super::bench::{Bench, OPTIONS, in_namespace};
use super::frame::{ACK, Frame};
use super::model::rings::{self, Backend};
use super::scene::{FAMILIES, Family, INGRESS, opening, real_server, service};

/// One virtual server of TCP with `dr` and real servers 1, 2, ... of these weights.
fn scheduling(scheduler: Scheduler, family: Family, weights: &[u16]) -> Bench {
    // Room for all that any test opens.
    let mut bench = Bench::load(&LoadOptions { connections_max: 20_000, ..OPTIONS });
    (1..).zip(weights).for_each(|(n, _)| bench.way(family, n, INGRESS, 1500));
    weigh(&mut bench, scheduler, family, weights);
    bench
}

fn weigh(bench: &mut Bench, scheduler: Scheduler, family: Family, weights: &[u16]) {
    let reals: Vec<(SocketAddr, u16)> =
        (1..).zip(weights).map(|(n, weight)| (real_server(family, ForwardingMethod::Dr, n), *weight)).collect();
    bench.serve_by(&Policy::new(scheduler), service(family, Protocol::Tcp), ForwardingMethod::Dr, &reals);
}

/// Opens a connection from `port` and brings it to where it counts as active.
fn establish(bench: &Bench, family: Family, port: u16) -> u8 {
    let n = bench.open(family, port);
    let data = Frame::tcp(family.client(port), service(family, Protocol::Tcp).address, ACK);
    assert_eq!(bench.server_of(&data), n);
    n
}

/// Connections of each real server that has any.
fn count(servers: impl IntoIterator<Item = u8>) -> BTreeMap<u8, usize> {
    let mut counts = BTreeMap::new();
    servers.into_iter().for_each(|n| *counts.entry(n).or_default() += 1);
    counts
}

#[test]
fn weighted_round_robin_is_smooth_and_exact_over_one_ring() {
    in_namespace(|| {
        // The second has a common divisor, 2; the ring has the sum of what is left.
        for (weights, length) in [(&[5, 1, 1][..], 7), (&[6, 4, 2], 6), (&[1, 2, 3, 10], 16), (&[3, 0, 2], 5)] {
            for family in FAMILIES {
                let bench = scheduling(Scheduler::Wrr, family, weights);
                let chosen: Vec<u8> = (1000..1000 + 3 * length).map(|port| bench.open(family, port)).collect();
                let weights: Vec<u32> = weights.iter().map(|weight| u32::from(*weight)).collect();
                let ring = rings::smooth(&weights);
                let expected: Vec<u8> = ring.iter().map(|n| u8::try_from(n + 1).expect("few")).collect();
                assert_eq!(chosen, expected.repeat(3), "{weights:?}");
                // Wherever it begins, one round gives everybody the exact share.
                let total: u32 = weights.iter().sum();
                for round in chosen.windows(usize::from(length)) {
                    for (n, share) in count(round.iter().copied()) {
                        let weight = weights[usize::from(n) - 1];
                        assert_eq!(u32::try_from(share).expect("few") * total, weight * u32::from(length));
                    }
                }
            }
        }
    });
}

#[test]
fn ten_thousand_long_connections_are_within_one_of_their_ideal_shares() {
    in_namespace(|| {
        for scheduler in [Scheduler::Wlc, Scheduler::Sed] {
            let bench = scheduling(scheduler, Family::V4, &[1, 2, 3, 10]);
            let counts = count((10_000..20_000).map(|port| establish(&bench, Family::V4, port)));
            // 10,000 * 1, 2, 3 and 10 of 16.
            for (n, ideal) in (1..).zip([625_usize, 1250, 1875, 6250]) {
                assert!(counts[&n].abs_diff(ideal) <= 1, "{scheduler:?}: {counts:?}");
            }
        }
        let bench = scheduling(Scheduler::Lc, Family::V4, &[1, 2, 3, 10]);
        let counts = count((10_000..20_000).map(|port| establish(&bench, Family::V4, port)));
        assert_eq!(counts, (1..=4).map(|n| (n, 2500)).collect());
    });
}

/// Two of weight 1 and 3 that fill up: by hand from (active + 1) / weight.
#[test]
fn the_shortest_delay_is_expected_with_the_new_connection_and_never_queue_fills_idle_ones_first() {
    in_namespace(|| {
        for family in FAMILIES {
            // (1, 1/3), (1, 2/3), a tie of (1, 1) at turn 2 of 2 lanes, then (2, 1).
            let bench = scheduling(Scheduler::Sed, family, &[1, 3]);
            assert_eq!([1000, 1001, 1002, 1003].map(|port| establish(&bench, family, port)), [2, 2, 1, 2]);
            // Both idle: 1/3 is less; one idle; then (2, 2/3), (2, 1).
            let bench = scheduling(Scheduler::Nq, family, &[1, 3]);
            assert_eq!([1000, 1001, 1002, 1003].map(|port| establish(&bench, family, port)), [2, 1, 2, 2]);
        }
    });
}

#[test]
fn failover_prefers_the_highest_weight_and_overflow_goes_on_when_it_has_more_connections_than_that() {
    in_namespace(|| {
        for family in FAMILIES {
            let bench = scheduling(Scheduler::Fo, family, &[1, 3, 2]);
            assert_eq!([1000, 1001, 1002].map(|port| establish(&bench, family, port)), [2, 2, 2]);
            // Three do not exceed 3, so a fourth is taken; then three by 2, two by 1.
            let bench = scheduling(Scheduler::Ovf, family, &[1, 3, 2]);
            let chosen: Vec<u8> = (1000..1009).map(|port| establish(&bench, family, port)).collect();
            assert_eq!(chosen, [2, 2, 2, 2, 3, 3, 3, 1, 1]);
            let full = opening(service(family, Protocol::Tcp), 1009);
            bench.expect_refusal(&full.bytes(), lb_common::drop_reason::DropReason::NoRealServer);
        }
    });
}

/// Two choices among equals cannot be far off even shares.
#[test]
fn the_better_of_two_drawn_by_weight_keeps_loads_close() {
    in_namespace(|| {
        let bench = scheduling(Scheduler::Twos, Family::V4, &[1, 2, 3, 10]);
        let counts = count((10_000..20_000).map(|port| establish(&bench, Family::V4, port)));
        for (n, ideal) in (1..).zip([625_usize, 1250, 1875, 6250]) {
            assert!(counts[&n].abs_diff(ideal) * 20 <= ideal, "{counts:?}");
        }
    });
}

/// The table of the paper, made here, for real servers that are named by address and port.
fn maglev(family: Family, weights: &[u16]) -> Vec<u8> {
    const SIZE: usize = 65_521;
    let below = |hash: u64, limit: usize| usize::try_from(hash % u64::try_from(limit).expect("fits")).expect("fits");
    let weighted: Vec<(u8, u16)> = (1..).zip(weights.iter().copied()).filter(|(_, weight)| *weight != 0).collect();
    let backend = |(n, weight): &(u8, u16)| {
        let address = real_server(family, ForwardingMethod::Dr, *n);
        let hash = hash::scheduling(Address::from(address.ip()).halves(), address.port());
        Backend {
            offset: below(hash::mix(hash ^ 0x6f66_6673_6574_0001), SIZE),
            skip: below(hash::mix(hash ^ 0x736b_6970_0000_0002), SIZE - 1) + 1,
            weight: usize::from(*weight),
        }
    };
    let backends: Vec<Backend> = weighted.iter().map(backend).collect();
    rings::maglev(&backends, SIZE).into_iter().map(|position| weighted[position].0).collect()
}

/// Who gets client number `client`, by that table.
fn by_table(table: &[u8], client: SocketAddr) -> u8 {
    let hash = hash::scheduling(Address::from(client.ip()).halves(), 0);
    table[usize::try_from(hash % u64::try_from(table.len()).expect("fits")).expect("fits")]
}

/// A SYN of client number `client`.
fn syn_of(family: Family, client: u16) -> Frame {
    let [high, low] = client.to_be_bytes();
    let mut frame = opening(service(family, Protocol::Tcp), 1000);
    frame.source = match family {
        Family::V4 => ([10, 9, high, low], 1000).into(),
        Family::V6 => (std::net::Ipv6Addr::new(0x2001, 0xdb8, 9, 9, 0, 0, 0, client), 1000).into(),
    };
    frame
}

#[test]
fn maglev_chooses_as_the_papers_algorithm_and_removing_one_of_ten_moves_a_tenth() {
    in_namespace(|| {
        for family in FAMILIES {
            let mut weights = vec![1; 10];
            let mut bench = scheduling(Scheduler::Mh, family, &weights);
            let chosen = |bench: &Bench, table: &[u8]| -> Vec<u8> {
                let choose = |client| {
                    let syn = syn_of(family, client);
                    let n = bench.server_of(&syn);
                    assert_eq!(n, by_table(table, syn.source));
                    n
                };
                (0..2000).map(choose).collect()
            };
            let table = maglev(family, &weights);
            let before = chosen(&bench, &table);
            weights[3] = 0;
            // Their connections are forgotten, so that all choose again.
            bench.withdraw(service(family, Protocol::Tcp));
            weigh(&mut bench, Scheduler::Mh, family, &weights);
            let without = maglev(family, &weights);
            let after = chosen(&bench, &without);
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            let moved_in_table = table.iter().zip(&without).filter(|(before, after)| before != after).count();
            println!("{family:?}: {moved} of 2000 clients moved, {moved_in_table} of {} places", table.len());
            // All clients of the one that is gone, a tenth, and few others.
            assert!(after.iter().all(|n| *n != 4));
            assert!(moved_in_table * 100 <= table.len() * 12, "{moved_in_table}");
            assert!(moved <= 280, "{moved}");
        }
    });
}

#[test]
fn hashing_with_ports_spreads_one_client_and_without_keeps_it_together() {
    in_namespace(|| {
        for family in FAMILIES {
            for scheduler in [Scheduler::Sh, Scheduler::Mh] {
                let mut bench = scheduling(scheduler, family, &[1, 1, 1, 1]);
                let together = count((1000..1100).map(|port| bench.open(family, port)));
                assert_eq!(together.len(), 1, "{together:?}");
                let reals = [1, 2, 3, 4].map(|n| (real_server(family, ForwardingMethod::Dr, n), 1));
                let policy = Policy { hash_port: true, ..Policy::new(scheduler) };
                bench.serve_by(&policy, service(family, Protocol::Tcp), ForwardingMethod::Dr, &reals);
                let spread = count((2000..2400).map(|port| bench.open(family, port)));
                // 100 each; six standard deviations are 52.
                assert!(spread.len() == 4 && spread.values().all(|count| (48..152).contains(count)), "{spread:?}");
            }
            // By the VIP there is one for everybody.
            let bench = scheduling(Scheduler::Dh, family, &[1, 1, 1, 1]);
            assert_eq!(count((0..100).map(|client| bench.server_of(&syn_of(family, client)))).len(), 1);
        }
    });
}

/// Two directors, and one after a restart: other secrets, the same choice.
#[test]
fn two_directors_choose_alike_by_hash() {
    in_namespace(|| {
        for scheduler in [Scheduler::Sh, Scheduler::Mh] {
            let one = scheduling(scheduler, Family::V4, &[1, 2, 3]);
            let mut other = Bench::load(&LoadOptions { secret: Secret { words: [7, 8] }, ..OPTIONS });
            (1..=3).for_each(|n| other.way(Family::V4, n, INGRESS, 1500));
            weigh(&mut other, scheduler, Family::V4, &[1, 2, 3]);
            for client in 0..500 {
                let syn = syn_of(Family::V4, client);
                assert_eq!(one.server_of(&syn), other.server_of(&syn));
            }
        }
    });
}

/// The segment of an unknown connection goes where its SYN would have gone, and is remembered.
#[test]
fn schedulers_by_hash_pick_up_connections_in_mid_stream() {
    in_namespace(|| {
        for family in FAMILIES {
            for scheduler in [Scheduler::Sh, Scheduler::Dh, Scheduler::Mh] {
                let bench = scheduling(scheduler, family, &[1, 1, 1]);
                let address = service(family, Protocol::Tcp).address;
                let n = bench.open(family, 1000);
                let same_client = Frame::tcp(family.client(2000), address, ACK);
                assert_eq!(bench.server_of(&same_client), n);
                assert_eq!(bench.server_of(&same_client), n);
            }
        }
    });
}
